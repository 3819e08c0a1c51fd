"""How many images a training needs for an accuracy (paper, Figure 2)."""

import math
from collections.abc import Sequence


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
