"""The metrics of a run: JSON lines, TensorBoard events and throughput."""

import functools
import json
import math
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import json_lines, whole_files
from clip_jax.train import event_files, tracking

METRICS = "metrics.jsonl"  # A file in the workdir.

# Dense bfloat16 FLOP/s of one JAX device, by a part of its kind's name; from
# the manufacturers' data sheets. Longer names come first: "v5" alone is a v5p.
# Up to v3 a device is half a chip.
PEAK_FLOPS = {
  "tpu7x": 1154e12,
  "v6 lite": 918e12,
  "v6e": 918e12,
  "v5 lite": 197e12,
  "v5e": 197e12,
  "v5": 459e12,
  "v4": 275e12,
  "v3": 61.5e12,
  "v2": 22.5e12,
  "b200": 2250e12,
  "h200": 989e12,
  "h100": 989e12,
  "a100": 312e12,
  "l40s": 362e12,
  "l40": 181e12,
  "v100": 125e12,
  "t4": 65e12,
}


_EVALUATION = "eval/"  # Prefix of the names of an evaluation's measures.
_FLUSH_SECONDS = 60.0  # Flushing the events waits for the disk.


def peak_flops() -> float:
  """Returns the peak FLOP/s of one device, from the data sheet or measured.

  For a CPU, whose data sheet gives no usable figure, a matrix product is
  measured. The result is NaN for unknown accelerators.
  """
  device = jax.devices()[0]
  if device.platform == "cpu":
    # Simulated devices share one CPU.
    return _matmul_flops() / jax.local_device_count()
  kind = device.device_kind.lower()
  return next((f for name, f in PEAK_FLOPS.items() if name in kind), math.nan)


@functools.cache
def _matmul_flops() -> float:
  """Returns the best FLOP/s of three float32 matrix products."""
  size = 1536
  matmul = jax.jit(jnp.dot)
  x = jnp.ones((size, size), jnp.float32)
  matmul(x, x).block_until_ready()
  best = math.inf
  for _ in range(3):
    start = time.perf_counter()
    matmul(x, x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best


class Throughput:
  """Measures images per second, utilisation and data wait between two reads."""

  def __init__(self, *, devices: int):
    """Starts the clock.

    Args:
      devices: the number of devices that share the work.
    """
    self._peak = peak_flops() * devices
    self.restart()

  def restart(self) -> None:
    """Starts measuring again, after a pause that is not training time."""
    self._start = time.perf_counter()
    self._pairs, self._flops, self._waited = 0, 0, 0.0

  def add(self, *, pairs: int, flops: int) -> None:
    """Adds one update that is done."""
    self._pairs += pairs
    self._flops += flops

  def wait(self, seconds: float) -> None:
    """Adds time in which the host waited for data."""
    self._waited += seconds

  def read(self) -> dict[str, float]:
    """Returns the rates since the last read or restart."""
    seconds = max(time.perf_counter() - self._start, 1e-9)
    rate = self._pairs / seconds
    rates = {
      "images_per_second": rate,
      "data_wait": self._waited / seconds,
      "mfu": self._flops / seconds / self._peak,
    }
    self.restart()
    return rates


class Writer:
  """Appends metrics to `metrics.jsonl` and TensorBoard, on process 0 only."""

  def __init__(
    self,
    workdir: str | os.PathLike,
    *,
    after_step: int = 0,
    evaluation_due: bool = False,
    tracker: tracking.Tracking | None = None,
  ):
    """Opens the files; lines of steps after `after_step` are removed.

    Args:
      workdir: the workdir of the run.
      after_step: the step from which the run continues; a run that was killed
        may have written lines of later steps.
      evaluation_due: whether that step is still to be evaluated; lines of its
        evaluation are then removed, too.
      tracker: receives the same numbers; None for none.
    """
    self._tracker = tracker
    self._active = jax.process_index() == 0
    if not self._active:
      return
    self._path = pathlib.Path(workdir) / METRICS
    truncate_lines(
      self._path, after_step, but=_EVALUATION if evaluation_due else None
    )
    # Not a SummaryWriter: its thread ends when the disk is full, and the run
    # would then wait for it forever.
    self._events_path = os.path.join(os.fspath(workdir), "events")
    self._events = event_files.EventsWriter(self._events_path)
    self._flushed = time.monotonic()
    if after_step:  # Makes TensorBoard hide events of later steps.
      log = event_files.SessionLog
      started = log(status=log.START)
      self._add_event(step=after_step + 1, session_log=started)

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def write(self, step: int, values: dict[str, Any]) -> None:
    """Writes one line {"step": step, **values} and the TensorBoard scalars."""
    if not self._active:
      return
    values = {key: _plain(value) for key, value in values.items()}
    append_line(self._path, {"step": step, **values})
    for key, value in values.items():
      if isinstance(value, int | float):
        self._add_event(step=step, summary=event_files.scalar(key, value))
    if self._tracker is not None:
      self._tracker.log(step, values)
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      with whole_files.named(self._events_path):
        self._events.flush()
      self._flushed = time.monotonic()

  def write_evaluations(self, step: int, values: dict[str, Any]) -> None:
    """Writes the measures of the evaluations after `step`."""
    self.write(step, {_EVALUATION + key: x for key, x in values.items()})

  def _add_event(self, **fields: Any) -> None:
    event = event_files.Event(wall_time=time.time(), **fields)
    with whole_files.named(self._events_path):
      self._events.write_event(event)

  def close(self) -> None:
    """Flushes and closes the files."""
    if self._active:
      with whole_files.named(self._events_path):
        self._events.close()


def _plain(value: Any) -> Any:
  """Returns the only element of an array as a Python number."""
  return np.asarray(value).item() if hasattr(value, "dtype") else value


def append_line(path: pathlib.Path, entry: dict[str, Any]) -> None:
  """Appends one line of JSON, in which numbers that are not finite are null."""
  finite = {
    key: None if isinstance(x, float) and not math.isfinite(x) else x
    for key, x in entry.items()
  }
  with whole_files.named(path), path.open("a") as file:
    file.write(json.dumps(finite) + "\n")


def truncate_lines(
  path: pathlib.Path, last_step: int, *, but: str | None = None
) -> None:
  """Removes the lines of steps after `last_step`; sets damaged lines aside.

  Args:
    path: a file of JSON lines that have a "step" each.
    last_step: the last step whose lines are kept.
    but: a line of `last_step` is removed, too, if one of its names begins with
      this.
  """

  def keep(entry: dict[str, Any]) -> bool:
    goes_too = but and any(name.startswith(but) for name in entry)
    return entry["step"] <= (last_step - 1 if goes_too else last_step)

  json_lines.rewrite(path, {"step": int}, keep)
