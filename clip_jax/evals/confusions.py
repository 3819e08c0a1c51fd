"""Counts how often each class is taken for which other, batch by batch."""

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

# The most frequent ones are told; of classes, those with most examples.
MOST = 20


class Confusions:
  """Counts of wrong guesses by their true class and the guessed one."""

  def __init__(self, names: Sequence[str]):
    """Starts without an example.

    Args:
      names: of the classes, in their order.
    """
    self._names = names
    self._totals = np.zeros((2, len(names)), np.int64)  # Examples, right ones.
    self._counts: collections.Counter[tuple[int, int]] = collections.Counter()

  def update(self, scores: np.ndarray, labels: np.ndarray) -> None:
    """Adds a batch of `scores` (n, classes) with their true `labels` (n,).

    Of equal scores the first class is the guess.
    """
    guesses = scores.argmax(axis=1)
    wrong = guesses != labels
    for total, of in zip(self._totals, (labels, labels[~wrong]), strict=True):
      total += np.bincount(of, minlength=len(total))
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

  def per_class(self) -> list[dict[str, Any]]:
    """Returns `name`, `examples` and `right` of the classes that have any."""
    examples, right = self._totals
    chosen = np.argsort(-examples, kind="stable")[:MOST]
    return [
      {
        "name": self._names[i],
        "examples": int(examples[i]),
        "right": int(right[i]),
      }
      for i in sorted(chosen[examples[chosen] > 0])
    ]
