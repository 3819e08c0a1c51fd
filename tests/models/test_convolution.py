import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models import (
  attention,
  batch_norm,
  by_platform,
  convolution,
  flops,
)

# In float64 only the order of sums differs.
TOLERANCE = 1e-13


def plain_convolution(x, kernel, stride):
  half = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    ((half, half), (half, half)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def plain_norm(x, scale, bias):
  mean = x.mean(axis=(0, 1, 2))
  var = jnp.square(x - mean).mean(axis=(0, 1, 2))
  return (x - mean) * (jax.lax.rsqrt(var + 1e-5) * scale) + bias


def our_norm(x, scale, bias):
  return batch_norm.normalise(x, scale, bias, 1e-5, ())[0]


def random(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)


def assert_same_gradients(ours, plain, *args):
  """Compares values and gradients in float64."""
  with jax.enable_x64(True):
    weights = random(*jax.eval_shape(plain, *args).shape, seed=7)

    def run(function):
      def weighted(*args):
        return (function(*args) * weights).sum()

      places = tuple(range(len(args)))
      return jax.jit(jax.value_and_grad(weighted, argnums=places))(*args)

    (got, gradients), (want, expected) = run(ours), run(plain)
    np.testing.assert_allclose(got, want, rtol=1e-11)
    for a, b in zip(gradients, expected, strict=True):
      assert a.dtype == np.float64
      largest = np.abs(b).max()
      np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * largest)


@pytest.mark.parametrize(
  ("size", "stride", "shape"),
  [
    (3, 1, (2, 7, 5, 3)),
    (3, 2, (2, 8, 7, 3)),
    (3, 1, (1, 1, 2, 3)),  # The image is smaller than the kernel.
    (5, 1, (3, 4, 6, 2)),
    (1, 1, (2, 5, 3, 4)),
  ],
)
def test_a_convolutions_gradients_are_the_derived_ones(size, stride, shape):
  kernel = random(size, size, shape[-1], 4, seed=1)

  def ours(x, kernel):
    if size == 1:
      return convolution.multiply(x, kernel[0, 0])
    return convolution.convolve(x, kernel, stride)

  def plain(x, kernel):
    return plain_convolution(x, kernel, stride)

  assert_same_gradients(ours, plain, random(*shape), kernel)


def test_a_norms_gradients_are_the_derived_ones():
  x = random(3, 5, 2, 4) * 2 + 1
  assert_same_gradients(
    our_norm, plain_norm, x, random(4, seed=1), random(4, seed=2)
  )


def test_a_norm_in_bfloat16_keeps_its_types():
  x = jnp.asarray(random(3, 5, 2, 4), jnp.bfloat16)
  scale, bias = jnp.ones(4), jnp.zeros(4)
  y, pull = jax.vjp(our_norm, x, scale, bias)
  assert y.dtype == jnp.float32
  assert [g.dtype for g in pull(y)] == [jnp.bfloat16, jnp.float32, jnp.float32]


def our_attention(query, memory, *params):
  key, value = (
    {"kernel": params[i], "bias": params[i + 1]} for i in range(0, 4, 2)
  )
  return attention.attend_single_query(query, memory, key, value)


def plain_attention(query, memory, *params):
  key, value = (
    jax.lax.dot_general(memory, params[i], (((2,), (0,)), ((), ())))
    + params[i + 1]
    for i in range(0, 4, 2)
  )
  return attention.attend(query, key, value)


ATTENTION_SHAPES = (
  ((2, 1, 3, 4), (2, 6, 5))  # Query and memory,
  + 2 * ((5, 3, 4), (3, 4))  # kernels and biases of key and value.
)


def test_one_query_attends_as_to_the_projected_memory():
  args = [random(*shape, seed=i) for i, shape in enumerate(ATTENTION_SHAPES)]
  query, memory, *params = args
  # What a bias adds to all of a query's scores has no gradient: zero but for
  # rounding, so nothing for `assert_same_gradients`, which asks relatively.
  params[1:2] = []

  def with_bias(function):
    def run(query, memory, kernel, *value):
      return function(query, memory, kernel, args[3], *value)

    return run

  assert_same_gradients(
    with_bias(our_attention), with_bias(plain_attention), query, memory, *params
  )


@pytest.mark.parametrize("shape", [(2, 6), (2, 1, 6)])
def test_one_query_sees_what_its_mask_says(shape):
  mask = random(*shape, seed=9) > -0.5
  mask[..., 0] = True
  query, memory, *params = (
    jnp.float32(random(*shape, seed=i))
    for i, shape in enumerate(ATTENTION_SHAPES)
  )
  key, value = (
    {"kernel": params[i], "bias": params[i + 1]} for i in range(0, 4, 2)
  )
  projected = [
    jnp.tensordot(memory, x["kernel"], 1) + x["bias"] for x in (key, value)
  ]

  def once(query, memory):
    return attention.attend_single_query(query, memory, key, value, mask)

  got, pull = jax.vjp(once, query, memory)
  want = attention.attend(query, *projected, mask=mask)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  # What is not seen has no gradient.
  unseen = ~mask.reshape(2, 6)
  assert unseen.any()
  assert not np.asarray(pull(jnp.ones_like(got))[1])[unseen].any()


CASES = {
  "attention": (our_attention, plain_attention, ATTENTION_SHAPES),
  "convolution": (
    lambda x, kernel: convolution.convolve(x, kernel, 1),
    lambda x, kernel: plain_convolution(x, kernel, 1),
    ((2, 6, 4, 3), (3, 3, 3, 5)),
  ),
  "product": (
    convolution.multiply,
    lambda x, kernel: x @ kernel,
    ((2, 6, 4, 3), (3, 5)),
  ),
  "norm": (our_norm, plain_norm, ((2, 6, 4, 3), (3,), (3,))),
}


def operations(function, shapes, platform):
  """Counts the lowered gradient's operations, types and all."""

  def gradients(*args):
    y, pull = jax.vjp(function, *args)
    return pull(y)

  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  lowered = (
    jax.jit(gradients).trace(*args).lower(lowering_platforms=(platform,))
  )
  lines = re.findall(r" = ((?:stablehlo|call).*)", lowered.as_text())
  return collections.Counter(re.sub(r"%[\w#]+", "%", line) for line in lines)


@pytest.mark.parametrize("case", CASES)
def test_other_platforms_get_the_derived_program(case):
  ours, plain, shapes = CASES[case]
  for platform in ("tpu", "cuda"):
    got, want = (operations(f, shapes, platform) for f in (ours, plain))
    assert got == want
  assert operations(ours, shapes, "cpu") != want


def test_one_of_the_two_forms_counts():
  x = jnp.ones((4, 3))

  def both(x):
    return by_platform.choose(
      x, cpu=lambda x: x @ x.T, default=lambda x: x @ jnp.ones((3, 4))
    )

  assert flops.count(both, x) == 2 * 4 * 3 * 4


def test_a_choice_maps_over_a_new_axis():
  def choice(x):
    return by_platform.choose(
      x, cpu=lambda x: 2 * x.sum(), default=lambda x: 3 * x.sum()
    )

  got = jax.jit(jax.vmap(choice, in_axes=1))(jnp.arange(6.0).reshape(2, 3))
  np.testing.assert_array_equal(got, [6, 10, 14])
