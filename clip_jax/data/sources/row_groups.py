"""Reads rows of tables by row groups; Parquet files, mapped into memory.

To read a row, its whole row group is unpacked. The groups used last are kept,
up to a number of bytes, so that reading in order unpacks each of them once.
"""

import bisect
import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq

from clip_jax import buckets, errors, regular_files
from clip_jax.data import record as record_lib
from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import open_files

KEPT_BYTES = 256 * 2**20
# A few kilobytes of an untrusted file can unpack to any size.
MAX_GROUP_BYTES = 2 * 2**30
# A footer with more rows than both of these is taken as damaged.
_MAX_ROWS_A_BYTE, _FEW_ROWS = 100, 2**20
# A row group is unpacked in pieces: at most so many, of at least so many rows.
_MAX_PIECES = 256
_MIN_ROWS = 16
_MAGIC = b"PAR1"
NO_END = "no_end_marker"  # All that there is can be read.
# What pyarrow raises for damaged files.
BROKEN = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError)


class BadFileError(errors.UserError):
  """A file that is cut off, otherwise damaged, or of another format.

  Attributes:
    reason: one word, a key of `account.WORDS`.
  """

  def __init__(self, path: str, reason: str):
    super().__init__(f"{path}: {reason}")
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class Footer:
  """The metadata of a file, from its footer.

  Attributes:
    schema: Arrow's, with the metadata of the file.
    rows: the number of rows in each row group.
    group_bytes: the size of each row group when unpacked.
    digest: of the footer, which has sizes and extremes of all columns.
    damage: the offset of a damage, after which nothing is read, its reason, and
      how many rows are lost (None if unknown); None where nothing is damaged.
    index: where the groups are, to open the file again without a search.
  """

  schema: pa.Schema
  rows: tuple[int, ...]
  group_bytes: tuple[int, ...]
  digest: str
  damage: tuple[int, str, int | None] | None = None
  index: Any = None


class TableFile(Protocol):
  """A file of a table and its footer; safe to read from threads."""

  footer: Footer

  def unpack(self, group: int, columns: Sequence[str]) -> "Unpacked":
    """Returns the rows of a row group, up to the first damaged one."""
    ...


class ParquetFile:
  """A Parquet file and its footer; safe to read from threads."""

  def __init__(self, path: str, *, mapped: mmap.mmap | None = None):
    """Reads the footer.

    Args:
      path: of the file.
      mapped: the file, where it is mapped already.

    Raises:
      BadFileError: it is damaged, or not a Parquet file.
      UserError: it cannot be read.
    """
    self._bytes: _Mapped | _Object = (
      _Object(path) if buckets.is_address(path) else _Mapped(path, mapped)
    )
    try:
      opened = self._open()
      self._metadata = opened.metadata
      groups = [
        self._metadata.row_group(i)
        for i in range(self._metadata.num_row_groups)
      ]
      self.footer = Footer(
        opened.schema_arrow,
        tuple(group.num_rows for group in groups),
        tuple(group.total_byte_size for group in groups),
        self._digest(),
      )
    except errors.UnreachableError:
      raise
    except BROKEN:
      raise BadFileError(path, "bad_footer") from None
    rows = self.footer.rows
    most = _MAX_ROWS_A_BYTE * self._bytes.size
    if min(rows, default=0) < 0 or sum(rows) > max(most, _FEW_ROWS):
      raise BadFileError(path, "bad_footer")

  def _digest(self) -> str:
    """Returns a digest of the footer."""
    end = self._bytes.size
    # The file ends with the footer's size (4 bytes) and the magic (4 bytes).
    size = int.from_bytes(self._bytes.read(max(0, end - 8), 4), "little")
    start = max(0, end - 8 - size)
    return hashlib.sha256(self._bytes.read(start, end - start)).hexdigest()

  def _open(self, metadata: Any = None) -> pq.ParquetFile:
    source = self._bytes.open()
    return pq.ParquetFile(source, metadata=metadata, pre_buffer=False)

  def unpack(self, group: int, columns: Sequence[str]) -> "Unpacked":
    """Returns the rows of a row group, up to the first damaged one."""
    step = max(_MIN_ROWS, self.footer.rows[group] // _MAX_PIECES)
    pieces, total, problem = [], 0, "damaged_record"
    if self._bytes.is_cut():
      return Unpacked([], "truncated")
    try:
      # A reader of its own, since pyarrow's cannot be shared by threads.
      batches = self._open(self._metadata).iter_batches(
        step, row_groups=[group], columns=list(columns), use_threads=False
      )
      for piece in batches:
        total += piece.nbytes
        if total > MAX_GROUP_BYTES:
          problem = "too_large"
          break
        pieces.append(piece)
    except errors.UnreachableError:
      raise
    except BROKEN:
      pass  # The rows that are missing become bad records.
    return Unpacked(pieces, problem)


class _Mapped:
  """The bytes of a file on a disk."""

  def __init__(self, path: str, mapped: mmap.mmap | None):
    if mapped is None:
      mapped = map_file(path, magic=(_MAGIC,), other="not_parquet")
    self._map = mapped
    self._buffer = pa.py_buffer(self._map)
    self.size = self._buffer.size

  def read(self, start: int, size: int) -> Any:
    return self._buffer.slice(start, size)

  def open(self) -> Any:
    return pa.BufferReader(self._buffer)

  def is_cut(self) -> bool:
    """Whether the file is shorter now: reading its end would raise SIGBUS."""
    return self._map.size() < self.size


class _Object:
  """The bytes of an object in a bucket."""

  def __init__(self, path: str):
    try:
      self._file = buckets.File(path)
    except FileNotFoundError:
      raise BadFileError(path, "dangling_link") from None
    self.size = self._file.status().size
    head = self.read(0, len(regular_files.LFS))
    if not head.startswith(_MAGIC):
      raise _damage(path, head, "not_parquet")

  def read(self, start: int, size: int) -> bytes:
    return self._file.read(offset=start, size=size)

  def open(self) -> Any:
    return pa.PythonFile(buckets.stream(self._file), mode="r")

  def is_cut(self) -> bool:
    return False  # Objects are only ever replaced, for which reading raises.


class Unpacked:
  """The rows of a row group."""

  def __init__(self, pieces: list[pa.RecordBatch], problem: str):
    """Takes the rows in pieces, and why further rows cannot be read."""
    self._pieces = pieces
    self._problem = problem
    self._ends = list(itertools.accumulate(piece.num_rows for piece in pieces))
    self.nbytes = sum(piece.nbytes for piece in pieces)

  def pieces(self, name: str) -> list[pa.Array]:
    """Returns a column in pieces, up to the first damaged row."""
    return [piece.column(name) for piece in self._pieces]

  def column(self, name: str) -> Iterator[Any]:
    """Yields Arrow's scalars of a column, up to the first damaged row."""
    return itertools.chain.from_iterable(self.pieces(name))

  def row(self, row: int, *, key: str) -> dict[str, Any]:
    """Returns Arrow's scalar of each column; raises `BadRecord`."""
    number = bisect.bisect_right(self._ends, row)
    if number == len(self._pieces):
      raise record_lib.BadRecord(self._problem, key)
    piece = self._pieces[number]
    at = row - (self._ends[number - 1] if number else 0)
    return {name: piece.column(name)[at] for name in piece.schema.names}


@dataclasses.dataclass(frozen=True)
class Texts:
  """The texts of a piece of a column, as bytes.

  Attributes:
    array: the texts, as Arrow's large binaries.
    bounds: where each begins in Arrow's buffer, and the last one ends, int64
      (texts + 1,).
    good: whether each is not null, valid UTF-8 and not too long, bool (texts,).
  """

  array: pa.Array
  bounds: np.ndarray
  good: np.ndarray

  @classmethod
  def of(cls, piece: pa.Array) -> "Texts":
    """Returns the texts of a piece, which may be a dictionary array."""
    if pa.types.is_dictionary(piece.type):
      piece = piece.dictionary_decode()
    array = piece.cast(pa.large_binary())
    bounds = np.frombuffer(array.buffers()[1], np.int64)
    bounds = bounds[array.offset :][: len(array) + 1]
    good = np.asarray(array.is_valid())
    good &= np.diff(bounds) <= captions_lib.MAX_TEXT_BYTES
    try:
      piece.validate(full=True)
    except pa.ArrowInvalid:
      values = array.to_pylist()
      good &= [text is None or is_utf8(text) for text in values]
    return cls(array, bounds, good)


def is_utf8(text: bytes) -> bool:
  """Whether `text` is valid UTF-8."""
  try:
    text.decode()
  except UnicodeDecodeError:
    return False
  return True


def map_file(path: str, *, magic: tuple[bytes, ...], other: str) -> mmap.mmap:
  """Returns the map of a regular file that begins with one of `magic`.

  Raises:
    BadFileError: it begins otherwise (then `other` is the reason), is empty, or
      does not exist.
    UserError: it cannot be read.
  """
  try:
    with regular_files.open_regular(path) as file:
      size = os.fstat(file.fileno()).st_size
      head = file.read(len(regular_files.LFS))
      if head.startswith(magic):
        return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
  except FileNotFoundError:
    raise BadFileError(path, "dangling_link") from None
  except OSError as error:
    raise errors.UserError(f"Cannot read {path}: {error.strerror}.") from error
  raise _damage(path, head, other)


def _damage(path: str, head: bytes, other: str) -> BadFileError:
  """Returns the error for a file that begins with `head`."""
  if not head:
    return BadFileError(path, "empty")
  is_pointer = head == regular_files.LFS
  return BadFileError(path, "lfs_pointer" if is_pointer else other)


@dataclasses.dataclass(frozen=True)
class Reopen:
  """Opens files again by footers that were read before; picklable.

  Such files are those with an index, whose groups are single records; none of
  them is kept in memory by `RowGroups`.

  Attributes:
    opener: takes a path and a footer.
    footers: by path.
  """

  opener: Callable[..., TableFile]
  footers: Mapping[str, Footer]

  def __call__(self, path: str) -> TableFile:
    """Opens a file."""
    return self.opener(path, self.footers[path])


class RowGroups:
  """Reads rows of tables by file, row group and row.

  Safe to read from threads. A copy in another process opens the files anew.
  """

  def __init__(
    self,
    paths: Sequence[str],
    *,
    columns: Sequence[str],
    opener: Callable[[str], TableFile],
  ):
    """Opens nothing yet.

    Args:
      paths: of the files.
      columns: the names of those to read.
      opener: opens a file by its path.
    """
    self.files = open_files.Pool(paths, opener=opener)
    self._columns = tuple(columns)
    self._kept = _Kept(0 if isinstance(opener, Reopen) else KEPT_BYTES)
    self._opener = opener

  def __reduce__(self) -> tuple:
    return _remake, (self.files, self._columns, self._opener)

  def row(self, file: int, group: int, row: int, *, key: str) -> dict[str, Any]:
    """Returns Arrow's scalar of each column.

    Raises:
      BadRecord: with this key; the row is damaged.
      UserError: the file cannot be read any more.
    """

    def unpack() -> Unpacked:
      opened = self.files.get(file)
      self.files.check(file)  # A mapped file may have been overwritten.
      return opened.unpack(group, self._columns)

    return self._kept.get((file, group), unpack).row(row, key=key)


def _remake(files, columns, opener) -> RowGroups:
  made = RowGroups((), columns=columns, opener=opener)
  made.files = files
  return made


class _Kept:
  """A cache of the row groups used last; threads wait for one another's.

  Beyond `limit` bytes those used longest ago are dropped, but never the newest.
  """

  def __init__(self, limit: int):
    self._limit = limit
    self._lock = threading.Lock()
    self._made: collections.OrderedDict[Any, concurrent.futures.Future] = (
      collections.OrderedDict()
    )
    self._total = 0

  def get(self, key: Any, make: Callable[[], Unpacked]) -> Unpacked:
    with self._lock:
      future = self._made.get(key)
      mine = future is None
      if future is None:
        future = self._made[key] = concurrent.futures.Future()
      self._made.move_to_end(key)
    if mine:
      self._make(key, make, future)
    return future.result()

  def _make(self, key: Any, make, future: concurrent.futures.Future) -> None:
    try:
      made = make()
    except BaseException as error:
      with self._lock:
        del self._made[key]
      future.set_exception(error)
      return
    future.set_result(made)
    with self._lock:
      self._total += made.nbytes
      # What others are still making is left alone, and so is this one.
      for old in [k for k in self._made if k != key]:
        if self._total <= self._limit:
          break
        if self._made[old].done():
          self._total -= self._made.pop(old).result().nbytes
