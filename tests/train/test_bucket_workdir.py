"""A run whose workdir is in a bucket is the one on disk, bit for bit."""

import dataclasses
import json
import shutil

import jax
import pytest

import bucket_stand_in
from clip_jax import config as config_lib
from clip_jax import errors, loading, mirrors
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.mirrors import manifest as manifest_lib
from clip_jax.mirrors import run_folder
from clip_jax.train import journal, loop


def make_config(*, steps=6, fsdp=1):
  """A run of a few steps, whose checkpoints are more than are kept."""
  config = config_lib.default_config()
  config.model = "tiny-cbow"
  image = {"kind": "vit", "image_size": 16, "patch_size": 8}
  image |= {"width": 8, "depth": 1, "heads": 2}
  config.model_overrides = {
    "embed_dim": 12,
    "image": image,
    "text": {"width": 8},
  }
  config.data.train = "builtin:digits/test"
  config.data.workers = 0
  config.batch_size, config.steps = 8, steps
  config.precision = "float32"
  config.mesh.fsdp = fsdp
  config.optim.warmup_steps = 2
  config.log_every_steps = 1
  config.checkpoint.every_steps, config.checkpoint.keep = 2, 2
  return config_lib.check(config)


def result(workdir):
  """What a run has left in a folder of the disk, bit for bit."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  losses = [(x["step"], x["loss"]) for x in map(json.loads, lines)]
  saved = workdir_lib.load_model(workdir)
  leaves = [x.tobytes() for x in jax.tree.leaves(saved.variables)]
  config = json.loads((workdir / "config.json").read_text())
  steps = sorted(workdir_lib.saved_steps(workdir))
  return losses, leaves, config, saved.step, steps


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
  """A finished run."""
  workdir = tmp_path_factory.mktemp("disk") / "run"
  loop.train(make_config(), workdir)
  return workdir


@pytest.fixture(autouse=True)
def looks_often(monkeypatch):
  monkeypatch.setattr(run_folder, "_LOOK_SECONDS", 0.02)


def _fresh_machine(tmp_path):
  shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def _downloaded(store, tmp_path, prefix="runs/a/"):
  """Returns the folder as `gcloud storage cp` would make it."""
  root = tmp_path / "downloaded"
  shutil.rmtree(root, ignore_errors=True)
  for name, each in store.objects["data-1"].items():
    if name.startswith(prefix) and not name.endswith("/"):
      path = root / name.removeprefix(prefix)
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(each.data)
  return root


def _interrupt(monkeypatch, at, act):
  """Calls `act` after a step was noted, once."""
  note, done = journal.Journal.note, []

  def noted(self, step, *arguments):
    note(self, step, *arguments)
    if step == at and not done:
      done.append(step)
      act()

  monkeypatch.setattr(journal.Journal, "note", noted)


def _raise(error):
  raise error


@pytest.mark.slow
def test_a_run_goes_on_from_the_bucket_on_a_fresh_machine(
  store, on_disk, tmp_path, monkeypatch
):
  address = "gs://data-1/runs/a"
  for fault in bucket_stand_in.FAULTS * 4:
    store.faults.extend((fault, *[""] * 6))
  _interrupt(monkeypatch, 5, lambda: _raise(RuntimeError("gone")))
  with pytest.raises(RuntimeError, match="gone"):
    loop.train(make_config(), address)
  _fresh_machine(tmp_path)
  summary = loop.train(make_config(), address)
  assert summary.steps_now == 2
  assert store.happened == list(bucket_stand_in.FAULTS * 4)
  assert result(_downloaded(store, tmp_path)) == result(on_disk)
  assert loading.load(address).step == 6
  # All is in the bucket, and nothing of the run is left here.
  assert not list((tmp_path / "cache").glob("clip_jax/buckets/*-run0/*"))


class _Asked(list):
  """The requests of a store, and what it held at each of them."""

  def __init__(self, store):
    self.store, self.held = store, []
    super().__init__()

  def append(self, asked):
    self.held.append(dict(self.store.objects["data-1"]))
    super().append(asked)


@pytest.mark.slow
def test_the_bucket_is_good_at_every_moment(store, on_disk, tmp_path):
  """Killed at any of its requests, the run goes on as it would on the disk."""
  address = "s3://data-1/runs/a"
  store.requests = asked = _Asked(store)
  loop.train(make_config(), address)
  held, finished = asked.held, result(on_disk)
  store.requests = []
  assert len(held) > 100
  lists = []
  for objects in held:
    store.objects["data-1"] = objects
    listed = manifest_lib.read(address)
    if listed is None:
      assert not lists  # Once it is there, it stays.
      continue
    for name, digest in listed.files.items():
      # Removed only after the list without them was written.
      data = objects[f"runs/a/{name}"].data
      assert manifest_lib.hashlib.sha256(data).hexdigest() == digest
    if not lists or lists[-1][0] != listed:
      lists.append((listed, objects))
  steps = [
    sorted({int(name.split("/")[1]) for name in listed.files})
    for listed, _ in lists
  ]
  assert steps[0] == [] and steps[-1] == [4, 6]
  for _, objects in lists[1:-1:2]:
    _fresh_machine(tmp_path)
    store.objects["data-1"] = dict(objects)
    loop.train(make_config(), address)
    # A run that was done already keeps what it has.
    assert result(_downloaded(store, tmp_path))[:-1] == finished[:-1]


@pytest.mark.slow
def test_what_could_not_be_copied_goes_on_here(
  store, tmp_path, on_disk, monkeypatch, caplog
):
  address = "gs://data-1/runs/a"

  def refuse():
    store.refuse = 503

  _interrupt(monkeypatch, 5, refuse)
  with pytest.raises(errors.UserError, match=r"holds (no|step).*newer lies in"):
    loop.train(make_config(), address)
  store.refuse = None
  summary = loop.train(make_config(), address)
  assert summary.steps_now == 0
  assert result(_downloaded(store, tmp_path)) == result(on_disk)


@pytest.mark.slow
def test_a_run_ends_when_another_one_takes_its_folder(store, monkeypatch):
  address = "s3://data-1/runs/a"

  def take():
    listed = manifest_lib.read(address)
    taken = dataclasses.replace(listed, writer="another machine")
    manifest_lib.write(address, taken)

  _interrupt(monkeypatch, 1, take)
  with pytest.raises(
    errors.UserError, match=r"Another run has taken .*another m"
  ):
    loop.train(make_config(steps=1000), address)
  assert manifest_lib.read(address).writer == "another machine"


@pytest.mark.slow
def test_a_run_that_was_copied_there_goes_on(store, on_disk, tmp_path):
  store.upload("data-1", on_disk.parent)
  address = "gs://data-1/run"
  config = dataclasses.replace(make_config(), steps=8)
  assert loop.train(config, address, allow_changes=True).steps_now == 2
  assert loading.load(address).step == 8
  assert loading.load(address, step=6).step == 6


@pytest.mark.slow
def test_a_machine_trains_in_a_folder_once(store, monkeypatch):
  address = "gs://data-1/runs/a"

  def again():
    with pytest.raises(errors.UserError, match="under way in gs://data-1/runs"):
      loop.train(make_config(), address)

  _interrupt(monkeypatch, 1, again)
  assert loop.train(make_config(), address).steps == 6


def test_a_refusal_is_told_before_the_run_begins(store):
  store.refuse = 403
  with pytest.raises(errors.UserError, match="right to read"):
    loop.train(make_config(), "s3://data-1/runs/a")
  with pytest.raises(errors.UserError, match="no bucket for s3://none"):
    store.refuse = None
    loop.train(make_config(), "s3://none/runs/a")


_PROCESS = """
import os, sys
address, process, folder, workdir = sys.argv[1:]
import jax
jax.distributed.initialize(address, num_processes=2, process_id=int(process),
                           shutdown_timeout_seconds=3)
sys.path.insert(0, folder)
sys.path.insert(0, os.path.dirname(folder))
import test_bucket_workdir as tests
tests.loop.train(tests.make_config(fsdp=2), workdir)
"""


@pytest.mark.slow
def test_two_hosts_share_a_bucket(on_two_processes, store, tmp_path, request):
  """Neither sees the other's disk; the first one writes the checkpoints.

  The second one waits for it at the end, longer than JAX would.
  """
  disk, address = tmp_path / "run", "gs://data-1/runs/a"
  store.seconds = 0.3
  for workdir in (disk, address):
    on_two_processes(
      _PROCESS, str(request.path.parent), str(workdir), devices=1
    )
  assert result(_downloaded(store, tmp_path)) == result(disk)
  assert mirrors.names(address).count("ledger-1.jsonl") <= 1
