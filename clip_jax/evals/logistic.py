"""Multinomial logistic regression by L-BFGS, for many penalties.

It minimises what scikit-learn's `LogisticRegression` does with C = 1 / penalty:

    sum over examples of the cross-entropy + penalty / 2 * |weights|^2

with a bias that is not penalised, in coordinates in which the curvature is
about the same in all directions: features are centred and turned into their
principal axes once, and each axis of each class is scaled by its variance, by
how undecided the classifier is about the class, and by the penalty. The optimum
stays where it is; it is reached in fewer steps.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

# What the loss would still fall by, as L-BFGS sees it, as a share of the loss.
# A bound on the gradient, as scikit-learn has one, would let a fit that starts
# near the optimum of another penalty stay there.
TOLERANCE = 1e-5
_SMALL_LOSS = 1e-2  # Of a smaller loss, the same fall as of this is enough.
MAX_STEPS = 1000  # Paper, appendix A.3.
# Of the loss: float32 shows no smaller decrease, so a step that brings less is
# the last one.
_SMALLEST_DECREASE = 1e-7
_SUFFICIENT = 1e-4  # Of the decrease that the slope promises (Armijo).
_SHORTEST = 1e-6  # Share of a step below which none is tried.
_SAMPLE = 4096  # Examples that say how undecided a classifier is, about.
_UNDECIDED = 1e-6  # Curvature of a class, at the least.


@dataclasses.dataclass(frozen=True)
class Weights:
  """A linear classifier: `features @ kernel + bias`.

  Attributes:
    kernel: (width, classes).
    bias: (classes,).
    steps: evaluations of the loss and its gradient that made it.
  """

  kernel: np.ndarray
  bias: np.ndarray
  steps: int

  def scores(self, features: np.ndarray) -> np.ndarray:
    """Returns the logits (n, classes) of features (n, width)."""
    return features @ self.kernel + self.bias


class Regression:
  """The examples of a classifier, which are fitted with many penalties."""

  def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int):
    """Turns the features into their principal axes.

    Args:
      features: (n, width), any finite numbers.
      labels: (n,), from 0 to classes - 1.
      classes: how many there are.
    """
    examples, width = features.shape
    self._mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = jnp.asarray(features, jnp.float32) - self._mean
    with jax.default_matmul_precision("highest"):
      if examples < width:  # They span no more axes than there are examples.
        self._axes = jnp.linalg.svd(centred, full_matrices=False)[2].T
      else:
        self._axes = jnp.linalg.eigh(centred.T @ centred / examples)[1]
      turned = centred @ self._axes
    # The bias is the weight of a feature that is always 1.
    self._turned = jnp.pad(turned, ((0, 0), (0, 1)), constant_values=1)
    self._variances = jnp.square(self._turned).mean(axis=0)
    self._labels = jnp.asarray(labels, jnp.int32)
    self._classes = classes
    self._found: dict[float, jax.Array] = {}

  @property
  def size(self) -> int:
    """Examples times width times classes."""
    return self._turned.size * self._classes

  def part(self, rows: np.ndarray) -> "Regression":
    """Returns some of the examples by themselves; fits of both are starts.

    Args:
      rows: of the examples.
    """
    part = copy.copy(self)
    part._turned, part._labels = self._turned[rows], self._labels[rows]
    return part

  def fit(
    self,
    penalty: float,
    counted: np.ndarray | None = None,
    tolerance: float = TOLERANCE,
  ) -> Weights:
    """Returns the classifier of one penalty, as `fit_all` does."""
    return self.fit_all([penalty], counted, tolerance)[0]

  def fit_all(
    self,
    penalties: Sequence[float],
    counted: np.ndarray | None = None,
    tolerance: float = TOLERANCE,
  ) -> list[Weights]:
    """Returns a classifier of each penalty.

    Each starts from that of the next larger penalty that was fitted before. An
    accelerator fits all at once; a CPU, which one fit keeps busy, one by one.

    Args:
      penalties: more than 0.
      counted: 1 for the examples to fit to and 0 for others, (n,) or one row
        for each penalty; None counts all.
      tolerance: what the loss may still fall by, as a share of it.
    """
    shape = len(penalties), len(self._labels)
    counted = np.broadcast_to(1 if counted is None else counted, shape)
    if len(penalties) > 1 and jax.default_backend() == "cpu":
      pairs = zip(penalties, counted, strict=True)
      return [self.fit(penalty, rows, tolerance) for penalty, rows in pairs]
    inputs = (
      jnp.stack([self._start(penalty) for penalty in penalties]),
      jnp.asarray(counted, jnp.float32),
      jnp.asarray(penalties, jnp.float32),
    )
    with jax.default_matmul_precision("highest"):
      found, steps = minimise_all(
        self._turned, self._labels, self._variances, tolerance, *inputs
      )
      self._found |= dict(zip(penalties, found, strict=True))
      kernels = np.asarray(self._axes @ found[:, :, :-1].swapaxes(1, 2))
    biases = np.asarray(found[:, :, -1]) - self._mean @ kernels
    return [
      Weights(*weights)
      for weights in zip(kernels, biases, steps.tolist(), strict=True)
    ]

  def _start(self, penalty: float) -> jax.Array:
    """Returns (classes, width + 1): between the nearest fits, if there are two.

    The weights change about evenly with the logarithm of the penalty.
    """
    larger = [known for known in self._found if known >= penalty]
    smaller = [known for known in self._found if known <= penalty]
    if not larger:
      return jnp.zeros((self._classes, self._turned.shape[1]))
    high = min(larger)
    if not smaller or high == penalty:
      return self._found[high]
    low = max(smaller)
    share = math.log(high / penalty) / math.log(high / low)
    return (1 - share) * self._found[high] + share * self._found[low]


class _Search(NamedTuple):
  """The state of the search for the minimum, in scaled coordinates.

  Attributes:
    point: the best so far, (classes, width + 1).
    value: the loss there; infinite before the first evaluation.
    memory: of L-BFGS, from the points before.
    trial: what is evaluated next, from `point` along the direction.
    share: of the direction's length that leads there.
    slope: of the loss along the direction.
    steps: evaluations so far.
    done: whether `point` is the result.
  """

  point: jax.Array
  value: jax.Array
  memory: Any
  trial: jax.Array
  share: jax.Array
  slope: jax.Array
  steps: jax.Array
  done: jax.Array


@jax.jit
def minimise_all(
  features: jax.Array,
  labels: jax.Array,
  variances: jax.Array,
  tolerance: float,
  starts: jax.Array,
  counted: jax.Array,
  penalties: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns the weights of fits that run at once, and their evaluations.

  Args:
    features: (n, width), of which the last is always 1.
    labels: (n,).
    variances: (width,), about the mean squares of the features.
    tolerance: what the loss may still fall by, as a share of it.
    starts: (fits, classes, width), where each fit begins; so is the result.
    counted: (fits, n), 1 or 0.
    penalties: (fits,).
  """
  fits = functools.partial(_minimise, features, labels, variances, tolerance)
  if len(penalties) == 1:  # An axis of one fit costs a tenth of the time.
    found = fits(starts[0], counted[0], penalties[0])
    return jax.tree.map(lambda leaf: leaf[None], found)
  return jax.vmap(fits)(starts, counted, penalties)


def _minimise(features, labels, variances, tolerance, start, counted, penalty):
  penalties = jnp.full(features.shape[1], penalty / counted.sum()).at[-1].set(0)
  counted /= counted.sum()
  some = slice(None, None, max(1, len(labels) // _SAMPLE))
  guesses = jax.nn.softmax(features[some] @ start.T)
  undecided = jnp.mean(guesses * (1 - guesses), axis=0) + _UNDECIDED
  scale = jax.lax.rsqrt(undecided[:, None] * variances + penalties)
  lbfgs = optax.scale_by_lbfgs(memory_size=10)

  def loss_and_gradient(scaled):
    # By hand: XLA's own way takes a quarter more time on a CPU.
    weights = scaled * scale
    logits = jnp.einsum("nd,kd->nk", features, weights)
    logits -= logits.max(axis=1, keepdims=True)
    likely = jnp.exp(logits)
    sums = likely.sum(axis=1)
    own = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    loss = counted @ (jnp.log(sums) - own)
    loss += (penalties * jnp.square(weights)).sum() / 2
    errors = likely * (counted / sums)[:, None]
    errors = errors.at[jnp.arange(len(labels)), labels].add(-counted)
    gradient = jnp.einsum("nk,nd->kd", errors, features)
    return loss, (gradient + penalties * weights) * scale

  def step(search):
    value, gradient = loss_and_gradient(search.trial)
    promised = _SUFFICIENT * search.share * search.slope
    seen = _SMALLEST_DECREASE * value

    def accept():
      updated: Any = lbfgs.update(gradient, search.memory, search.trial)
      direction, memory = updated
      slope = -jnp.vdot(direction, gradient)
      done = -slope / 2 <= tolerance * jnp.maximum(value, _SMALL_LOSS)
      return _Search(
        point=search.trial,
        value=value,
        memory=memory,
        trial=search.trial - direction,
        share=jnp.ones(()),
        slope=slope,
        steps=search.steps + 1,
        done=done | (search.value - value <= seen),
      )

    def shorten():
      return search._replace(
        trial=(search.point + search.trial) / 2,
        share=search.share / 2,
        steps=search.steps + 1,
        done=search.share < _SHORTEST,
      )

    enough = value <= search.value + promised + seen
    return jax.lax.cond(enough, accept, shorten)

  begin = start / scale
  search = _Search(
    point=begin,
    value=jnp.full((), jnp.inf),
    memory=lbfgs.init(begin),
    trial=begin,
    share=jnp.ones(()),
    slope=jnp.zeros(()),
    steps=jnp.zeros((), jnp.int32),
    done=jnp.zeros((), bool),
  )
  search = jax.lax.while_loop(
    lambda search: ~search.done & (search.steps < MAX_STEPS), step, search
  )
  return search.point * scale, search.steps
