"""Runs a survey as an Apache Beam pipeline, on this machine or elsewhere.

The pipeline is short: ranges of the source, each examined and put on the shelf
by the same function as without Beam. So every worker must see the source and
the shelf at the paths where this process sees them, as on a mounted bucket.
"""

import contextlib
import functools
import importlib.metadata
import logging
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence

from clip_jax import errors, terminal
from clip_jax.data import processes
from clip_jax.data.curation import findings, survey

_POLL_SECONDS = 0.5
_LOCAL = "FnApiRunner"  # In this process, without Beam's other languages.
_LEAST_RECORDS, _MOST_RANGES = 256, 4096


def fill(options: Sequence[str] = (), *, workers: int = 1) -> survey.Fill:
  """Returns a function for `survey.survey` that works as a Beam pipeline.

  Args:
    options: Beam's own, such as "--runner=FlinkRunner"; without a runner among
      them the pipeline runs on this machine.
    workers: processes of this machine, where no runner is named.

  Raises:
    UserError: Beam is not installed; from the function `processes.Interrupted`
      where the pipeline fails.
  """
  try:
    importlib.metadata.version("apache-beam")
  except importlib.metadata.PackageNotFoundError:
    raise errors.UserError(
      "Apache Beam is not installed: pip install 'jax-clip[beam]'. Without "
      "it, --workers reads in processes of this machine."
    ) from None
  words = list(options)
  if not any(word.split("=")[0] == "--runner" for word in words):
    words.insert(0, f"--runner={_LOCAL}")
    if workers > 1:
      words += [
        "--direct_running_mode=multi_processing",
        f"--direct_num_workers={workers}",
      ]
  return functools.partial(_fill, words)


def _fill(
  words: Sequence[str],
  job: survey.Job,
  gaps: processes.Ranges,
  shelf: findings.Shelf,
  on_record: Callable[[int], None] | None,
) -> None:
  import apache_beam as beam  # pyright: ignore[reportMissingImports]
  from apache_beam.options import (  # pyright: ignore[reportMissingImports]
    pipeline_options,
  )

  payload = pickle.dumps((job, shelf))
  total = sum(stop - start for start, stop in gaps)
  length = max(_LEAST_RECORDS, total // _MOST_RANGES)
  ranges = [
    (begin, min(begin + length, stop))
    for start, stop in gaps
    for begin in range(start, stop, length)
  ]
  try:
    with _quiet(), _polled(shelf, on_record):
      pipeline = beam.Pipeline(
        options=pipeline_options.PipelineOptions(list(words))
      )
      _ = (
        pipeline
        | "Ranges" >> beam.Create(ranges)
        | "Spread" >> beam.Reshuffle()
        | "Examine" >> beam.Map(functools.partial(_put, payload))
      )
      _check_done(pipeline.run().wait_until_finish())
  except (Exception, SystemExit) as error:  # A runner may raise anything.
    said = (str(error).strip() or repr(error)).splitlines()[-1]
    if isinstance(error, SystemExit):  # Beam's parser has said more.
      said = "its options are not understood."
    raise processes.Interrupted(
      f"The Beam pipeline ({' '.join(words)}) failed: "
      f"{terminal.printable(said, limit=400)}"
    ) from error


def _check_done(state: str | None) -> None:
  """Raises RuntimeError unless a pipeline ended well; some runners say None."""
  if state not in (None, "DONE"):
    raise RuntimeError(f"it ended as {state}; its runner's log says why.")


def _put(payload: bytes, part: tuple[int, int]) -> None:
  """Examines a range and puts what was found on the shelf; again is no harm."""
  job, shelf = _loaded(payload)
  shelf.put(job.run(*part))


@functools.lru_cache(maxsize=1)
def _loaded(payload: bytes) -> tuple[survey.Job, findings.Shelf]:
  return pickle.loads(payload)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Logs of Beam what matters; its workers tell of each connection."""
  logger = logging.getLogger("apache_beam")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


@contextlib.contextmanager
def _polled(
  shelf: findings.Shelf, on_record: Callable[[int], None] | None
) -> Iterator[None]:
  """Reports progress, by counting the results on the shelf."""
  ended = threading.Event()

  def poll() -> None:
    while not ended.wait(_POLL_SECONDS):
      if on_record is not None:
        on_record(shelf.slots())

  thread = threading.Thread(target=poll, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
