"""How many images a training needs for an accuracy (paper, Figure 2)."""

import dataclasses
import math
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Needed:
  """The images that one training needs for an accuracy.

  Attributes:
    images: processed when it got there; where it did not, all that it has
      processed, which are fewer than it needs.
    reached: whether it got there.
  """

  images: float
  reached: bool


@dataclasses.dataclass(frozen=True)
class Ratio:
  """How many times the images of others some trainings need.

  Attributes:
    value: the geometric mean over the pairs, or a bound of it; None where
      nothing is known of it.
    bound: "=", or ">" where the true ratio is larger, "<" where it is smaller.
    pairs: the number of pairs that count: one of the two, at least, got there.
    reached: in how many of these both got there.
  """

  value: float | None
  bound: str
  pairs: int
  reached: int


def needed(
  images: Sequence[float], accuracies: Sequence[float], target: float
) -> Needed:
  """Returns the images needed; arguments are as in `images_to_reach`."""
  found = images_to_reach(images, accuracies, target)
  if found is None:
    return Needed(float(images[-1]), reached=False)
  return Needed(found, reached=True)


def ratio(some: Sequence[Needed], others: Sequence[Needed]) -> Ratio:
  """Returns the ratio of the images needed, by pairs such as those of a seed.

  Args:
    some: what is compared.
    others: with what, as many.
  """
  pairs = [
    (a, b) for a, b in zip(some, others, strict=True) if a.reached or b.reached
  ]
  reached = sum(a.reached and b.reached for a, b in pairs)
  larger = any(not a.reached for a, _ in pairs)
  smaller = any(not b.reached for _, b in pairs)
  bound = ">" if larger else "<" if smaller else "="
  if not pairs or (larger and smaller):
    return Ratio(None, "=", len(pairs), reached)
  value = statistics.geometric_mean(a.images / b.images for a, b in pairs)
  return Ratio(value, bound, len(pairs), reached)


def images_to_reach(
  images: Sequence[float], accuracies: Sequence[float], target: float
) -> float | None:
  """Returns the images processed where a curve first reaches `target`.

  Between two measurements accuracy is taken as linear in the logarithm of the
  images. Of a curve that begins at the target or above, its first measurement
  is returned, which is a bound from above; of one that never gets there, None.

  Args:
    images: processed up to each measurement, ascending and more than 0.
    accuracies: measured there.
    target: the accuracy.
  """
  before = None
  for seen, accuracy in zip(images, accuracies, strict=True):
    if accuracy >= target:
      if before is None:
        return float(seen)
      share = (target - before[1]) / (accuracy - before[1])
      start = math.log(before[0])
      return math.exp(start + share * (math.log(seen) - start))
    before = seen, accuracy
  return None
