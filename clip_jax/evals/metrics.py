"""Measures of evaluations: pure functions of numpy arrays, each by definition.

Fractions lie between 0 and 1. Whatever is summed is summed in float64.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from clip_jax import errors

# Of every interval that is shown; the paper's Table 10 has 99.5 % instead.
LEVEL = 0.95
BINS = 15  # Of the calibration error (Guo et al. 2017, section 2).
_RECALLS = 11  # 0, 0.1, …, 1 (Everingham et al. 2010, section 4.2).
# Bounds of a fitted temperature: where all guesses are right, 0 would be best.
_TEMPERATURES = (1e-2, 1e2)
_MOST_STEPS = 100
_TOLERANCE = 1e-10  # Of the temperature, relative.
_VALUES_PER_BLOCK = 1 << 22  # 32 MiB of float64.


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns the number of classes before the true one; ties go by index.

  Args:
    scores: (n, classes).
    labels: the true class of each, (n,).
  """
  own = np.take_along_axis(scores, labels[:, None], axis=1)  # (n, 1)
  before = np.arange(scores.shape[1]) < labels[:, None]  # (n, classes)
  return np.sum((scores > own) | ((scores == own) & before), axis=1)


def mean_per_class(
  correct: np.ndarray, labels: np.ndarray, classes: int
) -> float:
  """Returns the mean over classes of the share of examples that is right.

  Classes without an example do not count (balanced accuracy).

  Args:
    correct: whether each guess is right, (n,).
    labels: the true class of each, (n,).
    classes: number of classes.

  Raises:
    UserError: there is no example.
  """
  labels = np.asarray(labels)
  _check_examples(len(labels))
  examples = np.bincount(labels, minlength=classes)
  hits = np.bincount(labels, np.asarray(correct, float), minlength=classes)
  present = examples > 0
  return float(np.mean(hits[present] / examples[present]))


def mean_top1_top5(rank: np.ndarray) -> float:
  """Returns the mean of top-1 and top-5, as Kinetics has it (paper, Table 9).

  Args:
    rank: of the true class of each example, as `ranks` gives it, (n,).
  """
  _check_examples(len(rank))
  return float(np.mean(rank < 1) + np.mean(rank < 5)) / 2


def map_11_point(
  scores: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None
) -> float:
  """Returns the mean over classes of the 11-point average precision.

  That is the mean, over the recalls 0, 0.1, …, 1, of the largest precision at
  that recall or a larger one (Everingham et al. 2010, section 4.2). Examples
  of equal scores are found together. Classes without an example of theirs do
  not count.

  Args:
    scores: of each example for each class, (n, classes).
    targets: whether it is of the class, (n, classes).
    ignore: whether it is left out for the class, (n, classes), as images are
      whose only objects of a class are difficult; None leaves out none.

  Raises:
    UserError: no class has an example, or a score is not finite.
  """
  return _mean_over_classes(_eleven_points, scores, targets, ignore)


def map_all_point(
  scores: np.ndarray, targets: np.ndarray, ignore: np.ndarray | None = None
) -> float:
  """Returns the mean over classes of the average precision at all recalls.

  That is the sum over thresholds of the precision times the gain in recall.
  CLIP_benchmark reports this one. The rest is as in `map_11_point`.

  Args:
    scores: of each example for each class, (n, classes).
    targets: whether it is of the class, (n, classes).
    ignore: whether it is left out for the class, (n, classes).

  Raises:
    UserError: no class has an example, or a score is not finite.
  """
  return _mean_over_classes(_all_points, scores, targets, ignore)


def _mean_over_classes(
  average: Callable[[np.ndarray, np.ndarray], float],
  scores: np.ndarray,
  targets: np.ndarray,
  ignore: np.ndarray | None,
) -> float:
  scores, targets = np.asarray(scores), np.asarray(targets, bool)
  _check_scores(scores)
  kept = np.ones(targets.shape, bool) if ignore is None else ~ignore
  found = [
    average(*_found(scores[rows, k], targets[rows, k]))
    for k, rows in enumerate(kept.T)
    if targets[rows, k].any()
  ]
  if not found:
    raise errors.UserError("No class has an example; there is no precision.")
  return float(np.mean(found))


def _found(
  scores: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns hits and examples at or above each distinct score, falling."""
  order = np.argsort(-scores, kind="stable")
  scores, targets = scores[order], targets[order]
  last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))
  return np.cumsum(targets)[last], last + 1


def _eleven_points(hits: np.ndarray, examples: np.ndarray) -> float:
  # From each threshold on, the largest precision at it or a larger recall.
  best = np.maximum.accumulate((hits / examples)[::-1])[::-1]
  # In whole numbers: 0.1 and its multiples are none of floating point.
  steps = np.arange(_RECALLS) * hits[-1]
  return float(best[np.searchsorted(hits * (_RECALLS - 1), steps)].mean())


def _all_points(hits: np.ndarray, examples: np.ndarray) -> float:
  gains = np.diff(hits, prepend=0) / hits[-1]
  return float(np.sum(gains * hits / examples))


def roc_auc(scores: np.ndarray, targets: np.ndarray) -> float:
  """Returns the area under the ROC curve of two classes.

  That is the share of pairs of a positive and a negative example in which the
  positive one scores higher; a tie counts half (Mann and Whitney 1947).

  Args:
    scores: (n,).
    targets: whether each example is positive, (n,).

  Raises:
    UserError: one of the classes has no example, or a score is not finite.
  """
  scores, targets = np.asarray(scores), np.asarray(targets, bool)
  _check_scores(scores)
  positives = int(targets.sum())
  negatives = len(targets) - positives
  if not positives or not negatives:
    raise errors.UserError(
      f"The area under the ROC curve needs examples of both classes; got "
      f"{positives} positive and {negatives} negative ones."
    )
  _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
  midranks = np.cumsum(counts) - (counts - 1) / 2  # From 1.
  total = midranks[places][targets].sum()
  least = positives * (positives + 1) / 2
  return float((total - least) / (positives * negatives))


def clopper_pearson(
  hits: int, n: int, level: float = LEVEL
) -> tuple[float, float]:
  """Returns the Clopper-Pearson interval of a share (paper, Table 10).

  Args:
    hits: examples that are right.
    n: all examples.
    level: the probability, at least, that an interval holds the true share.

  Raises:
    UserError: the counts are none of examples.
  """
  if not 0 <= hits <= n or not n:
    raise errors.UserError(f"{hits} of {n} examples have no interval.")
  tail = (1 - level) / 2
  low = special.betaincinv(hits, n - hits + 1, tail) if hits else 0.0
  high = special.betaincinv(hits + 1, n - hits, 1 - tail) if hits < n else 1.0
  return float(low), float(high)


@dataclasses.dataclass(frozen=True)
class Bin:
  """Examples whose confidence lies above `low` and not above `high`.

  Attributes:
    low: 0 belongs to the first bin.
    high: the next bin's `low`.
    count: of examples.
    confidence: their mean; None of none.
    accuracy: the share that is right; None of none.
  """

  low: float
  high: float
  count: int
  confidence: float | None
  accuracy: float | None


@dataclasses.dataclass(frozen=True)
class Reliability:
  """How far confidence and accuracy are from each other.

  Attributes:
    error: the expected calibration error.
    table: its bins.
  """

  error: float
  table: tuple[Bin, ...]


def expected_calibration_error(
  confidences: np.ndarray, correct: np.ndarray
) -> Reliability:
  """Returns the expected calibration error and the table that it comes from.

  The error is the mean over examples of the absolute difference between
  accuracy and confidence of their bin; the `BINS` bins have equal widths (Guo
  et al. 2017, equation 3).

  Args:
    confidences: probability of each guess, (n,).
    correct: whether it is right, (n,).

  Raises:
    UserError: there is no example, or a confidence is no probability.
  """
  confidences = np.asarray(confidences, np.float64)
  _check_examples(len(confidences))
  if not np.all((confidences >= 0) & (confidences <= 1)):
    raise errors.UserError("Confidences must lie between 0 and 1.")
  edges = np.arange(BINS + 1) / BINS
  place = np.maximum(np.searchsorted(edges, confidences) - 1, 0)
  counts = np.bincount(place, minlength=BINS)
  divisor = np.maximum(counts, 1)
  confidence = np.bincount(place, confidences, BINS) / divisor
  accuracy = np.bincount(place, np.asarray(correct, float), BINS) / divisor
  table = tuple(
    Bin(
      float(edges[k]),
      float(edges[k + 1]),
      int(count),
      float(confidence[k]) if count else None,
      float(accuracy[k]) if count else None,
    )
    for k, count in enumerate(counts)
  )
  error = np.abs(accuracy - confidence) @ counts / counts.sum()
  return Reliability(float(error), table)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
  """Returns the mean of -log of the true class's softmax probability, in nats.

  Args:
    logits: (n, classes).
    labels: the true class of each, (n,).

  Raises:
    UserError: there is no example.
  """
  _check_examples(len(labels))
  return float(np.mean(losses(logits, labels)))


def losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns each example's part of `negative_log_likelihood`, (n,)."""
  logits = np.asarray(logits, np.float64)
  own = logits[np.arange(len(labels)), labels]
  return special.logsumexp(logits, axis=1) - own


def brier(probabilities: np.ndarray, labels: np.ndarray) -> float:
  """Returns the mean squared distance of probabilities from the truth.

  Of an example it is the sum over all classes (Brier 1950), from 0 to 2.

  Args:
    probabilities: (n, classes).
    labels: the true class of each, (n,).

  Raises:
    UserError: there is no example.
  """
  _check_examples(len(labels))
  return float(np.mean(distances(probabilities, labels)))


def distances(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns each example's part of `brier`, (n,)."""
  probabilities = np.asarray(probabilities, np.float64)
  own = probabilities[np.arange(len(labels)), labels]
  return np.sum(probabilities**2, axis=1) - 2 * own + 1


@dataclasses.dataclass(frozen=True)
class Temperature:
  """What logits are divided by, so that their likelihood is largest.

  Attributes:
    value: the temperature.
    steps: of Newton's method, until it stood still.
    at_bound: whether it would lie beyond 0.01 or 100: a smaller one if every
      guess is right, a larger one if guesses are worse than chance.
  """

  value: float
  steps: int
  at_bound: bool


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> Temperature:
  """Returns the temperature with the smallest negative log likelihood.

  In the inverse temperature the likelihood is convex; Newton's steps that
  leave what is known to hold the minimum are replaced by halving that
  (temperature scaling: Guo et al. 2017, section 4.2).

  Args:
    logits: (n, classes), of examples that nothing else is measured on.
    labels: the true class of each, (n,).

  Raises:
    UserError: there is no example, or a logit is not finite.
  """
  logits, labels = np.asarray(logits), np.asarray(labels)
  _check_examples(len(labels))
  _check_scores(logits)
  low, high = (1 / bound for bound in reversed(_TEMPERATURES))
  for bound, sign in ((low, 1), (high, -1)):
    if sign * _slopes(logits, labels, bound)[0] >= 0:
      return Temperature(1 / bound, 0, at_bound=True)
  inverse = 1.0
  for step in range(1, _MOST_STEPS + 1):
    slope, curvature = _slopes(logits, labels, inverse)
    low, high = (inverse, high) if slope < 0 else (low, inverse)
    after = inverse - slope / curvature if curvature > 0 else high
    if not low <= after <= high:
      after = float(np.sqrt(low * high))
    if abs(after - inverse) <= _TOLERANCE * inverse:
      return Temperature(1 / after, step, at_bound=False)
    inverse = after
  return Temperature(1 / inverse, _MOST_STEPS, at_bound=False)


def _slopes(logits: Any, labels: Any, inverse: float) -> tuple[float, float]:
  """Returns both derivatives of the mean loss in the inverse temperature."""
  step = max(1, _VALUES_PER_BLOCK // logits.shape[1])
  slope = curvature = 0.0
  for start in range(0, len(labels), step):
    z = np.asarray(logits[start : start + step], np.float64)
    p = special.softmax(inverse * z, axis=1)
    mean = np.sum(p * z, axis=1)
    own = z[np.arange(len(z)), labels[start : start + step]]
    slope += float(np.sum(mean - own))
    curvature += float(np.sum(p * (z - mean[:, None]) ** 2))
  return slope / len(labels), curvature / len(labels)


def _check_examples(count: int) -> None:
  if not count:
    raise errors.UserError("There is no example to measure.")


def _check_scores(scores: np.ndarray) -> None:
  if not np.all(np.isfinite(scores)):
    raise errors.UserError("Scores must be finite numbers.")
