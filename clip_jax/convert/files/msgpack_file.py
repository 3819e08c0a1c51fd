"""Reads flax's msgpack files (`flax_model.msgpack`), without flax.

The msgpack package parses the file; only maps, plain values and flax's two
extension types for numpy arrays are accepted.
"""

import os
from typing import Any

import msgpack
import numpy as np

from clip_jax.convert.files import datafile, nested
from clip_jax.convert.tensor import Tensor

_KIND = "a flax msgpack file"
_NDARRAY, _NUMPY_SCALAR = 1, 3  # Extension types of flax.serialization.
_CHUNKED = "__msgpack_chunked_array__"
# Msgpack's arrays hold only shapes and short lists here. A limit is needed,
# since msgpack allocates by the length in a header, on each of 1,000 levels.
MAX_LIST_ITEMS = 4096


def read(
  path: str | os.PathLike, select: nested.Select = nested.flatten
) -> datafile.Contents:
  """Returns the content of a flax msgpack file; its arrays are in memory.

  Args:
    path: path of the file.
    select: chooses the model in the tree, and its names.

  Raises:
    DamagedError: it is not a map of arrays and plain values.
  """
  file = datafile.DataFile(path)
  with datafile.checked(file.path, _KIND):
    tree = _unpack(file)
    if not isinstance(tree, dict):
      raise ValueError(f"it holds a {type(tree).__name__}, no map of arrays")
    tensors = {}
    for name, leaf in select(tree, "/").items():
      if isinstance(leaf, Tensor):
        tensors[name] = leaf
      elif not isinstance(leaf, bool | int | float | str | None):
        raise ValueError(f"{name!r} is a {type(leaf).__name__}, no array")
  return datafile.Contents(tensors)


def _unpack(file: datafile.DataFile) -> Any:
  """Returns the only object of the file, with arrays as `Tensor`s.

  The file is parsed in pieces, so that the buffer stays small.
  """
  unpacker = msgpack.Unpacker(
    ext_hook=_extension,
    object_pairs_hook=_map,
    raw=False,
    strict_map_key=True,
    max_buffer_size=max(file.size, 1),
    max_str_len=nested.MAX_NAME_CHARS * 100,
    max_bin_len=0,
    max_array_len=MAX_LIST_ITEMS,
    max_map_len=nested.MAX_LEAVES,
    max_ext_len=min(file.size, 2**32 - 1),
  )
  made, end = None, -1
  for piece in file.chunks(0, file.size):
    unpacker.feed(piece)
    for value in unpacker:
      if end >= 0:
        raise ValueError("it holds more than one object")
      made, end = value, unpacker.tell()
  if end < 0:
    raise ValueError("it ends early")
  if end < file.size:
    raise ValueError(f"it has {file.size - end} bytes after its end")
  return made


def _map(pairs: list[tuple[Any, Any]]) -> Any:
  made: dict[str, Any] = {}
  for key, value in pairs:
    if type(key) is not str:
      raise ValueError(f"it has a {type(key).__name__} as a name")
    if key in made:
      raise ValueError(f"it has the name {key!r:.100} twice")
    made[key] = value
  return _unchunk(made) if _CHUNKED in made else made


def _extension(code: int, data: bytes) -> Tensor:
  if code not in (_NDARRAY, _NUMPY_SCALAR):
    raise ValueError(f"it has a value of the extension type {code}")
  # At most a shape, a dtype's name and the data.
  parts = msgpack.unpackb(
    data,
    raw=False,
    ext_hook=_no_extension,
    max_array_len=datafile.MAX_AXES,
    max_map_len=0,
    max_str_len=32,
    max_ext_len=0,
  )
  if type(parts) is not list or len(parts) != 3:
    raise ValueError("an array is not a shape, a dtype and data")
  shape, name, raw = parts
  if type(name) is not str or name not in datafile.DTYPES:
    known = ", ".join(datafile.DTYPES)
    raise ValueError(f"an array's dtype is {name!r:.50}; known: {known}")
  if type(shape) is not list or type(raw) is not bytes:
    raise ValueError("an array's shape or data are malformed")
  dtype = datafile.DTYPES[name]
  size = datafile.byte_count(tuple(shape), dtype)
  if size != len(raw):
    raise ValueError(f"an array of {size} bytes has {len(raw)}")
  if code == _NUMPY_SCALAR and shape:
    raise ValueError("a scalar has a shape")
  flat = np.frombuffer(raw, np.uint8)
  return Tensor.from_array(datafile.as_array(flat, tuple(shape), dtype))


def _no_extension(code: int, data: bytes):
  raise ValueError(f"an array holds a value of the extension type {code}")


def _unchunk(made: dict[str, Any]) -> Tensor:
  """Joins the chunks into which flax splits arrays above one gigabyte."""
  if set(made) != {_CHUNKED, "shape", "chunks"} or made[_CHUNKED] is not True:
    raise ValueError("an array in chunks is malformed")
  shape = _counted(made["shape"])
  chunks = _counted(made["chunks"])
  if not chunks or not all(
    isinstance(chunk, Tensor) and len(chunk.shape) == 1 for chunk in chunks
  ):
    raise ValueError("an array's chunks are no flat arrays")
  dtype = chunks[0].dtype
  if any(chunk.dtype != dtype for chunk in chunks):
    raise ValueError("an array's chunks have several dtypes")
  total = sum(chunk.nbytes for chunk in chunks)
  if datafile.byte_count(tuple(shape), dtype) != total:
    raise ValueError(f"an array's chunks have {total} bytes, not its shape's")
  flat = np.concatenate([chunk.read() for chunk in chunks])
  return Tensor.from_array(flat.reshape(shape))


def _counted(items: Any) -> list[Any]:
  """Returns the values of a map with the keys "0", "1", …, in that order."""
  if not isinstance(items, dict) or set(items) != set(
    map(str, range(len(items)))
  ):
    raise ValueError("an array in chunks is not numbered from 0")
  return [items[str(i)] for i in range(len(items))]
