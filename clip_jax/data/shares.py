"""Which of several sources each example of a mixture is from: exact shares.

Weights are whole numbers, and the order repeats after their sum. Among the
first n examples, each source has its share of n within less than one, for each
n; and in any row of examples as long as the sum of the weights, wherever it
begins, each has exactly its weight.

This is the chairman assignment problem (Tijdeman, 1980). The k-th example of a
source with the share p is due at one of the places from floor((k - 1) / p) up
to, not including, ceil(k / p), and of all that are due the one that must come
first takes the next place: earliest deadline first, which meets every deadline
where any order does.
"""

import functools
import heapq
from collections.abc import Sequence

import numpy as np

MOST = 100_000  # The longest period.


@functools.lru_cache(maxsize=8)
def period(weights: tuple[int, ...]) -> np.ndarray:
  """Returns the source of each example of a period, int32 (sum of weights,).

  Args:
    weights: of each source, at least 1; their sum is at most `MOST`.
  """
  total = sum(weights)
  begins: list[list[int]] = [[] for _ in range(total)]
  for source, weight in enumerate(weights):
    for k in range(weight):
      begins[k * total // weight].append(source)
  given = [0] * len(weights)
  waiting: list[tuple[int, int]] = []
  order = np.zeros(total, np.int32)
  seen = [0] * len(weights)
  for place, new in enumerate(begins):
    for source in new:
      seen[source] += 1
      deadline = -(-seen[source] * total // weights[source])
      heapq.heappush(waiting, (deadline, source))
    _, source = heapq.heappop(waiting)
    order[place] = source
    given[source] += 1
  assert tuple(given) == weights
  return order


@functools.lru_cache(maxsize=8)
def ranks(weights: tuple[int, ...]) -> np.ndarray:
  """Returns the number of examples of its source before it in the period."""
  order = period(weights)
  found = np.zeros(len(order), np.int64)
  for source in range(len(weights)):
    places = np.flatnonzero(order == source)
    found[places] = np.arange(len(places))
  return found


def place(weights: tuple[int, ...], n: int) -> tuple[int, int]:
  """Returns the source of example `n`, and how many before it are of that."""
  number, at = divmod(n, sum(weights))
  source = int(period(weights)[at])
  return source, number * weights[source] + int(ranks(weights)[at])


def counts(weights: Sequence[int], n: int) -> list[int]:
  """Returns the number of each source's among the first `n` examples."""
  number, at = divmod(n, sum(weights))
  begun = np.bincount(
    period(tuple(weights))[:at], minlength=len(weights)
  ).tolist()
  return [
    number * weight + more for weight, more in zip(weights, begun, strict=True)
  ]


def end(weights: tuple[int, ...], source: int, count: int) -> int:
  """Returns after how many examples `count` of them are of `source`.

  Args:
    weights: of each source.
    source: its place among them.
    count: at least 1.
  """
  number, rank = divmod(count - 1, weights[source])
  places = np.flatnonzero(period(weights) == source)
  return number * sum(weights) + int(places[rank]) + 1
