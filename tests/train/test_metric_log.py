"""What a run writes down, and how it measures its speed."""

import collections
import functools
import json
import math
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from clip_jax.train import journal, metric_log


def _read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_of_steps_that_are_run_again_are_removed(tmp_path):
  with metric_log.Writer(tmp_path) as writer:
    for step in (1, 2, 3):
      writer.write(step, {"loss": 0.5 * step})
  path = tmp_path / "metrics.jsonl"
  with path.open("a") as file:
    file.write('{"step": 4, "lo')  # Killed in the middle of a line.
  with metric_log.Writer(tmp_path, after_step=2) as writer:
    writer.write(3, {"loss": 7.0})
  assert _read(path) == [
    {"step": 1, "loss": 0.5},
    {"step": 2, "loss": 1.0},
    {"step": 3, "loss": 7.0},
  ]


def test_a_step_below_zero_is_damage(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 0}\n{"step": -1, "loss": 2.5}\n{"step": 1}\n')
  metric_log.truncate_lines(path, 1)
  assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
  aside = tmp_path / "metrics.jsonl.damaged"
  assert aside.read_text() == '{"step": -1, "loss": 2.5}\n'


def test_numbers_that_are_not_finite_are_null(tmp_path):
  path = tmp_path / "lines"
  metric_log.append_line(path, {"step": 1, "loss": math.nan, "scale": math.inf})
  assert _read(path) == [{"step": 1, "loss": None, "scale": None}]


def test_throughput_counts_pairs_waiting_and_operations(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(metric_log.time, "perf_counter", lambda: now[0])
  monkeypatch.setattr(metric_log, "peak_flops", lambda: 1000.0)
  throughput = metric_log.Throughput(devices=2)
  for flops in (200, 500, 600, 700):  # As captions take more or less room.
    throughput.add(pairs=10, flops=flops)
    throughput.wait(0.5)
  now[0] += 8
  rates = throughput.read()
  assert rates == {"images_per_second": 5.0, "data_wait": 0.25, "mfu": 0.125}
  now[0] += 1
  throughput.add(pairs=3, flops=1000)
  rates = throughput.read()
  assert rates == {"images_per_second": 3.0, "data_wait": 0.0, "mfu": 0.5}


def test_the_live_line_of_a_run_tells_loss_and_the_fullest_device(monkeypatch):
  measured = types.SimpleNamespace(loss=np.float32(2.5))
  assert journal._state(measured) == "loss 2.5000"  # A CPU tells no memory.

  def device(used):
    stats = {"peak_bytes_in_use": used, "bytes_limit": 16 * 2**30}
    return types.SimpleNamespace(memory_stats=lambda: stats)

  devices = [device(2**30), device(3 * 2**30)]
  monkeypatch.setattr(journal.jax, "local_devices", lambda: devices)
  assert journal._state(measured) == "loss 2.5000, 3.00 GiB of 16.00 GiB"
  assert journal._live_line(3) is None  # There is no terminal here.
  stderr = types.SimpleNamespace(isatty=lambda: True)
  monkeypatch.setattr(journal.terminal.sys, "stderr", stderr)
  assert journal._live_line(3).first == 3


def test_a_pause_is_no_training(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(metric_log.time, "perf_counter", lambda: now[0])
  monkeypatch.setattr(metric_log, "peak_flops", lambda: 1.0)
  throughput = metric_log.Throughput(devices=1)
  throughput.add(pairs=10, flops=8)
  now[0] += 100
  throughput.restart()
  now[0] += 2
  throughput.add(pairs=4, flops=3)
  rates = throughput.read()
  assert (rates["images_per_second"], rates["mfu"]) == (2.0, 1.5)


@pytest.mark.parametrize("in_flight", [0, 2])
@pytest.mark.parametrize("first_step", [0, 7])
def test_updates_in_flight_count_when_they_are_done(
  in_flight, first_step, monkeypatch
):
  now, rates = [0.0], {}
  monkeypatch.setattr(metric_log.time, "perf_counter", lambda: now[0])
  monkeypatch.setattr(metric_log, "peak_flops", lambda: 1.0)
  log = journal.Journal.__new__(journal.Journal)
  nothing = types.SimpleNamespace(
    add=lambda *_: None,
    check=lambda *_: None,
    write_evaluations=lambda *_: None,
  )
  log.__dict__.update(
    {"_pending": collections.deque(), "_in_flight": in_flight, "_skipped": 0},
    _throughput=metric_log.Throughput(devices=1),
    _count_flops=lambda batch: batch["flops"],
    _batch_size=10,
    _ledger=nothing,
    _writer=nothing,
    counters={"bad_records": 0},
    _started=False,
    _live=None,
    _log_every_steps=5,
    _total_steps=40,
    _write=lambda pending, _, found: rates.__setitem__(pending.step, found),
  )
  measured = types.SimpleNamespace(bad_records=0, skipped=0)
  monkeypatch.setattr(journal.jax.tree, "map", lambda _, x: x)
  # A device takes 2 s for an update; the host goes on before it is done.
  for step in range(first_step + 1, 41):
    # Which one is read now, and so done; an evaluation leaves none in flight.
    behind = min(in_flight, (step - first_step - 1) % 10)
    now[0] += 2 if behind == in_flight else 0
    log.note(step, {"problems": [], "flops": step}, measured)
    if (step - first_step) % 10 == 0 or step == 40:
      for _ in range(len(log._pending)):
        now[0] += 2
        log._read(log._pending.popleft())
      now[0] += 1000  # An evaluation.
      log.write_evaluations(step, {"a": 1})
  pauses = range(first_step, 41, 10)
  for step, found in rates.items():
    if not found:  # The first update of a run.
      continue
    # Since the last reading, or the last evaluation within it.
    since = max(p for p in (*pauses, *range(0, 41, 5)) if p < step)
    since = max(since, first_step + 1)
    worth = sum(range(since + 1, step + 1)) / (2 * (step - since))
    assert found["images_per_second"] == pytest.approx(5.0), step
    assert found["mfu"] == pytest.approx(worth), step
  assert {15, 20, 25, 40} <= rates.keys()


@pytest.mark.parametrize(
  ("kind", "peak"),
  [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("NVIDIA H200", 989e12)],
)
def test_the_peak_is_the_data_sheets(monkeypatch, kind, peak):
  class Device:
    platform = "other"
    device_kind = kind

  monkeypatch.setattr(metric_log.jax, "devices", lambda: [Device()])
  assert metric_log.peak_flops() == peak


def test_an_unknown_accelerator_has_no_peak(monkeypatch):
  class Device:
    platform = "other"
    device_kind = "abacus"

  monkeypatch.setattr(metric_log.jax, "devices", lambda: [Device()])
  assert math.isnan(metric_log.peak_flops())


def test_a_cpu_is_measured():
  assert 1e8 < metric_log.peak_flops() < 1e14


def test_nested_results_become_curves():
  flat = journal.flatten(
    {"a": {"top1": 0.5, "data": "x", "way": {"r@1": 1}}}, "eval/"
  )
  assert flat == {"eval/a/top1": 0.5, "eval/a/way/r@1": 1}


def test_events_are_written_without_pytorch(tmp_path):
  (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
  code = (
    "import sys; from clip_jax.train import event_files\n"
    "assert 'torch' not in sys.modules; import torch"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, "PYTHONPATH": str(tmp_path)},
  )
  # What runs afterwards finds it.
  assert done.stderr == "torch is imported\n"


def test_the_pace_of_a_run_is_told_in_plain_words():
  run = types.SimpleNamespace(_total_steps=100, _batch_size=32)
  rates = {"images_per_second": 64.0, "data_wait": 0.04, "mfu": 0.2}
  told = functools.partial(journal.Journal._pace, run)
  assert told(40, rates) == ["64 images/s", "30 s left"]
  waiting = "51 % of the time waiting for data"
  rates["data_wait"] = 0.51
  assert told(100, rates) == ["64 images/s", waiting]
