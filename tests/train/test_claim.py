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
