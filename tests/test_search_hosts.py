"""An index that several processes embed has the bytes of one process's."""

import collections
import json
import pathlib
import re
import signal
import subprocess
import sys
import threading
from typing import Any

import jax
import numpy as np
import pytest
import simulated_devices
from PIL import Image

import image_bytes
import model_kinds
from clip_jax import cli, errors, hosts
from clip_jax.data.ledger import Problem
from clip_jax.search import host_batches

EMBED_DIM = 5


class _Processes:
  """Threads that stand for the processes of a run, and what each embedded."""

  def __init__(self, count, monkeypatch):
    self.count = count
    self.embedded = collections.defaultdict(list)
    self._own = threading.local()
    self._barrier = threading.Barrier(count, timeout=30)
    self._said: list[Any] = [None] * count
    monkeypatch.setattr(jax, "process_index", lambda: self._own.process)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(hosts, "exchanged", self._exchanged)
    monkeypatch.setattr(hosts, "gathered", self._gathered)

  def _exchanged(self, said):
    assert said.isascii()
    self._said[self._own.process] = said
    self._barrier.wait()
    found = list(self._said)
    self._barrier.wait()
    return found

  def _gathered(self, array):
    assert array.dtype == np.float32
    return np.stack(self._exchanged(_Array(array)))

  def run(self, work):
    """Returns what `work` returns, or raises, in each process."""
    found: list[Any] = [None] * self.count

    def run(process):
      self._own.process = process
      try:
        found[process] = work(process)
      except errors.UserError as error:
        found[process] = str(error)

    threads = [
      threading.Thread(target=run, args=(i,)) for i in range(self.count)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return found


class _Array(np.ndarray):
  """An array that passes for the text of `_exchanged`."""

  def __new__(cls, array):
    return np.asarray(array).view(cls)

  def isascii(self):
    return True


def _batch(number):
  """A batch of 0 to 3 images, of which one in five is bad."""
  rows, bad = number % 4, number % 5 == 0
  return {
    "image": np.full((rows, 2, 2, 3), number, np.uint8),
    "key": [f"ключ {number}.{row}" for row in range(rows)],
    "texts": [("a\nb", f"{number}")] * rows,
    "path": [f"p/{number}"] * rows,
    "problems": [Problem(number, "k", "cut", -1)] * bad,
  }


def _embeds(images):
  """Different numbers in each row, all of which float32 holds."""
  places = np.arange(len(images) * EMBED_DIM).reshape(-1, EMBED_DIM)
  return images.mean((1, 2, 3))[:, None] + places / 128


def _embedded(processes, *, start, count, fails_at=None):
  """Runs `embedded` on all processes; returns what it yields on each."""

  def work(process):
    def open_own(first, step):
      for number in range(first, count, step):
        if number == fails_at:
          raise errors.UserError("It is gone.")
        processes.embedded[process].append(number)
        yield _batch(number)

    # Only the first process knows where the build begins.
    return list(
      host_batches.embedded(
        open_own, _embeds, start=0 if process else start, count=count
      )
    )

  return processes.run(work)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("start, end", [(0, 13), (3, 13), (6, 7), (7, 7)])
def test_processes_embed_each_batch_once_and_the_first_has_all_in_order(
  monkeypatch, count, start, end
):
  processes = _Processes(count, monkeypatch)
  first, *others = _embedded(processes, start=start, count=end)
  assert others == [[]] * (count - 1)
  assert len(first) == end - start
  for number, got in enumerate(first, start):
    want = _batch(number)
    np.testing.assert_array_equal(got.pop("image"), _embeds(want.pop("image")))
    assert got == want
    assert all(isinstance(texts, tuple) for texts in got["texts"])
    assert all(isinstance(each, Problem) for each in got["problems"])
  for process in range(count):
    own = list(range(start + process, end, count))
    assert processes.embedded[process] == own


def test_batches_without_any_image_are_counted(monkeypatch):
  processes = _Processes(2, monkeypatch)
  first, _ = _embedded(processes, start=0, count=1)
  assert first[0]["image"].shape == (0, EMBED_DIM)
  assert first[0]["problems"] == [Problem(0, "k", "cut", -1)]


def test_an_error_in_reading_is_raised_by_all(monkeypatch):
  processes = _Processes(3, monkeypatch)
  found = _embedded(processes, start=0, count=13, fails_at=4)
  assert found == ["On process 1: It is gone."] * 3
  # No process goes on with the batches after it.
  assert max(map(max, processes.embedded.values())) == 5


# Beginning to embed the batch of the number argv[2] kills the process, by the
# signal argv[1].
PROGRAM = """
import os, sys
from clip_jax import cli
from clip_jax.search import builder, host_batches
builder.SECONDS_TO_KEEP, left = 0, int(sys.argv[2])
embed_next = host_batches._embed_next
def counted(*arguments):
  global left
  left -= 1
  if left < 0:
    os.kill(os.getpid(), int(sys.argv[1]))
  return embed_next(*arguments)
host_batches._embed_next = counted
cli.main(sys.argv[3:])
"""
NEVER, SLOTS, BATCH, BAD = 99, 25, 4, 5  # 7 batches: the last has one image.


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  return model_kinds.clip_directory(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Twenty-four images with captions, and a damaged one."""
  root = tmp_path_factory.mktemp("data")
  rng = np.random.default_rng(0)
  lines = ["image,caption"]
  for i in range(SLOTS):
    pixels = rng.integers(0, 256, (18, 20, 3)).astype(np.uint8)
    content = image_bytes.encode(Image.fromarray(pixels))
    (root / f"{i}.png").write_bytes(content if i != BAD else b"\x89PNG")
    lines.append(f"{i}.png,das Bild Nr. {i} über alles")
  (root / "pairs.csv").write_text("\n".join(lines))
  return f"csv:{root / 'pairs.csv'}"


def _start(*arguments, kill_at=NEVER, kill_by=signal.SIGKILL):
  return subprocess.Popen(
    [sys.executable, "-c", PROGRAM, str(int(kill_by)), str(kill_at), "embed"]
    + [str(argument) for argument in arguments],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=pathlib.Path(cli.__file__).parents[2],
    # Batches are cut by the number of devices.
    env=simulated_devices.environment(1),
  )


def _end(*processes):
  """Returns (code, stdout, stderr) of each process."""
  said = [process.communicate(timeout=200) for process in processes]
  codes = [process.returncode for process in processes]
  return [(code, *each) for code, each in zip(codes, said, strict=True)]


@pytest.fixture
def two(free_address):
  """Runs `clip-jax embed` on two processes."""

  def run(*arguments, of_each=((), ()), kill_at=(NEVER, NEVER), **options):
    joined = ("--coordinator", free_address(), "--processes", "2")
    return _end(
      *(
        _start(
          *(*arguments, *own, *joined, "--process-id", i),
          kill_at=at,
          **options,
        )
        for i, (own, at) in enumerate(zip(of_each, kill_at, strict=True))
      )
    )

  return run


@pytest.fixture(scope="module")
def words(model, data):
  return (model, "--data", data, "--batch-size", BATCH, "--json")


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
  """The index of one process."""
  path = tmp_path_factory.mktemp("whole") / "index"
  ((code, said, errors_said),) = _end(_start(*words, "--out", path))
  assert code == 0, errors_said
  assert json.loads(said)["bad_records"] == {"not_an_image": 1}
  return path


def _content(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(words, whole, tmp_path, two):
  out = tmp_path / "index"
  # The second one writes nothing.
  of_each = (("--out", out), ("--out", tmp_path / "none"))
  for code, said, errors_said in two(*words, of_each=of_each):
    assert code == 0, errors_said
    answer = json.loads(said)
    assert (answer["count"], answer["out"]) == (SLOTS - 1, str(out))
    assert answer["bad_records"] == {"not_an_image": 1}
  assert _content(out) == _content(whole)
  assert not (tmp_path / "none").exists()


def _only_error(said):
  """Returns the only error of a process.

  What libraries' own threads write may stand before it in its line.
  """
  found = re.findall(r"Error: .*", said)
  assert len(found) == 1, said
  return found[0]


@pytest.mark.slow
@pytest.mark.parametrize(
  "killed, by, again", [(1, signal.SIGTERM, 1), (0, signal.SIGKILL, 2)]
)
def test_an_index_of_killed_processes_goes_on_with_any_number(
  words, whole, tmp_path, two, killed, by, again
):
  out = tmp_path / "index"
  kill_at = [NEVER, NEVER]
  kill_at[killed] = 2  # Four batches are embedded then, with a bad record.
  found = two(*words, "--out", out, kill_at=kill_at, kill_by=by)
  assert found[killed][0] == -by
  code, said, errors_said = found[1 - killed]
  assert (code, said) == (75, "") and "Traceback" not in errors_said
  line = _only_error(errors_said)
  assert f"process {killed} of 2 is closed: it is gone." in line
  assert "an index after its last batches" in line
  assert not (out / "meta.json").exists()
  if again == 1:
    found = _end(_start(*words, "--out", out))
  else:
    # Two batches of the first process are left, and one of the second.
    found = two(*words, "--out", out, kill_at=(2, 2))
  for code, _, errors_said in found:
    assert code == 0, errors_said
  # The first one may be told of the second's end before it has written all.
  whole_batches = (4,) if killed == 0 else (2, 3, 4)
  said = [f"Going on after {n * BATCH - 1} images." for n in whole_batches]
  assert any(each in found[0][2] for each in said)
  assert _content(out) == _content(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
  "of_each, message",
  [
    ((("--data", "builtin:digits/test"), ()), "The processes differ in --data"),
    ((("--out", __file__), ()), "test_search_hosts.py"),
  ],
)
def test_an_error_on_one_process_ends_both_with_a_line(
  words, tmp_path, two, of_each, message
):
  for code, said, errors_said in two(
    *words, "--out", tmp_path / "index", of_each=of_each
  ):
    line = _only_error(errors_said)
    assert (code, said) == (1, "") and message in line
    assert "Traceback" not in errors_said
  assert not (tmp_path / "index").exists()


@pytest.mark.slow
def test_two_processes_write_into_a_bucket(words, whole, two, store):
  for code, _, errors_said in two(*words, "--out", "s3://data-1/index"):
    assert code == 0, errors_said
  objects = store.objects["data-1"]
  found = {
    name.removeprefix("index/"): held.data
    for name, held in objects.items()
    if name.startswith("index/") and held.data
  }
  assert found == _content(whole)
