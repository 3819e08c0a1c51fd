"""A checkpoint of a workdir, WORKDIR/checkpoints/STEP, is a model by itself."""

import contextlib
import io
import json

import jax
import numpy as np
import pytest

import bucket_stand_in
import model_kinds
from clip_jax import cli, convert, errors, loading
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.convert import opening

DATA = ("--data", "builtin:digits/test")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  return model_kinds.workdir(folder / "my run", steps=(2, 9, 10))


def call(*arguments):
  """Runs a verb with --json and returns what it prints."""
  stdout = io.StringIO()
  with contextlib.redirect_stdout(stdout):
    cli.main([str(argument) for argument in [*arguments, "--json"]])
  return json.loads(stdout.getvalue())


def test_every_reader_takes_the_step_that_is_named(run, tmp_path):
  old, newest = run / "checkpoints" / "2", loading.load(run)
  clip = loading.load(f"{old}/")
  assert (clip.step, newest.step) == (2, 10)
  assert clip.fingerprint == loading.load(run, step=2).fingerprint
  assert clip.fingerprint != newest.fingerprint
  assert convert.open_model(old).source["step"] == 2
  found = call("eval", old, "--task", "zero_shot", *DATA)
  assert (found["step"], found["model"]) == (2, str(old))
  call("embed", old, *DATA, "--out", tmp_path / "index")
  assert call("search", tmp_path / "index", "a photo of a 3")["results"]
  call("convert", old, tmp_path / "out", "--to", "clip-jax")
  out = loading.load(tmp_path / "out")
  found, wanted = out.variables["params"], clip.variables["params"]
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  call("card", old, "--license", "mit", "--out", tmp_path / "card.md")
  card = (tmp_path / "card.md").read_text()
  assert "# my run" in card and "- steps: 2\n" in card


def test_a_step_is_named_from_where_one_stands(run, monkeypatch):
  monkeypatch.chdir(run)
  assert loading.load("checkpoints/9").step == 9
  assert workdir_lib.split_step("checkpoints/9") == (".", 9)


@pytest.mark.parametrize("part", ["9/variables", "9/variables/d"])
def test_a_part_of_a_checkpoint_names_the_checkpoint(run, part):
  with pytest.raises(errors.UserError) as caught:
    opening.recognise(run / "checkpoints" / part)
  assert f"the model {str(run / 'checkpoints/9')!r}: give" in str(caught.value)


def test_the_directory_of_checkpoints_names_the_newest(run):
  with pytest.raises(errors.UserError) as caught:
    opening.recognise(run / "checkpoints")
  newest = str(run / "checkpoints" / "10")
  assert f"give its own path, {newest!r} (2 more" in str(caught.value)


def test_a_step_that_is_not_there_is_told_from_others(run):
  with pytest.raises(errors.UserError, match=r"not exist: .*\[2, 9, 10\]"):
    loading.load(run / "checkpoints" / "3")
  with pytest.raises(errors.UserError, match="step=9 is not the step of"):
    loading.load(run / "checkpoints" / "2", step=9)


def test_a_checkpoint_is_no_workdir_of_a_run(run):
  with pytest.raises(errors.UserError, match="checkpoint of the run in"):
    workdir_lib.find(run / "checkpoints" / "2")
  assert workdir_lib.find(run) == str(run)


def test_numbers_in_other_folders_are_no_steps(tmp_path):
  """Neither without a workdir above, nor of a workdir that is called so."""
  (tmp_path / "checkpoints" / "5").mkdir(parents=True)
  path = tmp_path / "checkpoints" / "5"
  assert workdir_lib.split_step(path) == (str(path), None)
  (path / "config.json").write_text("{}")
  (path / "checkpoints").mkdir()
  assert workdir_lib.split_step(path) == (str(path), None)


def test_a_step_lies_in_a_bucket(run, store):
  store.upload("data-1", run.parent)
  address = f"{bucket_stand_in.SCHEMES[0]}://data-1/my run"
  clip = loading.load(f"{address}/checkpoints/9")
  assert clip.step == 9 and clip.path == f"{address}/checkpoints/9"
  assert clip.fingerprint == loading.load(run, step=9).fingerprint
  assert convert.open_model(f"{address}/checkpoints/2").source["step"] == 2
  with pytest.raises(errors.UserError, match=r"step 3; it holds \[2, 9, 10\]"):
    loading.load(f"{address}/checkpoints/3")
