"""Reads and writes safetensors files, single ones and sharded ones.

We do not use the safetensors library: it maps the file, so that after a
conversion all of it counts as resident memory, and its writer needs every array
in memory at once. The format is 8 bytes, a JSON header and raw data. This
module reads each tensor by position when it is used, and writes them one by
one; the tests compare it with the library both ways.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clip_jax import errors, json_text, regular_files, whole_files
from clip_jax.convert import tensor as tensor_lib
from clip_jax.convert.files import datafile

_KIND = "a safetensors file"
MAX_HEADER_BYTES = 100_000_000  # The library's own limit.
_LENGTH_BYTES = 8
_METADATA = "__metadata__"

_CODES = "BOOL U8 I8 U16 I16 U32 I32 U64 I64 F16 BF16 F32 F64 F8_E4M3 F8_E5M2"
DTYPES = dict(zip(_CODES.split(), datafile.DTYPES.values(), strict=True))
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read(path: str | os.PathLike) -> datafile.Contents:
  """Returns the tensors of a safetensors file; reads only its header.

  Raises:
    DamagedError: the header is too long, is not JSON or has a key twice; or its
      offsets do not fit the shapes, or do not cover the file exactly once.
  """
  file = datafile.DataFile(path)
  with datafile.checked(file.path, _KIND):
    header, start = _header(file)
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(
      isinstance(value, str) for value in metadata.values()
    ):
      raise ValueError("its metadata are not texts by name")
    tensors = {}
    end = 0
    places = {name: _place(name, entry) for name, entry in header.items()}
    for name in sorted(places, key=lambda name: places[name][2:]):
      shape, dtype, first, last = places[name]
      if first != end:
        raise ValueError(
          f"tensor {name!r:.100} begins at byte {first} of the data, the one "
          f"before ends at {end}"
        )
      end = last
      tensors[name] = _tensor(file, start + first, shape, dtype)
    if start + end != file.size:
      raise ValueError(
        f"its tensors have {end} bytes, the file has {file.size - start}"
      )
  # In the header's order, in which the tensors were written.
  tensors = {name: tensors[name] for name in places}
  return datafile.Contents(tensors)


def _header(file: datafile.DataFile) -> tuple[dict[str, Any], int]:
  """Returns the parsed header, and the position of the data."""
  size = int.from_bytes(file.read(0, _LENGTH_BYTES), "little")
  if size > min(MAX_HEADER_BYTES, file.size - _LENGTH_BYTES):
    raise ValueError(
      f"its header should have {size} bytes, the file has {file.size}"
    )
  text = file.read(_LENGTH_BYTES, size)
  if not text.startswith(b"{"):
    raise ValueError("its header does not begin with a brace")
  header = parse_json(text)
  return header, _LENGTH_BYTES + size


def parse_json(text: bytes) -> dict[str, Any]:
  """Returns a JSON object, in which no key may occur twice.

  Raises:
    ValueError: the text is not such an object.
  """
  try:
    return json_text.parse(text, what="its JSON", strict=True)
  except json_text.JsonError as error:  # The caller adds the file's name.
    # The caller gives the advice, too.
    what = str(error).removesuffix(json_text.AGAIN).removesuffix(".")
    raise ValueError(what) from None


def _place(name: str, entry: Any) -> tuple[tuple[int, ...], np.dtype, int, int]:
  """Returns shape, dtype, first and last byte of an entry of the header."""
  fields = {"dtype", "shape", "data_offsets"}
  if not isinstance(entry, dict) or entry.keys() != fields:
    raise ValueError(f"the entry of tensor {name!r:.100} is malformed")
  if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
    raise ValueError(
      f"tensor {name!r:.100} has the dtype {entry['dtype']!r:.50}; known: "
      f"{', '.join(DTYPES)}"
    )
  dtype = DTYPES[entry["dtype"]]
  shape, offsets = entry["shape"], entry["data_offsets"]
  if not isinstance(shape, list) or not isinstance(offsets, list):
    raise ValueError(f"tensor {name!r:.100} has no list as shape or offsets")
  size = datafile.byte_count(tuple(shape), dtype)
  if len(offsets) != 2 or any(type(n) is not int or n < 0 for n in offsets):
    raise ValueError(f"tensor {name!r:.100} has offsets that are none")
  first, last = offsets
  if last - first != size:
    raise ValueError(
      f"tensor {name!r:.100} has {last - first} bytes, its shape {size}"
    )
  return tuple(shape), dtype, first, last


def _tensor(
  file: datafile.DataFile, offset: int, shape: tuple[int, ...], dtype: np.dtype
) -> tensor_lib.Tensor:
  def read_data() -> np.ndarray:
    with datafile.checked(file.path, _KIND):
      raw = file.read_array(offset, datafile.byte_count(shape, dtype))
      return datafile.as_array(raw, shape, dtype)

  return tensor_lib.Tensor(shape, dtype, read_data)


def read_sharded(
  index_path: str | os.PathLike,
  read_shard: Callable[[pathlib.Path], datafile.Contents] = read,
) -> datafile.Contents:
  """Returns the tensors of all shards in an index file.

  Such an index is `model.safetensors.index.json`.

  Raises:
    UserError: the index names files outside of its directory, or a tensor is
      not exactly where the index says.
  """
  file = datafile.DataFile(index_path)
  with datafile.checked(file.path, "an index of shards"):
    if file.size > MAX_HEADER_BYTES:
      raise ValueError(f"it has {file.size} bytes")
    weight_map = parse_json(file.read(0, file.size)).get("weight_map")
    if not isinstance(weight_map, dict):
      raise ValueError("it has no weight_map")
    expected: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
      if not isinstance(shard, str) or not regular_files.is_plain_name(shard):
        raise ValueError(
          f"tensor {name!r:.100} should be in {shard!r:.100}, which is no "
          "plain file name: shards lie beside their index"
        )
      expected.setdefault(shard, set()).add(name)
  tensors: dict[str, tensor_lib.Tensor] = {}
  for shard, names in expected.items():
    found = read_shard(file.path.parent / shard)
    odd = sorted(names.symmetric_difference(found.tensors))
    if odd:
      raise datafile.damaged(
        file.path,
        f"{shard} and the index disagree on {len(odd)} tensors, "
        f"{', '.join(odd[:10])[:500]}",
      )
    tensors |= found.tensors
  return datafile.Contents({name: tensors[name] for name in weight_map})


def write(
  path: str | os.PathLike,
  tensors: Mapping[str, tensor_lib.Tensor],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes tensors; only one at a time is in memory.

  Args:
    path: path of the file; replaced when the new one is complete.
    tensors: tensors by name.
    metadata: texts by name; the default is `{"format": "pt"}`, which loaders of
      PyTorch models require.
  """
  header: dict[str, Any] = {
    _METADATA: dict({"format": "pt"} if metadata is None else metadata)
  }
  # Wide dtypes first, so that each tensor is aligned to its own size.
  order = sorted(
    tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)
  )
  end = 0
  for name in order:
    tensor = tensors[name]
    if tensor.dtype.newbyteorder("<") not in _NAMES or name == _METADATA:
      raise errors.UserError(
        f"Safetensors cannot hold {name!r} of dtype {tensor.dtype}; known: "
        f"{', '.join(map(str, _NAMES))}."
      )
    header[name] = {
      "dtype": _NAMES[tensor.dtype.newbyteorder("<")],
      "shape": list(tensor.shape),
      "data_offsets": [end, end + tensor.nbytes],
    }
    end += tensor.nbytes
  text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
  text += b" " * (-len(text) % 8)
  with whole_files.replacing(pathlib.Path(path)) as file:
    file.write(len(text).to_bytes(_LENGTH_BYTES, "little"))
    file.write(text)
    for name in order:
      file.writelines(datafile.tensor_bytes(tensors[name]))
