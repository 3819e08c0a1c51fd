"""Every loss method equals the dense float64 numpy oracle on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import errors, losses, sharding

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


def test_gathered_without_a_mesh_says_so():
  images, texts = _pairs(0.5)
  with pytest.raises(errors.UserError, match="needs a mesh"):
    losses.softmax_loss(images, texts, jnp.float32(1), method="gathered")
