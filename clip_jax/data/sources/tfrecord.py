"""TFRecord files of `tf.train.Example`, as big_vision, OpenVision and
img2dataset have them; read without TensorFlow.

A file is a row of records: the length of the data (8 bytes, little-endian), a
checksum of that, the data, a checksum of them; a checksum is the CRC-32C,
rotated by 15 bits, plus 0xa282ead8. The first opening reads all lengths, and a
record its own bytes only; all checksums are compared.

Features are the columns, by the options of `parquet:`: texts are features of
bytes that are UTF-8 in most of the first records, images those that are not,
labels integers.
"""

import collections
import functools
import hashlib
import os
import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from google.protobuf import message

from clip_jax import errors, places, versions
from clip_jax.data import record as record_lib
from clip_jax.data.sources import columns as columns_lib
from clip_jax.data.sources import (
  disk,
  globs,
  kept_index,
  lazy_imports,
  open_files,
  parquet,
  parquet_files,
  row_groups,
  shard,
)

with lazy_imports.kept_to("tensorflow_datasets"):
  from tensorflow_datasets.proto import tf_example_generated_pb2

_Example: Any = vars(tf_example_generated_pb2)["Example"]
_HEAD = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_MASK = 0xA282EAD8
_LOOKED_AT = 16  # Records whose features make the columns.
_GZIP = b"\x1f\x8b"
_SUFFIX = ".tfrecord"
_NAMED = re.compile(r"\.tfrec(ord)?s?\b", re.IGNORECASE)
# Image and texts of a record; more is not read.
_MAX_BYTES = disk.MAX_IMAGE_BYTES + 2**24


@functools.cache
def _crc32c() -> Any:
  try:
    import google_crc32c
  except ImportError:
    raise errors.UserError(
      "tfrecord: needs google-crc32c, for the checksums of its records: "
      f"{versions.install('tfrecord')}."
    ) from None
  return google_crc32c.value


def masked_crc(data: bytes) -> int:
  """Returns the checksum that a TFRecord file has for `data`."""
  crc = _crc32c()(data)
  return ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF


class TFRecordFile:
  """A TFRecord file, each record of which is a row group."""

  def __init__(self, path: str, footer: row_groups.Footer | None = None):
    """Reads all lengths, and the features of the first records.

    Args:
      path: of the file.
      footer: of the same file, where it is known; then nothing is read.

    Raises:
      BadFileError: it is damaged, or not a TFRecord file.
      UserError: it cannot be read, or a library is missing.
    """
    _crc32c()
    try:
      self._file = open_files.RawFile(path)
      size = self._file.status().size
    except FileNotFoundError:
      raise row_groups.BadFileError(path, "dangling_link") from None
    except OSError as error:
      raise errors.UserError(
        f"Cannot read {path}: {error.strerror}."
      ) from error
    if footer is not None:
      self.footer = footer
      self._starts, self._sizes = footer.index.T
      return
    if not size:
      raise row_groups.BadFileError(path, "empty")
    # A second start reads no heads; checksums tell a record that is another.
    index = kept_index.keep(
      "tfrecord", [path], (), lambda: _scanned(path, size), sampled=False
    )
    bounds = index.arrays["bounds"]
    damage: Any = index.facts["damage"] and tuple(index.facts["damage"])
    (stated,) = shard.stated_counts([path])
    if stated is not None and stated > len(bounds):
      at, why = damage[:2] if damage else (size, "too_few_records")
      damage = (at, why, stated - len(bounds))
    self._starts, self._sizes = bounds.T
    if not len(bounds):
      gzip = self._file.read(offset=0, size=2) == _GZIP
      raise row_groups.BadFileError(path, "gzip" if gzip else "not_tfrecord")
    self.footer = row_groups.Footer(
      self._find_schema(),
      (1,) * len(bounds),
      (0,) * len(bounds),
      hashlib.sha256(bounds.tobytes() + str(size).encode()).hexdigest(),
      damage,
      np.array(bounds),
    )

  def _example(self, number: int) -> Any:
    """Returns the features of a record by name, or the reason it has none."""
    size = int(self._sizes[number])
    if size > _MAX_BYTES:
      return "too_large"
    offset = int(self._starts[number])
    data = self._file.read(offset=offset, size=size + _CRC.size)
    if len(data) < size + _CRC.size:
      return "truncated"
    if _CRC.unpack_from(data, size)[0] != masked_crc(data[:size]):
      return "damaged_record"
    try:
      example = _Example.FromString(data[:size])
    except message.DecodeError:
      return "not_an_example"
    return example.features.feature

  def _find_schema(self) -> pa.Schema:
    seen: dict[str, list[list[Any]]] = {}
    for number in range(min(_LOOKED_AT, len(self._starts))):
      features = self._example(number)
      if not isinstance(features, str):
        for name in sorted(features):
          seen.setdefault(name, []).append(_values(features[name]))
    fields = ((name, _kind(values)) for name, values in seen.items())
    return pa.schema([field for field in fields if field[1] is not None])

  def unpack(self, group: int, columns: Sequence[str]) -> row_groups.Unpacked:
    """Returns the one row of a record, or what is the matter with it."""
    features = self._example(group)
    if isinstance(features, str):
      return row_groups.Unpacked([], features)
    cells = []
    for name in columns:
      kind = self.footer.schema.field(name).type
      # To look a name up in protobuf's map would add it.
      values = _values(features[name]) if name in features else []
      if pa.types.is_list(kind):
        cell = values
      elif len(values) > 1:
        return row_groups.Unpacked([], "several_values")
      else:
        cell = values[0] if values else None
      try:
        cells.append(pa.array([cell], kind))
      except (pa.ArrowException, TypeError, OverflowError):
        texts = all(isinstance(value, bytes) for value in values)
        is_text = texts and columns_lib.holds_texts(kind)
        return row_groups.Unpacked([], "not_utf8" if is_text else "other_type")
    row = pa.RecordBatch.from_arrays(cells, names=list(columns))
    return row_groups.Unpacked([row], "damaged_record")


def _scanned(path: str, size: int) -> kept_index.Index:
  """Returns offset and length of each record's data, and a damage behind."""
  file = open_files.RawFile(path, ahead=True)
  bounds: list[tuple[int, int]] = []
  damage: tuple[int, str, int | None] | None = None
  at = 0
  while at < size:
    head = file.read(offset=at, size=_HEAD.size)
    length, crc = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, -1)
    if crc >= 0 and crc != masked_crc(head[:8]):
      # Nothing tells where the next record begins.
      left = round((size - at) * len(bounds) / at) if at else 0
      damage = (at, "damaged_header", max(1, left))
      break
    end = at + _HEAD.size + length + _CRC.size
    if crc < 0 or end > size:
      damage = (at, "cut_record", None)
      break
    bounds.append((at + _HEAD.size, length))
    at = end
  array = np.array(bounds, np.int64).reshape(-1, 2)
  return kept_index.Index({"bounds": array}, {"damage": damage})


def _values(feature: Any) -> list[Any]:
  kind = feature.WhichOneof("kind")
  return list(getattr(feature, kind).value) if kind else []


def _kind(seen: list[list[Any]]) -> pa.DataType | None:
  """Returns the type of a column whose first cells are `seen`."""
  cells = [cell for cell in seen if cell]
  # Nothing is a text, too, but may be a missing image.
  cells = [cell for cell in cells if cell != [b""]] or cells
  if not cells:
    return None
  # Records may differ in the type of a feature; that of most is meant, and of
  # bytes that are a text as often as none, none.
  kinds = collections.Counter(map(_kind_of_cell, cells))
  kind = max(kinds, key=lambda each: (kinds[each], each == pa.binary()))
  several = sum(len(cell) > 1 for cell in cells)
  # One caption is as good a list as several; else a list is another feature.
  are_lists = several if kind == pa.string() else 2 * several > len(cells)
  return pa.list_(kind) if are_lists else kind


def _kind_of_cell(values: list[Any]) -> pa.DataType:
  if isinstance(values[0], bytes):
    is_text = all(map(row_groups.is_utf8, values))
    return pa.string() if is_text else pa.binary()
  return pa.int64() if isinstance(values[0], int) else pa.float64()


def open_tfrecord(path: str, options: dict[str, str]) -> record_lib.Source:
  """Opens the files that `path` names; in a directory, those named as such."""
  path = places.expanded(path)
  names: list[str] = []
  if places.is_folder(path):
    # Also `NAME.tfrecord-00000-of-00010`.
    found = filter(_NAMED.search, places.names(path))
    there = (os.path.join(path, name) for name in found)
    names = [each for each in there if not os.path.isdir(each)]
  return parquet.open_tables(
    parquet_files.Listing(
      tuple(names or globs.find_files(path, suffix=_SUFFIX))
    ),
    options,
    address=f"tfrecord:{path}",
    opener=TFRecordFile,
    like=".tfrec",
    has_ends=False,
  )
