"""Reads and writes numpy's archives of arrays, big_vision's checkpoints.

Headers are matched with a pattern and never evaluated. Arrays of bfloat16 are
stored as voids of two bytes, as big_vision does.
"""

import io
import itertools
import os
import pathlib
import re
from collections.abc import Iterator, Mapping

import numpy as np

from clip_jax import errors, whole_files
from clip_jax.convert import tensor as tensor_lib
from clip_jax.convert.files import datafile, zip_directory

_KIND = "a numpy archive"
_SUFFIX = ".npy"
_MAGIC = b"\x93NUMPY"
MAX_HEADER_BYTES = 10_000  # numpy's own limit.

# Limits on the decompressed size, in bytes and as a ratio. Weights hardly
# compress; zeros compress a thousand times, so that a small file could fill the
# memory.
MAX_INFLATED_BYTES = 1 << 28
MAX_INFLATED_RATIO = 64

# Python 2 wrote its long integers with an L.
_LENGTH = r"(?:0|[1-9][0-9]*)L?"
_HEADER = re.compile(
  r"\{S'descr':S(?P<descr>'[^'\\]*'|\[.*\]|[^'\[]{0,40}?)S,"
  r"S'fortran_order':S(?P<fortran>True|False)S,"
  r"S'shape':S\(S(?P<shape>NS,S(?:NS,S)*(?:NS)?|)\)S,?S\}S".replace(
    "S", "[ \\n]*"
  ).replace("N", _LENGTH),
  re.DOTALL,
)
_DESCR = re.compile(r"'([<>|=])?([biufV])(\d{1,2})'")
_NUMBERS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
_NUMBERS |= {"b1", "f2", "f4", "f8"}


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
  text, start = _header_text(
    zip_directory.head(file, entry, MAX_HEADER_BYTES + 12)
  )
  shape, dtype, fortran = _parse(text)
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


def _header_text(head: bytes) -> tuple[str, int]:
  """Returns an array's header, and the position of its data."""
  if head[:6] != _MAGIC:
    raise ValueError("it does not begin as a numpy array does")
  version = tuple(head[6:8])
  if version not in ((1, 0), (2, 0), (3, 0)):
    raise ValueError(f"its format version is {version}; known: 1.0, 2.0, 3.0")
  start = 10 if version == (1, 0) else 12
  size = int.from_bytes(head[8:start], "little")
  if size > MAX_HEADER_BYTES or start + size > len(head):
    raise ValueError(f"its header should have {size} bytes")
  encoding = "utf-8" if version == (3, 0) else "latin-1"
  return head[start : start + size].decode(encoding), start + size


def _parse(text: str) -> tuple[tuple[int, ...], np.dtype, bool]:
  """Returns the shape, the stored dtype and the order in an array's header."""
  match = _HEADER.fullmatch(text)
  if not match:
    raise ValueError(f"its header is not numpy's: {text[:80]!r}")
  descr = _DESCR.fullmatch(match["descr"])
  order, kind = (descr[1], descr[2] + descr[3]) if descr else (None, "")
  if kind == "V2" and order != ">":
    dtype = datafile.BFLOAT16
  elif kind in _NUMBERS:
    dtype = np.dtype(order.replace("|", "=") + kind if order else kind)
  else:
    raise ValueError(
      f"its dtype is {match['descr'][:40]}; only numbers, truth values and "
      "bfloat16 (as two-byte voids) are read, never objects"
    )
  lengths = match["shape"].replace("L", "").split(",")
  shape = tuple(int(length) for length in lengths if length.strip())
  return shape, dtype, match["fortran"] == "True"


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
  elif tensor.dtype.str[1:] in _NUMBERS:
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
