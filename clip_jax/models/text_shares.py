"""How much each unit, a word or a whole text, counts in the scores of texts."""

from typing import NamedTuple

import numpy as np


class Shares(NamedTuple):
  """Weights of units in texts' scores; pairs that are not listed have none.

  Attributes:
    units: numbers of units, int (n,).
    texts: numbers of the texts whose scores they are part of, int (n,).
    weights: float64 (n,).
  """

  units: np.ndarray
  texts: np.ndarray
  weights: np.ndarray
