"""timm as an oracle for an image tower."""

import json
from typing import Any

import clip_jax.convert.formats.timm as timm_format
from clip_jax import errors
from clip_jax.convert.verify.oracle import Checkpoint, Oracle, Tower, state_dict


def load(source: Checkpoint) -> Oracle:
  """Makes the architecture that the directory names, and loads its weights."""
  path = source.path
  if path.is_file():
    raise errors.UserError(
      f"{path} does not say which architecture timm should make; verify "
      "against timm's directory, with its config.json."
    )
  import timm

  config = json.loads((path / "config.json").read_text())
  weights = timm_format.find_weights(path)
  model: Any = timm.create_model(
    config["architecture"],
    num_classes=config.get("num_classes", 0),
    **config.get("model_args", {}),
  )
  model.load_state_dict(state_dict(source.tensors(weights)))
  model = (model.double() if source.double else model).eval()

  def run(pixels):
    features = model.forward_features(pixels)
    return {"pooled": model.forward_head(features, pre_logits=True)}

  return Oracle(f"timm {timm.__version__}", {"image": Tower(model.blocks, run)})
