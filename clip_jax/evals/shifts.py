"""Effective robustness under the natural shifts of ImageNet.

The logit of the accuracy on a shifted set, drawn over the logit of the accuracy
on ImageNet, lies near a line for models that are trained on ImageNet alone
(Taori et al. 2020, section 3). How far a model's accuracy is above the line is
its effective robustness (paper, section 3.3).
"""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from clip_jax import errors


@dataclasses.dataclass(frozen=True)
class Baseline:
  """The line logit(accuracy_shift) = slope * logit(accuracy_in) + intercept.

  Attributes:
    slope: of the line.
    intercept: of the line.
    r2: the share of the variance that it explains; None if not known.
  """

  slope: float
  intercept: float
  r2: float | None = None

  def expected(self, accuracy_in: float) -> float:
    """Returns the accuracy on the shifted set that the line predicts.

    Args:
      accuracy_in: on the set that is not shifted, between 0 and 1.

    Raises:
      UserError: the accuracy is not between 0 and 1.
    """
    logit = special.logit(_checked(accuracy_in, "accuracy_in"))
    return float(special.expit(self.slope * logit + self.intercept))


@functools.cache
def _rows() -> dict[str, dict[str, Any]]:
  file = importlib.resources.files("clip_jax") / "assets/shift_baselines.json"
  return json.loads(file.read_text(encoding="utf-8"))["baselines"]


@functools.cache
def baselines() -> dict[str, Baseline]:
  """Returns the published lines by the name of the shifted set.

  `assets/shift_baselines.json` gives their sources, and over which classes of
  ImageNet each takes the accuracy on ImageNet.
  """
  return {
    name: Baseline(row["slope"], row["intercept"], row.get("r2"))
    for name, row in _rows().items()
  }


def of_all_classes() -> frozenset[str]:
  """Returns the sets whose lines take ImageNet's accuracy over all classes.

  The lines of the others take it over the classes of the shifted set.
  """
  return frozenset(name for name, row in _rows().items() if row["in"] == "val")


def effective_robustness(
  accuracy_in: float, accuracy_shift: float, shift: str | Baseline
) -> float:
  """Returns the accuracy above what the baseline expects (paper, section 3.3).

  Args:
    accuracy_in: on ImageNet, over the classes that the baseline takes.
    accuracy_shift: on the shifted set, between 0 and 1.
    shift: one of `baselines()`, or a line of your own (`fit_baseline`).

  Raises:
    UserError: there is no such baseline, or an accuracy is not between 0 and 1.
  """
  if isinstance(shift, str):
    if shift not in baselines():
      raise errors.unknown("shift", shift, baselines())
    shift = baselines()[shift]
  expected = shift.expected(accuracy_in)
  return _checked(accuracy_shift, "accuracy_shift") - expected


def fit_baseline(
  accuracies_in: Sequence[float], accuracies_shift: Sequence[float]
) -> Baseline:
  """Returns the line of least squares through the logits of several models.

  Args:
    accuracies_in: of each model, on the set that is not shifted.
    accuracies_shift: of the same models, on the shifted set.

  Raises:
    UserError: fewer than two models, or an accuracy that is not strictly
      between 0 and 1, which has no logit.
  """
  found = np.asarray(accuracies_in, float), np.asarray(accuracies_shift, float)
  if found[0].shape != found[1].shape or found[0].ndim != 1:
    raise errors.UserError(
      f"Each model needs both accuracies; got {len(accuracies_in)} and "
      f"{len(accuracies_shift)}."
    )
  if not all(np.all((x > 0) & (x < 1)) for x in found):
    raise errors.UserError(
      "A line of logits needs accuracies strictly between 0 and 1; leave out "
      "models that have all examples right, or none."
    )
  x, y = map(special.logit, found)
  if len(x) < 2 or np.ptp(x) == 0:
    raise errors.UserError(
      f"A line needs two models whose accuracies differ; got {len(x)}."
    )
  slope, intercept = np.polyfit(x, y, 1)
  residual, total = np.var(y - slope * x - intercept), np.var(y)
  r2 = float(1 - residual / total) if total else 1.0
  return Baseline(float(slope), float(intercept), r2)


def _checked(accuracy: float, what: str) -> float:
  if not 0 <= accuracy <= 1:
    raise errors.UserError(
      f"{what}={accuracy!r} must be a fraction between 0 and 1."
    )
  return accuracy
