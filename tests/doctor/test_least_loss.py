"""The least loss of a batch with copies, against another way to find it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from clip_jax.doctor import least_loss

# Images and captions of 12 pairs, equal where their numbers are.
BATCHES = {
  "two captions": (np.arange(12), np.arange(12) // 6),
  "equal pairs": (np.arange(12) // 3, np.arange(12) // 3),
  "tangled": (
    np.array([0, 0, 1, 1, 2, 3, 4, 4, 5, 6, 6, 6]),
    np.array([0, 1, 0, 1, 1, 2, 2, 3, 3, 4, 5, 0]),
  ),
}


def _dense(logits, images, texts, *, kind, duplicates):
  count = len(images)
  own = np.eye(count, dtype=bool)
  same = (images[:, None] == images) | (texts[:, None] == texts)
  positive = same if duplicates == "positive" else own
  left_out = same & ~own if duplicates == "mask" else np.zeros_like(own)
  if kind == "sigmoid":
    losses = jax.nn.softplus(jnp.where(positive, -logits, logits))
    return jnp.where(left_out, 0, losses).sum() / count
  total = 0.0
  for axis in (0, 1):
    seen = jnp.where(left_out, -jnp.inf, logits)
    lost = jax.nn.logsumexp(seen, axis=axis, keepdims=True) - logits
    target = positive / positive.sum(axis, keepdims=True)
    total += jnp.where(positive, target * lost, 0).sum() / count / 2
  return total


def _brute_force(images, texts, **settings):
  cells = images[:, None] * len(images) + texts
  loss = jax.jit(
    jax.value_and_grad(
      lambda free: _dense(free[cells], images, texts, **settings)
    )
  )
  return scipy.optimize.minimize(
    lambda free: [np.asarray(x, np.float64) for x in loss(free)],
    np.zeros(len(images) ** 2),
    jac=True,
    method="L-BFGS-B",
  ).fun


@pytest.mark.parametrize("duplicates", ["ignore", "mask", "positive"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("batch", BATCHES)
def test_the_least_loss_is_that_of_a_brute_force(batch, kind, duplicates):
  images, texts = BATCHES[batch]
  found = least_loss.least_loss(
    kind,
    images=images,
    texts=texts,
    duplicates=duplicates,
    image_ids=images,
    text_ids=texts,
  )
  wanted = _brute_force(images, texts, kind=kind, duplicates=duplicates)
  # Optima at infinity are only neared, by either.
  np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=5e-3)


def test_two_captions_cost_what_theory_says():
  found = least_loss.least_loss(
    "softmax", images=np.arange(16), texts=np.arange(16) // 8
  )
  assert found == pytest.approx(np.log(8), abs=1e-4)


@pytest.mark.parametrize("pairs", [16, 128])
def test_a_model_to_which_all_is_one_is_at_chance(pairs):
  one = np.zeros(pairs, int)
  softmax, sigmoid = (
    least_loss.least_loss(kind, images=one, texts=one)
    for kind in ("softmax", "sigmoid")
  )
  assert softmax == pytest.approx(np.log(pairs), rel=1e-5)
  wanted = np.log(pairs) - (pairs - 1) * np.log1p(-1 / pairs)
  # A constant logit is found to within 0.5 %.
  assert sigmoid == pytest.approx(wanted, rel=5e-3)
