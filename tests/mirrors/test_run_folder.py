"""A run's folder in a bucket is good at every moment."""

import contextlib
import dataclasses
import pathlib
import shutil
import threading
import time

import pytest

import bucket_stand_in
from clip_jax import errors, mirrors
from clip_jax.buckets import attempts
from clip_jax.mirrors import fetching, run_files, run_folder, uploads
from clip_jax.mirrors import manifest as manifest_lib

KEEP = 2


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
  monkeypatch.setattr(run_folder, "_LOOK_SECONDS", 0.01)


@contextlib.contextmanager
def _begun(address, *, process=0, processes=1, **options):
  with mirrors.opened(
    address, process=process, processes=processes, **options
  ) as place:
    place.path.mkdir(parents=True, exist_ok=True)
    place.claim()
    yield place


def _steps(path):
  folder = path / "checkpoints"
  return sorted(map(int, (x.name for x in folder.glob("[0-9]*"))))


def _save(path, step):
  """Writes what a step does: metrics, then a checkpoint, whole at once."""
  with (path / "metrics.jsonl").open("a") as file:
    file.write(f"{step}\n")
  (path / "config.json").write_text("{}")
  folder = path / f"checkpoints/{step}"
  partial = folder.with_name(f"{step}.orbax-checkpoint-tmp")
  (partial / "d").mkdir(parents=True)
  (partial / "meta").write_text(f"of {step}")
  (partial / "d/0").write_bytes(bytes([step]) * 50)
  partial.rename(folder)
  for old in _steps(path)[:-KEEP]:
    shutil.rmtree(path / f"checkpoints/{old}")


def _wait_for(address, *steps):
  end = time.monotonic() + 20
  while time.monotonic() < end:
    listed = manifest_lib.read(address)
    if {int(x.split("/")[1]) for x in listed.files} == set(steps):
      return
    time.sleep(0.01)
  raise AssertionError(f"{steps} are not there: {listed}")


def _names(store):
  return sorted(x for x in store.objects["data-1"] if not x.endswith("/"))


def _expected(*steps):
  return sorted(
    [f"run/{x}" for x in ("config.json", "metrics.jsonl", manifest_lib.NAME)]
    + [f"run/checkpoints/{x}/{name}" for x in steps for name in ("d/0", "meta")]
  )


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_what_a_run_writes_is_copied_while_it_goes(scheme, store, tmp_path):
  address = f"{scheme}://data-1/run"
  with _begun(address) as place:
    assert place.is_shared and not _steps(place.path)
    (place.path / ".lock").write_text("")
    for folder in ("compiled", "quarantine"):
      (place.path / folder).mkdir()
      (place.path / folder / "x").write_text("")
    for step in (1, 2, 3):
      _save(place.path, step)
      _wait_for(address, *range(max(step - KEEP + 1, 1), step + 1))
    told = place.address_of(place.path / "report.png")
    assert told == f"{scheme}://data-1/run/report.png"
  assert _names(store) == _expected(2, 3)
  assert not place.path.exists()  # All is there.
  assert store.objects["data-1"]["run/metrics.jsonl"].data == b"1\n2\n3\n"
  with mirrors.opened(address, process=0, processes=1) as place:
    assert _steps(place.path) == [2, 3]
    assert (place.path / "checkpoints/3/d/0").read_bytes() == b"\3" * 50


@pytest.mark.parametrize(
  # After a fault, Google's client waits for a second.
  "scheme",
  [pytest.param("gs", marks=pytest.mark.slow), "s3"],
)
def test_faults_change_nothing(scheme, store):
  address = f"{scheme}://data-1/run"
  for fault in bucket_stand_in.FAULTS * 4:
    store.faults.extend((fault, *[""] * 6))
  with _begun(address) as place:
    for step in range(1, 4):
      _save(place.path, step)
      _wait_for(address, *range(max(step - KEEP + 1, 1), step + 1))
  while store.faults:
    manifest_lib.read(address)
  assert store.happened == list(bucket_stand_in.FAULTS * 4)
  assert _names(store) == _expected(2, 3)


class _Asked(list):
  """The requests of a store, and what it held at each of them."""

  def __init__(self, store):
    self.store, self.held = store, []
    super().__init__()

  def append(self, asked):
    self.held.append(dict(self.store.objects["data-1"]))
    super().append(asked)


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_a_kill_at_any_request_leaves_a_good_checkpoint(
  scheme, store, tmp_path
):
  address = f"{scheme}://data-1/run"
  store.requests = asked = _Asked(store)
  with _begun(address) as place:
    for step in range(1, 5):
      _save(place.path, step)
      _wait_for(address, *range(max(step - KEEP + 1, 1), step + 1))
  store.requests = []
  held = list({tuple(x.items()): x for x in asked.held}.values())
  assert len(held) > 20
  newest = 0
  for objects in held:
    store.objects["data-1"] = dict(objects)
    shutil.rmtree(tmp_path / "cache")
    with mirrors.opened(address, process=0, processes=1) as place:
      steps = _steps(place.path)
      for step in steps:
        path = place.path / f"checkpoints/{step}"
        assert (path / "meta").read_text() == f"of {step}"
        assert (path / "d/0").read_bytes() == bytes([step]) * 50
      assert max(steps, default=0) >= newest
      newest = max(steps, default=0)
      lines = []
      if newest:
        lines = (place.path / "metrics.jsonl").read_text().split()
      assert lines[:newest] == [str(x) for x in range(1, newest + 1)]
  assert newest == 4
  # What a killed run has left is removed by the next one.
  store.objects["data-1"] = dict(held[-1])
  store.put("data-1", "run/checkpoints/9/meta", b"half")
  with _begun(address):
    pass
  assert _names(store) == _expected(3, 4)


def test_the_same_machine_goes_on_with_what_was_not_copied(store, monkeypatch):
  monkeypatch.setattr(attempts, "ATTEMPTS", 2)
  address = "gs://data-1/run"
  with (
    pytest.raises(errors.UserError, match="holds step 1; what is newer"),
    _begun(address) as place,
  ):
    _save(place.path, 1)
    _wait_for(address, 1)
    store.refuse = 503
    _save(place.path, 2)
  store.refuse = None
  with _begun(address) as place:
    assert _steps(place.path) == [1, 2]
  assert _names(store) == _expected(1, 2)
  # After another machine has gone on, that counts.
  with pytest.raises(KeyboardInterrupt), _begun(address) as place:
    store.refuse = 503
    _save(place.path, 3)
    raise KeyboardInterrupt
  store.refuse = None
  listed = manifest_lib.read(address)
  manifest_lib.write(address, dataclasses.replace(listed, writer="another"))
  with _begun(address) as place:
    assert _steps(place.path) == [1, 2]


def test_who_comes_later_has_the_folder(store):
  address = "s3://data-1/run"
  with (
    pytest.raises(errors.UserError, match="Another run has taken"),
    _begun(address) as place,
  ):
    _save(place.path, 1)
    _wait_for(address, 1)
    listed = manifest_lib.read(address)
    taken = dataclasses.replace(listed, writer="another")
    manifest_lib.write(address, taken)
    _save(place.path, 2)
    for _ in range(2000):
      place.check()
      time.sleep(0.01)
  assert manifest_lib.read(address) == taken
  with (
    pytest.raises(errors.UserError, match="has changed since it was looked at"),
    mirrors.opened(address, process=0, processes=1) as place,
  ):
    manifest_lib.write(address, dataclasses.replace(taken, writer="a third"))
    place.claim()


def test_a_run_that_does_not_begin_takes_nothing(store):
  address = "gs://data-1/run"
  with _begun(address) as place:
    _save(place.path, 1)
  before = dict(store.objects["data-1"])
  with (
    pytest.raises(ZeroDivisionError),
    mirrors.opened(address, process=0, processes=1),
  ):
    raise ZeroDivisionError
  assert store.objects["data-1"] == before


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_one_process_writes_what_is_shared(scheme, store):
  address = f"{scheme}://data-1/run"
  with _begun(address, processes=2) as first:
    with _begun(address, process=1, processes=2) as second:
      assert first.path != second.path
      assert not first.is_shared and not second.is_shared
      for place in (first, second):
        _save(place.path, 1)
      (second.path / "metrics.jsonl").write_text("of the second")
      (second.path / "ledger-1.jsonl").write_text("its own")
    _wait_for(address, 1)
  assert _names(store) == sorted([*_expected(1), "run/ledger-1.jsonl"])
  assert store.objects["data-1"]["run/metrics.jsonl"].data == b"1\n"
  with _begun(address, process=1, processes=2) as second:
    assert (second.path / "ledger-1.jsonl").read_text() == "its own"
    assert _steps(second.path) == [1]


class _Together:
  """Agreement of two threads, and whether they have agreed many times."""

  def __init__(self):
    self.barrier = threading.Barrier(2, timeout=60)
    self.answers = [False, False]
    self.calls = 0
    self.often = threading.Event()

  def of(self, process):
    def everywhere(fine):
      self.answers[process] = fine
      self.barrier.wait()
      found = all(self.answers)
      self.barrier.wait()
      self.calls += 1
      if self.calls > 10:
        self.often.set()
      return found

    return everywhere


@pytest.mark.parametrize("fails", [False, True])
def test_hosts_wait_for_the_last_copy_of_the_first(fails, store, monkeypatch):
  """However long it takes: each wait for the others is short."""
  monkeypatch.setattr(attempts, "ATTEMPTS", 1)
  address, ended = "gs://data-1/run", {}
  together, done = _Together(), []
  copied = run_folder._InBucket.copy

  def slowly(self):
    if not self._process:
      # One long wait of the others would never come to an end.
      assert together.often.wait(60)
      if fails:
        raise errors.UnreachableError("Gone.")
    copied(self)
    done.append(self._process)

  monkeypatch.setattr(run_folder._InBucket, "copy", slowly)
  # The copies beside the training are none of this.
  monkeypatch.setattr(run_folder, "_METRICS_SECONDS", 1000)
  monkeypatch.setattr(run_files, "steps_in", lambda path: [])

  def run(process):
    try:
      with _begun(
        address,
        process=process,
        processes=2,
        everywhere=together.of(process),
      ) as place:
        (place.path / "metrics.jsonl").write_text("x")
    except errors.UserError as error:
      ended[process] = str(error)
    ended.setdefault(process, list(done))

  threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  if fails:
    assert "Gone. gs://data-1/run holds no checkpoint" in ended[0]
    assert ended[1] == [1]
  else:
    assert sorted(ended[0]) == sorted(ended[1]) == [0, 1]
    assert "run/metrics.jsonl" in store.objects["data-1"]


def test_a_model_is_read_while_its_run_goes_on(store, monkeypatch):
  # On a busy machine many steps pass while files are copied.
  monkeypatch.setattr(fetching, "_ATTEMPTS", 100)
  monkeypatch.setattr(fetching, "_WAIT_SECONDS", 0.05)
  address = "gs://data-1/run"
  with _begun(address) as place:
    stop = threading.Event()

    def train():
      for step in range(1, 30):
        if not stop.is_set():
          _save(place.path, step)
          time.sleep(0.02)

    thread = threading.Thread(target=train)
    thread.start()
    try:
      for _ in range(8):
        path = mirrors.fetched(address)
        for step in _steps(path):
          data = (path / f"checkpoints/{step}/d/0").read_bytes()
          assert data == bytes([step]) * 50
    finally:
      stop.set()
      thread.join()


@pytest.mark.parametrize("name", ["a.tar", "config/x", manifest_lib.NAME])
def test_what_is_no_workdir_is_not_fetched(name, store):
  data = manifest_lib.Manifest("model", {}).to_json()
  store.put("data-1", f"run/{name}", data)
  with (
    pytest.raises(errors.UserError, match="is no workdir: it holds"),
    _begun("gs://data-1/run"),
  ):
    pass
  assert list(store.objects["data-1"]) == [f"run/{name}"]


def test_a_list_of_something_else_is_damaged(store):
  digest = "00" * 32
  for name in ("x", "checkpoints/x/a", "checkpoints/5"):
    listed = manifest_lib.Manifest(manifest_lib.WORKDIR, {name: digest})
    manifest_lib.write("gs://data-1/run", listed)
    with pytest.raises(errors.UserError, match="is damaged"):
      mirrors.fetched("gs://data-1/run")


def test_a_copy_that_was_not_completed_is_made_anew(store, monkeypatch):
  """It has the newest step's folder, but not all of its files."""
  address, copy = "gs://data-1/run", fetching._copy
  with _begun(address) as place:
    _save(place.path, 1)

  def cut_off(file, path, wanted):
    if path.name in ("meta", "metrics.jsonl"):
      raise errors.UnreachableError("gone")
    return copy(file, path, wanted)

  monkeypatch.setattr(fetching, "_copy", cut_off)
  with pytest.raises(errors.UserError, match="gone"), _begun(address):
    pass
  assert _steps(place.path) == [1]
  monkeypatch.setattr(fetching, "_copy", copy)
  with _begun(address) as place:
    assert (place.path / "checkpoints/1/meta").read_text() == "of 1"
    assert (place.path / "metrics.jsonl").read_text() == "1\n"


def test_a_copy_that_was_partly_removed_is_made_anew(store, monkeypatch):
  address, removed = "gs://data-1/run", shutil.rmtree

  def killed(path, **_):
    (path / "metrics.jsonl").unlink()
    raise SystemExit

  with pytest.raises(SystemExit), _begun(address) as place:
    _save(place.path, 1)
    monkeypatch.setattr(shutil, "rmtree", killed)
  monkeypatch.setattr(shutil, "rmtree", removed)
  with _begun(address) as place:
    assert (place.path / "metrics.jsonl").read_text() == "1\n"


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
@pytest.mark.parametrize("damage", ["other", "missing"])
def test_an_older_checkpoint_takes_the_place_of_a_damaged_one(
  damage, scheme, store, monkeypatch, caplog
):
  monkeypatch.setattr(fetching, "_WAIT_SECONDS", 0.001)
  address, objects = f"{scheme}://data-1/run", store.objects["data-1"]
  with _begun(address) as place:
    for step in (1, 2):
      _save(place.path, step)
    _wait_for(address, 1, 2)

  def spoil(step):
    if damage == "missing":
      del objects[f"run/checkpoints/{step}/d/0"]
    else:
      store.put("data-1", f"run/checkpoints/{step}/d/0", b"x" * 50)

  spoil(2)
  path = mirrors.read_good(address, lambda names: names, pathlib.Path)
  assert _steps(path) == [1]
  with pytest.raises(errors.UserError, match=r"checkpoints/2/d/0 is"):
    mirrors.fetched(address)
  caplog.clear()
  with _begun(address) as place:
    assert f"Checkpoint 2 in {address} is damaged and not used" in caplog.text
    assert _steps(place.path) == [1]
    _save(place.path, 2)
    _wait_for(address, 1, 2)
  assert objects["run/checkpoints/2/d/0"].data == b"\2" * 50
  assert _names(store) == _expected(1, 2)
  spoil(1)
  spoil(2)
  with (
    pytest.raises(errors.UserError, match="None of the 2 checkpoints in"),
    _begun(address),
  ):
    pass


def test_a_file_beside_checkpoints_that_stays_away_stops_a_run(
  store, monkeypatch
):
  monkeypatch.setattr(fetching, "_WAIT_SECONDS", 0.001)
  with _begun("gs://data-1/run") as place:
    _save(place.path, 1)
  copy = fetching._copy

  def spoiled(file, path, wanted):
    if path.name == "metrics.jsonl":
      raise fetching.ChangedError(wanted.address, "is not there")
    return copy(file, path, wanted)

  monkeypatch.setattr(fetching, "_copy", spoiled)
  with (
    pytest.raises(errors.UserError, match=r"metrics.jsonl is not there"),
    _begun("gs://data-1/run"),
  ):
    pass


def test_a_checkpoint_counts_with_its_metrics(store, monkeypatch):
  """One that appears while metrics are copied waits for its own."""
  address, copied = "gs://data-1/run", run_folder._InBucket._copy_changed
  monkeypatch.setattr(run_folder, "_LOOK_SECONDS", 1000)

  def and_save(self, names):
    copied(self, names)
    if not _steps(self.path)[1:]:
      _save(self.path, 2)

  with _begun(address) as place:
    _save(place.path, 1)
    monkeypatch.setattr(run_folder._InBucket, "_copy_changed", and_save)
    place.copy()
    assert store.objects["data-1"]["run/metrics.jsonl"].data == b"1\n"
    _wait_for(address, 1)


def test_a_run_that_lost_its_folder_writes_nothing_there(store):
  address = "gs://data-1/run"
  with (
    pytest.raises(errors.UserError, match="Another run has taken"),
    _begun(address) as place,
  ):
    _save(place.path, 1)
    _wait_for(address, 1)
    listed = manifest_lib.read(address)
    manifest_lib.write(address, dataclasses.replace(listed, writer="another"))
    store.put("data-1", "run/metrics.jsonl", b"of another")
    _save(place.path, 2)
  assert store.objects["data-1"]["run/metrics.jsonl"].data == b"of another"
  with (
    pytest.raises(errors.UserError, match=r"list of files in .* was removed"),
    _begun(address) as place,
  ):
    del store.objects["data-1"][f"run/{manifest_lib.NAME}"]


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_only_checkpoints_are_removed(scheme, store):
  store.put("data-1", "run/checkpoints/best/meta", b"mine")
  store.put("data-1", "run/checkpoints/1/meta", b"half")
  store.put("data-1", "run/checkpoints-2/meta", b"mine")
  listed = manifest_lib.Manifest(manifest_lib.WORKDIR, {})
  manifest_lib.write(f"{scheme}://data-1/run", listed)
  with _begun(f"{scheme}://data-1/run"):
    pass
  assert _names(store) == [
    "run/checkpoints-2/meta",
    "run/checkpoints/best/meta",
    f"run/{manifest_lib.NAME}",
  ]


def test_no_error_stops_the_copies(store, monkeypatch, caplog):
  address, digests, fail = "gs://data-1/run", manifest_lib.digest, [1]

  def digest(path):
    if fail:
      fail.pop()
      raise RuntimeError("can't start new thread")
    return digests(path)

  monkeypatch.setattr(manifest_lib, "digest", digest)
  with _begun(address) as place:
    _save(place.path, 1)
    _wait_for(address, 1)
  assert "can't start new thread" in caplog.text


def test_links_and_odd_names_stay_here(store):
  """Trackers link to folders; and no name keeps a run from going on."""
  address = "gs://data-1/run"
  with _begun(address) as place:
    (place.path / "wandb/run-1").mkdir(parents=True)
    (place.path / "wandb/run-1/log").write_text("of a tracker")
    (place.path / "wandb/latest-run").symlink_to("run-1")
    (place.path / "wandb/a:b\n").write_text("")
    _save(place.path, 1)
  assert _names(store) == sorted([*_expected(1), "run/wandb/run-1/log"])
  store.put("data-1", "run/notes: mine", b"")
  with _begun(address) as place:
    assert _steps(place.path) == [1]


def test_an_interrupt_of_the_last_copies_is_explained(
  store, monkeypatch, caplog
):
  monkeypatch.setattr(run_folder, "_LOOK_SECONDS", 1000)

  def interrupt(self):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt), _begun("gs://data-1/run") as place:
    _save(place.path, 1)
    monkeypatch.setattr(run_folder._InBucket, "copy", interrupt)
  assert "holds no checkpoint; what is newer lies in" in caplog.text
  assert _steps(place.path) == [1]


def test_an_interrupt_is_not_told_as_an_error_of_the_server(store, caplog):
  store.seconds = 0.1
  with pytest.raises(KeyboardInterrupt), _begun("gs://data-1/run") as place:
    _save(place.path, 1)
    time.sleep(0.3)  # The copies begin.
    raise KeyboardInterrupt
  assert "what is newer lies in" in caplog.text
  assert "It is tried again" not in caplog.text


def test_a_checkpoint_that_goes_before_it_is_copied_is_told(
  store, monkeypatch, caplog
):
  put = uploads.put_files

  def slow(path, address, names):
    put(path, address, names)
    if "1/meta" in str(names):
      shutil.rmtree(path / "checkpoints/1")

  monkeypatch.setattr(run_folder.uploads, "put_files", slow)
  with _begun("gs://data-1/run") as place:
    _save(place.path, 1)
    _wait_for_text(caplog, "of step 1 was removed before all of it")
  assert manifest_lib.read("gs://data-1/run").files == {}


def _wait_for_text(caplog, text):
  end = time.monotonic() + 20
  while text not in caplog.text:
    assert time.monotonic() < end, caplog.text
    time.sleep(0.01)


def test_of_several_hosts_it_is_told_what_does_not_go_on(store, monkeypatch):
  monkeypatch.setattr(attempts, "ATTEMPTS", 1)
  told = ("until the same command goes on with", "newer of process 1 lies in")
  for process, text in enumerate(told):
    with (
      pytest.raises(errors.UserError, match=text),
      _begun("gs://data-1/run", process=process, processes=2) as place,
    ):
      _save(place.path, 1)
      (place.path / f"ledger-{process}.jsonl").write_text("")
      store.refuse = 503
    store.refuse = None
