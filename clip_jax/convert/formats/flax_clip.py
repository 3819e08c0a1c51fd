"""The retired FlaxCLIPModel of HuggingFace: `flax_model.msgpack`, to read.

transformers 5 has no Flax models any more, but their files are on the Hub
beside or instead of PyTorch's. Description, preprocessing and tokenizer are
those of `huggingface`; only names and layouts differ: flax's, like ours.
"""

import pathlib
from typing import Any

from clip_jax import errors
from clip_jax.convert import (
  engine,
  portable,
  transforms,
  weights_file,
)
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import Entry, Slot
from clip_jax.convert.formats import huggingface
from clip_jax.convert.formats import huggingface_config as config_lib
from clip_jax.convert.formats import huggingface_tokenizer as tokenizer
from clip_jax.convert.formats import huggingface_weights as weights

NAME = "flax-clip"
FILE = "flax_model.msgpack"


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` has such weights, and none for PyTorch."""
  return (
    (path / FILE).is_file()
    and config_lib.model_type(path) is not None
    and weights.find(path) is None
  )


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Reads a directory.

  Raises:
    UserError: it is damaged, or holds another model than a CLIP's two towers.
  """
  report = report_lib.Report(NAME)
  config = config_lib.read(path, report, {"activation": options.activation})
  if config.family.name != "clip" or config.tower:
    raise errors.UserError(
      f"{path}: {FILE} is read for model_type='clip' only; this is "
      f"{config_lib.model_type(path)!r}."
    )
  spec = huggingface.describe(path, config)
  tensors = weights_file.read(path / FILE, options, report).tensors
  for part in engine.towers(spec):
    if spec[part]["depth"] > len(tensors):
      raise errors.UserError(
        f"{path}: num_hidden_layers={spec[part]['depth']} of the {part} tower "
        f"is more than the {len(tensors)} tensors of {FILE}."
      )
  return portable.assemble(
    entries(spec),
    tensors,
    spec,
    report=report,
    name=str(path),
    options=options,
    configs=[path / config_lib.FILE],
    weights=[path / FILE],
    files=tokenizer.read_files(path),
  )


def entries(spec: dict[str, Any]) -> list[Entry]:
  """Returns where each tensor goes."""
  image, text = "params/image", "params/text"
  looks, words = "vision_model/embeddings", "text_model/embeddings"
  placed = {
    "logit_scale": "params/log_scale",
    "visual_projection/kernel": "params/image_projection/kernel",
    "text_projection/kernel": "params/text_projection/kernel",
    f"{looks}/class_embedding": f"{image}/class_embedding",
    f"{looks}/patch_embedding/kernel": f"{image}/patch_kernel",
    f"{looks}/position_embedding/embedding": f"{image}/position_embedding",
    f"{words}/token_embedding/embedding": f"{text}/token_embedding/embedding",
    f"{words}/position_embedding/embedding": f"{text}/position_embedding",
  }
  for theirs, ours in (
    ("vision_model/pre_layrnorm", f"{image}/ln_pre"),
    ("vision_model/post_layernorm", f"{image}/ln_post"),
    ("text_model/final_layer_norm", f"{text}/ln_final"),
  ):
    placed |= {f"{theirs}/{x}": f"{ours}/{x}" for x in ("scale", "bias")}
  return [
    *(Entry(theirs, (Slot(ours),)) for theirs, ours in placed.items()),
    *_block_entries("vision_model/encoder/layers/", "image", spec["image"]),
    *_block_entries("text_model/encoder/layers/", "text", spec["text"]),
  ]


def _block_entries(prefix, tower, description) -> list[Entry]:
  width, heads = description["width"], description["heads"]
  size = width // heads
  to_heads = transforms.reshape((width, heads, size), (width, width))
  from_heads = transforms.reshape((heads, size, width), (width, width))
  bias = transforms.reshape((heads, size), (width,))
  same = transforms.IDENTITY
  # theirs, ours, the transforms of the two tensors
  layers = (
    ("layer_norm1", "ln_1", ("scale", same), ("bias", same)),
    ("layer_norm2", "ln_2", ("scale", same), ("bias", same)),
    *(
      (
        f"self_attn/{part[0]}_proj",
        f"attention/{part}",
        ("kernel", to_heads),
        ("bias", bias),
      )
      for part in ("query", "key", "value")
    ),
    (
      "self_attn/out_proj",
      "attention/out",
      ("kernel", from_heads),
      ("bias", same),
    ),
    ("mlp/fc1", "mlp/fc_in", ("kernel", same), ("bias", same)),
    ("mlp/fc2", "mlp/fc_out", ("kernel", same), ("bias", same)),
  )
  return [
    Entry(
      f"{prefix}{i}/{theirs}/{name}",
      (engine.block_slot(tower, f"{ours}/{name}", i),),
      transform,
    )
    for i in range(description["depth"])
    for theirs, ours, *tensors in layers
    for name, transform in tensors
  ]
