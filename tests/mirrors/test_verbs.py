"""Models and indexes in buckets are used as those on the disk are."""

import contextlib
import io
import json
import pathlib

import numpy as np
import pytest

import bucket_stand_in
import model_kinds
from clip_jax import cli, convert, errors, loading, mirrors
from clip_jax import search as search_lib
from clip_jax.buckets import writing
from clip_jax.mirrors import manifest as manifest_lib
from clip_jax.mirrors import run_files


def call(*arguments):
  """Runs a verb with --json and returns what it prints."""
  stdout = io.StringIO()
  with contextlib.redirect_stdout(stdout):
    cli.main([str(argument) for argument in [*arguments, "--json"]])
  return json.loads(stdout.getvalue())


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return model_kinds.workdir(tmp_path_factory.mktemp("models") / "run")


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_models_and_indexes_live_in_a_bucket(scheme, store, workdir, tmp_path):
  store.upload("data-1", workdir.parent)
  store.put("data-1", "run/checkpoints", b"")  # Of a folder.
  model, index = f"{scheme}://data-1/run", f"{scheme}://data-1/indexes/a"
  data = ("--data", "builtin:digits/test")
  there = call("eval", model, "--task", "zero_shot", *data)
  here = call("eval", workdir, "--task", "zero_shot", *data)
  assert there["model"] == model and there["step"] == 3
  for field in ("model", "seconds", "images_per_second"):
    del there[field], here[field]
  assert there == here and there["examples"] > 100
  # The optimizer's state is not fetched.
  assert not list((tmp_path / "cache").rglob("progress"))
  made = call("embed", model, *data, "--out", index)
  assert made["model"] == model
  call("embed", workdir, *data, "--out", tmp_path / "index")
  found = call("search", index, "a photo of a 3")
  assert found["results"]
  assert (
    found["results"]
    == call(*("search", tmp_path / "index", "a photo of a 3"))["results"]
  )
  again = call("embed", model, *data, "--out", index, "--dtype", "int8")
  names = [x for x in store.objects["data-1"] if x.startswith("indexes/a/")]
  wanted = {x["name"] for x in again["files"].values()} | {"meta.json"}
  assert {x.removeprefix("indexes/a/") for x in names if x[-1] != "/"} == wanted
  assert search_lib.open_index(index).meta["dtype"] == "int8"
  assert "no index" in _fails(call, "embed", model, *data, "--out", model)
  out = f"{scheme}://data-1/converted"
  report = call("convert", model, out, "--to", "clip-jax")
  assert report["destination"] == out
  call("convert", workdir, tmp_path / "out", "--to", "clip-jax")
  wanted = loading.load(tmp_path / "out").fingerprint
  assert loading.load(out).fingerprint == wanted
  assert "overwrite" in _fails(call, "convert", model, out, "--to", "clip-jax")
  call("convert", out, out, "--to", "clip-jax", "--overwrite")
  assert loading.load(out).fingerprint == wanted


@pytest.mark.parametrize(
  ("scheme", "is_listed"),
  [
    ("gs", False),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (("gs", True), ("s3", False), ("s3", True))
    ),
  ],
)
def test_every_reader_takes_an_older_checkpoint_for_a_damaged_one(
  is_listed, scheme, store, tmp_path, caplog
):
  """As on the disk, also where the bucket holds what was written there."""
  path = model_kinds.workdir(tmp_path / "run", steps=(2, 3, 4))
  address = f"{scheme}://data-1/run"

  def spoil(*steps):
    for step in steps:
      for file in (path / f"checkpoints/{step}/variables").rglob("d/*"):
        file.write_bytes(b"x")
    for file in filter(pathlib.Path.is_file, path.rglob("*")):
      name = file.relative_to(tmp_path).as_posix()
      store.put("data-1", name, file.read_bytes())
    if is_listed:
      files = run_files.digests(path, run_files.steps_in(path))
      listed = manifest_lib.Manifest(manifest_lib.WORKDIR, files)
      manifest_lib.write(address, listed)

  spoil(3, 4)
  here, there = loading.load(path), loading.load(address)
  assert (here.step, there.step) == (2, 2)
  assert here.fingerprint == there.fingerprint
  said = [x.getMessage() for x in caplog.records if "clip_jax" in x.name]
  assert said.count("Using step 2 instead.") == 2
  assert sum(x.startswith("Checkpoint 4") for x in said) == 2
  assert convert.open_model(address).source["step"] == 2
  data = ("--task", "zero_shot", "--data", "builtin:digits/test")
  assert call("eval", address, *data)["step"] == 2
  with pytest.raises(errors.UserError, match="none of them good"):
    loading.load(address, step=4)
  assert loading.load(address, step=2).fingerprint == there.fingerprint
  spoil(2)
  with pytest.raises(errors.UserError, match="None of the 3 checkpoints in"):
    loading.load(address)


def _fails(run, *arguments):
  error = io.StringIO()
  with contextlib.redirect_stderr(error), pytest.raises(SystemExit):
    run(*arguments)
  return error.getvalue()


def test_a_model_is_not_there(store):
  with pytest.raises(errors.UserError, match="nothing at gs://data-1/none"):
    loading.load("gs://data-1/none")
  with pytest.raises(errors.UserError, match="gs://data-1/none is no index"):
    search_lib.open_index("gs://data-1/none")


def _build(address, fingerprint, **options):
  search_lib.build(
    address,
    batches=lambda start: _batches(start, fingerprint),
    embed_images=lambda images: images,
    model="m",
    fingerprint=fingerprint,
    **options,
  )


def test_an_index_is_killed_while_it_is_written(store, monkeypatch, tmp_path):
  """Readers see the old index until the new one's meta.json is there."""
  address, put = "s3://data-1/index", writing.put_file

  def build(fingerprint):
    _build(address, fingerprint, goes_on_as=fingerprint)

  build("one")
  for kind in ("embeddings", "records", "meta"):

    def killed(address, path, kind=kind):
      if path.name.startswith(kind):
        raise KeyboardInterrupt
      put(address, path)

    monkeypatch.setattr(writing, "put_file", killed)
    with pytest.raises(KeyboardInterrupt):
      build("two")
    assert search_lib.open_index(address).meta["fingerprint"] == "one"

  def unreachable(address, path):
    raise errors.UnreachableError("No network.")

  monkeypatch.setattr(writing, "put_file", unreachable)
  with pytest.raises(errors.UserError, match=r"The whole index is in (\S+):"):
    build("two")
  monkeypatch.setattr(writing, "put_file", put)
  with (
    mirrors.held(mirrors.local_path(address, use="write"), "Another is"),
    pytest.raises(errors.UserError, match="Another `clip-jax embed` is"),
  ):
    build("two")
  build("two")
  assert search_lib.open_index(address).meta["fingerprint"] == "two"
  assert len(store.objects["data-1"].keys() - {"index/", ""}) == 3


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
@pytest.mark.parametrize("kind", ["records", "meta"])
def test_of_two_machines_that_write_an_index_one_has_all_of_it(
  kind, scheme, store, tmp_path, monkeypatch
):
  address, put = f"{scheme}://data-1/index", writing.put_file

  def build(fingerprint, cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
    _build(address, fingerprint)

  def put_after_another(address, path):
    if path.name.startswith(kind):
      monkeypatch.setattr(writing, "put_file", put)
      build("two", "there")
    put(address, path)

  monkeypatch.setattr(writing, "put_file", put_after_another)
  build("one", "here")
  found = search_lib.open_index(address)
  assert found.meta["fingerprint"] == "one" and found.key(0) == "a"
  assert len(store.objects["data-1"].keys() - {"index/", ""}) == 3


def test_what_is_no_index_is_not_replaced(store):
  store.put("data-1", "index/meta.json", b"{}")
  with pytest.raises(errors.UserError, match="not of an index and is left"):
    search_lib.build(
      "s3://data-1/index",
      batches=lambda start: _batches(start, "one"),
      embed_images=lambda images: images,
      model="m",
      fingerprint="one",
    )
  assert store.objects["data-1"]["index/meta.json"].data == b"{}"


def _batches(start, fingerprint):
  if start == 0:
    row = np.array([[1.0, 0.0, 0.0]], np.float32)
    if fingerprint == "two":
      row = row[:, ::-1]
    yield {"image": row, "key": ["a"], "texts": [("b",)], "path": [""]}
