"""Multinomial logistic regression by L-BFGS, for many penalties one by one.

It minimises what scikit-learn's `LogisticRegression` does with C = 1 / penalty:

    sum over examples of the cross-entropy + penalty / 2 * |weights|^2

with a bias that is not penalised, in coordinates in which the curvature is
about the same in all directions: features are centred and turned into their
principal axes once, and each axis is scaled by its variance and the penalty.
The optimum stays where it is; it is reached in fewer steps.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Of the gradient of the mean loss, its largest entry; scikit-learn's is 1e-4.
TOLERANCE = 1e-5
MAX_STEPS = 1000  # Paper, appendix A.3.
_STALLED = 1e-7  # Of the loss in a step: no more is seen in float32.


@dataclasses.dataclass(frozen=True)
class Weights:
  """A linear classifier: `features @ kernel + bias`.

  Attributes:
    kernel: (width, classes).
    bias: (classes,).
    steps: of L-BFGS that made it.
  """

  kernel: np.ndarray
  bias: np.ndarray
  steps: int

  def scores(self, features: np.ndarray) -> np.ndarray:
    """Returns the logits (n, classes) of features (n, width)."""
    return features @ self.kernel + self.bias


class Regression:
  """The examples of a classifier, which are fitted once for each penalty."""

  def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int):
    """Turns the features into their principal axes.

    Args:
      features: (n, width), any finite numbers.
      labels: (n,), from 0 to classes - 1.
      classes: how many there are.
    """
    self._mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = jnp.asarray(features, jnp.float32) - self._mean
    variances, self._axes = jnp.linalg.eigh(centred.T @ centred / len(features))
    self._variances = jnp.maximum(variances, 0)
    self._turned = centred @ self._axes  # (n, width)
    self._labels = jnp.asarray(labels, jnp.int32)
    self._classes = classes
    self._found: dict[float, tuple] = {}

  def fit(self, penalty: float) -> Weights:
    """Returns the classifier of one penalty, more than 0.

    It starts from that of the next larger penalty that was fitted.
    """
    larger = [known for known in self._found if known >= penalty]
    width = self._turned.shape[1]
    start = (
      self._found[min(larger)]
      if larger
      else (jnp.zeros((width, self._classes)), jnp.zeros(self._classes))
    )
    kernel, bias, steps = _minimise(
      self._turned, self._labels, start, self._variances, jnp.float32(penalty)
    )
    self._found[penalty] = kernel, bias
    kernel = np.asarray(self._axes @ kernel)
    return Weights(kernel, np.asarray(bias) - self._mean @ kernel, int(steps))


@jax.jit
def _minimise(features, labels, start, variances, penalty):
  examples, classes = len(labels), start[1].size
  # The curvature of an axis, where all classes are as likely.
  scale = jax.lax.rsqrt(variances / classes + penalty / examples)[:, None]

  def loss(scaled):
    kernel, bias = scaled[0] * scale, scaled[1]
    losses = optax.softmax_cross_entropy_with_integer_labels(
      features @ kernel + bias, labels
    )
    return losses.mean() + penalty / (2 * examples) * jnp.square(kernel).sum()

  optimizer = optax.lbfgs(memory_size=10)
  value_and_grad: Any = optax.value_and_grad_from_state(loss)

  def step(carry):
    scaled, state, before, _, count = carry
    value, gradient = value_and_grad(scaled, state=state)
    updates, state = optimizer.update(
      gradient, state, scaled, value=value, grad=gradient, value_fn=loss
    )
    largest = jnp.maximum(
      jnp.abs(gradient[0] / scale).max(), jnp.abs(gradient[1]).max()
    )
    done = (largest <= TOLERANCE) | (before - value <= _STALLED * value)
    return optax.apply_updates(scaled, updates), state, value, done, count + 1

  def goes_on(carry):
    *_, done, count = carry
    return ~done & (count < MAX_STEPS)

  scaled = start[0] / scale, start[1]
  carry = scaled, optimizer.init(scaled), jnp.inf, False, 0
  last: Any = jax.lax.while_loop(goes_on, step, carry)
  (kernel, bias), *_, steps = last
  return kernel * scale, bias, steps
