"""Reads the rows of a table: where each one's image and caption stand.

A table in UTF-8 is taken apart block by block with numpy. The lines that this
does not decide, such as one whose quoted field goes on in the next line, and
tables in other encodings are read by Python's csv, whose rules hold for all.
"""

import csv
import dataclasses
from collections.abc import Container, Iterable, Iterator
from typing import BinaryIO

import numpy as np

from clip_jax import errors, terminal
from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import grouping, strings, table_lines

TOO_LONG = -1  # As the size of a caption.
_BLOCK_BYTES = 2**21
_BATCH_ROWS = 2**12


@dataclasses.dataclass(frozen=True)
class Rows:
  """The positions of the names of images and of the captions, of all rows.

  A start is an offset in the table, or ~offset in `beside`.

  Attributes:
    name_starts: int64 (rows,).
    name_sizes: in bytes, int32 (rows,).
    text_starts: int64 (rows,).
    text_sizes: the same of captions, `TOO_LONG` for those that are.
    hashes: of the names, equal for rows of the same image; uint64 (2, rows).
    beside: the bytes of what does not stand in the table as it is.
  """

  name_starts: np.ndarray
  name_sizes: np.ndarray
  text_starts: np.ndarray
  text_sizes: np.ndarray
  hashes: np.ndarray
  beside: np.ndarray


class Collected:
  """Rows found so far; a row without an image is a record by itself."""

  def __init__(self):
    self._columns: list[list[np.ndarray]] = [[] for _ in range(6)]
    self._beside = bytearray()
    self._rows = 0

  def __len__(self) -> int:
    return self._rows

  def _put(self, text: str) -> tuple[int, int]:
    data = strings.encode(text)
    self._beside += data
    return ~(len(self._beside) - len(data)), len(data)

  def add(
    self, spans: np.ndarray, *, block: bytes = b"", offset: int = 0
  ) -> None:
    """Adds rows.

    Args:
      spans: starts and sizes of names and of captions, int64 (4, rows).
      block: the bytes of the table from `offset` on, with all names that are
        not kept beside it.
      offset: in the table.
    """
    starts, sizes = spans[0], spans[1]
    hashes = np.empty((2, len(starts)), np.uint64)
    inside = starts >= 0
    if inside.all():
      hashes[:] = grouping.hash_names(block, starts - offset, sizes)
    else:
      hashes[:, inside] = grouping.hash_names(
        block, starts[inside] - offset, sizes[inside]
      )
      hashes[:, ~inside] = self._hash_beside(~starts[~inside], sizes[~inside])
    (nameless,) = np.nonzero(sizes == 0)
    hashes[:, nameless] = grouping.hash_numbers(self._rows + nameless)
    self._rows += len(starts)
    kinds = (np.int64, np.int32, np.int64, np.int32)
    columns = [*map(np.ndarray.astype, spans, kinds), *hashes]
    for column, piece in zip(self._columns, columns, strict=True):
      column.append(piece)

  def _hash_beside(self, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    first = int(starts.min())
    return grouping.hash_names(
      bytes(self._beside[first:]), starts - first, sizes
    )

  def add_pairs(self, pairs: Iterable[tuple[str, str | None]]) -> None:
    """Adds rows by image and caption, None where that is too long."""
    spans = []
    for pair in pairs:
      spans.append(self.span(*pair))
      if len(spans) == _BATCH_ROWS:
        self.add(np.array(spans).T)
        spans = []
    if spans:
      self.add(np.array(spans).T)

  def span(self, name: str, text: str | None) -> tuple[int, int, int, int]:
    """Keeps a row's texts; returns the starts and sizes that `add` takes."""
    text_start, text_size = (-1, TOO_LONG) if text is None else self._put(text)
    return *self._put(name), text_start, text_size

  def finish(self) -> Rows:
    """Returns all rows; what is here is given away."""
    rows, parts = self._rows, iter(self._columns)
    kinds = (np.int64, np.int32, np.int64, np.int32)
    spans = [_joined(np.empty(rows, kind), next(parts)) for kind in kinds]
    hashes = np.empty((2, rows), np.uint64)
    for out in hashes:
      _joined(out, next(parts))
    beside = np.frombuffer(bytes(self._beside), np.uint8)
    return Rows(*spans, hashes=hashes, beside=beside)


def _joined(out: np.ndarray, pieces: list[np.ndarray]) -> np.ndarray:
  """Copies pieces into one array, and gives them away."""
  if pieces:
    np.concatenate(pieces, out=out)
    pieces.clear()
  return out


class Reader:
  """Reads rows, and counts what users are to be told of them."""

  def __init__(self, form: table_lines.Form):
    """Starts before the first row."""
    self._form = form
    self._rows = 0  # That are not empty.
    self._lines = 0
    self._longer: _First = _First()
    self._silent: _First = _First()
    self._suspect: _First = _First()

  def pairs(self, lines: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Yields image and caption of each row, None where that is too long."""
    rows = self._csv(lines)
    while (row := self._next(rows)) is not None:
      if row:
        yield self._pair(row)

  def scan(self, file: BinaryIO, collected: Collected) -> None:
    """Takes the rows of a table in UTF-8 from where `file` stands."""
    offset, block, wanted = file.tell(), b"", _BLOCK_BYTES
    while True:
      piece = file.read(wanted)
      block += piece
      taken = self._take(block, offset, collected, at_end=len(piece) < wanted)
      if len(piece) < wanted:
        break
      # A row that is longer than the block is tried again with twice as much.
      wanted = _BLOCK_BYTES if taken else len(block)
      block, offset = block[taken:], offset + taken

  def _csv(self, lines: Iterable[str]):
    return csv.reader(
      lines,
      delimiter=self._form.separator,
      quoting=csv.QUOTE_MINIMAL if self._form.quotes else csv.QUOTE_NONE,
      strict=True,
    )

  def _next(self, rows, *, before: int = 0) -> list[str] | None:
    """Returns the next row of csv's; None at the end.

    A quote that opens a caption swallows what follows, up to the next one: it
    is noted where quotes may be letters.

    Args:
      rows: csv's reader.
      before: lines of the table before its first one.
    """
    start = before + rows.line_num + 2  # The header is line 1.
    try:
      row = next(rows, None)
    except csv.Error as error:
      raise errors.UserError(
        f"csv:{self._form.path} cannot be read as a table: {error} (line "
        f"{before + rows.line_num + 1}, after row {self._rows}). Where double "
        "quotes are letters like others, say so with ?quote=none."
      ) from error
    self._rows += bool(row)
    end = before + rows.line_num + 1
    # An ordinary quoted field may have several lines, or the separator.
    if row and end > start:
      parted = (field for field in row if self._form.separator in field)
      if any("\n" in field or "\r" in field for field in parted):
        said = f"Row {self._rows} (lines {start} to {end})"
        self._suspect.add(self._rows, said)
    return row

  def _pair(self, row: list[str]) -> tuple[str, str | None]:
    form, number = self._form, self._rows
    last = form.caption == form.columns - 1
    if len(row) > form.columns and not last:
      self._longer.add(number)
    name = row[form.image].strip() if form.image < len(row) else ""
    text = row[form.caption] if form.caption < len(row) else ""
    if last:
      # Commas of a caption that was not quoted.
      text = form.separator.join(row[form.caption :])
    limit = table_lines.MAX_TEXT_BYTES
    if captions_lib.exceeds(name, limit):
      name = ""
    if not text.strip():
      self._silent.add(number, name)
    return name, None if captions_lib.exceeds(text, limit) else text

  def notes(self) -> Iterator[str]:
    """Yields what is to be told once all rows are read."""
    if self._suspect.count:
      rest = terminal.counted(self._suspect.count - 1, "more row")
      have = terminal.noun(self._suspect.count - 1, "has", "have")
      more = f", and so {have} {rest}" if self._suspect.count > 1 else ""
      yield (
        f"{self._suspect.said} has a quoted field that spans lines and "
        f"contains the separator{more}. If that is several rows, double quotes "
        "are letters here: add ?quote=none to the address."
      )
    if count := self._longer.count:
      rows_have = "1 row has" if count == 1 else f"{count} rows have"
      yield (
        f"{rows_have} more fields than the header's {self._form.columns}, the "
        f"first is row {self._longer.number}, and what comes after a separator "
        "within a field is lost; put such fields in quotes, or name another "
        "separator by ?sep=."
      )
    if count := self._silent.count:
      what = "class" if self._form.has_classes else "caption"
      rows_are = "1 row has" if count == 1 else f"{count} rows have"
      yield (
        f"{rows_are} no {what}, the first for the image "
        f"'{terminal.escaped(self._silent.said, limit=80)}'; only its other "
        "rows count."
      )

  def _take(
    self, block: bytes, offset: int, collected: Collected, *, at_end: bool
  ) -> int:
    """Takes the whole rows of a block; returns the bytes that they have."""
    lines = table_lines.Lines(block, self._form, at_end=at_end)
    count, base, at = len(lines.starts), self._rows, 0
    is_row = bytearray(lines.ends > lines.starts)  # Quicker for single lines.
    pairs: dict[int, tuple[str, str | None]] = {}
    for slot in np.flatnonzero(
      lines.odd & (lines.ends > lines.starts)
    ).tolist():
      if slot < at:
        continue  # It belongs to the row before.
      self._rows += is_row.count(1, at, slot)
      feed = table_lines.Feed(lines, slot)
      rows = self._csv(feed)
      try:
        row = self._next(rows, before=self._lines + slot)
      except errors.UserError:
        if feed.dry and not at_end:
          count = slot
          break
        raise
      at = slot + rows.line_num
      is_row[slot:at] = bytes(at - slot)
      if row:
        is_row[slot] = 1
        pairs[slot] = self._pair(row)
    (slots,) = np.nonzero(np.frombuffer(is_row, bool, count))
    self._rows, self._lines = base + len(slots), self._lines + count
    spans = lines.spans[:, slots]
    self._count(lines, slots, spans, pairs, base)
    spans[[0, 2]] += offset
    at = np.searchsorted(slots, list(pairs))
    for column, pair in zip(at.tolist(), pairs.values(), strict=True):
      spans[:, column] = collected.span(*pair)
    collected.add(spans, block=block, offset=offset)
    return int(lines.nexts[count - 1]) if count else 0

  def _count(
    self,
    lines: table_lines.Lines,
    slots: np.ndarray,
    spans: np.ndarray,
    pairs: Container[int],
    base: int,
  ) -> None:
    """Counts those rows of a block that csv's reader has not seen."""
    form = self._form
    if form.caption < form.columns - 1:
      for row in np.flatnonzero(lines.fields[slots] > form.columns).tolist():
        if slots[row] not in pairs:
          self._longer.add(base + row + 1)
    starts, ends = spans[2], spans[2] + spans[3]
    may_be = table_lines.may_be_space(lines.bytes, starts, ends) | (
      starts == ends
    )
    for row in np.flatnonzero(may_be).tolist():
      text = strings.decode(lines.block[starts[row] : ends[row]])
      if not text.strip() and slots[row] not in pairs:
        start, size = spans[:2, row]
        name = strings.decode(lines.block[start : start + size])
        self._silent.add(base + row + 1, name)


class _First:
  """Counts the rows with some problem, and remembers the first of them."""

  def __init__(self):
    self.count, self.number, self.said = 0, 0, ""

  def add(self, number: int, said: str = "") -> None:
    """Counts a row; they may come in any order."""
    if not self.count or number < self.number:
      self.number, self.said = number, said
    self.count += 1
