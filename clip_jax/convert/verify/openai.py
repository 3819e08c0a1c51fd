"""OpenAI's own model as an oracle, from any package that has its model.py."""

import importlib.util
import pathlib
import sys

from clip_jax.convert.verify.oracle import (
  Checkpoint,
  Oracle,
  Tower,
  image_tower,
  state_dict,
  unit,
)


def _module():
  """Returns the module model.py alone; its package would import torchvision."""
  package = importlib.util.find_spec("clip")
  assert package and package.submodule_search_locations, "libraries.py checks"
  path = pathlib.Path(package.submodule_search_locations[0]) / "model.py"
  spec = importlib.util.spec_from_file_location("_openai_clip_model", path)
  assert spec and spec.loader, "a file of Python has a loader"
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module
  spec.loader.exec_module(module)
  return module


def load(source: Checkpoint) -> Oracle:
  """Builds OpenAI's model and loads the source's weights into it."""
  import torch

  library = _module()
  kind = torch.float64 if source.double else torch.float32
  spec = source.spec
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
  if source.double:  # Else its layer norm computes in float32.
    for module in model.modules():
      if isinstance(module, library.LayerNorm):
        module.forward = torch.nn.LayerNorm.forward.__get__(module)
  # OpenAI's loader would execute the archive; the tensors are the same.
  state = state_dict(source.tensors())
  for size in ("input_resolution", "context_length", "vocab_size"):
    state.pop(size, None)
  model.load_state_dict(state)
  model = model.eval()
  towers = {
    "image": image_tower(
      model.visual,
      run=lambda pixels: {"embedding": unit(model.encode_image(pixels))},
      sequence_first=True,
    ),
    "text": Tower(
      model.transformer.resblocks,
      lambda ids: {"embedding": unit(model.encode_text(ids))},
      sequence_first=True,
    ),
  }
  return Oracle("OpenAI's model.py", towers, model)
