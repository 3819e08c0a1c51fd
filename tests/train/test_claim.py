"""What a run keeps in its directory, and what it gives back at its end."""

import os
import signal
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from clip_jax import config as config_lib
from clip_jax import errors
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.train import claim


def _compile(number):
  jax.jit(lambda x: x * number)(jnp.ones(3)).block_until_ready()


@pytest.fixture
def no_cache():
  """As a user's process: no compilation cache is set."""
  names = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
  )
  before = {name: getattr(jax.config, name) for name in names}
  for name, value in zip(names, (None, 0), strict=True):
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def test_programs_are_kept_for_the_length_of_a_run(tmp_path, no_cache):
  _compile(3)
  for name in ("one", "two"):
    with claim.keep_compilations(tmp_path / name):
      _compile(5)
    assert jax.config.jax_compilation_cache_dir is None
  kept = [set((tmp_path / x / "compiled").iterdir()) for x in ("one", "two")]
  assert all(kept)
  _compile(7)
  assert kept == [
    set((tmp_path / x / "compiled").iterdir()) for x in ("one", "two")
  ]


def test_a_cache_that_is_set_is_left_alone(tmp_path, no_cache):
  jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
  with claim.keep_compilations(tmp_path / "run"):
    _compile(11)
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
  assert not (tmp_path / "run").exists()


def test_two_trainings_of_one_workdir_are_refused(tmp_path):
  workdir = tmp_path / "run"
  with claim.hold(workdir):
    names_it = f"process {os.getpid()} on {socket.gethostname()}"
    with (
      pytest.raises(errors.UserError, match=names_it),
      claim.hold(workdir),
    ):
      pass
  with claim.hold(workdir):  # Let go of.
    pass


def test_a_killed_training_leaves_no_stale_lock(tmp_path):
  code = (
    "import os, pathlib, signal\n"
    "from clip_jax.train import claim\n"
    f"with claim.hold(pathlib.Path({str(tmp_path)!r})):\n"
    "  os.kill(os.getpid(), signal.SIGKILL)"
  )
  killed = subprocess.run([sys.executable, "-c", code], check=False)
  assert killed.returncode == -signal.SIGKILL
  assert (tmp_path / claim.LOCK).read_text().startswith("process ")
  with claim.hold(tmp_path):
    pass


def test_a_directory_of_other_things_is_no_workdir(tmp_path):
  (tmp_path / "train.log").touch()  # The shell's, of this very command.
  with claim.hold(tmp_path):
    pass
  (tmp_path / "thesis.tex").touch()
  with (
    pytest.raises(errors.UserError, match=r"holds thesis\.tex\. Name a new"),
    claim.hold(tmp_path),
  ):
    pass


def test_an_empty_name_is_no_workdir():
  with pytest.raises(errors.UserError, match="name a directory"):
    workdir_lib.find("")


def test_a_run_does_not_go_back(tmp_path):
  (tmp_path / "checkpoints" / "120").mkdir(parents=True)
  config = config_lib.default_config()
  (tmp_path / "config.json").write_text("as it was")
  with pytest.raises(errors.UserError, match="at step 120 already"):
    claim.claim(tmp_path, config, total_steps=100, allow_changes=True)
  assert (tmp_path / "config.json").read_text() == "as it was"


@pytest.mark.parametrize(
  "steps, said", [([], "No step is saved"), ([9, 10], "Step 10 is saved")]
)
def test_an_interrupted_run_says_what_is_saved(tmp_path, caplog, steps, said):
  for step in steps:
    (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
  with (
    pytest.raises(KeyboardInterrupt),
    claim.explain_interrupt(tmp_path),
  ):
    raise KeyboardInterrupt
  assert said in caplog.text and "same command" in caplog.text


def _began_with(workdir, **fields):
  config = _tiny(**fields)
  workdir.mkdir(exist_ok=True)
  (workdir / "checkpoints" / "3").mkdir(parents=True, exist_ok=True)
  (workdir / "config.json").write_text(config_lib.to_json(config))


def _tiny(**fields):
  config = config_lib.default_config()
  config.data.train, config.model, config.steps = "csv:x", "tiny-vit", 3
  config.update_from_flattened_dict(fields)
  return config_lib.check(config)


def test_another_config_is_told_field_by_field_with_what_to_do(tmp_path):
  claim.check_config(tmp_path / "new", _tiny(), allow_changes=False)
  _began_with(tmp_path, seed=4)
  claim.check_config(
    tmp_path, _tiny(seed=4, report="csv:y"), allow_changes=False
  )
  other = _tiny(**{"optim.peak_lr": 0.5})
  with pytest.raises(errors.UserError) as caught:
    claim.check_config(tmp_path, other, allow_changes=False)
  said = str(caught.value)
  old = config_lib.default_config().optim.peak_lr
  assert f"(optim.peak_lr: {old} -> 0.5, seed: 4 -> 0)" in said
  for way_on in ("the old values", "another workdir", "--allow-changes to go"):
    assert way_on in said
  claim.check_config(tmp_path, other, allow_changes=True)


def test_what_leaves_a_checkpoints_arrays_as_they_are_may_change(tmp_path):
  _began_with(tmp_path, **{"optim.ema_decay": 0.5})
  other = {"optim.ema_decay": 0.9, "precision": "float32"}
  claim.check_config(tmp_path, _tiny(**other), allow_changes=True)


@pytest.mark.parametrize("allow_changes", [False, True])
@pytest.mark.parametrize(
  ("fields", "why"),
  [
    ({"optim.frozen": "^image/"}, "optim.frozen"),
    ({"optim.name": "lion"}, "optim.name"),
    ({"optim.ema_decay": 0.5}, "optim.ema_decay"),
    ({"precision": "float64"}, "precision"),
    ({"model": "tiny-rn"}, "model"),
    ({"model": "tiny-rn", "optim.frozen": "x"}, "optim.frozen or model"),
  ],
)
def test_what_checkpoints_cannot_follow_has_other_ways_on(
  tmp_path, fields, why, allow_changes
):
  _began_with(tmp_path)
  kept = (tmp_path / "config.json").read_bytes()
  with pytest.raises(errors.UserError) as caught:
    claim.claim(
      tmp_path, _tiny(**fields), total_steps=9, allow_changes=allow_changes
    )
  said = str(caught.value)
  begins = f"--config.init.model={tmp_path}" in said
  assert begins == ("model" not in why)
  assert f"do not fit another {why}." in said
  assert "go on with it, or take another workdir" in said
  assert (tmp_path / "config.json").read_bytes() == kept


def test_an_origin_may_be_relative_in_a_workdir_of_before(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  _began_with(tmp_path / "run", **{"init.model": "demo"})
  whole = str(tmp_path / "demo")
  config = _tiny(**{"init.model": whole})
  claim.check_config(tmp_path / "run", config, allow_changes=False)
  other = _tiny(**{"init.model": f"{whole}2"})
  with pytest.raises(errors.UserError, match=r"init\.model: 'demo' -> "):
    claim.check_config(tmp_path / "run", other, allow_changes=False)


@pytest.mark.parametrize(
  ("kept", "given", "same"),
  [
    ("folder:pets", "folder:{}/pets", True),
    ("folder:pets", "folder:../pets", True),
    ("folder:../in/pets/", "folder:{}/in/pets", True),
    ("folder:{}/pets", "folder:../pets", True),
    ("wds:a/{{0..3}}.tar", "wds:{}/a/{{0..3}}.tar", True),
    ("folder:pets", "folder:{}/dogs", False),
    ("folder:pets", "folder:{}/mypets", False),
    ("folder:{}/old/pets", "folder:{}/pets", False),
    ("folder:pets", "wds:{}/pets", False),
    ("csv:a.csv?sep=,", "csv:{}/a.csv", False),
    ("builtin:digits/train", "builtin:my/digits/train", False),
    ('["csv:a.csv", "csv:b.csv"]', '["csv:{}/a.csv", "csv:{}/b.csv"]', True),
    ('["csv:a.csv", "csv:b.csv"]', '["csv:{}/b.csv", "csv:{}/a.csv"]', False),
    ('{{"csv:a.csv": 2, "csv:b": 1}}', '["csv:{}/a.csv", "csv:{}/b"]', False),
  ],
)
def test_data_may_be_named_from_another_working_directory(
  tmp_path, monkeypatch, kept, given, same
):
  kept, given = (x.replace("{}", str(tmp_path)) for x in (kept, given))
  kept, given = (x.replace("{{", "{").replace("}}", "}") for x in (kept, given))
  monkeypatch.chdir(tmp_path)
  _began_with(tmp_path / "run", **{"data.train": kept})
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.chdir(tmp_path / "elsewhere")
  config = _tiny(**{"data.train": given})
  if same:
    claim.check_config(tmp_path / "run", config, allow_changes=False)
    return
  with pytest.raises(errors.UserError, match=r"data\.train: "):
    claim.check_config(tmp_path / "run", config, allow_changes=False)


@pytest.mark.parametrize(
  ("kept", "given"),
  [("folder:pets", "folder:{}/in/pets"), ("wds:a/*.tar", "wds:{}/in/a/*.tar")],
)
def test_data_that_are_here_are_not_taken_for_others_of_their_name(
  tmp_path, monkeypatch, caplog, kept, given
):
  workdir = tmp_path / "run"
  _began_with(workdir, **{"data.train": kept})
  monkeypatch.chdir(tmp_path)
  config = _tiny(**{"data.train": given.format(tmp_path)})
  with caplog.at_level("INFO"):
    claim.claim(workdir, config, total_steps=9, allow_changes=False)
  assert f"stands for {kept}, with which this run began" in caplog.text
  _began_with(workdir, **{"data.train": kept})
  for name in ("pets", "a"):
    (tmp_path / name).mkdir()
  with pytest.raises(errors.UserError, match=r"data\.train: "):
    claim.check_config(workdir, config, allow_changes=False)
  (tmp_path / "link").symlink_to(tmp_path)
  linked = _tiny(**{"data.train": kept.replace(":", f":{tmp_path}/link/")})
  claim.check_config(workdir, linked, allow_changes=False)


def test_of_many_fields_the_first_are_told_and_long_values_cut(tmp_path):
  _began_with(tmp_path)
  many = {f"optim.{x}": 0.5 for x in ("peak_lr", "beta1", "beta2", "epsilon")}
  many |= {"seed": 1, "steps": 9, "data.train": "csv:" + "x" * 500}
  many |= {"batch_size": 7, "optim.weight_decay": 0.25, "precision": "float32"}
  with pytest.raises(errors.UserError) as caught:
    claim.check_config(tmp_path, _tiny(**many), allow_changes=False)
  assert "more than those" in str(caught.value) and len(str(caught.value)) < 900
