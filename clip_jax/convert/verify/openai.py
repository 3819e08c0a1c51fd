"""OpenAI's own model as an oracle, from any package that holds its model.py."""

import importlib.util
import pathlib
import sys
from typing import Any

import numpy as np

from clip_jax.convert import portable, weights_file
from clip_jax.convert import report as report_lib
from clip_jax.convert.verify import watching
from clip_jax.convert.verify.oracle import Oracle, Stages


def _module():
  """Returns model.py alone: its package would import torchvision."""
  package = importlib.util.find_spec("clip")
  path = pathlib.Path(package.submodule_search_locations[0]) / "model.py"
  spec = importlib.util.spec_from_file_location("_openai_clip_model", path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  return module


def load(
  path: pathlib.Path,
  *,
  double: bool,
  spec: dict[str, Any],
  options: portable.Options,
) -> Oracle:
  """Builds the model with its own rules and fills it with the source."""
  import torch

  library = _module()
  kind = torch.float64 if double else torch.float32
  image, text = spec["image"], spec["text"]
  is_vit = image["kind"] == "vit"
  model = library.CLIP(
    spec["embed_dim"],
    image["image_size"],
    image["depth"] if is_vit else tuple(image["depths"]),
    image["width"],
    image["patch_size"] if is_vit else None,
    text["context_length"],
    text["vocab_size"],
    text["width"],
    text["heads"],
    text["depth"],
  ).to(kind)
  if double:  # Its layer norm would compute in float32.
    for module in model.modules():
      if isinstance(module, library.LayerNorm):
        module.forward = torch.nn.LayerNorm.forward.__get__(module)
  # OpenAI's loader executes the archive; the tensors are the same.
  tensors = weights_file.read(path, options, report_lib.Report("")).tensors
  state = {
    name: torch.from_numpy(np.array(tensor.read().astype(np.float64))).to(kind)
    for name, tensor in tensors.items()
    if name not in ("input_resolution", "context_length", "vocab_size")
  }
  model.load_state_dict(state)
  model = model.eval()

  def image_stages(images: np.ndarray) -> Stages:
    pixels = watching.channels_first(images, double)
    if is_vit:
      parts = watching.blocks(model.visual.transformer.resblocks)
    else:
      stages = (getattr(model.visual, f"layer{i}") for i in range(1, 5))
      parts = [(f"stage {i}", stage) for i, stage in enumerate(stages, start=1)]
    embeds = {}

    def run():
      embeds["features"] = model.encode_image(pixels).numpy()

    found = watching.watch(parts, run, sequence_first=True)
    return found | {"embedding": watching.unit(embeds["features"])}

  def text_stages(tokens: np.ndarray) -> Stages:
    ids = torch.from_numpy(np.asarray(tokens, np.int64))
    embeds = {}

    def run():
      embeds["features"] = model.encode_text(ids).numpy()

    parts = watching.blocks(model.transformer.resblocks)
    found = watching.watch(parts, run, sequence_first=True)
    return found | {"embedding": watching.unit(embeds["features"])}

  def logits(image_embeds: np.ndarray, text_embeds: np.ndarray) -> np.ndarray:
    scale = model.logit_scale.detach().exp().numpy()
    return scale * image_embeds @ text_embeds.T

  return Oracle("OpenAI's model.py", image_stages, text_stages, logits)
