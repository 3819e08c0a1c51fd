"""Calibration: whether a zero-shot classifier is right as often as it says."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import special

from clip_jax.evals import embedding_model, metrics

# Few examples give too large an error: that of a perfectly calibrated model is
# 27 % on average with 12 examples, 8 % with 200 and 3 % with 1000. With fewer
# examples than this, `ece` is not shown.
LEAST_EXAMPLES = 200
_SCORES_PER_BLOCK = 1 << 22  # 32 MiB of float64.
# The most logits that a temperature is fitted on: 256 MiB of float32.
_SCORES_FITTED = 1 << 26


def measure(
  embeds: np.ndarray,
  labels: np.ndarray,
  classes: np.ndarray,
  *,
  logit_scale: float,
) -> dict[str, Any]:
  """Returns the softmax's calibration, before and after scaling.

  `ece`, `nll` (nats) and `brier` are of all examples, `reliability` is the
  table of `ece`. `temperature` is fitted on every second example, from the
  first on; `ece_after` is of the other half with it, `ece_held_out` of that
  half without. With a single example these three are None. `probabilities`
  names the softmax, which a model of a sigmoid loss is measured by, too.

  Args:
    embeds: unit embeddings of images, (n, embed).
    labels: the true class of each, (n,).
    classes: unit embeddings, (classes, embed).
    logit_scale: the model's own factor between cosine and logit.

  Raises:
    UserError: that is not finite.
  """
  embedding_model.check_finite(scale=float(logit_scale))
  whole = _Fit()
  for logits, truth in _blocks(embeds, labels, classes * logit_scale):
    whole.add(logits, truth)
  found = whole.reliability()
  return {
    "probabilities": "softmax",
    "ece": found.error,
    "nll": float(np.mean(whole.joined("losses"))),
    "brier": float(np.mean(whole.joined("distances"))),
    "logit_scale": float(logit_scale),
    **_scaled(embeds, labels, classes * logit_scale),
    "reliability": [dataclasses.asdict(row) for row in found.table],
  }


def _scaled(embeds, labels, weights) -> dict[str, Any]:
  """Returns the temperature, and the error that is left with it."""
  names = (
    *("temperature", "temperature_at_bound"),
    *("ece_held_out", "ece_after"),
  )
  if len(labels) < 2:
    return dict.fromkeys(names)
  # Skips examples evenly if all their logits would take too much memory.
  step = 2 * -(-len(labels) * len(weights) // (2 * _SCORES_FITTED))
  fitted = metrics.fit_temperature(
    (embeds[::step] @ weights.T).astype(np.float32), labels[::step]
  )
  before, after = _Fit(), _Fit()
  for logits, truth in _blocks(embeds[1::2], labels[1::2], weights):
    before.add(logits, truth)
    after.add(logits / fitted.value, truth)
  errors = (fit.reliability().error for fit in (before, after))
  values = (fitted.value, fitted.at_bound, *errors)
  return dict(zip(names, values, strict=True))


@dataclasses.dataclass
class _Fit:
  """The values of each example that the measures need, block by block."""

  confidences: list[np.ndarray] = dataclasses.field(default_factory=list)
  correct: list[np.ndarray] = dataclasses.field(default_factory=list)
  losses: list[np.ndarray] = dataclasses.field(default_factory=list)
  distances: list[np.ndarray] = dataclasses.field(default_factory=list)

  def add(self, logits: np.ndarray, labels: np.ndarray) -> None:
    probabilities = special.softmax(logits, axis=1)
    self.confidences.append(probabilities.max(axis=1))
    self.correct.append(logits.argmax(axis=1) == labels)
    self.losses.append(metrics.losses(logits, labels))
    self.distances.append(metrics.distances(probabilities, labels))

  def joined(self, name: str) -> np.ndarray:
    return np.concatenate(getattr(self, name))

  def reliability(self) -> metrics.Reliability:
    # Rounding may lift a sure guess above 1.
    confidences = np.minimum(self.joined("confidences"), 1.0)
    return metrics.expected_calibration_error(
      confidences, self.joined("correct")
    )


def _blocks(
  embeds: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields float64 logits (rows, classes) and labels of some examples."""
  step = max(1, _SCORES_PER_BLOCK // len(weights))
  for start in range(0, len(labels), step):
    rows = slice(start, start + step)
    logits = (embeds[rows] @ weights.T).astype(np.float64)
    yield logits, labels[rows]
