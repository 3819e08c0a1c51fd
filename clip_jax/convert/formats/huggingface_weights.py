"""The weight files of a HuggingFace directory: one file, or shards."""

import functools
import pathlib
from collections.abc import Mapping

from clip_jax import json_text
from clip_jax.convert import config_file, weights_file
from clip_jax.convert.files import safetensors_file
from clip_jax.convert.tensor import Tensor

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
TORCH = "pytorch_model.bin"
MAX_SHARD_BYTES = 5_000_000_000  # The default of `save_pretrained` for years.

# In the order in which transformers looks for them.
NAMES = (WEIGHTS, INDEX, TORCH, f"{TORCH}.index.json")

# The file of weights or of their index: None if there is none, or an error.
find = functools.partial(weights_file.first, names=NAMES)
require = functools.partial(weights_file.require, names=NAMES)


def files(path: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files of weights: `path`, or the shards of an index."""
  if path.suffix != ".json":
    return [path]
  index = json_text.read(path)
  return [path] + [
    path.parent / name for name in sorted(set(index["weight_map"].values()))
  ]


def write(directory: pathlib.Path, tensors: Mapping[str, Tensor]) -> None:
  """Writes one safetensors file, or shards of at most `MAX_SHARD_BYTES`."""
  shards: list[dict[str, Tensor]] = [{}]
  room = MAX_SHARD_BYTES
  for name, tensor in tensors.items():
    if tensor.nbytes > room and shards[-1]:
      shards.append({})
      room = MAX_SHARD_BYTES
    shards[-1][name] = tensor
    room -= tensor.nbytes
  if len(shards) == 1:
    safetensors_file.write(directory / WEIGHTS, shards[0])
    return
  weight_map = {}
  for i, shard in enumerate(shards, start=1):
    file_name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
    safetensors_file.write(directory / file_name, shard)
    weight_map |= dict.fromkeys(shard, file_name)
  total = sum(tensor.nbytes for tensor in tensors.values())
  index = {"metadata": {"total_size": total}, "weight_map": weight_map}
  config_file.write(directory / INDEX, index)
