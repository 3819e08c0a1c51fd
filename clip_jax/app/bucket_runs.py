"""Runs in buckets, watched in copies of what the tab shows of them."""

import pathlib
import threading
import time
from collections.abc import Sequence

from clip_jax import buckets, errors, mirrors, places
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.train import metric_log

# Between two looks, whoever asks: a run copies its metrics there as often.
_SECONDS = 30.0
_MOST_RUNS = 200
_USE = "watch"
_SHOWN = (metric_log.METRICS, workdir_lib.CONFIG, workdir_lib.REPORT)


class BucketRuns:
  """Finds the workdirs at an address, and copies what has changed of them."""

  def __init__(self, address: str):
    """Asks for nothing."""
    self._address = mirrors.checked(address)
    self._lock = threading.Lock()
    self._found: dict[str, pathlib.Path] = {}
    self._looked_at: float | None = None

  def __call__(self) -> dict[str, pathlib.Path]:
    """Returns the path of a copy of each run, by its name.

    Raises:
      UserError: there is no run, or the bucket cannot be read.
    """
    with self._lock:
      now = time.monotonic()
      if self._looked_at is None or now - self._looked_at >= _SECONDS:
        self._looked_at = now  # Also where it fails.
        self._found = self._look()
      return dict(self._found)

  def _look(self) -> dict[str, pathlib.Path]:
    paths = places.of_each(_copied, self._runs())
    return {path.name: path for path in paths}

  def _runs(self) -> list[str]:
    if is_run(self._address):
      return [self._address]
    below = [
      f"{self._address}/{entry.name}"
      for entry in _entries(self._address)
      if entry.is_folder
    ]
    are_runs = places.of_each(is_run, below)
    found = [x for x, is_one in zip(below, are_runs, strict=True) if is_one]
    if not found:
      raise errors.UserError(
        f"{self._address} is no workdir and holds none; give a workdir of "
        "`clip-jax train --workdir gs://…`, or the folder that several lie in."
      )
    return found[-_MOST_RUNS:]


def is_run(address: str) -> bool:
  """Whether there is a workdir at an address in a bucket."""
  names = {entry.name for entry in _entries(address)}
  return metric_log.METRICS in names or names >= {
    workdir_lib.CONFIG,
    workdir_lib.DIRECTORY,
  }


def _entries(address: str) -> list[buckets.Entry]:
  try:
    return buckets.entries(address)
  except FileNotFoundError:
    raise errors.UserError(
      f"There is no bucket for {address}; check the name."
    ) from None


def _copied(address: str) -> pathlib.Path:
  def choose(names: Sequence[str]) -> list[str]:
    return [name for name in names if name in _SHOWN]

  return mirrors.fetched(address, choose, use=_USE)
