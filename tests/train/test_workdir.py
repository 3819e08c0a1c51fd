"""What a run keeps in its directory, and what it gives back at its end."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from clip_jax.train import workdir as workdir_lib


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
    with workdir_lib.keep_compilations(tmp_path / name):
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
  with workdir_lib.keep_compilations(tmp_path / "run"):
    _compile(11)
  assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
  assert not (tmp_path / "run").exists()
