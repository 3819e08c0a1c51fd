"""Splits the lines of a table into cells with numpy, block by block.

What it does not decide, such as a line whose quoted field goes on in the next
one, is odd, and left to Python's csv.
"""

import dataclasses

import numpy as np

from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import strings

MAX_TEXT_BYTES = captions_lib.MAX_TEXT_BYTES
_NEWLINE, _RETURN, _QUOTE = b'\n\r"'
# The first bytes of white space that is no ASCII, and the bytes after them.
_WIDE = ((0xC2, (0x85, 0xA0)), (0xE1, (0x9A,)), (0xE2, (0x80, 0x81)))
_WIDE += ((0xE3, (0x80,)),)


@dataclasses.dataclass(frozen=True)
class Form:
  """How the rows of a table are to be read.

  Attributes:
    path: of the table, for messages.
    separator: of its fields.
    quotes: whether fields may stand in double quotes.
    columns: number of the header's.
    image: number of the column of images.
    caption: number of the column of captions, or of classes.
    has_classes: whether it has classes.
  """

  path: str
  separator: str
  quotes: bool
  columns: int
  image: int
  caption: int
  has_classes: bool = False


class Lines:
  """The lines of a block, taken apart.

  Attributes:
    starts, ends, nexts: of what stands in each line, and where the next one
      begins; int64 (lines,).
    odd: whether a line must be read by csv, bool (lines,).
    fields: the number of each line's fields.
    spans: starts and sizes of the names and the captions of lines that are not
      odd, int64 (4, lines).
  """

  def __init__(self, block: bytes, form: Form, *, at_end: bool):
    self.block = block
    self.bytes = np.frombuffer(block, np.uint8)
    self.starts, self.ends, self.nexts = self._split(at_end)
    self.odd = self.ends - self.starts > MAX_TEXT_BYTES
    (self._parts,) = np.nonzero(self.bytes == ord(form.separator))
    self._quoted = None
    if form.quotes and b'"' in block and len(self.starts):
      self._quoted = self._find_quoted(ord(form.separator))
    self._first = np.searchsorted(self._parts, self.starts)
    self.fields = np.searchsorted(self._parts, self.ends) - self._first + 1
    self._parts = np.append(self._parts, len(block))
    image, caption = self._field(form.image), self._field(form.caption)
    if form.caption == form.columns - 1:
      # Commas of a caption that was not quoted.
      more = self.fields > form.columns
      caption[1][more] = self.ends[more]
      if self._quoted is not None:
        self.odd |= more & self._quoted
    for starts, ends in (image, caption):
      if self._quoted is not None:
        bare = self._quoted & (ends > starts)
        bare[bare] = self.bytes[starts[bare]] == _QUOTE
        starts += bare
        ends -= bare
    starts, ends = image
    (spaced,) = np.nonzero(_may_have_space(self.bytes, starts, ends))
    for slot in spaced.tolist():
      name = strings.decode(block[starts[slot] : ends[slot]])
      self.odd[slot] |= name != name.strip()
    self.spans = np.stack(
      [image[0], image[1] - image[0], caption[0], caption[1] - caption[0]]
    )

  def _split(self, at_end: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns starts and ends of the lines, and where the next ones begin."""
    held, size = self.bytes, len(self.bytes)
    (stops,) = np.nonzero(held == _NEWLINE)
    returns = np.empty(0, np.int64)
    if b"\r" in self.block:
      (returns,) = np.nonzero(held == _RETURN)
      behind = held[np.minimum(returns + 1, size - 1)]
      alone = np.where(returns + 1 < size, behind != _NEWLINE, at_end)
      stops = np.sort(np.concatenate([stops, returns[alone]]))
    if at_end and size and (not len(stops) or stops[-1] < size - 1):
      stops = np.append(stops, size)
    nexts = np.minimum(stops + 1, size)
    starts = np.concatenate([[0], nexts[:-1]])[: len(stops)]
    ends = stops.copy()
    if len(returns):
      before = held[np.maximum(stops - 1, 0)] == _RETURN
      ends -= before & (stops > starts)
    return starts, ends, nexts

  def _find_quoted(self, separator: int) -> np.ndarray:
    """Returns which lines have quoted fields; drops separators within these.

    A quote in a field that does not begin with one is a letter. What has more
    quotes than one at each end of a field is odd.
    """
    held = self.bytes
    (quotes,) = np.nonzero(held == _QUOTE)
    line = np.searchsorted(self.nexts, quotes, side="right")
    known = line < len(self.starts)  # Not of a line that goes on.
    quotes, line = quotes[known], line[known]
    first = np.searchsorted(quotes, self.starts)
    begins = (quotes == self.starts[line]) | (held[quotes - 1] == separator)
    behind = held[np.minimum(quotes + 1, len(held) - 1)]
    ends = (quotes + 1 == self.ends[line]) | (behind == separator)
    opens = (np.arange(len(quotes)) - first[line]) % 2 == 0
    quoted = np.zeros(len(self.starts), bool)
    quoted[line[begins]] = True
    odd = np.zeros(len(self.starts), bool)
    odd[line[~np.where(opens, begins, ends)]] = True
    counts = np.diff(first, append=len(quotes))
    self.odd |= quoted & (odd | (counts % 2 == 1))
    line = np.searchsorted(self.nexts, self._parts, side="right")
    known = line < len(self.starts)
    parts, line = self._parts[known], line[known]
    within = (np.searchsorted(quotes, parts) - first[line]) % 2 == 1
    self._parts = parts[~(within & quoted[line])]
    return quoted

  def _field(self, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns starts and ends of a field; where it is missing it is empty."""
    last = len(self._parts) - 1
    starts, ends = self.starts.copy(), self.ends.copy()
    if number:
      starts = self._parts[np.minimum(self._first + number - 1, last)] + 1
    stops = self._parts[np.minimum(self._first + number, last)]
    ends = np.where(self.fields > number + 1, stops, ends)
    there = self.fields > number
    return np.where(there, starts, ends), ends


class Feed:
  """The lines of a block from one on, for csv's reader."""

  def __init__(self, lines: Lines, slot: int):
    self._lines, self._slot = lines, slot
    self.dry = False

  def __iter__(self) -> "Feed":
    return self

  def __next__(self) -> str:
    if self._slot == len(self._lines.starts):
      self.dry = True
      raise StopIteration
    start, end = self._lines.starts[self._slot], self._lines.nexts[self._slot]
    self._slot += 1
    return strings.decode(self._lines.block[start:end])


def _may_have_space(
  held: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray:
  """Returns which fields may begin or end with white space."""
  first, last = _ends(held, starts, ends)
  return first | last


def may_be_space(
  held: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> np.ndarray:
  """Returns which fields may be nothing but white space."""
  first, last = _ends(held, starts, ends)
  return first & last


def _ends(
  held: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Whether fields may have white space at their two ends."""
  there = ends > starts
  if not len(held):
    return there, there
  first = held[np.minimum(starts, len(held) - 1)]
  last = held[ends - 1]
  at_start = first <= ord(" ")
  if (first >= _WIDE[0][0]).any():
    second = held[np.minimum(starts + 1, len(held) - 1)]
    for lead, after in _WIDE:
      at_start |= (first == lead) & np.isin(second, after)
  return at_start & there, ((last <= ord(" ")) | (last >= 0x80)) & there
