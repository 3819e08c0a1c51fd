"""Workers and their shared memory end with the run, whatever ends it."""

import contextlib
import multiprocessing
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

from clip_jax.data import batches as batches_lib
from clip_jax.data import parent, workers

# CLIP_JAX_KILLS=20 takes some minutes.
KILLS = int(os.environ.get("CLIP_JAX_KILLS", "4")) // 2
MEMORY = pathlib.Path("/dev/shm")
LINUX = pytest.mark.skipif(not MEMORY.is_dir(), reason="needs /dev/shm")

_RUN = """
import numpy as np, sys, time
from clip_jax import preprocess, tokenizer
from clip_jax.data import pipeline, sources
from clip_jax.models import variants

spec = variants.spec("tiny-rn")
with pipeline.train_batches(
  sources.open_source("builtin:digits/train"),
  seed=0, batch_size=64, rows=np.arange(64), start_step=0, workers=2,
  preprocess=preprocess.Preprocess.from_spec(spec),
  tokenizer=tokenizer.make_tokenizer(
    **spec["tokenizer"], context_length=16, contents=None
  ),
) as batches:
  try:
    for step in range(100_000):
      next(batches)
      print(step, flush=True)
  except KeyboardInterrupt:
    raise SystemExit(130)
"""


@contextlib.contextmanager
def running():
  """A process that loads batches with two workers, in a group of its own."""
  process = subprocess.Popen(
    [sys.executable, "-c", _RUN],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  try:
    yield process
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_until(condition, seconds):
  end = time.monotonic() + seconds
  while not condition() and time.monotonic() < end:
    time.sleep(0.05)
  return condition()


def group(pid):
  """The processes of a group that are not dead."""
  found = []
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(OSError):
      state, _, number = path.read_text().rpartition(")")[2].split()[:3]
      if int(number) == pid and state != "Z":
        found.append(path.parent.name)
  return found


def segments(pid):
  """What a run has in shared memory, semaphores too."""
  names = {path.name for path in MEMORY.glob(f"clip_jax-*-{pid}-*")}
  for path in MEMORY.glob(f"clip_jax-*-{pid}-*-semaphores"):
    with contextlib.suppress(FileNotFoundError):
      names |= set(path.read_text().split())
  return {name for name in names if (MEMORY / name).exists()}


@LINUX
@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_no_segment():
  rng = random.Random(0)
  for _ in range(KILLS):
    with running() as process:
      process.stdout.readline()
      time.sleep(rng.uniform(0, 0.2))
      held = segments(process.pid)
      assert len(held) > 20 and len(group(process.pid)) >= 3
      process.kill()
      assert wait_until(lambda p=process.pid: not group(p), 10)
      left = [name for name in held if (MEMORY / name).exists()]
      assert not left and not segments(process.pid)


@LINUX
@pytest.mark.slow
def test_what_is_killed_together_is_cleaned_up_at_the_next_start():
  for _ in range(KILLS):
    with running() as process, running() as other:
      for each in (process, other):
        each.stdout.readline()
      held = segments(process.pid)
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
      assert wait_until(lambda p=process.pid: not group(p), 10)
      assert segments(process.pid)
      workers.remove_leftovers()
      left = [name for name in held if (MEMORY / name).exists()]
      assert not left and not segments(process.pid)
      # The other run is alive, and what it has is needed.
      assert len(segments(other.pid)) > 20
      for _ in range(20):
        assert other.stdout.readline()


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(
  ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_a_signal_to_all_processes_ends_them_in_order(number, code):
  with running() as process:
    process.stdout.readline()
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in said and "Exception ignored" not in said
    assert wait_until(lambda: not group(process.pid), 10)
    assert not segments(process.pid)


def test_ctrl_c_strikes_outside_of_grains_locks():
  # A signal raises in the main thread; inside `queue.Queue`, which grain's
  # threads share, it loses a wake-up, and one run in six never ended.
  class Elements:
    def __next__(self):
      taken_in.append(threading.current_thread())
      return {"key": [len(taken_in)]}

    def close(self):
      taken_in.append(None)

  taken_in = []
  with batches_lib.Batches(Elements(), chunks=2, endless=True) as batches:
    assert [next(batches)["key"] for _ in range(2)] == [[1, 2], [3, 4]]
    assert threading.main_thread() not in taken_in
  assert len(taken_in) == 5 and taken_in[-1] is None


@pytest.mark.skipif(not workers._PROC.is_dir(), reason="needs /proc")
@pytest.mark.parametrize("slow", ["clip_jax.cli", "grain"])
def test_a_worker_that_still_imports_ends_with_its_parent(tmp_path, slow):
  # As the installed command's program is imported in a process that it starts;
  # the import of `slow` takes longer than this test.
  (tmp_path / "program.py").write_text(f"""
import importlib.abc
import multiprocessing
import signal
import sys
import time

class Finder(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path, target=None):
    if __name__ == "__mp_main__" and name == {slow!r}:
      print("importing", flush=True)
      time.sleep(60)

sys.meta_path.insert(0, Finder())
from clip_jax.__main__ import main

if __name__ == "__mp_main__":
  import grain
elif __name__ == "__main__":
  worker = multiprocessing.get_context("spawn").Process(target=print)
  worker.start()
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  worker.join()
  print("the worker has ended", flush=True)
""")
  process = subprocess.Popen(
    [sys.executable, tmp_path / "program.py"],
    stdout=subprocess.PIPE,
    start_new_session=True,
  )
  try:
    assert process.stdout.readline() == b"importing\n"
    os.killpg(process.pid, signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):  # The worker does not heed.
      process.wait(0.3)
    process.kill()
    assert wait_until(lambda: not group(process.pid), 5)
    assert process.stdout.read() == b""
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_only_own_leftovers_of_dead_runs_are_removed(tmp_path, monkeypatch):
  namespace = workers._namespace()
  if namespace is None:
    pytest.skip("needs /proc")
  dead = subprocess.Popen(["true"])
  dead.wait()
  start = workers._start_time(os.getpid())
  begin = f"clip_jax-{namespace}"
  gone = {
    f"{begin}-{dead.pid}-1-0-7-1": b"1234",
    f"{begin}-{os.getpid()}-{int(start) - 1}-0-7-1": b"",  # Number used again.
    f"{begin}-{dead.pid}-1-0-7-semaphores": b"sem.ours\nsem.none\n/etc/x\n..",
    "sem.ours": b"",
  }
  kept = {
    f"{begin}-{os.getpid()}-{start}-0-7-1": b"",
    f"clip_jax-{int(namespace) + 1}-{dead.pid}-1-0-7-1": b"",
    f"{begin}-{dead.pid}-1": b"",
    "psm_01234567": b"",
    "sem.theirs": b"",
  }
  for name, content in {**gone, **kept}.items():
    (tmp_path / name).write_bytes(content)
  pipe = f"{begin}-{dead.pid}-1-0-8-semaphores"  # To read it would not end.
  os.mkfifo(tmp_path / pipe)
  kept[pipe] = b""
  monkeypatch.setattr(workers, "_MEMORY", tmp_path)
  with monkeypatch.context() as another:
    another.setattr(os, "geteuid", lambda: os.getuid() + 1)
    workers.remove_leftovers()
    assert len(list(tmp_path.iterdir())) == len(gone) + len(kept)
  workers.remove_leftovers()
  assert {path.name for path in tmp_path.iterdir()} == kept.keys()


@LINUX
def test_shared_arrays_are_named_after_their_owner_and_equal():
  owner = workers.new_owner()
  given = {
    "image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "none": np.zeros((0, 3), np.int32),
    "problems": ["x"],
  }
  shared = workers.Share(owner).map(given)
  name = shared["image"].name
  assert name.startswith(owner) and (MEMORY / name).exists()
  got = np.empty(shared["image"].shape, shared["image"].dtype)
  shared["image"].move_to(got)
  assert not (MEMORY / name).exists()
  np.testing.assert_array_equal(got, given["image"])
  assert got.dtype == np.uint8
  assert shared["none"] is given["none"]
  assert shared["problems"] is given["problems"]
  workers.Share(owner).map(given)
  assert list(MEMORY.glob(f"{owner}*"))
  (MEMORY / f"{owner}1-1").touch()  # Of a worker that was killed in between.
  workers.end(owner)
  assert not list(MEMORY.glob(f"{owner}*"))


def test_a_program_that_imports_multiprocessing_is_no_worker():
  code = (
    "import multiprocessing, signal, threading; import clip_jax.cli;"
    "assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL;"
    "assert threading.active_count() == 1"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_a_worker_whose_parent_ended_before_it_watched_ends(monkeypatch):
  waits = []
  monkeypatch.setattr(parent, "end_after", waits.append)
  started = types.SimpleNamespace(is_alive=lambda: False)
  monkeypatch.setattr(multiprocessing, "parent_process", lambda: started)

  def never(seconds):
    raise AssertionError("It waits for the end of another process.")

  monkeypatch.setattr(time, "sleep", never)
  parent.watch()
  waits.pop()()
