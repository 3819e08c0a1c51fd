"""Exact counts of words and of pairs of neighbours, in bounded memory.

A table of counts that is full is added to files, one for each kind and each
partition by a hash of the words, and begun anew. At the end one partition after
the other is read back and added up; a large one is parted further before. So
nothing is estimated, and memory does not depend on the corpus and its
vocabulary: some 20 MB for each process that reads, as much once at the end.
"""

import collections
import contextlib
import dataclasses
import io
import itertools
import os
import pathlib
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from clip_jax import whole_files
from clip_jax.data.curation import corpus, matching

MAX_WORD = 64  # Characters; what is longer is no word.
MOST_KEYS = 2**17  # Words and pairs in a table before it is written.
MERGED_BYTES = 2**21  # Of a partition that is added up at once.
PARTITIONS = 64
_DEEPEST = 5  # Digits to the base of `PARTITIONS` that a hash has.
_ENDS = ("P", "S", "Z", "C")  # Categories that no word begins or ends with.
_APART = re.compile(r"(?<=\S) \([^()]*\)$")
KINDS = ("words", "bigrams", "titles", "wordnet")


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
  """Counts of one process, added to files of its own as they fill up."""

  def __init__(
    self, path: str | os.PathLike, *, ignore_case: bool, most_keys: int
  ):
    """Begins empty; the names of its files are `path` and more."""
    self._path = os.fspath(path)
    self._fold = str.casefold if ignore_case else str
    self._most_keys = most_keys
    self._counts = {kind: collections.Counter[str]() for kind in KINDS}
    self.totals = Totals()

  def add(self, piece: corpus.Piece) -> None:
    """Counts what is in a piece of the corpus."""
    if piece.bad:
      self.totals.bad[piece.bad] += 1
    names = map(self._fold, map(_name, piece.titles))
    self._counts["titles"].update(names)
    self._counts["wordnet"].update(map(self._fold, piece.synsets))
    # By \n, \r and both: U+2028 and the like end no line of a text.
    for line in io.StringIO(self._fold(piece.text), newline=None):
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
    """Adds all counts to the files and forgets them."""
    for kind, counts in self._counts.items():
      lines: dict[int, list[bytes]] = {}
      for key, count in counts.items():
        # Without the spaces that a reader of the list removes, too.
        data = key.strip().encode("utf-8", "ignore")
        if data := b" ".join(data.split()):  # A title may hold a tab.
          lines.setdefault(_hash(data) % PARTITIONS, []).append(
            b"%b\t%d\n" % (data, count)
          )
      counts.clear()
      for partition, found in lines.items():
        path = f"{self._path}.{kind}.{partition}"
        with whole_files.named(path), open(path, "ab") as file:
          file.writelines(found)


def _hash(data: bytes) -> int:
  return zlib.crc32(data)


def _name(title: str) -> str:
  """Returns an article's title without the "(…)" that tells it from others."""
  return _APART.sub("", title.replace("_", " ").strip())


def merged(
  directory: str | os.PathLike,
  kind: str,
  *,
  merged_bytes: int = MERGED_BYTES,
  keep: Callable[[str], bool] = lambda key: True,
) -> Iterator[tuple[str, int]]:
  """Yields each key of a kind with its count, exactly, in no order.

  Args:
    directory: where all tables are written; the files of this kind go.
    kind: one of `KINDS`.
    merged_bytes: what is added up at once.
    keep: tells what is wanted; the rest takes no memory.
  """
  found: dict[str, list[pathlib.Path]] = {}
  for path in pathlib.Path(directory).glob(f"*.{kind}.*"):
    found.setdefault(path.suffix, []).append(path)
  for paths in found.values():
    yield from _added_up(paths, 1, merged_bytes, keep)


def _added_up(
  paths: Sequence[pathlib.Path],
  level: int,
  merged_bytes: int,
  keep: Callable[[str], bool],
) -> Iterator[tuple[str, int]]:
  """Yields the counts in some files, which all have the keys of one partition.

  Args:
    paths: of the files, which are removed.
    level: how many digits of the keys' hashes are the same.
    merged_bytes: what is added up at once.
    keep: tells what is wanted.
  """
  size = sum(path.stat().st_size for path in paths)
  if size > merged_bytes and level < _DEEPEST:
    for part in _parted(paths, level):
      yield from _added_up([part], level + 1, merged_bytes, keep)
    return
  counts = collections.Counter[str]()
  for line in _lines(paths):
    key, _, count = line.rpartition(b"\t")
    text = key.decode("utf-8")
    if keep(text):
      counts[text] += int(count)
  yield from counts.items()


def _parted(paths: Sequence[pathlib.Path], level: int) -> list[pathlib.Path]:
  """Moves the lines of files to others, by the next digit of their hashes."""
  parts = [pathlib.Path(f"{paths[0]}-{i}") for i in range(PARTITIONS)]
  with contextlib.ExitStack() as stack:
    stack.enter_context(whole_files.named(parts[0]))
    files = [stack.enter_context(part.open("wb")) for part in parts]
    for line in _lines(paths):
      digit = _hash(line.rpartition(b"\t")[0]) // PARTITIONS**level % PARTITIONS
      files[digit].write(line)
  return parts


def _lines(paths: Iterable[pathlib.Path]) -> Iterator[bytes]:
  """Yields the lines of files, each of which is removed once it is read."""
  for path in paths:
    with path.open("rb") as file:
      yield from file
    path.unlink()
