import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import errors
from clip_jax.models import encoder as encoder_lib
from clip_jax.models import layers


@pytest.mark.parametrize(
  ("name", "want"),
  [
    # x * sigmoid(1.702 x), x * Phi(x) and its tanh form, at -1 and 2.
    ("quick_gelu", [-0.15420423, 1.9356586]),
    ("gelu", [-0.15865525, 1.9544997]),
    ("gelu_tanh", [-0.15880801, 1.9545977]),
  ],
)
def test_activations_have_their_values(name, want):
  got = layers.ACTIVATIONS[name](jnp.float32([-1.0, 2.0]))
  # They differ by 8e-5 at least: rounding hides no mix-up.
  np.testing.assert_allclose(got, want, rtol=2e-6)


def make_encoder(**fields):
  return encoder_lib.Encoder(
    **{"depth": 3, "heads": 2, "mlp_dim": 10, **fields}
  )


def value_and_grads(encoder, variables, x):
  def total(variables):
    y = encoder.apply(variables, x)
    return (y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)).sum(), y

  return jax.jit(jax.grad(total, has_aux=True))(variables)


@pytest.mark.parametrize(
  "fields",
  [
    {"unroll": 2},
    {"remat": "full", "scan": False},
    *(
      pytest.param(fields, marks=pytest.mark.slow)
      for fields in (
        *({"scan": False}, {"unroll": 3}),
        *({"remat": name} for name in sorted(encoder_lib.REMAT_POLICIES)),
      )
    ),
  ],
)
def test_how_layers_run_changes_neither_values_nor_gradients(
  fields, make_variables
):
  x = jnp.float32(np.random.default_rng(1).standard_normal((2, 5, 8)))
  plain, other = make_encoder(), make_encoder(**fields)
  variables = make_variables(plain, x)
  # The parameters are one tree, whichever way the layers run.
  shapes = jax.tree.map(jnp.shape, make_variables(other, x))
  assert shapes == jax.tree.map(jnp.shape, variables)
  want = value_and_grads(plain, variables, x)
  got = value_and_grads(other, variables, x)
  # The compiler may order sums anew; values are of order one to ten.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    got,
    want,
  )


@pytest.mark.parametrize(
  ("fields", "at"),
  [
    ({"causal": True, "unroll": 2}, [[1, 4, 0], [3, 3, 2]]),
    ({"scan": False}, [[0], [0]]),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        ({"causal": True, "remat": "full"}, [[3], [1]]),
        ({"post_norm": True, "remat": "none"}, [[1, 4, 0], [3, 3, 2]]),
        ({"depth": 1}, [[0], [2]]),
      )
    ),
  ],
)
def test_positions_that_are_read_alone_are_those_of_the_whole_output(
  fields, at, make_variables
):
  at = np.array(at)
  with jax.enable_x64(True):
    x = np.random.default_rng(3).standard_normal((2, 5, 8))
    encoder = make_encoder(dtype=jnp.float64, param_dtype=jnp.float64, **fields)
    variables = make_variables(encoder, x)

    def alone(variables):
      return encoder.apply(variables, x, at=at)

    def of_all(variables):
      y = encoder.apply(variables, x)
      return jnp.take_along_axis(y, at[..., None], axis=1)

    @jax.jit
    def value_and_gradient(variables):
      found = []
      for function in (alone, of_all):
        y, pull = jax.vjp(function, variables)
        found.append((y, pull(jnp.sin(y))))
      return found

    got, want = value_and_gradient(variables)
  assert got[0].shape == (*at.shape, 8)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12),
    got,
    want,
  )


def test_a_gradient_of_the_gradient_reaches_the_parameters_of_a_layer():
  stack = jnp.float32(np.random.default_rng(4).standard_normal((3, 5)))

  def cubes(part):
    params = encoder_lib._read_layer(jax.lax.stop_gradient(stack), 1, part)
    return jnp.sum(params**3)

  def slopes(part):
    return jnp.sum(jax.grad(cubes)(part))

  # By the rule for one gradient alone, this one would be zero.
  got = jax.jit(jax.grad(slopes))(stack[1])
  np.testing.assert_allclose(got, 6 * stack[1], rtol=1e-6)


def test_every_layer_starts_with_its_own_weights():
  x = jnp.zeros((1, 5, 8))
  blocks = jax.jit(make_encoder().init)(jax.random.key(0), x)["params"][
    "blocks"
  ]
  kernel = blocks["mlp"]["fc_in"]["kernel"]
  assert kernel.shape == (3, 8, 10)
  assert np.abs(kernel[0] - kernel[1]).max() > 0.1


def test_causal_layers_do_not_see_later_tokens(make_variables, apply):
  x = np.random.default_rng(2).standard_normal((2, 6, 8)).astype(np.float32)
  encoder = make_encoder(causal=True)
  variables = make_variables(encoder, x)
  changed = x.copy()
  changed[:, 4, 0] += 1.0  # A norm would undo a shift of all.
  before, after = (apply(encoder, variables, y) for y in (x, changed))
  np.testing.assert_array_equal(before[:, :4], after[:, :4])
  assert (np.abs(before - after).max(axis=(0, 2))[4:] > 1e-3).all()


def test_layer_norm_survives_a_mean_far_above_the_deviation():
  rng = np.random.default_rng(3)
  x = (rng.standard_normal((4, 64)) + 300.0).astype(np.float32)
  dtypes = {"dtype": jnp.float32, "param_dtype": jnp.float32}
  norm = layers.layer_norm(1e-5, name="norm", dtypes=dtypes)
  got = norm.apply(norm.init(jax.random.key(0), x), x)
  wide = x.astype(np.float64)
  centred = wide - wide.mean(axis=-1, keepdims=True)
  want = centred / np.sqrt(wide.var(axis=-1, keepdims=True) + 1e-5)
  # The inputs' own spacing is 3e-5; the one-pass variance errs by 1e-2.
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_dropped_patches_leave_a_random_ordered_subset():
  patches = jnp.arange(12.0)[None, :, None] + jnp.zeros((40, 12, 2))
  key, examples = jax.random.key(0), jnp.arange(40)
  kept = layers.drop_patches(key, patches, rate=0.75, examples=examples)
  assert kept.shape == (40, 3, 2)
  ids = np.asarray(kept[..., 0])
  assert (np.diff(ids, axis=1) > 0).all()
  assert len(np.unique(ids, axis=0)) > 20
  assert set(np.unique(ids)) == set(range(12))
  # An example keeps the same whatever stands beside it.
  some = layers.drop_patches(
    key, patches[7:9], rate=0.75, examples=examples[7:9]
  )
  np.testing.assert_array_equal(some, kept[7:9])


def test_unknown_names_list_the_known_ones():
  x = jnp.zeros((1, 5, 8))
  for fields, hint in (
    ({"activation": "quickgelu"}, "quick_gelu"),
    ({"remat": "ful"}, "full"),
  ):
    with pytest.raises(errors.UserError, match=f"Did you mean '{hint}'"):
      make_encoder(**fields).init(jax.random.key(0), x)
  with pytest.raises(errors.UserError, match="depth 3, got 4"):
    make_encoder(unroll=4).init(jax.random.key(0), x)
  with pytest.raises(errors.UserError, match=r"width=8 .* heads=3"):
    encoder_lib.Encoder(depth=1, heads=3).init(jax.random.key(0), x)


def test_rows_that_many_ids_name_get_the_whole_sum():
  rng = np.random.default_rng(0)
  table = jnp.asarray(rng.standard_normal((5, 3)), jnp.bfloat16)
  ids = rng.integers(0, 2, size=(64, 100)).astype(np.int32)
  weights = jnp.asarray(rng.uniform(1, 2, size=(64, 100, 3)), jnp.bfloat16)

  @jax.jit
  def gradient(table):
    def total(table):
      rows = layers.take_rows(table, ids)
      assert rows.dtype == jnp.bfloat16
      return (rows.astype(jnp.float32) * weights).sum()

    return jax.grad(total)(table)

  want = np.zeros((5, 3))
  np.add.at(want, ids, np.asarray(weights, np.float64))
  got = gradient(table)
  assert got.dtype == jnp.bfloat16
  # Rounded once. Summed in bfloat16 the rows would get about 512 of 4,800.
  np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2**-8)


def test_an_embedding_has_rows_and_gradients_as_the_table_says():
  rng = np.random.default_rng(0)
  embed = layers.Embed(7, 3, dtype=jnp.float32)
  ids = np.array([[6, 1], [1, 0]], np.int32)
  variables = embed.init(jax.random.key(0), ids)
  table = np.asarray(variables["params"]["embedding"])
  assert table.shape == (7, 3)
  np.testing.assert_array_equal(embed.apply(variables, ids), table[ids])
  weights = rng.standard_normal((2, 2, 3)).astype(np.float32)
  gradient = jax.grad(
    lambda variables: (embed.apply(variables, ids) * weights).sum()
  )(variables)["params"]["embedding"]
  want = np.zeros((7, 3), np.float32)
  np.add.at(want, ids, weights)
  np.testing.assert_allclose(gradient, want, rtol=1e-6)
  # A token that the vocabulary lacks is no other token.
  assert np.isnan(embed.apply(variables, np.array([7]))).all()
