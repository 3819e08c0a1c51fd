import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models import convolution, flops, winograd

# The fewest pixels and channels of which a convolution is computed so.
SHAPE, FEATURES = (2, 16, 64, 80), 96


def plain(x, kernel):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (1, 1),
    ((1, 1), (1, 1)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def inputs(shape, features, dtype=np.float64):
  """Returns images, a kernel and a gradient of the output."""
  rng = np.random.default_rng(0)
  shapes = (shape, (3, 3, shape[-1], features), (*shape[:-1], features))
  return [rng.standard_normal(s).astype(dtype) for s in shapes]


def with_gradients(function):
  """Returns a function: the output, and the gradients of both inputs."""

  @jax.jit
  def run(x, kernel, gradient):
    y, pull = jax.vjp(function, x, kernel)
    return y, *pull(gradient)

  return run


@jax.jit
def by_hand(x, kernel, gradient):
  return (
    winograd.convolve(x, kernel),
    winograd.input_gradient(gradient, kernel),
    winograd.kernel_gradient(x, gradient),
  )


def errors(got, want):
  """Returns the largest difference of each, over the largest value."""
  for a, b in zip(got, want, strict=True):
    assert a.dtype == got[0].dtype
    assert a.shape == b.shape
  pairs = [
    (np.asarray(a, np.float64), np.asarray(b))
    for a, b in zip(got, want, strict=True)
  ]
  return [np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]


@pytest.mark.parametrize(
  ("shape", "features"),
  [
    ((2, 7, 5, 3), 4),
    ((3, 1, 2, 5), 2),  # Smaller than the kernel.
    ((2, 13, 9, 70), 33),
    ((1, 6, 10, 5), 130),
  ],
)
def test_half_the_multiplications_give_the_same_sums(shape, features):
  with jax.enable_x64(True):
    args = inputs(shape, features)
    got, want = by_hand(*args), with_gradients(plain)(*args)
    assert max(errors(got, want)) < 1e-12


def test_the_error_of_float32_is_bounded():
  shape, features = (1, 28, 14, 256), 128
  args = inputs(shape, features, np.float32)
  with jax.enable_x64(True):
    want = with_gradients(plain)(*(x.astype(np.float64) for x in args))
  got = errors(by_hand(*args), want)
  # As the module says; a plain convolution's is about 1e-6.
  assert max(got) < 1e-5
  assert max(errors(with_gradients(plain)(*args), want)) < max(got)


def row_kernels(function, *args):
  """Counts the convolutions by kernels of one row in a CPU's program."""
  lowered = jax.jit(function).trace(*args).lower(lowering_platforms=("cpu",))
  taken = re.findall(
    r"stablehlo.convolution.*\(tensor.*, (.*)\) ->", lowered.as_text()
  )
  return sum(kernel.startswith("tensor<1x3x") for kernel in taken)


def ours(x, kernel):
  return convolution.convolve(x, kernel, 1)


def test_a_convolution_in_training_is_computed_so_and_one_in_use_is_not():
  args = [
    jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs(SHAPE, FEATURES)
  ]
  assert row_kernels(with_gradients(ours), *args) == 12
  assert row_kernels(ours, *args[:2]) == 0
  with jax.enable_x64(True):
    args = inputs(SHAPE, FEATURES)
    want = with_gradients(plain)(*args)
    assert max(errors(with_gradients(ours)(*args), want)) < 1e-12
    stacked = [np.stack([x, 2 * x]) for x in args]
    mapped = jax.vmap(with_gradients(ours))(*stacked)
    assert max(errors([x[0] for x in mapped], want)) < 1e-12
    assert max(errors([x[1] / 4 for x in mapped], want)) < 1e-12


@pytest.mark.parametrize(
  ("shape", "features", "dtype", "pays"),
  [
    (SHAPE, FEATURES, jnp.float32, True),
    (SHAPE, FEATURES, jnp.bfloat16, False),
    (SHAPE, 64, jnp.float32, False),
    ((6, 6, 64, 80), FEATURES, jnp.float32, False),  # Two rows of 8 are added.
    ((1, 16, 64, 80), FEATURES, jnp.float32, False),
  ],
)
def test_what_it_pays_for(shape, features, dtype, pays):
  x = jax.ShapeDtypeStruct(shape, dtype)
  kernel = jax.ShapeDtypeStruct((3, 3, shape[-1], features), dtype)
  assert winograd.pays(x, kernel) == pays


def test_the_convolutions_own_operations_are_counted():
  args = [
    jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs(SHAPE, FEATURES)
  ]
  count = flops.count(with_gradients(ours), *args)
  assert count == flops.count(with_gradients(plain), *args)
