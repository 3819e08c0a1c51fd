"""Which classes are taken for which others, counted batch by batch."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

# The most frequent ones are told.
MOST = 20


class Confusions:
  """Counts of wrong guesses by their true class and the guessed one."""

  def __init__(self, names: Sequence[str]):
    """Starts without an example.

    Args:
      names: of the classes, in their order.
    """
    self._names = names
    self._counts: collections.Counter[tuple[int, int]] = collections.Counter()

  def update(self, scores: np.ndarray, labels: np.ndarray) -> None:
    """Adds a batch of `scores` (n, classes) with their true `labels` (n,).

    Of equal scores the first class is the guess.
    """
    guesses = scores.argmax(axis=1)
    wrong = guesses != labels
    pairs = zip(labels[wrong].tolist(), guesses[wrong].tolist(), strict=True)
    self._counts.update(pairs)

  def result(self) -> list[dict[str, Any]]:
    """Returns the most frequent pairs: `true`, `predicted` and `count`."""
    pairs = sorted(self._counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return [
      {
        "true": self._names[true],
        "predicted": self._names[guess],
        "count": count,
      }
      for (true, guess), count in pairs[:MOST]
    ]
