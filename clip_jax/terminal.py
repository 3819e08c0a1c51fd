"""Output for terminals: safe text, aligned tables and progress bars."""

import contextlib
import os
import re
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

# A whole escape sequence: an operating system command up to its terminator, a
# control sequence, or any other two-character escape (ECMA-48, section 5).
_ESCAPE = re.compile(
  r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"
  r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
  r"|\x1b[ -/]*[0-~]?"
)
# Controls, unassigned and private code points, surrogates, format characters
# (right-to-left overrides among them), line and paragraph separators.
_UNPRINTABLE = frozenset(("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"))
_MOST_QUOTED = 20
# For terminals without Unicode.
_IN_ASCII = str.maketrans({"─": "-", "█": "#", "░": ".", "…": "~"})


def printable(text: str, *, limit: int = 1000) -> str:
  """Returns `text` on one line, without control characters or escapes.

  Args:
    text: any text, such as a caption from untrusted data.
    limit: longest result, in characters; a longer text ends in an ellipsis.
  """
  text = _ESCAPE.sub("", text[: 4 * limit])
  text = " ".join(re.split(r"\s+", text))
  text = "".join(
    character
    for character in text
    if unicodedata.category(character) not in _UNPRINTABLE
  ).strip()
  return text if len(text) <= limit else text[: limit - 1] + "…"


def escaped(name: str, *, limit: int = 1000) -> str:
  """Returns a name with invisible characters shown as escape sequences.

  A byte that is not valid UTF-8 is shown as `\\xNN`. Names of more than `limit`
  characters end in an ellipsis.
  """
  text = "".join(map(_escape, name[:limit]))
  cut = len(name) > limit or len(text) > limit
  return text[: limit - 1] + "…" if cut else text


def _escape(character: str) -> str:
  if character.isprintable() and character != "\\":
    return character
  if "\udc80" <= character <= "\udcff":
    return f"\\x{ord(character) - 0xDC00:02x}"
  return character.encode("unicode_escape").decode("ascii")


def percent(fraction: float) -> str:
  """Returns a fraction in percent, with two significant digits if small."""
  if fraction >= 0.1:
    return f"{100 * fraction:.1f} %"
  if fraction >= 1e-6:
    return f"{float(f'{100 * fraction:.1e}'):.6g} %"
  return "0 %" if fraction == 0 else "<0.0001 %"


def encodable(text: str, encoding: str | None) -> str:
  """Returns `text` with only the characters that `encoding` can represent.

  Our own drawing characters become ASCII, all others "?". A stream without an
  encoding takes any text.
  """
  if encoding is None:
    return text
  try:
    text.encode(encoding)
  except UnicodeEncodeError:
    text = text.translate(_IN_ASCII)
    return text.encode(encoding, "replace").decode(encoding)
  return text


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """Returns a table with numbers aligned to the right, other cells left."""
  cells = [[printable(str(cell), limit=60) for cell in row] for row in rows]
  widths = [
    max(map(len, column)) for column in zip(header, *cells, strict=True)
  ]
  numeric = [
    bool(cells) and all(_is_number(row[i]) for row in cells)
    for i in range(len(header))
  ]
  lines = [list(header), ["─" * width for width in widths], *cells]
  return "\n".join(
    "  ".join(
      cell.rjust(width) if right else cell.ljust(width)
      for cell, width, right in zip(line, widths, numeric, strict=True)
    ).rstrip()
    for line in lines
  )


def _is_number(cell: str) -> bool:
  return bool(re.fullmatch(r"[-+]?[\d.,]+(?:e[-+]?\d+)?\s?[%\w]{0,2}|-", cell))


def counts(numbers: Mapping[str, int]) -> str:
  """Returns numbers by name in words: "3 jpeg, 1 png", or "none"."""
  return ", ".join(f"{n} {name}" for name, n in numbers.items()) or "none"


def noun(number: float, one: str, many: str = "") -> str:
  """Returns the word for so many things: "example" of 1, else "examples".

  Args:
    number: how many there are.
    one: the word for one.
    many: the word for more; empty adds an s.
  """
  return one if number == 1 else many or f"{one}s"


def counted(number: int, one: str, many: str = "") -> str:
  """Returns a number with the `noun` for it: "1 example", "2 examples"."""
  return f"{number} {noun(number, one, many)}"


def quoted(names: Sequence[str]) -> str:
  """Returns the first names in quotes, and how many more there are."""
  shown = [f"{name!r:.100}" for name in names[:_MOST_QUOTED]]
  rest = len(names) - len(shown)
  more = f" and {rest} more" if rest else ""
  return f"{', '.join(shown)}{more}"


def quantity(number: float) -> str:
  """Returns a count with three digits and a unit: 1234567 is "1.23 M"."""
  for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(number) >= 0.9995 * scale:
      scaled = float(f"{number / scale:.2e}")
      decimals = max(0, 3 - len(str(int(abs(scaled)))))
      return f"{scaled:.{decimals}f} {unit}"
  return f"{number:g}"


def size(number_of_bytes: float) -> str:
  """Returns a number of bytes with a unit: 16911433728 is "15.75 GiB"."""
  for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
    if abs(number_of_bytes) >= unit:
      return f"{number_of_bytes / unit:.2f} {name}"
  return f"{number_of_bytes:.0f} bytes"


# Begins the line of a terminal anew.
CLEAR = "\r\x1b[K"


def is_one(stream: TextIO) -> bool:
  """Whether a stream is a terminal on which a line can be drawn anew."""
  # What programs put in the place of stderr may only be written to.
  is_terminal = getattr(stream, "isatty", bool)()
  return is_terminal and os.environ.get("TERM") != "dumb"


class Progress:
  """Shows progress: a bar on a terminal, otherwise a line every few seconds.

  Used as a context manager and called with the number done and the total:
  `with Progress("embed") as progress: progress(3, 10)`. A job shorter than
  the interval prints nothing. There are no colours, so NO_COLOR changes
  nothing.
  """

  def __init__(
    self,
    name: str,
    *,
    unit: str = "examples",
    stream: TextIO | None = None,
    interval_seconds: float = 5.0,
    first: int = 0,
  ):
    """Starts the clock.

    Args:
      name: what is done.
      unit: what is counted, in the plural.
      stream: where it is shown; None for stderr.
      interval_seconds: between two lines where that is no terminal.
      first: how many were done before the clock started.
    """
    self.name = name
    self.unit = unit
    self.first = first
    self.stream = sys.stderr if stream is None else stream
    self.is_terminal = is_one(self.stream)
    self.interval_seconds = 0.1 if self.is_terminal else interval_seconds
    self._start = self._last = time.monotonic()

  def __enter__(self) -> "Progress":
    return self

  def __exit__(self, *error: Any) -> None:
    if self.is_terminal:
      self.stream.write(CLEAR)
      self.stream.flush()

  def __call__(
    self,
    done: int,
    total: int | None,
    note: Callable[[], str] | None = None,
  ) -> None:
    """Shows that `done` of `total` units (None if unknown) are done.

    Args:
      done: how many are done.
      total: of how many; None if unknown.
      note: returns what else is shown; called only when it is.
    """
    now = time.monotonic()
    if now - self._last < self.interval_seconds:
      return
    self._last = now
    line = self.line(done, total, seconds=now - self._start)
    if note is not None:
      line = f"{line}, {note()}"
    if not self.is_terminal:
      self.stream.write(line + "\n")
    else:
      if total is not None:
        filled = round(24 * done / max(total, 1))
        line = f"{'█' * filled + '░' * (24 - filled)} {line}"
      line = encodable(line, self.stream.encoding)
      # A line that wraps could not be drawn anew.
      width = shutil.get_terminal_size().columns - 1
      self.stream.write(CLEAR + line[:width])
    self.stream.flush()

  def line(self, done: int, total: int | None, *, seconds: float) -> str:
    """Returns the text for the progress after `seconds`."""
    rate = (done - self.first) / max(seconds, 1e-9)
    if total is None:
      return f"{self.name}: {done} {self.unit}, {rate:.4g}/s"
    left = (total - done) / rate if rate else float("inf")
    return (
      f"{self.name}: {done}/{total} {self.unit} "
      f"({100 * done / max(total, 1):.0f} %), {rate:.4g}/s, "
      f"{duration(left)} left"
    )


@contextlib.contextmanager
def told(
  progress: bool | Callable[[int, int | None], None], name: str, *, unit: str
) -> Iterator[Callable[[int, int | None], None]]:
  """Yields a function to call with (done, total).

  Args:
    progress: that function; True for a progress bar, False for no output.
    name: the job's name in the bar.
    unit: what is counted, in the plural.
  """
  if callable(progress):
    yield progress
  elif progress:
    with Progress(name, unit=unit) as shown:
      yield shown
  else:
    yield lambda done, total: None


def duration(seconds: float) -> str:
  """Returns a duration as text: 75 is "1 min 15 s"."""
  if seconds == float("inf"):
    return "unknown time"
  total = round(seconds)
  if total < 60:
    return f"{total} s"
  if total < 3600:
    return f"{total // 60} min {total % 60} s"
  return f"{total // 3600} h {total % 3600 // 60} min"
