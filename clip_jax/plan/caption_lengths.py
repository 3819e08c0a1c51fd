"""Synthetic caption lengths, for planning without data."""

import math
import statistics

import numpy as np

# Words of Conceptual Captions (Sharma et al. 2018, table 1).
_WORDS_MEAN, _WORDS_DEVIATION = 10.3, 4.5
# The start and end tokens; a caption has at least one word besides.
_ENDS = 2
_HALVINGS = 40


def sample_lengths(mean: int, *, number: int, context: int) -> np.ndarray:
  """Returns the lengths of synthetic captions in tokens, int (number,).

  The number of words is log-normal with the relative spread of Conceptual
  Captions, a word counts as a token, and captions longer than the context are
  cut. `mean` is the mean after cutting; if it equals the context, all captions
  have that length. The result is deterministic.

  Args:
    mean: mean length in tokens, start and end included.
    number: number of captions.
    context: the longest caption in tokens.
  """
  if not _ENDS + 1 < mean < context:
    return np.full(number, min(mean, context))
  variance = math.log(1 + (_WORDS_DEVIATION / _WORDS_MEAN) ** 2)
  normal = statistics.NormalDist(sigma=math.sqrt(variance))
  places = (np.arange(number) + 0.5) / number
  spread = np.exp([normal.inv_cdf(place) for place in places])

  def lengths(words):
    cut = np.clip((words * spread).round(), 1, context - _ENDS)
    return cut.astype(int) + _ENDS

  low, high = 0.0, context / spread[0]
  for _ in range(_HALVINGS):
    middle = (low + high) / 2
    if lengths(middle).mean() < mean:
      low = middle
    else:
      high = middle
  return lengths(high)
