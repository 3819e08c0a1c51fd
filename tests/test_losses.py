"""Every loss method equals the dense float64 numpy oracle on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import errors, losses, sharding
from clip_jax.config import schema

PAIRS, EMBED = 24, 7  # 24 divides by 1, 2, 4 and 8 devices.


def _unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _pairs(closeness, seed=0):
  """Unit rows; `closeness` 0 is unrelated pairs, 1 is identical ones."""
  rng = np.random.default_rng(seed)
  images, noise = rng.normal(size=(2, PAIRS, EMBED))
  return _unit(images), _unit(closeness * images + (1 - closeness) * noise)


def _oracle(images, texts, scale):
  """The paper's pseudocode with loops, in float64."""
  logits = scale * images @ texts.T
  total = 0.0
  for i in range(len(images)):
    row, column = logits[i], logits[:, i]
    for line in (row, column):
      top = line.max()
      total += top + np.log(np.exp(line - top).sum()) - logits[i, i]
  return total / (2 * len(images))


def _oracle_gradients(images, texts, scale):
  """Gradients by hand: softmax minus one-hot, both directions."""
  logits = scale * images @ texts.T

  def softmax(z, axis):
    e = np.exp(z - z.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)

  g = (softmax(logits, 1) + softmax(logits, 0) - 2 * np.eye(PAIRS)) / (
    2 * PAIRS
  )
  cosines = images @ texts.T
  return scale * g @ texts, scale * g.T @ images, (g * cosines).sum()


def _loss_and_gradients(method, mesh_shape, arrays):
  if mesh_shape is None:
    options = {"method": method}
  else:
    mesh = sharding.make_mesh(data=mesh_shape[0], fsdp=mesh_shape[1])
    options = {"method": method, "mesh": mesh, "axes": sharding.BATCH_AXES}
    rows = sharding.batch_sharding(mesh)
    places = (rows, rows, sharding.replicated(mesh))
    arrays = [
      jax.device_put(*pair) for pair in zip(arrays, places, strict=True)
    ]

  def loss(*arrays):
    return losses.softmax_loss(*arrays, **options)

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*arrays)


def _relative(got, want):
  return np.max(np.abs(np.asarray(got) - want)) / np.max(np.abs(want))


MESHES = [(8, 1), (4, 2), (2, 4), (1, 8)]
CASES = [("dense", None), *(("gathered", shape) for shape in MESHES)]


@pytest.mark.parametrize("closeness", [0.0, 0.6])
@pytest.mark.parametrize("scale", [14.3, 100.0])
@pytest.mark.parametrize(("method", "mesh_shape"), CASES)
def test_loss_and_gradients_match_the_oracle_in_float64(
  method, mesh_shape, scale, closeness
):
  images, texts = _pairs(closeness)
  with jax.enable_x64(True):
    arrays = [jnp.asarray(x, jnp.float64) for x in (images, texts, scale)]
    loss, gradients = _loss_and_gradients(method, mesh_shape, arrays)
    assert loss.dtype == jnp.float64
    assert _relative(loss, _oracle(images, texts, scale)) < 1e-12
    wanted = _oracle_gradients(images, texts, scale)
    for got, want in zip(gradients, wanted, strict=True):
      # Near convergence the gradients are small differences of numbers near
      # 1, so 1e-16 there is up to 1e-11 of them.
      assert _relative(got, want) < 1e-11


@pytest.mark.parametrize("closeness", [0.0, 0.6])
@pytest.mark.parametrize("scale", [14.3, 100.0])
@pytest.mark.parametrize(("method", "mesh_shape"), CASES)
def test_loss_and_gradients_match_the_oracle_in_float32(
  method, mesh_shape, scale, closeness
):
  images, texts = (x.astype(np.float32) for x in _pairs(closeness))
  arrays = [jnp.asarray(x, jnp.float32) for x in (images, texts, scale)]
  loss, gradients = _loss_and_gradients(method, mesh_shape, arrays)
  images, texts = images.astype(np.float64), texts.astype(np.float64)
  scale = float(np.float32(scale))
  # 1e-7 times a scale of 100 in each logit.
  assert abs(float(loss) - _oracle(images, texts, scale)) < 2e-5
  for got, want in zip(
    gradients[:2], _oracle_gradients(images, texts, scale)[:2], strict=True
  ):
    assert _relative(got, want) < 5e-5


def test_bfloat16_embeddings_give_a_float32_loss():
  images, texts = (jnp.asarray(x, jnp.bfloat16) for x in _pairs(0.5))
  loss = losses.softmax_loss(images, texts, jnp.float32(14.3))
  want = _oracle(*(np.asarray(x, np.float64) for x in (images, texts)), 14.3)
  assert loss.dtype == jnp.float32
  # The products of bfloat16 numbers are exact in float32.
  assert abs(float(loss) - want) < 1e-5


def test_a_shuffled_text_order_changes_the_loss():
  images, texts = _pairs(0.9)
  good = losses.softmax_loss(images, texts, jnp.float32(10))
  bad = losses.softmax_loss(images, texts[::-1], jnp.float32(10))
  assert bad > good + 1


def test_equal_embeddings_give_the_log_of_the_batch():
  same = np.ones((PAIRS, EMBED), np.float32) / EMBED**0.5
  loss = losses.softmax_loss(same, same, jnp.float32(100))
  # 1e-7 times a scale of 100.
  np.testing.assert_allclose(loss, np.log(PAIRS), rtol=1e-5)


def test_an_unknown_method_names_the_close_one():
  images, texts = _pairs(0.5)
  with pytest.raises(errors.UserError, match="Did you mean 'gathered'"):
    losses.softmax_loss(images, texts, jnp.float32(1), method="gatherd")


def _sigmoid_oracle(images, texts, scale, bias):
  """Equation 1 of Zhai et al. 2023, pair by pair, in float64."""
  total = 0.0
  for i in range(len(images)):
    for j in range(len(texts)):
      sign = 1 if i == j else -1
      z = sign * (scale * images[i] @ texts[j] + bias)
      total += max(-z, 0) + np.log1p(np.exp(-abs(z)))  # -log sigmoid(z)
  return total / len(images)


def _sigmoid_oracle_gradients(images, texts, scale, bias):
  """Gradients by hand: the probability minus the label, over the images."""
  cosines = images @ texts.T
  logits = scale * cosines + bias
  g = (1 / (1 + np.exp(-logits)) - np.eye(PAIRS)) / PAIRS
  return scale * g @ texts, scale * g.T @ images, (g * cosines).sum(), g.sum()


def _sigmoid_and_gradients(method, mesh_shape, arrays):
  options = {"method": method}
  if mesh_shape is not None:
    data, fsdp = mesh_shape
    mesh = sharding.make_mesh(
      data=data, fsdp=fsdp, devices=jax.devices()[: data * fsdp]
    )
    options |= {"mesh": mesh, "axes": sharding.BATCH_AXES}
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    places = (rows, rows, whole, whole)
    arrays = [
      jax.device_put(*pair) for pair in zip(arrays, places, strict=True)
    ]

  def loss(*arrays):
    return losses.sigmoid_loss(*arrays, **options)

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))(*arrays)


SIGMOID_CASES = [
  ("dense", None),
  *(
    ("gathered", shape)
    for shape in [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), *MESHES]
  ),
]


# SigLIP's start, and about where its training ends.
@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (117.3, -12.9)])
@pytest.mark.parametrize(("method", "mesh_shape"), SIGMOID_CASES)
def test_the_sigmoid_loss_and_its_gradients_match_the_oracle(
  method, mesh_shape, scale, bias
):
  images, texts = _pairs(0.4)
  with jax.enable_x64(True):
    arrays = [jnp.asarray(x, jnp.float64) for x in (images, texts, scale, bias)]
    loss, gradients = _sigmoid_and_gradients(method, mesh_shape, arrays)
    assert loss.dtype == jnp.float64
    # Only the order of sums differs.
    assert _relative(loss, _sigmoid_oracle(images, texts, scale, bias)) < 1e-12
    wanted = _sigmoid_oracle_gradients(images, texts, scale, bias)
    for got, want in zip(gradients, wanted, strict=True):
      assert _relative(got, want) < 1e-12


@pytest.mark.parametrize("mesh_shape", [None, (4, 2)])
def test_the_sigmoid_loss_matches_the_oracle_in_float32(mesh_shape):
  images, texts = (x.astype(np.float32) for x in _pairs(0.4))
  arrays = [jnp.asarray(x, jnp.float32) for x in (images, texts, 117.3, -12.9)]
  loss, gradients = _sigmoid_and_gradients("auto", mesh_shape, arrays)
  wide = [np.asarray(x, np.float64) for x in arrays]
  # 1e-7 times a scale of 117 in each logit, and 24 of them a row.
  assert _relative(loss, _sigmoid_oracle(*wide)) < 1e-5
  wanted = _sigmoid_oracle_gradients(*wide)
  for got, want in zip(gradients[:2], wanted[:2], strict=True):
    assert _relative(got, want) < 5e-5


@pytest.mark.parametrize(
  "change",
  [
    lambda x, y, t, b: (x, y[::-1], t, b),  # Another text is the own one.
    lambda x, y, t, b: (x, y, t, -b),
    lambda x, y, t, b: (-x, y, t, b),  # The paper prints -t; its code +t.
    lambda x, y, t, b: (x, y, t, 0 * b),
  ],
)
def test_the_tolerance_sees_a_wrong_sigmoid_loss(change):
  arrays = (*_pairs(0.4), 10.0, -10.0)
  right, wrong = _sigmoid_oracle(*arrays), _sigmoid_oracle(*change(*arrays))
  assert abs(wrong - right) > 1e-3 * right


def test_a_certain_sigmoid_stays_finite_with_finite_gradients():
  images, texts = (jnp.float32(x) for x in _pairs(1.0))
  loss, gradients = _sigmoid_and_gradients(
    "dense", None, [images, texts, jnp.float32(1e4), jnp.float32(-50)]
  )
  assert np.isfinite(loss)
  assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_a_softmax_does_not_see_the_bias():
  images, texts = _pairs(0.5)
  want = losses.softmax_loss(images, texts, jnp.float32(10))
  got = losses.softmax_loss(images, texts, jnp.float32(10), jnp.float32(-10))
  assert got == want


def test_a_sigmoid_without_a_bias_says_which_field_gives_one():
  images, texts = _pairs(0.5)
  with pytest.raises(errors.UserError, match="init_logit_bias=-10"):
    losses.sigmoid_loss(images, texts, jnp.float32(1), None)


def test_the_config_knows_every_method():
  assert schema.LOSS_METHODS == losses.METHODS
