"""Copies of buckets are what is there, whole, and fetched once."""

import dataclasses
import errno
import hashlib
import pathlib
import shutil
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import bucket_stand_in
from clip_jax import buckets, errors, mirrors
from clip_jax import search as search_lib
from clip_jax.buckets import clients, writing
from clip_jax.mirrors import fetching, stamps
from clip_jax.mirrors import manifest as manifest_lib


def _content(path):
  return {
    each.relative_to(path).as_posix(): each.read_bytes()
    for each in path.rglob("*")
    if each.is_file()
  }


def _objects(store, prefix):
  return {
    name.removeprefix(prefix): each.data
    for name, each in store.objects["data-1"].items()
    if name.startswith(prefix) and not name.endswith("/")
  }


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_objects_are_written_and_removed_despite_faults(scheme, store):
  store.faults.extend(
    x for fault in bucket_stand_in.FAULTS for x in (fault, "")
  )
  for number in range(6):
    writing.put(f"{scheme}://data-1/a/b/{number}", b"%d" % number)
  writing.remove(f"{scheme}://data-1/a/b/0")
  writing.remove(f"{scheme}://data-1/a/b/none")
  assert store.happened == list(bucket_stand_in.FAULTS)
  assert _objects(store, "a/b/") == {str(x): b"%d" % x for x in range(1, 6)}
  store.put("data-1", "a/rest", b"")
  writing.remove_folder(f"{scheme}://data-1/a/b")
  assert _objects(store, "a/") == {"rest": b""}


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_a_file_is_written_in_pieces(scheme, store, tmp_path, monkeypatch):
  monkeypatch.setattr(writing, "_PIECE_BYTES", 30)
  path = tmp_path / "file"
  path.write_bytes(bytes(range(100)))
  writing.put_file(f"{scheme}://data-1/file", path)
  assert store.objects["data-1"]["file"].data == path.read_bytes()


# The client of gs:// waits between attempts.
@pytest.mark.parametrize(
  "scheme", ["s3", pytest.param("gs", marks=pytest.mark.slow)]
)
def test_what_cannot_be_written_is_told(scheme, store):
  with pytest.raises(errors.UserError, match="there is no bucket 'none'"):
    writing.put(f"{scheme}://none/a", b"")
  store.refuse = 403
  with pytest.raises(errors.UserError, match="right to read, list, write"):
    writing.put(f"{scheme}://data-1/a", b"")
  store.refuse = 503
  with pytest.raises(errors.UserError, match="could not be reached, 8 times"):
    writing.put(f"{scheme}://data-1/a", b"")
  assert not store.objects["data-1"]


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_a_copy_is_the_folder_and_fetched_once(scheme, store):
  for name in ("m/a.json", "m/b/c.txt", "m2/other"):
    store.put("data-1", name, name.encode())
  address = f"{scheme}://data-1/m/"
  path = mirrors.fetched(address)
  assert path.name == "m"
  assert _content(path) == {"a.json": b"m/a.json", "b/c.txt": b"m/b/c.txt"}
  store.requests.clear()
  assert mirrors.fetched(address) == path
  assert not any(
    "alt=media" in x or x == "GET /data-1/m" for x in store.requests
  )
  # What was changed here is fetched again; what is gone there goes here.
  (path / "a.json").write_bytes(b"m/A.json")
  del store.objects["data-1"]["m/b/c.txt"]
  mirrors.fetched(address)
  assert _content(path) == {"a.json": b"m/a.json"}
  # S3 tells times in seconds: there the size tells of it.
  store.put("data-1", "m/a.json", b"anew!!!!" + b"!" * (scheme == "s3"))
  mirrors.fetched(address)
  assert _content(path) == _objects(store, "m/")


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_a_file_is_copied_under_its_name(scheme, store):
  store.put("data-1", "m/model.pt", b"weights")
  path = mirrors.fetched(f"{scheme}://data-1/m/model.pt")
  assert (path.name, path.read_bytes()) == ("model.pt", b"weights")


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_a_copy_is_of_one_object(scheme, store, monkeypatch):
  """Also where another one of its size takes its place within its second."""
  monkeypatch.setattr(fetching, "_PIECE_BYTES", 20)
  monkeypatch.setattr(fetching, "_WAIT_SECONDS", 0.001)
  first = store.put("data-1", "a.bin", b"x" * 50)
  ask, asked = buckets.File._ask, []

  def ask_and_replace(file, *place):
    data = ask(file, *place)
    if not asked:
      made = store.put("data-1", "a.bin", b"y" * 50)
      store.objects["data-1"]["a.bin"] = dataclasses.replace(
        made, written=first.written
      )
    asked.append(data)
    return data

  monkeypatch.setattr(buckets.File, "_ask", ask_and_replace)
  path = mirrors.fetched(f"{scheme}://data-1/a.bin")
  assert path.read_bytes() == b"y" * 50


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_faults_change_no_copy(scheme, store):
  for number in range(8):
    store.put("data-1", f"m/{number}", bytes(range(100 + number)))
  # After a fault of other requests, Google's client waits for a second.
  store.faulty = "alt=media" if scheme == "gs" else ""
  store.faults.extend(
    x for fault in bucket_stand_in.FAULTS for x in (fault, "")
  )
  path = mirrors.fetched(f"{scheme}://data-1/m")
  assert store.happened == list(bucket_stand_in.FAULTS)
  assert _content(path) == _objects(store, "m/")


def test_a_folder_is_read_when_all_of_it_is_there(store, monkeypatch):
  monkeypatch.setattr(fetching, "_WAIT_SECONDS", 0.001)
  address = "gs://data-1/m"
  store.put("data-1", "m/a", b"old")
  digest = hashlib.sha256(b"new").hexdigest()
  manifest = manifest_lib.Manifest("model", {"a": digest}, complete=False)
  manifest_lib.write(address, manifest)
  with pytest.raises(errors.UserError, match="is not complete"):
    mirrors.fetched(address)
  manifest_lib.write(address, manifest_lib.Manifest("model", {"a": digest}))
  with pytest.raises(errors.UserError, match="is not what was written there"):
    mirrors.fetched(address)
  store.put("data-1", "m/a", b"new")
  store.put("data-1", "m/stray", b"")
  assert _content(mirrors.fetched(address)) == {"a": b"new"}


@pytest.mark.parametrize(
  "content",
  [
    b"{",
    b"{}",
    b"[]",
    b'{"files": [], "kind": "", "writer": "", "complete": true}',
    b'{"files": {"../a": "00"}, "kind": "", "writer": ""}',
  ],
)
def test_a_damaged_list_is_told(content, store):
  store.put("data-1", f"m/{manifest_lib.NAME}", content)
  with pytest.raises(errors.UserError, match=r"JSON|damaged|named"):
    mirrors.fetched("gs://data-1/m")


def test_nothing_is_written_beside_the_copy(store, tmp_path):
  store.put("data-1", "m/a/../../../x", b"no")
  with pytest.raises(errors.UserError, match="cannot be the path of a file"):
    mirrors.fetched("gs://data-1/m")
  suffixes = {
    name.rpartition(".")[2]
    for name in _content(tmp_path / "cache/clip_jax/buckets")
  }
  assert suffixes == {"lock", "address", "used"}


def test_a_copy_that_does_not_fit_is_not_begun(store, monkeypatch):
  store.put("data-1", "m/a", bytes(1000))
  full = shutil.disk_usage("/")._replace(free=999)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
  with pytest.raises(errors.UserError, match="Free some space, or set XDG_"):
    mirrors.fetched("gs://data-1/m")


@pytest.mark.parametrize("fails", ["mkdir", "lock", "write", "note"])
def test_a_disk_that_cannot_be_written_is_told_by_its_own_path(
  fails, store, monkeypatch
):
  """A copy has an address, of whose bucket such an error must not speak."""
  store.put("data-1", "m/a", bytes(1000))
  full = OSError(errno.EDQUOT, "Disk quota exceeded")
  path = mirrors.local_path("gs://data-1/m")
  opened, whole = pathlib.Path.open, pathlib.Path.mkdir

  def refuse(self, *arguments, **options):
    if fails == {".lock": "lock", ".held": "lock"}.get(self.suffix):
      raise full
    return opened(self, *arguments, **options)

  def refuse_folder(self, *arguments, **options):
    if fails == "mkdir":
      raise OSError(*full.args, str(self))
    return whole(self, *arguments, **options)

  def fail(*arguments):
    raise full

  monkeypatch.setattr(pathlib.Path, "open", refuse)
  monkeypatch.setattr(pathlib.Path, "mkdir", refuse_folder)
  if fails == "write":
    monkeypatch.setattr(fetching.os, "replace", fail)
  elif fails == "note":
    monkeypatch.setattr(stamps, "write", fail)
  tries: list[Any] = [lambda: mirrors.fetched("gs://data-1/m")]
  if fails in ("mkdir", "lock"):
    tries.append(lambda: mirrors.held(path, "").__enter__())
  if fails == "mkdir":
    tries.append(
      lambda: mirrors.new("gs://data-1/n", overwrite=False).__enter__()
    )
  for each in tries:
    with (
      pytest.raises(errors.UserError, match=r"Disk quota ex.*XDG_") as told,
      mirrors.in_errors(),
    ):
      each()
    assert str(path.parents[1]) in str(told.value)
    assert "gs:" not in str(told.value)


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_nothing_there_is_told(scheme, store):
  with pytest.raises(errors.UserError, match="There is nothing at"):
    mirrors.fetched(f"{scheme}://data-1/m")
  assert buckets.objects(f"{scheme}://data-1/m") == {}


def test_a_model_counts_when_its_list_is_there(store, monkeypatch):
  address = "gs://data-1/m"

  def write(content, *, overwrite=False):
    with mirrors.new(address, overwrite=overwrite) as path:
      path.mkdir()
      for name, data in content.items():
        (path / name).write_bytes(data)

  write({"a": b"1", "b": b"2"})
  assert _content(mirrors.fetched(address)) == {"a": b"1", "b": b"2"}
  with pytest.raises(errors.UserError, match="exists; give another"):
    write({})
  put = writing.put_file

  def killed(address, path):
    if address.endswith("/c"):
      raise KeyboardInterrupt
    put(address, path)

  monkeypatch.setattr(writing, "put_file", killed)
  with pytest.raises(KeyboardInterrupt):
    write({"a": b"3", "c": b"4"}, overwrite=True)
  with pytest.raises(errors.UserError, match="is not complete"):
    mirrors.fetched(address)
  monkeypatch.setattr(writing, "put_file", put)
  write({"a": b"3", "c": b"4"})  # The same command again.
  assert _content(mirrors.fetched(address)) == {"a": b"3", "c": b"4"}
  assert _objects(store, "m/").keys() == {"a", "c", manifest_lib.NAME}


def test_what_is_no_model_is_not_replaced(store):
  store.put("data-1", "m/a", b"mine")
  for name in ("m", "m/a"):
    with (
      pytest.raises(errors.UserError, match="remove it yourself"),
      mirrors.new(f"gs://data-1/{name}", overwrite=True),
    ):
      pass
  assert _objects(store, "m/") == {"a": b"mine"}
  assert (
    pathlib.Path(mirrors.fetched("gs://data-1/m/a")).read_bytes() == b"mine"
  )


@pytest.mark.parametrize(
  ("address", "text"),
  [
    ("gs://", "names no bucket"),
    ("s3:///", "names no bucket"),
    ("gs://data-1/m//a", "empty name between two slashes"),
    ("gs://data-1/m/..", "means nothing in a bucket"),
    ("s3://data-1/./m/", "means nothing in a bucket"),
  ],
)
def test_an_address_that_leads_elsewhere_is_told(
  address, text, store, tmp_path
):
  """What is in the cache already, such as runs' newest steps, stays there."""
  store.put("data-1", "m/a", b"1")
  path = mirrors.fetched("gs://data-1/m")
  before = dict(store.objects["data-1"])

  def write():
    with mirrors.new(address, overwrite=True):
      pass

  def train():
    with mirrors.opened(address, process=0, processes=1):
      pass

  for act in (
    write,
    train,
    lambda: mirrors.fetched(address),
    lambda: mirrors.names(address),
    lambda: search_lib.open_index(address),
    lambda: mirrors.local_path(address),
  ):
    with pytest.raises(errors.UserError, match=text):
      act()
  assert _content(path) == {"a": b"1"}
  assert store.objects["data-1"] == before


def test_slashes_at_the_end_of_an_address_make_no_difference(store):
  with mirrors.new("gs://data-1/m/", overwrite=False) as path:
    path.mkdir()
    (path / "a").write_bytes(b"1")
  assert path.name == "m"
  assert _objects(store, "m/").keys() == {"a", manifest_lib.NAME}
  assert mirrors.local_path("gs://data-1/m/") == mirrors.fetched(
    "gs://data-1/m"
  )


def test_what_a_killed_copy_of_a_file_left_is_removed(store):
  address = "gs://data-1/m/model.pt"
  store.put("data-1", "m/model.pt", b"weights")
  path = mirrors.local_path(address)
  path.parent.mkdir(parents=True)
  (path.parent / ".0123.partial").write_bytes(b"half")
  assert mirrors.fetched(address) == path
  assert _content(path.parent) == {"model.pt": b"weights"}


def test_an_attempt_that_was_given_up_takes_no_bytes_of_the_next(
  monkeypatch, tmp_path
):
  """It goes on while the next one reads the same file."""
  monkeypatch.setattr(writing, "_PIECE_BYTES", 10)
  monkeypatch.setattr(clients, "TIMEOUT_SECONDS", 0.3)
  go_on, streams, closed = threading.Event(), [], []

  class Stream:
    def __init__(self):
      self.data, self.is_first = b"", not streams
      streams.append(self)

    def write(self, piece):
      if self.is_first and self.data:  # Its first attempt hangs here.
        go_on.wait(20)
      elif not self.is_first and len(self.data) == 20:
        go_on.set()
        while len(streams[0].data) < 30:
          time.sleep(0.001)
      self.data += piece

    def close(self):
      closed.append(self)

  class Client:
    def open_output_stream(self, place):
      return Stream()

  monkeypatch.setattr(clients, "client", lambda address: Client())
  path = tmp_path / "file"
  path.write_bytes(bytes(range(50)))
  writing.put_file("s3://data-1/file", path)
  assert streams[1].data == path.read_bytes()
  while len(streams[0].data) < 50:
    time.sleep(0.001)
  time.sleep(0.05)
  assert closed == [streams[1]]  # The late one replaces nothing.


_CUT_OFF = """
import gc, os, pathlib, sys
from clip_jax import errors
from clip_jax.buckets import attempts, writing

attempts.ATTEMPTS, writing._PIECE_BYTES, read = 2, 30, os.pread
os.pread = lambda *asked: b"" if asked[2] == 60 else read(*asked)
for scheme in ("gs", "s3"):
  try:
    writing.put_file(f"{scheme}://data-1/{scheme}", pathlib.Path(sys.argv[1]))
  except errors.UserError as error:
    assert "became shorter while" in str(error), error
    del error
    gc.collect()
  else:
    raise AssertionError
"""


def test_what_is_begun_and_not_completed_is_no_object(store, tmp_path):
  """Arrow's streams would make one of it when they are deleted."""
  path = tmp_path / "file"
  path.write_bytes(bytes(range(100)))
  for scheme in bucket_stand_in.SCHEMES:
    store.put("data-1", scheme, b"before")
  # Its own process: deleted streams keep all threads waiting, the server's too.
  command = [sys.executable, "-c", _CUT_OFF, str(path)]
  subprocess.run(command, check=True, timeout=60)
  for scheme in bucket_stand_in.SCHEMES:
    assert store.objects["data-1"][scheme].data == b"before"
