"""Reads and writes numpy's archives of arrays, big_vision's checkpoints.

Headers are matched with a pattern and never evaluated. Arrays of bfloat16 are
stored as voids of two bytes, as big_vision does.
"""

import io
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from clip_jax import errors, npy_header, whole_files
from clip_jax.convert import tensor as tensor_lib
from clip_jax.convert.files import datafile, zip_directory

_KIND = "a numpy archive"
_SUFFIX = ".npy"

# Limits on the decompressed size, in bytes and as a ratio. Weights hardly
# compress; zeros compress a thousand times, so that a small file could fill the
# memory.
MAX_INFLATED_BYTES = 1 << 28
MAX_INFLATED_RATIO = 64


def read(path: str | os.PathLike) -> datafile.Contents:
  """Returns the tensors of an `.npz` file by name; reads only their headers.

  Raises:
    DamagedError: it is not an archive of plain arrays of numbers.
  """
  file = datafile.DataFile(path)
  with datafile.checked(file.path, _KIND):
    entries = zip_directory.read(file)
    inflated = sum(e.size for e in entries.values() if e.compressed)
    if inflated > max(MAX_INFLATED_BYTES, MAX_INFLATED_RATIO * file.size):
      raise ValueError(
        f"{file.size} bytes would inflate to {inflated}; if this is meant, "
        "store it by np.savez instead of np.savez_compressed"
      )
    tensors = {}
    for name, entry in entries.items():
      if not name.endswith(_SUFFIX):
        raise ValueError(f"its entry {name!r:.100} is no array")
      with datafile.about(f"array {name!r:.100}"):
        tensors[name.removesuffix(_SUFFIX)] = _tensor(file, entry)
  return datafile.Contents(tensors)


def _tensor(
  file: datafile.DataFile, entry: zip_directory.Entry
) -> tensor_lib.Tensor:
  shape, dtype, fortran, start = npy_header.read(
    zip_directory.head(file, entry, npy_header.MAX_BYTES + 12)
  )
  if dtype.kind == "V":
    dtype = datafile.BFLOAT16
  size = datafile.byte_count(shape, dtype)
  if start + size != entry.size:
    raise ValueError(
      f"it has {entry.size - start} bytes, its shape and dtype take {size}"
    )

  def read_data() -> np.ndarray:
    with datafile.checked(file.path, _KIND):
      raw = zip_directory.content(file, entry)[start:]
      return _as_array(raw, shape, dtype, fortran)

  return tensor_lib.Tensor(shape, _native(dtype), read_data)


def _native(dtype: np.dtype) -> np.dtype:
  return dtype if dtype == datafile.BFLOAT16 else dtype.newbyteorder("=")


def _as_array(raw, shape, dtype, fortran: bool) -> np.ndarray:
  if dtype.byteorder == ">":
    raw = raw.view(dtype).astype(_native(dtype)).view(np.uint8)
  # The data may begin at any byte; JAX needs them aligned, numpy does not.
  raw = raw if raw.ctypes.data % 16 == 0 else raw.copy()
  array = datafile.as_array(
    raw, shape[::-1] if fortran else shape, _native(dtype)
  )
  return np.ascontiguousarray(array.T).reshape(shape) if fortran else array


def write(
  path: str | os.PathLike, tensors: Mapping[str, tensor_lib.Tensor]
) -> None:
  """Writes an archive that `np.load` reads, one array at a time in memory.

  bfloat16 is stored as voids of two bytes, which np.load returns as voids. The
  same tensors give the same bytes.
  """
  with whole_files.replacing(pathlib.Path(path)) as file:
    zip_directory.write(file, itertools.starmap(_entry, tensors.items()))


def _entry(name: str, tensor: tensor_lib.Tensor) -> tuple[str, Iterator, int]:
  """Returns name, bytes and size of an array's entry."""
  header = _header(name, tensor)
  pieces = itertools.chain([header], datafile.tensor_bytes(tensor))
  return name + _SUFFIX, pieces, len(header) + tensor.nbytes


def _header(name: str, tensor: tensor_lib.Tensor) -> bytes:
  if tensor.dtype == datafile.BFLOAT16:
    descr = "|V2"
  elif tensor.dtype.str[1:] in npy_header.NUMBERS:
    descr = tensor.dtype.newbyteorder("<").str
  else:
    raise errors.UserError(
      f"A numpy archive cannot hold {name!r} of dtype {tensor.dtype}: it is "
      "neither a number of numpy's nor bfloat16."
    )
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header, {"descr": descr, "fortran_order": False, "shape": tensor.shape}
  )
  return header.getvalue()
