"""Makes a list of queries, as the paper and MetaCLIP describe theirs.

The paper (section 2.2): all words that occur at least 100 times in the English
Wikipedia, bigrams of high pointwise mutual information, the names of its
articles above a volume of searches, and WordNet's synsets. MetaCLIP (arXiv
2309.16671, section 3.1 and Table 1) does the same.
"""

import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import math
import multiprocessing
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

from clip_jax import errors, names, terminal, whole_files
from clip_jax.data import parent, prepare, processes
from clip_jax.data.curation import corpus, counting, queries

_MAX_CHARACTERS = 1000  # As `queries` reads.
_SHOWN = 10
_POLL_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Rule:
  """Says which words, bigrams and titles become queries.

  Attributes:
    min_count: words and bigrams occur at least as often.
    min_pmi: bits of pointwise mutual information of a bigram, at least.
    ignore_case: whether all queries are without capitals.
  """

  min_count: int = names.QUERY_MIN_COUNT
  min_pmi: float = names.QUERY_MIN_PMI
  ignore_case: bool = False

  def __post_init__(self) -> None:
    """Raises UserError for a count below one or a PMI that is no number."""
    if self.min_count < 1:
      raise errors.UserError(f"min_count={self.min_count} must be at least 1.")
    if math.isnan(self.min_pmi):
      raise errors.UserError("min_pmi must be a number, got nan.")


@dataclasses.dataclass
class _Entry:
  """A query: where it is from, how often it occurs, and a bigram's PMI."""

  sources: list[str]
  count: int | None = None
  pmi: float | None = None


def pmi(both: int, first: int, second: int, totals: counting.Totals) -> float:
  """Returns the pointwise mutual information of two neighbours, in bits.

  log2(p(xy) / (p(x) p(y))), where p(xy) is the share of the pair among all
  pairs of neighbours, and p(x) that of the word among all words (Church and
  Hanks, 1990).
  """
  p = both / totals.bigrams
  return math.log2(p * totals.words**2 / (first * second))


class _Reader:
  """Reads parts of all inputs, each process into one table; picklable."""

  def __init__(
    self,
    inputs: Sequence[corpus.Input],
    directory: pathlib.Path,
    ignore_case: bool,
  ):
    self._inputs = inputs
    self._directory = directory
    self._ignore_case = ignore_case

  def read(
    self,
    parts: Iterable[tuple[int, int, int]],
    on_text: Callable[[int], None],
  ) -> counting.Totals:
    """Counts some parts; calls `on_text` with the texts just read, or none."""
    path = self._directory / str(os.getpid())
    table = counting.Table(
      path, ignore_case=self._ignore_case, most_keys=counting.MOST_KEYS
    )
    told = 0
    for number, start, stop in parts:
      for piece in self._inputs[number].read(start, stop):
        table.add(piece)
        if table.totals.texts >= told + 1000:
          on_text(table.totals.texts - told)
          told = table.totals.texts
      on_text(table.totals.texts - told)
      told = table.totals.texts
    table.flush()
    return table.totals


class _StoppedError(Exception):
  """The list is no longer wanted."""


@dataclasses.dataclass(frozen=True)
class _Shared:
  """What the processes of the pool share.

  Attributes:
    reader: reads parts.
    parts: of all inputs.
    taken: the number of parts that some process reads or has read.
    texts: the number of texts that were read.
    stopped: whether the list is no longer wanted.
  """

  reader: _Reader
  parts: Sequence[tuple[int, int, int]]
  taken: Any
  texts: Any
  stopped: Any

  def take(self) -> Iterator[tuple[int, int, int]]:
    """Yields parts that no other process has taken."""
    while True:
      with self.taken.get_lock():
        at = self.taken.value
        self.taken.value += 1
      if at >= len(self.parts):
        return
      yield self.parts[at]


_SHARED: _Shared | None = None  # Of a process of the pool.


def _begin(shared: _Shared) -> None:
  global _SHARED
  parent.ignore_signals()
  parent.watch()
  _SHARED = shared


def _read() -> counting.Totals:
  assert _SHARED is not None
  shared = _SHARED

  def on_text(number: int) -> None:
    if shared.stopped.is_set():  # A part may take hours.
      raise _StoppedError
    with shared.texts.get_lock():
      shared.texts.value += number

  return shared.reader.read(shared.take(), on_text)


def _read_all(
  reader: _Reader,
  parts: Sequence[tuple[int, int, int]],
  workers: int,
  on_texts: Callable[[int], None],
) -> Iterator[counting.Totals]:
  """Yields how much each process has counted, in no order."""
  if workers == 1:
    told = 0

    def on_text(number: int) -> None:
      nonlocal told
      told += number
      on_texts(told)

    yield reader.read(parts, on_text)
    return
  spawning = multiprocessing.get_context("spawn")
  taken, texts = spawning.Value("q", 0), spawning.Value("q", 0)
  shared = _Shared(reader, tuple(parts), taken, texts, spawning.Event())
  with concurrent.futures.ProcessPoolExecutor(
    workers,
    mp_context=spawning,
    initializer=_begin,
    initargs=(shared,),
  ) as pool:
    try:
      processes.start_all(pool, workers)
      left = {pool.submit(_read) for _ in range(workers)}
      while left:
        done, left = concurrent.futures.wait(
          left,
          timeout=_POLL_SECONDS,
          return_when=concurrent.futures.FIRST_COMPLETED,
        )
        yield from (future.result() for future in done)
        on_texts(texts.value)
    except concurrent.futures.process.BrokenProcessPool:
      raise errors.UserError(
        "A process that read the texts was killed, perhaps for its memory; "
        "give fewer workers. Nothing was written."
      ) from None
    except BaseException:
      shared.stopped.set()
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def make(
  inputs: Sequence[corpus.Input],
  out: str | os.PathLike,
  rule: Rule,
  *,
  workers: int = 1,
  on_texts: Callable[[int], None] = lambda texts: None,
) -> dict[str, Any]:
  """Writes a list of queries to the file `out`, and a table beside it.

  Both are sorted and depend on the inputs and the rule alone. The table, named
  as `out` with `.tsv` in place of the suffix, has the columns `query`;
  `sources` that give it, of words, bigrams, titles and wordnet; `count` in the
  corpus, of words and bigrams; and `pmi` in bits, of bigrams. Nothing is
  overwritten. While it works, counts lie in a directory beside `out`; what a
  killed run has left there, the next one for this `out` removes.

  Args:
    inputs: of `corpus.open_input`.
    out: a new file, for `data curate --queries`.
    rule: what becomes a query.
    workers: processes that read; one does it in this process.
    on_texts: called with the number of texts read so far.

  Returns:
    A dictionary: `queries` in all; `sources`, how many each gives, and `only`,
    how many nothing else gives; `texts`, `words` and `bigrams` in the corpus,
    `bad` texts by reason; `examples` of each source; `digest` of the list; the
    rule; `out` and `table`.

  Raises:
    UserError: an input cannot be used, `out` is there or is being made, or
      nothing is found.
  """
  errors.check_out(out)
  out = pathlib.Path(os.path.expanduser(out))
  table = out.with_suffix(".tsv")
  _check_new(out, table)
  with prepare.partial_directory(out) as partial:
    # Another one each time: a killed run's processes may write a moment longer.
    directory = pathlib.Path(tempfile.mkdtemp(dir=partial))
    parts = [
      (number, *part)
      for number, each in enumerate(inputs)
      for part in each.parts()
    ]
    reader = _Reader(tuple(inputs), directory, rule.ignore_case)
    totals = counting.Totals()
    for counted in _read_all(reader, parts, workers, on_texts):
      totals.add(counted)
    entries = _entries(directory, totals, rule)
    if not entries:
      raise errors.UserError(
        f"No query is found in {terminal.counted(totals.texts, 'text')} of "
        f"{terminal.counted(totals.words, 'word')}{_in_words(totals)}: no word "
        f"occurs {terminal.counted(rule.min_count, 'time')}. Give more text, "
        "or a smaller min_count (--min-count)."
      )
    made = _written(entries, totals, rule, out, table, directory)
    shutil.rmtree(partial, ignore_errors=True)
  return made


def _in_words(totals: counting.Totals) -> str:
  bad = ", ".join(f"{n} {why}" for why, n in sorted(totals.bad.items()))
  return f" ({bad})" if bad else ""


def _check_new(out: pathlib.Path, table: pathlib.Path) -> None:
  if out.suffix in (".tsv", ".json"):
    raise errors.UserError(
      f"OUT {str(out)!r} is a text with a query a line; give it another "
      "suffix, such as .txt. The table beside it ends in .tsv."
    )
  for path in (out, table):
    if os.path.lexists(path):
      raise errors.UserError(
        f"{str(path)!r} exists; nothing is overwritten. Choose another name or "
        "remove it."
      )
  if not out.parent.is_dir():
    raise errors.UserError(
      f"There is no directory {str(out.parent)!r}; make it first."
    )


def _entries(
  directory: pathlib.Path, totals: counting.Totals, rule: Rule
) -> dict[str, _Entry]:
  """Returns the queries, with what is known of each."""
  entries: dict[str, _Entry] = {}
  # A pair occurs at most as often as each of its words: to leave out pairs of
  # rarer words while they are added up loses none.
  for word, count in counting.merged(directory, "words"):
    if count >= rule.min_count:
      entries[word] = _Entry(["words"], count)
  words = {word: entry.count or 0 for word, entry in entries.items()}

  def frequent(pair: str) -> bool:
    first, _, second = pair.partition(" ")
    return first in words and second in words

  for pair, count in counting.merged(directory, "bigrams", keep=frequent):
    if count >= rule.min_count:
      first, _, second = pair.partition(" ")
      bits = pmi(count, words[first], words[second], totals)
      if bits >= rule.min_pmi:
        entries[pair] = _Entry(["bigrams"], count, bits)
  for kind in ("titles", "wordnet"):
    for name, _ in counting.merged(directory, kind):
      if len(name) <= _MAX_CHARACTERS:
        entries.setdefault(name, _Entry([])).sources.append(kind)
  return entries


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[TextIO]:
  with (
    whole_files.named(path),
    open(path, "w", encoding="utf-8", newline="\n") as file,
  ):
    yield file


def _written(
  entries: dict[str, _Entry],
  totals: counting.Totals,
  rule: Rule,
  out: pathlib.Path,
  table: pathlib.Path,
  directory: pathlib.Path,
) -> dict[str, Any]:
  texts = sorted(entries)
  new = directory / "queries", directory / "table"
  with _writing(new[0]) as file:
    file.writelines(f"{text}\n" for text in texts)
  with _writing(new[1]) as file:
    file.write("query\tsources\tcount\tpmi\n")
    file.writelines(_row(text, entries[text]) for text in texts)
  for made, path in zip(new, (out, table), strict=True):
    os.replace(made, path)
  kinds = counting.KINDS
  return {
    "out": str(out),
    "table": str(table),
    "queries": len(texts),
    "digest": queries.Queries(tuple(texts)).digest,
    "sources": {
      kind: sum(kind in entry.sources for entry in entries.values())
      for kind in kinds
    },
    "only": {
      kind: sum(entry.sources == [kind] for entry in entries.values())
      for kind in kinds
    },
    "texts": totals.texts,
    "words": totals.words,
    "bigrams": totals.bigrams,
    "bad": dict(sorted(totals.bad.items())),
    "examples": {kind: _examples(entries, kind) for kind in kinds},
    **dataclasses.asdict(rule),
  }


def _row(text: str, entry: _Entry) -> str:
  count = "" if entry.count is None else entry.count
  bits = "" if entry.pmi is None else f"{entry.pmi:.4f}"
  return f"{text}\t{','.join(entry.sources)}\t{count}\t{bits}\n"


def _examples(entries: dict[str, _Entry], kind: str) -> list[str]:
  """Returns some queries of a kind: the most frequent or of highest PMI."""
  mine = (text for text, entry in entries.items() if kind in entry.sources)

  def rank(text: str) -> tuple[float, str]:
    entry = entries[text]
    number = entry.pmi if kind == "bigrams" else entry.count
    return -(number or 0), text

  return sorted(mine, key=rank)[:_SHOWN]
