"""timm as an oracle for an image tower."""

import json
import pathlib
from typing import Any

import numpy as np

import clip_jax.convert.timm as timm_format
from clip_jax import errors
from clip_jax.convert import portable, weights_file
from clip_jax.convert import report as report_lib
from clip_jax.convert.verify import watching
from clip_jax.convert.verify.oracle import Oracle, Stages


def load(
  path: pathlib.Path,
  *,
  double: bool,
  spec: dict[str, Any],
  options: portable.Options,
) -> Oracle:
  """Makes the architecture that the directory names and fills it."""
  if path.is_file():
    raise errors.UserError(
      f"{path} does not say which architecture timm should make; verify "
      "against timm's directory, with its config.json."
    )
  import timm
  import torch

  config = json.loads((path / "config.json").read_text())
  weights = timm_format.weights_in(path, timm_format.WEIGHTS)
  tensors = weights_file.read(weights, options, report_lib.Report("")).tensors
  model = timm.create_model(
    config["architecture"],
    num_classes=config.get("num_classes", 0),
    **config.get("model_args", {}),
  )
  state = {
    name: torch.from_numpy(np.array(tensor.read().astype(np.float32)))
    for name, tensor in tensors.items()
  }
  model.load_state_dict(state)
  model = (model.double() if double else model).eval()
  del spec

  def image_stages(images: np.ndarray) -> Stages:
    pixels = watching.channels_first(images, double)
    out = {}

    def run():
      features = model.forward_features(pixels)
      out["pooled"] = model.forward_head(features, pre_logits=True).numpy()

    return watching.watch(watching.blocks(model.blocks), run) | out

  return Oracle(f"timm {timm.__version__}", image_stages, None, None)
