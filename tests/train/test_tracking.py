"""What a tracker gets of a run, and what its failures do: nothing."""

import json
import sys
import threading
import time

import pytest

from clip_jax import config as config_lib
from clip_jax import errors, names
from clip_jax.train import metric_log, tracking

NAMES = ("wandb", "trackio")


def _write(workdir, tracker, steps=(1, 2), failed=False):
  workdir.mkdir(exist_ok=True)
  tracked = tracking.Tracking(tracker, workdir, {"tracker": tracker})
  with metric_log.Writer(
    workdir, after_step=steps[0] - 1, tracker=tracked
  ) as writer:
    for step in steps:
      writer.write(step, {"loss": step / 2, "note": "text"})
    writer.write_evaluations(steps[-1], {"seen/top1": 0.25})
  tracked.close(failed=failed)


def test_the_names_are_those_of_the_config():
  assert tracking.TRACKERS == names.TRACKERS


@pytest.mark.parametrize("name", NAMES)
def test_metrics_evaluations_and_config_go_to_the_tracker(
  tracked, tmp_path, name
):
  _write(tmp_path / "mine", name)
  (begun,) = tracked.called("init")
  assert begun["project"] == "clip_jax" and begun["resume"] == "allow"
  assert begun["name"].startswith("mine")
  assert begun["config"] == {"tracker": name}
  got = []
  for call in tracked.called("log"):
    (values,) = call["positional"]
    got.append(
      {"step": call["step"], **values} if name == "trackio" else values
    )
  assert got == [
    {"step": 1, "loss": 0.5},
    {"step": 2, "loss": 1.0},
    {"step": 2, "eval/seen/top1": 0.25},
  ]
  (ended,) = tracked.called("finish")
  assert name == "trackio" or ended["exit_code"] == 0


def test_the_axis_of_wandb_is_our_step(tracked, tmp_path):
  _write(tmp_path, "wandb", failed=True)
  axes = tracked.called("define_metric")
  assert {"positional": ("*",), "step_metric": "step"} in axes
  assert tracked.called("finish") == [{"positional": (), "exit_code": 1}]


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_the_same_tracked_run(tracked, tmp_path, name):
  for steps in ((1, 2, 3), (3, 4)):  # Step 3 once more, after a checkpoint.
    _write(tmp_path / "a", name, steps)
  _write(tmp_path / "b", name)
  key = "id" if name == "wandb" else "name"
  first, again, other = (call[key] for call in tracked.called("init"))
  assert first == again != other


def test_a_damaged_identity_is_made_anew(tracked, tmp_path):
  for text in ("", "[]", '{"id": "../x"}', '{"id": 3}'):
    (tmp_path / tracking.IDENTITY).write_text(text)
    _write(tmp_path, "wandb")
    kept = json.loads((tmp_path / tracking.IDENTITY).read_text())["id"]
    assert tracked.called("init")[-1]["id"] == kept and kept.isalnum()


@pytest.mark.parametrize("call", ["init", "log", "finish"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [ConnectionError, SystemExit])
def test_a_failure_is_told_once_and_stops_nothing(
  error, tracked, tmp_path, caplog, name, call
):
  tracked.fails.add(call)
  tracked.error = error
  _write(tmp_path, name)
  assert len(tracked.called(call)) == 1
  (said,) = caplog.messages
  assert said.startswith(f"{name} failed ({error.__name__}: no {call} today)")
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert len(lines) == 3


def test_an_end_that_never_comes_is_not_waited_for(
  tracked, tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(tracking, "_FINISH_SECONDS", 0.02)
  release = threading.Event()
  tracker = tracking.Tracking("trackio", tmp_path, {})
  tracked.ends = lambda: release.wait(10)
  tracker.close()
  release.set()
  assert "has not sent everything" in caplog.text


def test_without_a_tracker_there_is_nothing_of_it(tracked, tmp_path):
  _write(tmp_path, "none")
  assert not tracked.calls and not (tmp_path / tracking.IDENTITY).exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_library_is_told_before_anything_else(
  monkeypatch, tmp_path, fails, name
):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(errors.UserError, match="pip install"):
    tracking.check(name)
  workdir = tmp_path / "run"
  words = ("--config", "configs/demo.py", "--workdir", workdir)
  error = fails("train", *words, f"--config.tracker={name}")
  assert f"config.tracker='{name}' needs {name}" in error
  assert not workdir.exists()


def test_an_unknown_tracker_lists_the_known_ones():
  config = config_lib.default_config()
  config.data.train, config.steps, config.tracker = "here", 7, "tensorbord"
  with pytest.raises(errors.UserError, match="none, wandb, trackio"):
    config_lib.check(config)


# What the libraries warn of by themselves.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_wandb_itself_takes_a_run_offline(tmp_path, monkeypatch):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  for name in ("CACHE", "CONFIG", "DATA"):
    monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
  for steps in ((1, 2), (3, 4)):
    _write(tmp_path / "run", "wandb", steps)
  kept = json.loads((tmp_path / "run" / tracking.IDENTITY).read_text())["id"]
  files = list(
    (tmp_path / "run" / "wandb").glob(f"offline-run-*-{kept}/*.wandb")
  )
  assert len(files) == 2
  # A process of its own writes them, and may do so after the end of the run.
  until = time.monotonic() + 30
  while not all(b"eval/seen/top1" in path.read_bytes() for path in files):
    assert time.monotonic() < until
    time.sleep(0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_trackio_itself_takes_a_run(tmp_path, monkeypatch):
  # Read when it is imported.
  monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
  pytest.importorskip("trackio")
  from trackio import sqlite_storage

  for steps in ((1, 2), (3, 4)):
    _write(tmp_path / "run", "trackio", steps)
  storage = sqlite_storage.SQLiteStorage
  (name,) = storage.get_runs(tracking.PROJECT)
  logs = storage.get_logs(tracking.PROJECT, name)
  assert [x["step"] for x in logs if "loss" in x] == [1, 2, 3, 4]
