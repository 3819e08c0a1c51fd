"""Reads HuggingFace's former FlaxCLIPModel: `flax_model.msgpack`.

transformers 5 has no Flax models any more, but the Hub has their files beside
or instead of PyTorch's. Description, preprocessing and tokenizer are those of
`huggingface`; only names and layouts differ, which are flax's, like ours.
"""

import pathlib

from clip_jax import errors
from clip_jax.convert import portable, tokenizer_files
from clip_jax.convert.engine.format import Format
from clip_jax.convert.engine.names import FLAX, Names
from clip_jax.convert.formats import huggingface
from clip_jax.convert.formats import huggingface_clip as clip
from clip_jax.convert.formats import huggingface_weights as weights
from clip_jax.convert.formats.huggingface_family import PREFIXES
from clip_jax.convert.source_reading import SourceReading

NAME = "flax-clip"
FILE = "flax_model.msgpack"


def _flax(torch: str) -> str:
  """Returns flax's form of a table of torch's names, or of a prefix."""
  for theirs, ours in (
    ("conv ", "- "),
    ("patch_embedding.weight", "patch_embedding.kernel"),
    ("_embedding.weight", "_embedding.embedding"),
    (".", "/"),
  ):
    torch = torch.replace(theirs, ours)
  return torch


NAMES = Names(
  {name: _flax(table) for name, table in clip.NAMES.tables.items()},
  kinds=FLAX,
  variables={name: _flax(prefix) for name, prefix in PREFIXES.items()},
)


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` has weights for flax, and none for PyTorch."""
  return (
    (path / FILE).is_file()
    and huggingface.model_type(path) is not None
    and weights.find(path) is None
  )


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Returns the model of a directory.

  Raises:
    UserError: it is damaged, or is not a CLIP of two towers.
  """
  reading = SourceReading(str(path), NAME, options)
  config = huggingface.read_config(path, reading)
  if config.family.name != "clip" or config.tower:
    raise errors.UserError(
      f"{path}: {FILE} is read for model_type='clip' only; this is "
      f"{huggingface.model_type(path)!r}. Save its weights as safetensors with "
      "the program that made it."
    )
  tensors = reading.tensors(path / FILE)
  spec = huggingface.describe(path, config)
  huggingface.check_depths(spec, tensors, f"{path}: {FILE}")
  return reading.model(
    NAMES.entries(spec),
    tensors,
    spec,
    configs=[path / huggingface.CONFIG],
    weights=[path / FILE],
    files=tokenizer_files.carry(path),
  )


FORMAT = Format(NAME, read, recognise=recognise)
