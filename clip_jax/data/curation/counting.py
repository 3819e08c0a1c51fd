"""Exact counts of words and of pairs of neighbours, in bounded memory.

A table of counts that is full is written to a file, in partitions by a hash of
the words, and begun anew. At the end one partition after the other is read
back and added up, a large one in several passes. So nothing is estimated, and
memory hardly depends on the corpus and its vocabulary: below 200 MB for each
process that reads, as much once at the end, and where each part of a file
stands, some 0.3 % of what is written.
"""

import collections
import dataclasses
import itertools
import os
import pathlib
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence

from clip_jax import whole_files
from clip_jax.data.curation import corpus, matching

MAX_WORD = 64  # Characters; what is longer is no word.
MOST_KEYS = 2**19  # Words and pairs in a table before it is written.
MERGED_BYTES = 16 * 2**20  # Of a partition that is read at once.
PARTITIONS = 64
_ENDS = ("P", "S", "Z", "C")  # Categories that no word begins or ends with.
_APART = re.compile(r"(?<=\S) \([^()]*\)$")
KINDS = ("words", "bigrams", "titles", "wordnet")


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
  """The place in a file of the counts of one kind in one partition."""

  kind: str
  partition: int
  path: str
  start: int
  size: int


@dataclasses.dataclass
class Totals:
  """How much text was counted.

  Attributes:
    texts: lines and captions that are not empty.
    words: in these texts, repeated ones included.
    bigrams: neighbouring words without a mark between them, likewise.
    bad: number of texts that could not be read, by reason.
  """

  texts: int = 0
  words: int = 0
  bigrams: int = 0
  bad: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )

  def add(self, other: "Totals") -> None:
    """Adds the numbers of another part."""
    self.texts += other.texts
    self.words += other.words
    self.bigrams += other.bigrams
    self.bad.update(other.bad)


def _is_mark(character: str) -> bool:
  """Whether no word begins or ends with a character."""
  return unicodedata.category(character)[0] in _ENDS


def _without_marks(token: str) -> str:
  start, end = 0, len(token)
  while start < end and _is_mark(token[start]):
    start += 1
  while end > start and _is_mark(token[end - 1]):
    end -= 1
  return token[start:end]


def words_of(line: str) -> Iterator[list[str]]:
  """Yields the rows of neighbours in a line, each a list of words.

  Words stand between spaces, once there are spaces around the marks that
  `matching` sets apart; other marks and symbols at their ends are none of
  theirs. Neighbours with a mark between them are in different rows.
  """
  row: list[str] = []
  for token in matching.spaced(line).split():
    if token.isalnum() and len(token) <= MAX_WORD:
      row.append(token)
      continue
    word = _without_marks(token)
    if row and not (word and token.startswith(word)):
      yield row
      row = []
    if not word:
      continue
    if len(word) > MAX_WORD:
      if row:
        yield row
      row = []
      continue
    row.append(word)
    if not token.endswith(word):
      yield row
      row = []
  if row:
    yield row


class Table:
  """Counts of one process, written to a file of its own as they fill up."""

  def __init__(
    self, path: str | os.PathLike, *, ignore_case: bool, most_keys: int
  ):
    """Begins empty; `path` is appended to."""
    self._path = os.fspath(path)
    self._fold = str.casefold if ignore_case else str
    self._most_keys = most_keys
    self._counts = {kind: collections.Counter[str]() for kind in KINDS}
    self.blocks: list[Block] = []
    self.totals = Totals()

  def add(self, piece: corpus.Piece) -> None:
    """Counts what is in a piece of the corpus."""
    if piece.bad:
      self.totals.bad[piece.bad] += 1
    names = map(self._fold, map(_name, piece.titles))
    self._counts["titles"].update(names)
    self._counts["wordnet"].update(map(self._fold, piece.synsets))
    for line in self._fold(piece.text).splitlines():
      self._add_line(line)
    if sum(map(len, self._counts.values())) >= self._most_keys:
      self.flush()

  def _add_line(self, line: str) -> None:
    self.totals.texts += bool(line.strip())
    for row in words_of(line):
      self.totals.words += len(row)
      self.totals.bigrams += len(row) - 1
      self._counts["words"].update(row)
      self._counts["bigrams"].update(map(" ".join, itertools.pairwise(row)))

  def flush(self) -> None:
    """Writes all counts and forgets them."""
    with whole_files.named(self._path), open(self._path, "ab") as file:
      for kind, counts in self._counts.items():
        self.blocks += self._written(file, kind, counts)
        counts.clear()

  def _written(self, file, kind, counts) -> Iterator[Block]:
    lines: dict[int, list[bytes]] = {}
    for key, count in counts.items():
      data = key.encode("utf-8", "ignore")
      if data := b" ".join(data.split()):  # A title may hold a tab.
        lines.setdefault(_hash(data) % PARTITIONS, []).append(
          b"%b\t%d\n" % (data, count)
        )
    for partition, found in lines.items():
      data = b"".join(found)
      start = file.tell()
      file.write(data)
      yield Block(kind, partition, self._path, start, len(data))


def _hash(data: bytes) -> int:
  return zlib.crc32(data)


def _name(title: str) -> str:
  """Returns an article's title without the "(…)" that tells it from others."""
  return _APART.sub("", title.replace("_", " ").strip())


def merged(
  blocks: Sequence[Block],
  kind: str,
  *,
  merged_bytes: int = MERGED_BYTES,
  keep: Callable[[str], bool] = lambda key: True,
) -> Iterator[tuple[str, int]]:
  """Yields each key of a kind with its count, exactly, in no order.

  Args:
    blocks: of all tables.
    kind: one of `KINDS`.
    merged_bytes: what is added up at once.
    keep: tells what is wanted; the rest takes no memory.
  """
  found: dict[int, list[Block]] = {}
  for block in blocks:
    if block.kind == kind:
      found.setdefault(block.partition, []).append(block)
  for mine in found.values():
    passes = -(-sum(block.size for block in mine) // merged_bytes)
    for number in range(passes):
      counts = collections.Counter[str]()
      for key, count in _lines(mine):
        if _hash(key) // PARTITIONS % passes == number:
          text = key.decode("utf-8")
          if keep(text):
            counts[text] += count
      yield from counts.items()


def _lines(blocks: Sequence[Block]) -> Iterator[tuple[bytes, int]]:
  for path, mine in itertools.groupby(blocks, lambda block: block.path):
    with open(pathlib.Path(path), "rb") as file:
      for block in mine:
        file.seek(block.start)
        for line in file.read(block.size).splitlines():
          key, _, count = line.rpartition(b"\t")
          yield key, int(count)
