"""Records the metrics of each update and the bad records of a run.

The devices run ahead of the host: the scalars of an update are read after a
later update has been started, so that reading does not stall the devices.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import logging
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from clip_jax import config as config_lib
from clip_jax import preprocess, terminal
from clip_jax.data import account, mixture, order
from clip_jax.data import ledger as ledger_lib
from clip_jax.train import metric_log, optim, step_flops, tracking
from clip_jax.train import run as run_lib
from clip_jax.train import step as step_lib

_LOGGER = logging.getLogger(__name__)

LEDGER = "ledger.jsonl"
EVALUATION_DUE = "evaluation_due"
# Where each source of the data stood: `mixture.position`.
POSITION = "position"
BEFORE = "before"  # Measures of the model with which a run began.

# How many updates may be running while the oldest is read. Simulated devices
# share the threads of one CPU and can starve each other's collectives, so that
# on CPUs each update is read before the next one starts.
_IN_FLIGHT = {"cpu": 0}
_IN_FLIGHT_ELSEWHERE = 2
_LONG_WAIT = 0.05  # A share of the time that is worth telling.


@dataclasses.dataclass(frozen=True)
class _Pending:
  """An update whose scalars have not been read yet."""

  step: int
  measured: step_lib.Measured
  problems: list[ledger_lib.Problem]
  flops: int


def tell_decoder(counters: dict[str, Any]) -> None:
  """Warns where a resumed run decodes images with other libraries.

  Args:
    counters: of the run so far; empty for a new one.
  """
  before, now = counters.get("decoder"), preprocess.decoder()
  if before not in (None, now):
    _LOGGER.warning(
      "Images were decoded by %s so far, now by %s: single levels of some "
      "pixels may differ.",
      before,
      now,
    )


class Journal:
  """Metrics, log lines and the ledger of bad records of one run.

  Attributes:
    counters: the numbers that are saved for a resumed run.
    evaluation_due: whether the run was stopped at `first_step` before the
      evaluations of that step.
  """

  def __init__(
    self,
    run: run_lib.Run,
    workdir: pathlib.Path,
    *,
    first_step: int,
    counters: dict[str, Any],
  ):
    """Opens the files for a run that continues after `first_step`.

    Args:
      run: the run.
      workdir: its workdir.
      first_step: the number of updates done before; lines of later steps are
        removed.
      counters: the value of `self.counters` at that step; empty for a new run.
    """
    config, source = run.program.config, run.source
    if jax.process_index() == 0:
      truncate_abandoned(workdir, first_step)
    self._ledger = ledger_lib.Ledger(
      ledger_path(workdir),
      records=len(source),
      max_bad_fraction=config.data.max_bad_fraction,
      lost=account.of(source).lost_records,
    )
    self._ledger.truncate_after(first_step)
    start = {"bad_records": 0, "skipped": 0}
    self.counters: dict[str, Any] = start | counters
    self.counters["data"] = source.fingerprint
    self.counters[POSITION] = mixture.position(
      source, address=config.data.train, batch_size=config.batch_size
    )
    # For the model card.
    devices = jax.devices()
    self.counters["records"] = len(source)
    tell_decoder(counters)
    self.counters["decoder"] = preprocess.decoder()
    self.counters["devices"] = f"{len(devices)} x {devices[0].device_kind}"
    self.evaluation_due = bool(self.counters.pop(EVALUATION_DUE, False))
    described = json.loads(config_lib.to_json(config))
    self._tracker = tracking.Tracking(
      config.tracker, workdir, described | {"total_steps": run.total_steps}
    )
    self._writer = metric_log.Writer(
      workdir,
      after_step=first_step,
      evaluation_due=self.evaluation_due,
      tracker=self._tracker,
    )
    self._throughput = metric_log.Throughput(
      devices=run.program.mesh.devices.size
    )
    self._count_flops = step_flops.Counter(run.program)
    self._schedule = optim.make_schedule(
      config.optim, precision=config.precision, total_steps=run.total_steps
    )
    self._digest = functools.partial(
      order.batch_digest,
      slots=order.of(source, config.seed),
      batch_size=config.batch_size,
    )
    self._batch_size = config.batch_size
    self._total_steps = run.total_steps
    self._log_every_steps = config.log_every_steps
    self._pending: collections.deque[_Pending] = collections.deque()
    self._skipped = counters.get("skipped", 0)
    platform = jax.devices()[0].platform
    self._in_flight = _IN_FLIGHT.get(platform, _IN_FLIGHT_ELSEWHERE)
    self._started = False
    self._live: terminal.Progress | None = None

  def __enter__(self) -> "Journal":
    return self

  def __exit__(self, kind: Any, *error: Any) -> None:
    # On a full disk closing fails, too; the first error says more.
    hides = contextlib.suppress(OSError) if kind else contextlib.nullcontext()
    if self._live is not None:
      self._live.__exit__()
    with hides:
      self._writer.close()
    # A run that was told to stop has saved, and will go on.
    stopped = kind is not None and issubclass(kind, SystemExit)
    self._tracker.close(failed=kind is not None and not stopped)

  def next_batch(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Returns the next batch and records how long the host waited for it."""
    start = time.perf_counter()
    batch = next(batches)
    waited = time.perf_counter() - start
    self._throughput.wait(waited)
    return batch

  def note(
    self, step: int, batch: dict[str, Any], measured: step_lib.Measured
  ) -> None:
    """Records update `step` and reads those that must be finished by now.

    Raises:
      UserError: there are too many bad records.
    """
    flops = self._count_flops(batch)
    self._pending.append(_Pending(step, measured, batch["problems"], flops))
    while len(self._pending) > self._in_flight:
      self._read(self._pending.popleft())

  @property
  def different_bad_records(self) -> int:
    """How many distinct bad records this process has read, at most 200."""
    return self._ledger.different

  def flush(self) -> None:
    """Reads the scalars of every update that was started."""
    while self._pending:
      self._read(self._pending.popleft())

  def write_evaluations(
    self, step: int, evaluated: dict[str, Any] | None
  ) -> None:
    """Writes the measures of the evaluations after `step`.

    None means that they were interrupted: a resumed run does them first.
    """
    if evaluated is None:
      self.counters[EVALUATION_DUE] = True
    elif evaluated:
      if step == 0:
        self.counters[BEFORE] = evaluated
      self._writer.write_evaluations(step, flatten(evaluated))
    self._throughput.restart()

  def _read(self, pending: _Pending) -> None:
    step = pending.step
    measured = jax.tree.map(np.asarray, pending.measured)
    # Now that it is done: those in flight belong to the next rates.
    self._throughput.add(pairs=self._batch_size, flops=pending.flops)
    self._ledger.add(step, pending.problems)
    self.counters["bad_records"] += int(measured.bad_records)
    self.counters["skipped"] = int(measured.skipped)
    if int(measured.skipped) > self._skipped:
      self._skipped = int(measured.skipped)
      _LOGGER.warning(
        "Step %d was skipped: its loss, gradient or update is not a finite "
        "number (%d skipped so far).",
        step,
        self._skipped,
      )
    if not self._started:
      # The first update includes compilation, so its time gives no rate.
      self._started = True
      self._throughput.restart()
      self._live = _live_line(step)
      rates: dict[str, float] = {}
    elif step % self._log_every_steps == 0 or step == self._total_steps:
      rates = self._throughput.read()
    else:
      rates = {}
    if step % self._log_every_steps == 0 or step == self._total_steps:
      self._write(pending, measured, rates)
    if self._live is not None:
      self._live(step, self._total_steps, lambda: _state(measured))
    self._ledger.check(self.counters["bad_records"], step * self._batch_size)

  def _write(
    self,
    pending: _Pending,
    measured: step_lib.Measured,
    rates: dict[str, float],
  ) -> None:
    step = pending.step
    done = step - 1 - self._skipped
    scale = measured.logit_scale
    values = {
      "loss": measured.loss,
      **measured.terms,
      **({} if scale is None else {"logit_scale": scale}),
      "gradient_norm": measured.gradient_norm,
      "learning_rate": float(self._schedule(max(done, 0))),
      "skipped": measured.skipped,
      "bad_records": self.counters["bad_records"],
      # Equal for equal runs on any number of processes.
      "records_crc32": self._digest(step),
    }
    self._writer.write(step, {**values, **rates})
    if jax.process_index() == 0:
      words = [
        f"{name.replace('_', ' ')} {float(value):.4f}"
        for name, value in (("loss", measured.loss), *measured.terms.items())
      ]
      words.append(f"learning rate {values['learning_rate']:.3g}")
      if rates:
        words += self._pace(step, rates)
      _LOGGER.info("Step %d/%d: %s", step, self._total_steps, ", ".join(words))

  def _pace(self, step: int, rates: dict[str, float]) -> list[str]:
    """Returns how fast the training goes; the rest is in the metrics."""
    rate = rates["images_per_second"]
    words = [f"{rate:.0f} images/s"]
    if rates["data_wait"] >= _LONG_WAIT:
      words.append(
        f"{100 * rates['data_wait']:.0f} % of the time waiting for data"
      )
    if left := self._total_steps - step:
      seconds = left * self._batch_size / rate
      words.append(f"{terminal.duration(seconds)} left")
    return words


def _live_line(step: int) -> terminal.Progress | None:
  """Returns the live line of a run that goes on after `step`.

  Where there is no terminal, the lines of the log say how the run goes.
  """
  line = terminal.Progress("train", unit="steps", first=step)
  return line if line.is_terminal and jax.process_index() == 0 else None


def _state(measured: step_lib.Measured) -> str:
  """Returns loss and device memory, where the device tells it, as text."""
  words = f"loss {float(measured.loss):.4f}"
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  if all("peak_bytes_in_use" in x and "bytes_limit" in x for x in stats):
    fullest = max(stats, key=lambda x: x["peak_bytes_in_use"])
    used, limit = fullest["peak_bytes_in_use"], fullest["bytes_limit"]
    words += f", {terminal.size(used)} of {terminal.size(limit)}"
  return words


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns the numbers in nested dicts by their keys, joined by "/"."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{key}/")
    elif isinstance(value, int | float):
      flat[f"{prefix}{key}"] = value
  return flat


def ledger_path(workdir: pathlib.Path) -> pathlib.Path:
  """Returns this process's ledger; each process knows only its own rows."""
  process = jax.process_index()
  return workdir / (LEDGER if process == 0 else f"ledger-{process}.jsonl")


def truncate_abandoned(workdir: pathlib.Path, last_step: int) -> None:
  """Truncates ledgers of processes that only an earlier part of the run had."""
  for path in workdir.glob("ledger-*.jsonl"):
    number = path.stem.removeprefix("ledger-")
    if number.isdecimal() and int(number) >= jax.process_count():
      metric_log.truncate_lines(path, last_step)
