"""Lengths that stand for those of captions nobody has read."""

import math
import statistics

import numpy as np

# Words of Conceptual Captions (Sharma et al. 2018, table 1).
_WORDS_MEAN, _WORDS_DEVIATION = 10.3, 4.5
# Start and end of a text; a caption has a word besides.
_ENDS = 2
_HALVINGS = 40


def sample_lengths(mean: int, *, number: int, context: int) -> np.ndarray:
  """Returns the tokens of some captions (number,), the same ones every time.

  Words are log-normal with the relative spread of Conceptual Captions, a word
  is a token, and what is longer than the context is cut. The mean is that of
  what is left: at the context, all captions are as long.

  Args:
    mean: tokens, start and end included.
    number: of captions.
    context: the most tokens of one.
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
