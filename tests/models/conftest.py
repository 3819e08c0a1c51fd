"""What several tests of the models need."""

import functools

import jax
import numpy as np
import pytest


@pytest.fixture
def make_variables():
  """Returns a function that draws a module's variables, norms included.

  It compiles nothing, and leaves no norm, bias or statistic at a value that
  would hide its use.
  """

  def make(module, *inputs, method=None, dtype=np.float32, scale=0.2, seed=7):
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
      positive = path[-1].key in ("scale", "var")
      value = positive + scale * rng.standard_normal(leaf.shape)
      return (np.abs(value) if positive else value).astype(dtype)

    init = functools.partial(module.init, method=method)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)
    return jax.tree_util.tree_map_with_path(draw, shapes)

  return make


@pytest.fixture
def apply():
  """Returns a function that applies a module as one compiled program."""

  def run(module, variables, *inputs, **options):
    return jax.jit(lambda *args: module.apply(*args, **options))(
      variables, *inputs
    )

  return run
