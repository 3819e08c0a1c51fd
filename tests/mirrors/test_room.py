"""Copies are bounded, and none goes that a process uses."""

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time

import pytest

from clip_jax import errors, mirrors
from clip_jax.mirrors import fetching, room

KILO = 1e-6  # In gigabytes.
_READER = """
import sys
from clip_jax import mirrors
print(mirrors.fetched(sys.argv[1]), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def models(store):
  """Four folders of a kilobyte each."""
  for name in "abcd":
    store.put("data-1", f"{name}/x", name.encode() * 1000)
  return [f"gs://data-1/{name}" for name in "abcd"]


def _forget():
  """Lets go of what this process uses, as if it had ended."""
  for descriptor in map(int, os.listdir("/proc/self/fd")):
    with contextlib.suppress(OSError):  # It may be gone, such as the folder's.
      if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".used"):
        os.close(descriptor)
  room._held.cache_clear()


def _there(addresses):
  return [mirrors.local_path(x).exists() for x in addresses]


def test_those_unused_for_longest_go_first(models, monkeypatch):
  monkeypatch.setenv(room.VARIABLE, str(3.5 * KILO))
  for address in (*models[:3], models[0]):
    mirrors.fetched(address)
    time.sleep(0.02)
  _forget()
  assert _there(models) == [True, True, True, False]
  mirrors.fetched(models[3])
  assert _there(models) == [True, False, True, True]
  # What went is fetched again, and is good.
  path = mirrors.fetched(models[1])
  assert (path / "x").read_bytes() == b"b" * 1000


def test_what_this_process_uses_stays(models, monkeypatch):
  monkeypatch.setenv(room.VARIABLE, str(1.5 * KILO))
  for address in models:
    mirrors.fetched(address)
  mirrors.copied([f"{models[0]}/x"])
  assert all(_there(models))


def test_what_another_process_uses_stays(models, monkeypatch):
  monkeypatch.setenv(room.VARIABLE, str(1.5 * KILO))
  with subprocess.Popen(
    [sys.executable, "-c", _READER, models[0]],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  ) as reader:
    assert reader.stdout is not None and reader.stdin is not None
    path = reader.stdout.readline().strip()
    mirrors.fetched(models[1])
    _forget()
    mirrors.fetched(models[2])
    assert _there(models[:3]) == [True, False, True]
    with open(f"{path}/x", "rb") as file:
      assert file.read() == b"a" * 1000
    reader.stdin.close()
  _forget()
  mirrors.fetched(models[3])
  assert _there(models) == [False, False, False, True]


def test_what_another_process_makes_stays(models, monkeypatch):
  monkeypatch.setenv(room.VARIABLE, str(0.5 * KILO))
  path = mirrors.fetched(models[0])
  _forget()
  with fetching.locked(path):
    mirrors.fetched(models[1])
    assert path.exists()


def test_copies_of_data_go_too_and_runs_stay(models, store, monkeypatch):
  monkeypatch.setenv(room.VARIABLE, str(1.5 * KILO))
  copy = mirrors.copied([f"{models[0]}/x"])[f"{models[0]}/x"]
  run = mirrors.fetched(models[1], use="run0")
  _forget()
  mirrors.fetched(models[2])
  assert not copy.exists() and run.exists()
  assert mirrors.copied([f"{models[0]}/x"])[f"{models[0]}/x"].is_file()


def test_a_copy_that_goes_before_it_is_locked_is_made_anew(models, monkeypatch):
  address = f"{models[0]}/x"
  for fetch in (mirrors.fetched, lambda x: mirrors.copied([x])[x]):
    path = fetch(address)
    _forget()
    flock = fcntl.flock

    def lock(file, kind, path=path, flock=flock):
      # As if another process made room while this one waited.
      monkeypatch.setattr(fcntl, "flock", flock)
      assert room._remove_unused(path.parent)
      flock(file, kind)

    monkeypatch.setattr(fcntl, "flock", lock)
    assert fetch(address).read_bytes() == b"a" * 1000


def test_where_nothing_can_be_locked_copies_stay(models, monkeypatch):
  def refuse(file, kind):
    raise OSError(errno.ENOLCK, "No locks available")

  monkeypatch.setattr(fcntl, "flock", refuse)
  monkeypatch.setenv(room.VARIABLE, str(1.5 * KILO))
  mirrors.fetched(models[0])
  number = len(os.listdir("/proc/self/fd"))
  for _ in range(20):
    mirrors.fetched(models[0])
  assert len(os.listdir("/proc/self/fd")) < number + 10
  mirrors.fetched(models[1])
  assert _there(models[:2]) == [True, True]


def test_on_a_full_disk_unused_copies_go_if_that_is_enough(
  models, store, monkeypatch
):
  root = mirrors.local_path(models[0]).parents[1]
  usage, most = shutil.disk_usage("/"), 3500

  def left(_):
    return usage._replace(free=most - room._size(root))

  monkeypatch.setattr(shutil, "disk_usage", left)
  for address in models[:3]:
    mirrors.fetched(address)
    time.sleep(0.02)
  _forget()
  store.put("data-1", "large/x", bytes(4000))
  with pytest.raises(errors.UserError, match="Free some space"):
    mirrors.fetched("gs://data-1/large")
  assert _there(models) == [True, True, True, False]
  mirrors.fetched(models[3])
  assert _there(models) == [False, True, True, True]


@pytest.mark.parametrize("limit", ["x", "0", "-1", "nan"])
def test_a_limit_that_is_none_is_told(limit, models, monkeypatch):
  monkeypatch.setenv(room.VARIABLE, limit)
  with pytest.raises(errors.UserError, match="CLIP_JAX_COPIES_GB="):
    mirrors.fetched(models[0])
