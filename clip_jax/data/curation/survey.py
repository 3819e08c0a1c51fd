"""Reads every record of a source once and keeps what a function says of it.

The function is pure: what it says of a record depends on the record alone. So
the result is the same for any number of processes and in whatever order ranges
of the source are read, and a range that a killed run has finished is not read
again: it is kept in a file, under a digest of what it depends on.

    found = survey.survey(source, examine, workers=4, keep=directory)
    found.columns["side"][found.good]

`curate.py`, `filtering.py` and `dedupe.py` decide from what was found.
"""

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import pathlib
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from clip_jax import preprocess
from clip_jax.data import parent, prepare
from clip_jax.data import record as record_lib

_VERSION = 1
_CHUNK = 64  # Records that a process reads before it answers.
_WAITING = 4  # Chunks that wait for each process.
_KEEP_SECONDS = 5.0  # A killed run loses about that much.
_SUFFIX = ".found"
_GOOD = -1


class Examine(Protocol):
  """What is found out about each record; picklable, and pure.

  Attributes:
    columns: by name the type of a number, or of an array of fixed shape, that
      is found for each record.
    ragged: by name the type of any number of numbers for each record.
    identity: everything the answers depend on besides the record, as JSON can
      hold it.
  """

  columns: Mapping[str, np.dtype]
  ragged: Mapping[str, np.dtype]
  identity: Any

  def __call__(self, record: record_lib.Record) -> Mapping[str, Any]:
    """Returns a value for each name; BadRecord or ImageError for bad ones."""
    ...


@dataclasses.dataclass(frozen=True)
class Found:
  """What was found in the slots from `start` up to `stop`.

  Attributes:
    start: the first slot.
    stop: the slot after the last.
    columns: by name an array (slots, …); zeros where a record is bad.
    lengths: by name how many numbers each slot has in `values`, int64 (slots,).
    values: by name these numbers, one slot after the other.
    reasons: of each slot the position in `words` of what is wrong with it, -1
      where it is good, int32 (slots,).
    words: the reasons.
  """

  start: int
  stop: int
  columns: dict[str, np.ndarray]
  lengths: dict[str, np.ndarray]
  values: dict[str, np.ndarray]
  reasons: np.ndarray
  words: tuple[str, ...] = ()

  @property
  def good(self) -> np.ndarray:
    """Whether each slot holds a usable record, bool (slots,)."""
    return self.reasons == _GOOD

  def bad(self) -> dict[str, int]:
    """Returns the number of bad slots by reason, the first met first."""
    numbers, first, counts = np.unique(
      self.reasons[~self.good], return_index=True, return_counts=True
    )
    return {self.words[numbers[i]]: int(counts[i]) for i in np.argsort(first)}


def joined(parts: Iterable[Found]) -> Found:
  """Returns parts that follow each other, in any order, as one."""
  parts = sorted(parts, key=lambda part: part.start)
  first = parts[0]
  words = tuple(sorted({word for part in parts for word in part.words}))
  reasons = []
  for part in parts:
    # The last entry is that of good slots, which have -1.
    new = np.array([*map(words.index, part.words), _GOOD], np.int32)
    reasons.append(new[part.reasons])

  def all_of(kind: str) -> dict[str, np.ndarray]:
    return {
      name: np.concatenate([getattr(part, kind)[name] for part in parts])
      for name in getattr(first, kind)
    }

  return Found(
    first.start,
    parts[-1].stop,
    columns=all_of("columns"),
    lengths=all_of("lengths"),
    values=all_of("values"),
    reasons=np.concatenate(reasons),
    words=words,
  )


@dataclasses.dataclass(frozen=True)
class Job:
  """Reads ranges of a source; picklable, for other processes.

  Attributes:
    source: what is read.
    examine: what is found out about each record.
  """

  source: record_lib.Source
  examine: Examine

  def digest(self) -> bytes:
    """Returns a digest of what the answers depend on."""
    about = [
      *(_VERSION, self.source.fingerprint, len(self.source)),
      *(type(self.examine).__qualname__, self.examine.identity),
    ]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).digest()

  def run(self, start: int, stop: int) -> Found:
    """Examines the records of the slots from `start` up to `stop`."""
    examine, slots = self.examine, stop - start
    columns = {
      name: np.zeros(slots, dtype) for name, dtype in examine.columns.items()
    }
    lengths = {name: np.zeros(slots, np.int64) for name in examine.ragged}
    values: dict[str, list] = {name: [] for name in examine.ragged}
    reasons = np.full(slots, _GOOD, np.int32)
    words: dict[str, int] = {}
    for i in range(slots):
      try:
        said = examine(self.source[start + i])
      except (record_lib.BadRecord, preprocess.ImageError) as error:
        reasons[i] = words.setdefault(error.reason, len(words))
        continue
      for name, column in columns.items():
        column[i] = said[name]
      for name, several in values.items():
        several += said[name]
        lengths[name][i] = len(said[name])
    arrays = {
      name: np.array(values[name], dtype)
      for name, dtype in examine.ragged.items()
    }
    return Found(start, stop, columns, lengths, arrays, reasons, tuple(words))


class Shelf:
  """Keeps what was found in a directory, a file for each range."""

  def __init__(self, directory: str | os.PathLike, digest: bytes):
    """Makes the directory where it is missing.

    Args:
      directory: for such files only; several jobs may share it.
      digest: of what the answers depend on; files of others are passed over.
    """
    self._directory = pathlib.Path(directory)
    self._digest = digest
    self._directory.mkdir(parents=True, exist_ok=True)

  def put(self, found: Found) -> None:
    """Writes a file, whole or not at all."""
    payload = io.BytesIO()
    arrays = {
      f"{kind}.{name}": array
      for kind in ("columns", "lengths", "values")
      for name, array in getattr(found, kind).items()
    }
    words = json.dumps(found.words).encode()
    np.savez(
      payload,
      range=np.array([found.start, found.stop], np.int64),
      words=np.frombuffer(words, np.uint8),
      reasons=found.reasons,
      **arrays,
    )
    name = f"{self._digest.hex()[:12]}-{found.start}-{found.stop}"
    partial = self._directory / f"{name}.{os.getpid()}.partial"
    data = payload.getvalue()
    partial.write_bytes(self._sealed(data) + data)
    os.replace(partial, self._directory / (name + _SUFFIX))

  def _sealed(self, data: bytes) -> bytes:
    return hashlib.sha256(self._digest + data).digest()

  def parts(self, slots: int) -> list[Found]:
    """Returns what is there, in order; damaged and foreign files are not.

    Args:
      slots: of the source.
    """
    found: list[Found] = []
    mine = self._directory.glob(f"{self._digest.hex()[:12]}-*{_SUFFIX}")
    for path in sorted(mine):
      whole = path.read_bytes()
      seal, data = whole[: len(self._digest)], whole[len(self._digest) :]
      if seal != self._sealed(data):
        path.unlink()
        continue
      found.append(_unpacked(data))
    found.sort(key=lambda part: (part.start, -part.stop))
    kept: list[Found] = []
    for part in found:
      if part.start >= (kept[-1].stop if kept else 0) and part.stop <= slots:
        kept.append(part)
    return kept


def _unpacked(data: bytes) -> Found:
  kinds: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
  with np.load(io.BytesIO(data), allow_pickle=False) as file:
    start, stop = file["range"].tolist()
    words = tuple(json.loads(file["words"].tobytes()))
    reasons = file["reasons"]
    for entry in file.files:
      kind, _, name = entry.partition(".")
      if name:
        kinds[kind][name] = file[entry]
  return Found(
    start,
    stop,
    columns=kinds["columns"],
    lengths=kinds["lengths"],
    values=kinds["values"],
    reasons=reasons,
    words=words,
  )


def gaps(
  parts: Sequence[Found], slots: int, *, length: int = _CHUNK
) -> list[tuple[int, int]]:
  """Returns the ranges, of at most `length`, that no part has.

  Args:
    parts: in order; none begins before the one before it ends.
    slots: of the source.
    length: of a range.
  """
  edges = [0, *(edge for p in parts for edge in (p.start, p.stop)), slots]
  return [
    (start, min(start + length, end))
    for begin, end in zip(edges[::2], edges[1::2], strict=True)
    for start in range(begin, end, length)
  ]


# Runs a job on ranges, and yields what it found, in any order.
Ranges = list[tuple[int, int]]
Runner = Callable[[Job, Ranges], Generator[Found, None, None]]


def survey(
  source: record_lib.Source,
  examine: Examine,
  *,
  workers: int = 1,
  keep: str | os.PathLike | None = None,
  on_record: Callable[[int], None] | None = None,
  runner: Runner | None = None,
) -> Found:
  """Returns what `examine` says of all records of `source`.

  Args:
    source: what is read.
    examine: what is found out about each record.
    workers: processes that read; one reads in this process.
    keep: a directory for what is found; a later call with the same arguments
      reads there what an earlier one has found. It is left to the caller.
    on_record: called with the number of records examined.
    runner: runs the work elsewhere, instead of `workers`.

  Raises:
    Interrupted: a process that read was killed.
  """
  job = Job(source, examine)
  slots = len(source)
  shelf = None if keep is None else Shelf(keep, job.digest())
  parts = [] if shelf is None else shelf.parts(slots)
  todo = gaps(parts, slots)
  done = slots - sum(stop - start for start, stop in todo)
  run = runner or (in_processes(workers) if workers > 1 else _in_order)
  fresh: list[Found] = []
  last = time.monotonic()
  try:
    with contextlib.closing(run(job, todo)) as found:
      for part in found:
        fresh.append(part)
        done += part.stop - part.start
        if on_record is not None:
          on_record(done)
        if time.monotonic() - last > _KEEP_SECONDS:
          parts += _put_away(fresh, shelf)
          fresh, last = [], time.monotonic()
  except BaseException:
    _put_away(fresh, shelf)
    raise
  # With the rest on its shelf, what follows may be killed, too.
  parts += _put_away(fresh, shelf)
  return joined(parts or [job.run(0, 0)])


def _put_away(parts: list[Found], shelf: Shelf | None) -> list[Found]:
  """Returns `parts`, those that follow each other as one, and keeps them."""
  rows: list[list[Found]] = []
  for part in sorted(parts, key=lambda part: part.start):
    if rows and rows[-1][-1].stop == part.start:
      rows[-1].append(part)
    else:
      rows.append([part])
  together = [joined(row) for row in rows]
  if shelf is not None:
    for part in together:
      shelf.put(part)
  return together


def _in_order(job: Job, ranges: Ranges) -> Generator[Found, None, None]:
  for start, stop in ranges:
    yield job.run(start, stop)


_JOB: Job | None = None  # Of a process of the pool.


def _begin(job: Job) -> None:
  global _JOB
  parent.ignore_signals()
  parent.watch()
  _JOB = job


def _run(start: int, stop: int) -> Found:
  assert _JOB is not None
  return _JOB.run(start, stop)


def in_processes(workers: int) -> Runner:
  """Returns a runner that reads in this many processes of this machine."""

  def run(job: Job, ranges: Ranges) -> Generator[Found, None, None]:
    if not ranges:
      return
    with concurrent.futures.ProcessPoolExecutor(
      workers,
      mp_context=multiprocessing.get_context("spawn"),
      initializer=_begin,
      initargs=(job,),
    ) as pool:
      try:
        yield from _as_they_come(pool, ranges, _WAITING * workers)
      except concurrent.futures.process.BrokenProcessPool:
        raise prepare.Interrupted(
          "A process that read the data was killed, perhaps for its memory; "
          "give fewer workers. Nothing was written, but what was found is "
          "kept: the same command goes on from there."
        ) from None
      except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise

  return run


def _as_they_come(
  pool: concurrent.futures.Executor,
  ranges: Ranges,
  most: int,
) -> Generator[Found, None, None]:
  """Yields what was found, with at most `most` ranges begun or waiting."""
  left = iter(ranges)
  pending: set[concurrent.futures.Future] = set()
  while True:
    for start, stop in left:
      pending.add(pool.submit(_run, start, stop))
      if len(pending) >= most:
        break
    if not pending:
      return
    done, pending = concurrent.futures.wait(
      pending, return_when=concurrent.futures.FIRST_COMPLETED
    )
    for future in done:
      yield future.result()
