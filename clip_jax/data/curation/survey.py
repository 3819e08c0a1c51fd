"""Applies a function to every record of a source once, and keeps the results.

The function is pure: its result for a record depends on the record alone. So
all results are the same for any number of processes and in whatever order
ranges of the source are read. The results of a range are kept in a file, under
a digest of what they depend on; a run that was killed need not read it again.

    found = survey.survey(source, examine, workers=4, keep=directory)
    found.columns["side"][found.good]

`curate.py`, `filtering.py` and `dedupe.py` decide from what was found.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from clip_jax import preprocess
from clip_jax.data import processes
from clip_jax.data import record as record_lib
from clip_jax.data.curation import findings

_VERSION = 2
_CHUNK = 64  # Records that a process reads before it answers.
_KEEP_SECONDS = 5.0  # A killed run loses about that much.


class Examine(Protocol):
  """What is found out about each record; picklable, and pure.

  Attributes:
    columns: names and types of what has the same shape for each record: a
      number, or an array.
    ragged: names and types of lists of numbers, which differ in length.
    identity: everything that the results depend on besides the record, as
      values that JSON can hold.
  """

  columns: Mapping[str, np.dtype]
  ragged: Mapping[str, np.dtype]
  identity: Any

  def __call__(self, record: record_lib.Record) -> Mapping[str, Any]:
    """Returns a value for each name; raises BadRecord or ImageError."""
    ...


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
    """Returns a digest of what the results depend on."""
    about = [
      *(_VERSION, self.source.fingerprint, len(self.source)),
      *(type(self.examine).__qualname__, self.examine.identity),
    ]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).digest()

  def run(self, start: int, stop: int) -> findings.Found:
    """Examines the records of the slots from `start` up to `stop`."""
    examine = self.examine
    return findings.collected(
      start,
      (self._said(slot) for slot in range(start, stop)),
      columns=examine.columns,
      ragged=examine.ragged,
    )

  def _said(self, slot: int) -> Mapping[str, Any] | str:
    try:
      return self.examine(self.source[slot])
    except (record_lib.BadRecord, preprocess.ImageError) as error:
      return error.reason


# Runs a job on ranges of slots elsewhere, such as on Beam's workers, and puts
# the results on the shelf. Its last argument is called with the number of
# records examined.
Fill = Callable[
  [Job, processes.Ranges, findings.Shelf, Callable[[int], None] | None], None
]


def survey(
  source: record_lib.Source,
  examine: Examine,
  *,
  workers: int = 1,
  keep: str | os.PathLike | None = None,
  on_record: Callable[[int], None] | None = None,
  fill: Fill | None = None,
) -> findings.Found:
  """Returns the findings of `examine` about all records of `source`.

  Args:
    source: what is read.
    examine: what is found out about each record.
    workers: processes that read; one reads in this process.
    keep: a directory for what is found; a later call with the same arguments
      reads there what an earlier one has found. It is left to the caller.
    on_record: called with the number of records examined.
    fill: does the work elsewhere and needs `keep`.

  Raises:
    Interrupted: a process that read was killed, or `fill` left records out.
  """
  job = Job(source, examine)
  slots = len(source)
  shelf = None if keep is None else findings.Shelf(keep, job.digest())
  parts = [] if shelf is None else shelf.parts(slots)
  if fill is not None and (
    todo := findings.gaps(parts, slots, length=max(slots, 1))
  ):
    assert shelf is not None
    fill(job, todo, shelf, on_record)
    parts = shelf.parts(slots)
    _check_filled(parts, slots, shelf)
  todo = findings.gaps(parts, slots, length=_CHUNK)
  done = slots - sum(stop - start for start, stop in todo)
  fresh: list[findings.Found] = []
  last = time.monotonic()
  try:
    with contextlib.closing(processes.run(job, todo, workers=workers)) as found:
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
  # Everything is in files now: who is killed later loses nothing.
  parts += _put_away(fresh, shelf)
  return findings.joined(parts or [job.run(0, 0)])


def _check_filled(
  parts: list[findings.Found], slots: int, shelf: findings.Shelf
) -> None:
  """Raises Interrupted if results of some records are not on the shelf."""
  left = findings.gaps(parts, slots, length=max(slots, 1))
  if left:
    missing = sum(stop - start for start, stop in left)
    raise processes.Interrupted(
      f"The workers have ended, but what they found in {missing} of {slots} "
      f"records is not in {str(shelf.directory)!r}. Every worker must see DATA "
      "and OUT at the paths where this process sees them, as on a mounted "
      "bucket."
    )


def _put_away(
  parts: list[findings.Found], shelf: findings.Shelf | None
) -> list[findings.Found]:
  """Joins parts that follow each other; returns them, kept on the shelf."""
  rows: list[list[findings.Found]] = []
  for part in sorted(parts, key=lambda part: part.start):
    if rows and rows[-1][-1].stop == part.start:
      rows[-1].append(part)
    else:
      rows.append([part])
  together = [findings.joined(row) for row in rows]
  if shelf is not None:
    for part in together:
      shelf.put(part)
  return together
