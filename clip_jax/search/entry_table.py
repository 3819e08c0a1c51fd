"""The Parquet table of an index: key, captions and path of each embedding.

While an index is built they are lines of JSON, which can be cut where a build
was stopped. The table is made of them at the end, by groups of rows, so that
its bytes follow from the rows alone.
"""

import itertools
import json
import mmap
from collections.abc import Iterable
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from clip_jax import json_text
from clip_jax.data import record as record_lib
from clip_jax.data.sources import row_groups

_TEXT, _NOT_NULL = pa.string(), False
SCHEMA = pa.schema(
  [
    pa.field("key", _TEXT, _NOT_NULL),
    pa.field("captions", pa.list_(_TEXT), _NOT_NULL),
    pa.field("path", _TEXT, _NOT_NULL),
  ]
)
# The least that can be unpacked to read one record.
ROWS_PER_GROUP = 1024


class BadTableError(Exception):
  """A table, or a row of it, that is damaged or not of an index."""


class Entry(NamedTuple):
  """What an index has of one record, beside its embedding.

  Attributes:
    key: of the record in its data.
    captions: of the record.
    path: of the file that holds its image; "" where there is none.
  """

  key: str
  captions: tuple[str, ...]
  path: str = ""


def text(name: str) -> str:
  """Returns a name as the table has it.

  Bytes that are no UTF-8, which names of files may have, are written as JSON
  has them: `\\udce9`.
  """
  return name.encode("utf-8", "backslashreplace").decode()


def to_line(entry: Entry) -> bytes:
  """Returns an entry as a line of JSON."""
  return (json.dumps(entry) + "\n").encode()


def _from_line(line: bytes) -> Entry:
  try:
    return _checked(*json_text.parse(line, what="A line", kind=list))
  except (json_text.JsonError, TypeError) as error:
    raise BadTableError(str(error)) from None


def _checked(key: Any, captions: Any, path: Any) -> Entry:
  """Returns the entry of a row.

  Raises:
    TypeError: a cell is null or of another type.
  """
  if not isinstance(captions, list) or not all(
    isinstance(each, str) for each in [key, path, *captions]
  ):
    raise TypeError("It lacks its key or captions.")
  return Entry(key, tuple(captions), path)


def write(file: BinaryIO, lines: Iterable[bytes]) -> None:
  """Writes the table of `lines`, which `to_line` made.

  Args:
    file: new, opened for writing.
    lines: read as the table is written; a group of rows is in memory.

  Raises:
    BadTableError: a line is not one that `to_line` makes.
  """
  with parquet.ParquetWriter(
    file,
    SCHEMA,
    compression="zstd",
    use_dictionary=False,  # Keys and captions hardly repeat.
    write_statistics=False,
  ) as writer:
    rest = iter(lines)
    while some := list(itertools.islice(rest, ROWS_PER_GROUP)):
      keys, captions, paths = zip(*map(_from_line, some), strict=True)
      columns = [
        pa.array(map(text, keys), _TEXT),
        pa.array([list(map(text, own)) for own in captions], pa.list_(_TEXT)),
        pa.array(map(text, paths), _TEXT),
      ]
      writer.write_table(pa.table(columns, schema=SCHEMA))


class Table:
  """A table opened for reading: mapped, nothing is kept unpacked."""

  def __init__(self, mapped: mmap.mmap, *, name: str):
    """Reads the footer.

    Raises:
      BadTableError: it is not a table of an index.
    """
    try:
      self._file = row_groups.ParquetFile(name, mapped=mapped)
    except row_groups.BadFileError as error:
      raise BadTableError(f"{name} is {error.reason}") from None
    footer = self._file.footer
    if not footer.schema.equals(SCHEMA):
      raise BadTableError(f"{name} has other columns than key, captions, path")
    self._ends = np.cumsum(footer.rows, dtype=np.int64)

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def entries(self, rows: Iterable[int]) -> dict[int, Entry]:
    """Returns the entries of some rows; each group is unpacked once for all.

    Raises:
      BadTableError: a row is damaged.
    """
    numbers = np.unique(np.fromiter(rows, np.int64))
    groups = np.searchsorted(self._ends, numbers, side="right")
    found = {}
    for group in np.unique(groups).tolist():
      unpacked = self._file.unpack(group, SCHEMA.names)
      first = int(self._ends[group - 1]) if group else 0
      for row in numbers[groups == group].tolist():
        try:
          cells = unpacked.row(row - first, key="")
          found[row] = _checked(*(cells[n].as_py() for n in SCHEMA.names))
        except (record_lib.BadRecord, TypeError, *row_groups.BROKEN):
          raise BadTableError(f"record {row} cannot be read") from None
    return found
