"""What a list of queries is made from: texts, captions, dumps and titles.

An input is cut into parts that several processes can read, each by itself: a
plain file by bytes, a Parquet file by row groups, captions by records. A
compressed file is one part.
"""

import bz2
import collections
import contextlib
import dataclasses
import gzip
import os
import re
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

from clip_jax import errors, names, regular_files
from clip_jax.data import record as record_lib
from clip_jax.data import sources
from clip_jax.data.curation import wikipedia, wordnet
from clip_jax.data.sources import columns, row_groups

PIECE_BYTES = 2**20
_PART_BYTES = 64 * 2**20
_PART_RECORDS = 8192
_TITLES, _WORDNET = names.TITLES, "wordnet:"
_HEADER = re.compile(rb"\Apage_title\r?\n")  # Of all-titles-in-ns0.
_OPENERS = {".gz": gzip.open, ".bz2": bz2.open}
# Where a Parquet file has several columns of text.
_COLUMNS = ("text", "caption", "captions", "TEXT", "content", "title")


@dataclasses.dataclass(frozen=True)
class Piece:
  """Some of an input.

  Attributes:
    text: lines of plain text.
    titles: names of articles or pages.
    synsets: names of WordNet's synsets.
    bad: what could not be read, in one word; "" for nothing.
  """

  text: str = ""
  titles: tuple[str, ...] = ()
  synsets: tuple[str, ...] = ()
  bad: str = ""


class Input(Protocol):
  """One input; picklable. A part is a range of it."""

  def parts(self) -> list[tuple[int, int]]:
    """Returns ranges that together are all of it."""
    ...

  def read(self, start: int, stop: int) -> Iterator[Piece]:
    """Yields what a part holds."""
    ...


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
  """Opens a file that may be compressed; names it where it is damaged."""
  with regular_files.open_regular(path) as file:
    opener = _OPENERS.get(os.path.splitext(path)[1].lower())
    try:
      yield file if opener is None else opener(file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
      raise _damaged(path, error) from None
    except OSError as error:
      if error.errno is not None:  # Of the disk, not of the data.
        raise
      raise _damaged(path, error) from None


def _damaged(path: str, error: Exception) -> errors.UserError:
  return errors.UserError(
    f"{path} cannot be unpacked to its end ({error}); get it again."
  )


def _blocks(file: Any, size: int) -> Iterator[bytes]:
  """Yields whole lines from where `file` stands, up to `size` bytes on.

  The last line is yielded whole, also where it goes on behind that. A line
  beyond a block is cut at its last space, or between two characters.
  """
  rest, ended = b"", True
  while size > 0:
    data = file.read(min(PIECE_BYTES, size))
    if not data:
      break
    size -= len(data)
    data = rest + data
    ended = data.endswith(b"\n")
    cut = data.rfind(b"\n") + 1
    if not cut and len(data) > PIECE_BYTES:
      cut = _cut(data)
    rest = data[cut:]
    if cut:
      yield data[:cut]
  if not ended and not size:  # What is behind the range, up to the line's end.
    while (more := file.readline(PIECE_BYTES)) and not more.endswith(b"\n"):
      rest += more
      if len(rest) > PIECE_BYTES:
        cut = _cut(rest)
        yield rest[:cut]
        rest = rest[cut:]
    rest += more
  if rest:
    yield rest


def _cut(line: bytes) -> int:
  """Returns the place to cut bytes without an end: within no character."""
  if cut := line.rfind(b" ") + 1:
    return cut
  for at in range(len(line) - 1, max(0, len(line) - 4), -1):
    if line[at] & 0xC0 != 0x80:  # A character begins here.
      return at if line[at] >= 0xC0 else len(line)
  return len(line)


def _decoded(block: bytes) -> Iterator[Piece]:
  try:
    yield Piece(block.decode("utf-8"))
    return
  except UnicodeDecodeError:
    pass
  for line in block.split(b"\n"):
    try:
      yield Piece(line.decode("utf-8"))
    except UnicodeDecodeError:
      yield Piece(bad="not_utf8")


@dataclasses.dataclass(frozen=True)
class Lines:
  """A file of plain text, a text a line; or of titles, one a line.

  A title may have a tab and the number of its views behind it.
  """

  path: str
  are_titles: bool = False
  min_views: int = 0

  def parts(self) -> list[tuple[int, int]]:
    """Returns ranges of bytes; a compressed file is one."""
    size = os.stat(self.path).st_size
    if os.path.splitext(self.path)[1].lower() in _OPENERS:
      return [(0, 2**62)]
    starts = range(0, size, _PART_BYTES)
    return [(start, min(start + _PART_BYTES, size)) for start in starts]

  def read(self, start: int, stop: int) -> Iterator[Piece]:
    """Yields the lines that begin within a range."""
    with _opened(self.path) as file:
      if start:  # A line belongs to the range in which it begins.
        file.seek(start - 1)
        while (skipped := file.readline(PIECE_BYTES)) and (
          not skipped.endswith(b"\n")
        ):
          pass
        start = file.tell()
      for number, block in enumerate(_blocks(file, stop - start)):
        if not number and not start:
          block = block.removeprefix(b"\xef\xbb\xbf")
          if self.are_titles:
            block = _HEADER.sub(b"", block)
        for piece in _decoded(block):
          yield self._as_titles(piece) if self.are_titles else piece

  def _as_titles(self, piece: Piece) -> Piece:
    titles = []
    for line in piece.text.split("\n"):
      title, tab, views = line.partition("\t")
      if self.min_views:
        if not views.strip().isdecimal() or not tab:
          if line.strip():
            raise errors.UserError(
              f"{self.path}: the line {line!r:.80} has no number of views "
              "behind a tab; leave the least number of views out, or add them."
            )
          continue
        if int(views) < self.min_views:
          continue
      titles.append(title)
    return Piece(titles=tuple(titles), bad=piece.bad)


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of texts in a Parquet file."""

  path: str
  column: str

  def parts(self) -> list[tuple[int, int]]:
    """Returns one range for each row group."""
    groups = len(row_groups.ParquetFile(self.path).footer.rows)
    return [(group, group + 1) for group in range(groups)]

  def read(self, start: int, stop: int) -> Iterator[Piece]:
    """Yields the texts of some row groups; nulls are none."""
    file = row_groups.ParquetFile(self.path)
    for group in range(start, stop):
      rows, seen = file.footer.rows[group], 0
      for cell in file.unpack(group, [self.column]).column(self.column):
        seen += 1
        try:
          value = cell.as_py()
        except UnicodeDecodeError:
          yield Piece(bad="not_utf8")
          continue
        texts = value if isinstance(value, list) else [value]
        yield Piece("\n".join(map(_on_a_line, filter(None, texts))))
      for _ in range(seen, rows):
        yield Piece(bad="damaged_record")


def _on_a_line(text: str) -> str:
  return text.replace("\n", " ").replace("\r", " ")


@dataclasses.dataclass(frozen=True)
class Dump:
  """A dump of Wikipedia's articles."""

  path: str

  def parts(self) -> list[tuple[int, int]]:
    """Returns all of it as one range."""
    return [(0, 1)]

  def read(self, start: int, stop: int) -> Iterator[Piece]:
    """Yields title and text of each article."""
    del start, stop
    with _opened(self.path) as file:
      for page in wikipedia.read_pages(file.read, name=self.path):
        if page.text is None:
          yield Piece(titles=(page.title,), bad="too_large")
        else:
          yield Piece(wikipedia.plain(page.text), titles=(page.title,))


@dataclasses.dataclass(frozen=True)
class Captions:
  """The captions of the data at an address."""

  source: record_lib.Source

  def parts(self) -> list[tuple[int, int]]:
    """Returns ranges of slots."""
    size = len(self.source)
    starts = range(0, size, _PART_RECORDS)
    return [(start, min(start + _PART_RECORDS, size)) for start in starts]

  def read(self, start: int, stop: int) -> Iterator[Piece]:
    """Yields the captions of each record."""
    for slot in range(start, stop):
      try:
        record = self.source[slot]
      except record_lib.BadRecord as error:
        yield Piece(bad=error.reason)
      else:
        yield Piece("\n".join(map(_on_a_line, record.texts)))


@dataclasses.dataclass(frozen=True)
class Synsets:
  """WordNet's database in a directory."""

  directory: str

  def parts(self) -> list[tuple[int, int]]:
    """Returns all of it as one range."""
    return [(0, 1)]

  def read(self, start: int, stop: int) -> Iterator[Piece]:
    """Yields the names of all synsets."""
    del start, stop
    yield Piece(synsets=tuple(wordnet.read_names(self.directory)))


def open_input(
  text: str, *, column: str | None = None, min_views: int = 0
) -> Input:
  """Returns the input that a word of the command line names.

  Args:
    text: a DATA address, for its captions; `wordnet:DIR`; `titles:FILE`; or a
      file: `.parquet`, `.xml` (a dump of Wikipedia) or plain text, the last
      two also with `.gz` or `.bz2` behind.
    column: of a Parquet file; None finds it.
    min_views: titles of a list with fewer views are left out.

  Raises:
    UserError: there is no such thing.
  """
  if text.startswith(_WORDNET):
    return Synsets(text.removeprefix(_WORDNET))
  if text.startswith(_TITLES):
    path = _checked(text.removeprefix(_TITLES))
    return Lines(path, are_titles=True, min_views=min_views)
  if sources.has_scheme(text):
    return Captions(sources.open_source(text))
  path = _checked(text)
  stem, suffix = os.path.splitext(path.lower())
  if suffix == ".parquet":
    return Column(path, _column(path, column))
  inner = os.path.splitext(stem)[1] if suffix in _OPENERS else suffix
  return Dump(path) if inner == ".xml" else Lines(path)


def _checked(path: str) -> str:
  errors.check_local("TEXT", path)
  path = os.path.expanduser(path)
  if os.path.isdir(path):
    raise errors.UserError(
      f"{path!r} is a directory; give its files, or a DATA address such as "
      f"folder:{path}, or wordnet:{path}."
    )
  if not os.path.exists(path):
    raise errors.UserError(
      f"File {path!r} does not exist. TEXT is a file, a DATA address, "
      "wordnet:DIR or titles:FILE."
    )
  if not os.path.isfile(path):  # Its size would be none, and so would it be.
    raise errors.UserError(
      f"{path!r} is not a regular file, which has a size and can be read in "
      "parts; write what it gives to a file first."
    )
  return path


def _column(path: str, wanted: str | None) -> str:
  try:
    schema = row_groups.ParquetFile(path).footer.schema
  except row_groups.BadFileError as error:
    raise errors.UserError(
      f"{path} is no whole Parquet file ({error.reason}); get it again."
    ) from None
  number = collections.Counter(schema.names)
  texts = [
    field.name
    for field in schema
    if columns.holds_texts(field.type) and number[field.name] == 1
  ]
  if not texts:
    raise errors.UserError(
      f"{path} has no column of texts whose name no other column has; its "
      f"columns are {', '.join(map(repr, schema.names)) or 'none'}."
    )
  if wanted is not None:
    if wanted not in texts:
      raise errors.unknown(f"column of texts of {path}:", wanted, texts)
    return wanted
  usual = [name for name in _COLUMNS if name in texts]
  if not usual and len(texts) != 1:
    raise errors.UserError(
      f"{path} has {len(texts)} columns of texts ({', '.join(texts)}); name "
      "one: --column NAME."
    )
  return (usual or texts)[0]
