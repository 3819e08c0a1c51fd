"""Runs a job on ranges of records, in processes of this machine."""

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import itertools
import multiprocessing
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from clip_jax import errors
from clip_jax.data import parent

_WAITING = 4  # Ranges that wait for each process.

Ranges = list[tuple[int, int]]
Result = TypeVar("Result", covariant=True)


class Interrupted(errors.UserError):
  """An error that lies in no data and no rule: the same command may succeed.

  Within `prepare.partial_directory` its message also says so.
  """


class Job(Protocol[Result]):
  """What is done with records; picklable, and pure."""

  def run(self, start: int, stop: int) -> Result:
    """Returns the result for the records from `start` up to `stop`."""
    ...


_JOB: Any = None  # Of a process of the pool.


def _begin(job: Any) -> None:
  global _JOB
  parent.ignore_signals()
  parent.watch()
  _JOB = job


def _run(start: int, stop: int) -> Any:
  return _JOB.run(start, stop)


def run(
  job: Job[Result], ranges: Ranges, *, workers: int
) -> Generator[Result, None, None]:
  """Yields what comes of each range, in their order.

  Args:
    job: what is done.
    ranges: of records.
    workers: processes that do it, no more than there are ranges; up to one,
      this process does it.

  Raises:
    Interrupted: a process was killed.
  """
  workers = min(workers, len(ranges))  # All of them start at once.
  if workers <= 1:
    for start, stop in ranges:
      yield job.run(start, stop)
    return
  with concurrent.futures.ProcessPoolExecutor(
    workers,
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_begin,
    initargs=(job,),
  ) as pool:
    try:
      start_all(pool, workers)
      yield from in_turn(pool, ranges, _WAITING * workers)
    except concurrent.futures.process.BrokenProcessPool:
      raise Interrupted(
        "A process that read the data was killed, perhaps for its memory; "
        "give fewer workers. Nothing was written."
      ) from None
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def start_all(pool: Any, workers: int) -> None:
  """Starts processes of a new pool, which starts one for each task at first."""
  with ctrl_c_waits():
    for _ in range(workers):
      pool.submit(int)


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[None]:
  """Puts Ctrl-C off until the end of the block.

  A process that is given half of what it needs to start ends in a traceback.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  told = threading.Event()
  before = signal.signal(signal.SIGINT, lambda *_: told.set())
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
  if told.is_set():
    signal.raise_signal(signal.SIGINT)


def in_turn(
  pool: Any, ranges: Iterable[tuple[int, int]], most: int
) -> Generator[Any, None, None]:
  """Yields what comes of each range, with at most `most` begun or waiting."""
  left = iter(ranges)
  pending: collections.deque[concurrent.futures.Future] = collections.deque()
  while True:
    for start, stop in itertools.islice(left, most - len(pending)):
      pending.append(pool.submit(_run, start, stop))
    if not pending:
      return
    yield pending.popleft().result()
