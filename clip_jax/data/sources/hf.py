"""Data sets that the library `datasets` has saved, by `save_to_disk`.

Such a directory holds Arrow files, which `state.json` lists; one of several
splits has a directory for each, which `dataset_dict.json` lists. An Arrow file
by itself, as the library's cache has them, can be named, too. Columns and
options are those of `parquet:`.

Files are mapped into memory, and any row is read where it lies; those in
buckets are copied before.
"""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from clip_jax.data import record as record_lib
from clip_jax.data.sources import hf_files, open_files, parquet, row_groups

_OF_FILES, _OF_STREAMS = b"ARROW1", b"\xff\xff\xff\xff"
_END = _OF_STREAMS + bytes(4)  # Of a stream; one that was cut has none.


class ArrowFile:
  """A mapped Arrow file, whose batches are its row groups."""

  def __init__(self, path: str, *, copy: pathlib.Path | None = None):
    """Reads where the batches lie.

    Args:
      path: of the file.
      copy: the path of its copy, where it lies in a bucket.

    Raises:
      BadFileError: it is no Arrow file, or its first batch is damaged, or it
        is compressed: a few bytes could unpack to any size.
      UserError: it cannot be read.
    """
    magic = (_OF_FILES, _OF_STREAMS)
    place = path if copy is None else str(copy)
    self._map = row_groups.map_file(place, magic=magic, other="not_arrow")
    buffer = pa.py_buffer(self._map)
    self._size = buffer.size
    self._batches: list[pa.RecordBatch] = []
    damage = stream = None
    try:
      if self._map[: len(_OF_FILES)] == _OF_FILES:
        file = pa.ipc.open_file(buffer)
        schema, batches = file.schema, self._of_file(file)
      else:
        stream = pa.BufferReader(buffer)
        schema = (batches := pa.ipc.open_stream(stream)).schema
    except row_groups.BROKEN:
      raise row_groups.BadFileError(path, "bad_footer") from None
    lie_here = True
    try:
      for batch in batches:
        lie_here = _lies_within(batch, buffer)
        if not lie_here:
          break
        self._batches.append(batch)
    except UnicodeDecodeError:  # The name of a part.
      raise row_groups.BadFileError(path, "bad_footer") from None
    except row_groups.BROKEN:
      damage = (0, "bad_batch", None)
    if not lie_here:
      raise row_groups.BadFileError(path, "compressed_arrow")
    if damage and not self._batches:
      raise row_groups.BadFileError(path, "bad_batch")
    rows = tuple(batch.num_rows for batch in self._batches)
    if damage is None and stream is not None:
      end = stream.tell()
      if self._map[max(0, end - len(_END)) : end] != _END:
        damage = (end, row_groups.NO_END, None)
      elif end < self._size:  # Another stream, of such rows, or a few bytes.
        more = round(sum(rows) * (self._size - end) / end)
        damage = (end, "trailing_bytes", more)
    about = repr((self._size, rows)).encode() + schema.serialize().to_pybytes()
    self.footer = row_groups.Footer(
      schema,
      rows,
      (0,) * len(rows),  # Nothing is unpacked.
      hashlib.sha256(about).hexdigest(),
      damage,
    )

  def _of_file(self, file: Any):
    return (file.get_batch(i) for i in range(file.num_record_batches))

  def unpack(self, group: int, columns: Sequence[str]) -> row_groups.Unpacked:
    """Returns the rows of a batch; none of one that is damaged."""
    # To read a mapped file where it ends no longer kills the process.
    if self._map.size() < self._size:
      return row_groups.Unpacked([], "truncated")
    try:
      batch = self._batches[group].select(list(columns))
      for column in batch.columns:
        _check(column)
    except row_groups.BROKEN:
      return row_groups.Unpacked([], "damaged_record")
    return row_groups.Unpacked([batch], "damaged_record")


def _check(column: pa.Array) -> None:
  """Raises ArrowInvalid for values that may lie anywhere.

  A text that is not UTF-8 passes: it is told where its row is read.
  """
  try:
    column.validate(full=True)
  except pa.ArrowInvalid:
    column.view(_with_bytes(column.type)).validate(full=True)


def _with_bytes(kind: pa.DataType) -> pa.DataType:
  """Returns a type of the same layout that has bytes in place of texts."""
  types = pa.types
  if types.is_struct(kind):
    return pa.struct([(part.name, _with_bytes(part.type)) for part in kind])
  for is_kind, make in (
    (types.is_list, pa.list_),
    (types.is_large_list, pa.large_list),
  ):
    if is_kind(kind):
      return make(_with_bytes(kind.value_type))
  for is_kind, plain in (
    (types.is_string, pa.binary()),
    (types.is_large_string, pa.large_binary()),
    (types.is_string_view, pa.binary_view()),
  ):
    if is_kind(kind):
      return plain
  return kind


def _lies_within(batch: pa.RecordBatch, mapped: pa.Buffer) -> bool:
  """Whether a batch is read where it lies, and was not unpacked."""
  parts = (part for column in batch.columns for part in column.buffers())
  end = mapped.address + mapped.size
  return all(
    mapped.address <= part.address and part.address + part.size <= end
    for part in parts
    if part is not None and part.size
  )


def open_hf(path: str, options: dict[str, str]) -> record_lib.Source:
  """Opens a saved data set, one of its splits, or Arrow files."""
  listing, options = parquet.of_split(
    hf_files.list_files(path), options, address=f"hf:{path}"
  )
  return parquet.open_tables(
    listing,
    options,
    address=f"hf:{path}",
    opener=open_files.Copied(listing.files, ArrowFile),
    like=".arrow",
  )
