"""A run that was stopped, in whatever way, ends as if it never had been."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from clip_jax import config as config_lib
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.train import loop

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "tiny_rn.py"
PRECISE = "precision=float64"
# CLIP_JAX_KILLS=20 takes some minutes.
KILLS = int(os.environ.get("CLIP_JAX_KILLS", "3"))
STEPS = 24
COMMON = (
  f"steps={STEPS}",
  # Saving takes longer than such a step, and most tests need but the last.
  "checkpoint.every_steps=1000",
  # Calm: at the config's rate rounding grows within 40 steps beyond 1e-4.
  "optim.peak_lr=2e-4",
)
OFTEN = "checkpoint.every_steps=3"
SMALL_VIT = (
  "model=tiny-vit",
  "model_overrides.image.width=24",
  "model_overrides.image.depth=2",
  "model_overrides.image.heads=3",
)
TIMED = ("images_per_second", "data_wait", "mfu")


def _command(workdir, *options):
  return [
    *(sys.executable, "-m", "clip_jax", "train"),
    *("--config", str(CONFIG), "--workdir", str(workdir)),
    *(f"--config.{option}" for option in (*COMMON, *options)),
  ]


def _environment(options, devices):
  flag = f"--xla_force_host_platform_device_count={devices} "
  flag += os.environ["CLIP_JAX_TEST_XLA_FLAGS"]
  x64 = str(PRECISE in options)
  return os.environ | {"XLA_FLAGS": flag, "JAX_ENABLE_X64": x64}


def _start(workdir, *options, flags=(), devices=1, log="log"):
  """Starts a run; what it says goes to a file beside its workdir."""
  workdir = pathlib.Path(workdir)
  with open(workdir.with_name(f"{workdir.name}.{log}"), "w") as stderr:
    return subprocess.Popen(
      [*_command(workdir, *options), *flags],
      env=_environment(options, devices),
      stdout=subprocess.DEVNULL,
      stderr=stderr,
      start_new_session=True,
    )


def _said(workdir, log="log"):
  workdir = pathlib.Path(workdir)
  return workdir.with_name(f"{workdir.name}.{log}").read_text()


def _expect(process, code, workdir, log="log"):
  """Waits for the end of a run, which must be the expected one."""
  assert process.wait(timeout=900) == code, _said(workdir, log)


def _finish(workdir, *options, devices=1):
  process = _start(workdir, *options, devices=devices)
  _expect(process, 0, workdir)


def _lines(workdir):
  """The log of a run without what a clock measured."""
  text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
  lines = [json.loads(line) for line in text.splitlines()]
  return [{k: v for k, v in x.items() if k not in TIMED} for x in lines]


def _losses(workdir):
  return np.array([line["loss"] for line in _lines(workdir) if "loss" in line])


def _assert_same_run(workdir, wanted):
  assert _lines(workdir) == _lines(wanted)
  got, want = (
    workdir_lib.load_model(path).variables for path in (workdir, wanted)
  )
  jax.tree.map(np.testing.assert_array_equal, got, want)
  assert not list(pathlib.Path(workdir).rglob("*.orbax-checkpoint-tmp"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("uninterrupted")
  _finish(workdir)
  return workdir


@pytest.fixture(scope="module")
def precise(tmp_path_factory):
  """The uninterrupted run in float64, where rounding stays small."""
  workdir = tmp_path_factory.mktemp("precise")
  _finish(workdir, PRECISE)
  return workdir


def _saves(workdir):
  """The saves under way."""
  return list(pathlib.Path(workdir).glob("checkpoints/*.orbax-checkpoint-tmp"))


def _wait_for(condition, process, seconds=600):
  """Waits until `condition`; returns False where the process ended first."""
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    if condition():
      return True
    if process.poll() is not None:
      return False
    time.sleep(0.001)
  raise TimeoutError


def _reach(condition, process, workdir, log="log"):
  """Waits until `condition`; a run that ends before it says why."""
  assert _wait_for(condition, process), _said(workdir, log)


def _count_lines(workdir):
  path = pathlib.Path(workdir) / "metrics.jsonl"
  return len(path.read_text().splitlines()) if path.exists() else 0


def _kill_at_random(process, workdir, rng, in_save):
  """Kills within a save, or somewhere in the next steps; True if it hit."""
  before = _count_lines(workdir)
  if in_save:
    _wait_for(lambda: _saves(workdir), process)
  else:
    _wait_for(lambda: _count_lines(workdir) != before, process)
    time.sleep(rng.uniform(0, 0.15))
  if process.poll() is not None:
    return False
  os.killpg(process.pid, signal.SIGKILL)
  return process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_many_kills_leave_no_trace(tmp_path):
  """SIGKILL at random moments, every second one within a save."""
  options = (f"steps={12 * KILLS}", OFTEN)
  _finish(tmp_path / "whole", *options)
  workdir = tmp_path / "a killed run"
  rng = random.Random(0)
  kills = in_save = 0
  while kills < KILLS:
    process = _start(workdir, *options)
    if not _kill_at_random(process, workdir, rng, in_save=kills % 2 == 1):
      break
    kills += 1
    in_save += bool(_saves(workdir))
  assert kills == KILLS and in_save >= KILLS // 4, (kills, in_save)
  _finish(workdir, *options)
  _assert_same_run(workdir, tmp_path / "whole")


@pytest.mark.slow
def test_sigterm_saves_the_step_and_the_run_ends_the_same(
  tmp_path, uninterrupted
):
  workdir = tmp_path / "run"
  # While it compiles: the first step is saved, or one soon after.
  process = _start(workdir)
  _reach(lambda: (workdir / "checkpoints").exists(), process, workdir)
  time.sleep(0.3)
  process.send_signal(signal.SIGTERM)
  _expect(process, 143, workdir)
  (first,) = [int(p.name) for p in (workdir / "checkpoints").iterdir()]
  assert first == _count_lines(workdir) < STEPS
  # Some steps later.
  process = _start(workdir)
  _reach(lambda: _count_lines(workdir) >= first + 5, process, workdir)
  process.send_signal(signal.SIGTERM)
  _expect(process, 143, workdir)
  stderr = _said(workdir)
  saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
  assert saved == _count_lines(workdir) and f"Step {saved} is saved" in stderr
  assert "Traceback" not in stderr
  _finish(workdir)
  _assert_same_run(workdir, uninterrupted)


@pytest.mark.slow
def test_a_run_goes_on_with_other_workers_and_threads(tmp_path, uninterrupted):
  workdir = tmp_path / "run"
  for step, options in enumerate(
    [("data.workers=2",), ("data.workers=0", "data.threads=1"), ()]
  ):
    process = _start(workdir, *options)
    if step < 2:
      done = 6 * (step + 1)
      _reach(lambda done=done: _count_lines(workdir) >= done, process, workdir)
      process.send_signal(signal.SIGTERM)
    _expect(process, 143 if step < 2 else 0, workdir)
  _assert_same_run(workdir, uninterrupted)


@pytest.mark.slow
def test_a_run_goes_on_on_another_number_of_devices(
  tmp_path, precise, uninterrupted
):
  workdir = tmp_path / "run"
  process = _start(workdir, PRECISE, "mesh.fsdp=2", devices=8)
  _reach(lambda: _count_lines(workdir) >= 8, process, workdir)
  process.send_signal(signal.SIGTERM)
  _expect(process, 143, workdir)
  assert _count_lines(workdir) < STEPS
  _finish(workdir, PRECISE, "mesh.fsdp=1", devices=2)
  # Against one device to the end: only the order of sums differs.
  np.testing.assert_allclose(_losses(workdir), _losses(precise), rtol=1e-9)
  crcs = [
    [line["records_crc32"] for line in _lines(path)]
    for path in (workdir, precise, uninterrupted)
  ]
  assert crcs[0] == crcs[1] == crcs[2]


def _free_port():
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def _start_pair(workdir, *options, heartbeat=30, devices=1):
  """Two processes; with two devices each, steps take seconds on two cores."""
  address = f"127.0.0.1:{_free_port()}"
  pair = []
  for i in range(2):
    distributed = ("--coordinator", address, "--processes", "2")
    distributed += ("--heartbeat", str(heartbeat))
    pair.append(
      _start(
        workdir,
        *options,
        flags=(*distributed, "--process-id", str(i)),
        devices=devices,
        log=f"log{i}",
      )
    )
  return pair


def _finish_pair(pair, workdir, code=0):
  for i, process in enumerate(pair):
    _expect(process, code, workdir, f"log{i}")


@pytest.mark.slow
def test_two_processes_follow_the_same_trajectory(tmp_path):
  options = (PRECISE, *SMALL_VIT)
  one, two = tmp_path / "one", tmp_path / "two"
  _finish(one, *options)
  pair = _start_pair(two, *options, "mesh.fsdp=2", devices=2)
  _finish_pair(pair, two)
  np.testing.assert_allclose(_losses(two), _losses(one), rtol=1e-9)


@pytest.mark.slow
def test_when_one_of_two_processes_is_killed_both_end_and_go_on(tmp_path):
  heartbeat = 10
  options = (*SMALL_VIT, OFTEN, "mesh.fsdp=2")
  whole, workdir = tmp_path / "whole", tmp_path / "killed"
  _finish_pair(_start_pair(whole, *options), whole)
  for killed in (1, 0):
    before = _count_lines(workdir)
    pair = _start_pair(workdir, *options, heartbeat=heartbeat)
    done = before + 4
    _reach(
      lambda done=done: _count_lines(workdir) >= done, pair[0], workdir, "log0"
    )
    pair[killed].kill()
    pair[killed].wait()
    started = time.monotonic()
    _expect(pair[1 - killed], 75, workdir, f"log{1 - killed}")
    assert time.monotonic() - started < heartbeat + 2
    said = _said(workdir, f"log{1 - killed}")
    # Beside it stand what the run said before and what libraries' own threads
    # write, in any order and into each other's lines.
    assert said.count("Error: ") == 1
    assert f"Error: The connection to process {killed} of 2" in said
    assert "Traceback" not in said and "***" not in said
  _finish_pair(_start_pair(workdir, *options), workdir)
  _assert_same_run(workdir, whole)


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_stops_both_at_one_step(
  tmp_path, precise
):
  workdir = tmp_path / "run"
  pair = _start_pair(workdir, PRECISE)
  _reach(lambda: _count_lines(workdir) >= 6, pair[0], workdir, "log0")
  pair[1].send_signal(signal.SIGTERM)
  _finish_pair(pair, workdir, code=143)
  _finish(workdir, PRECISE)
  np.testing.assert_allclose(_losses(workdir), _losses(precise), rtol=1e-9)
  # The averages of batch norm, of both processes at first.
  with jax.enable_x64(True):
    got, wanted = (
      workdir_lib.load_model(path).variables["batch_stats"]
      for path in (workdir, precise)
    )
  assert jax.tree.leaves(wanted)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-8, atol=1e-9),
    got,
    wanted,
  )


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_stops_both_in_an_evaluation(tmp_path):
  workdir = tmp_path / "run"
  # Long enough for the processes to agree: JAX looks for a signal each second.
  many = [f"evals.e{i}.data=builtin:two_digits/train" for i in range(40)]
  pair = _start_pair(workdir, *many, "eval_every_steps=4", OFTEN)
  _reach(lambda: _count_lines(workdir) == 4, pair[0], workdir, "log0")
  pair[1].send_signal(signal.SIGTERM)
  _finish_pair(pair, workdir, code=143)
  saved = {path.name for path in (workdir / "checkpoints").iterdir()}
  assert saved == {"3", "4"}
  assert [list(line)[1] for line in _lines(workdir)] == ["loss"] * 4


def test_a_finished_run_started_again_only_evaluates(tmp_path, uninterrupted):
  before = _lines(uninterrupted)
  config = config_lib.load(CONFIG, COMMON)
  summary = loop.train(config, uninterrupted)
  assert summary.steps == STEPS and _lines(uninterrupted) == before
