"""Finds the hashes of 64 bits that differ in few bits, without all pairs.

Hashes at a distance of at most r differ in at most r // 4 bits in one of their
four parts of 16 bits. So each part of a query is looked up in a table, and with
it all values that differ in so few bits (multi-index hashing; Norouzi et al.,
arXiv 1307.2982).
"""

import itertools
from collections.abc import Callable

import numpy as np

from clip_jax import errors

MAX_DISTANCE = 12
_PARTS, _PART_BITS = 4, 16
_AT_ONCE = 2**22  # Candidates, for bounded memory.


def near(
  queries: np.ndarray,
  hashes: np.ndarray,
  distance: int,
  *,
  confirm: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns positions i and j of each near pair, sorted, int64 (pairs,) each.

  Args:
    queries: uint64 (n,).
    hashes: uint64 (m,).
    distance: bits in which `queries[i]` and `hashes[j]` differ, at most.
    confirm: of arrays i and j, says which of these pairs count, bool.

  Raises:
    UserError: the distance is above `MAX_DISTANCE`.
  """
  check(distance)
  found = [np.zeros(0, np.int64)]
  for part in range(_PARTS):
    shift = np.uint64(part * _PART_BITS)
    found += _near_in(queries, hashes, distance, shift, confirm)
  both = np.unique(np.concatenate(found))
  return np.divmod(both, max(len(hashes), 1))


def check(distance: int) -> None:
  """Raises UserError for a distance that is not searched for."""
  if not 0 <= distance <= MAX_DISTANCE:
    raise errors.UserError(
      f"A distance of {distance} bits is not searched for; give 0 to "
      f"{MAX_DISTANCE}; more finds images that only look alike."
    )


def _near_in(queries, hashes, distance, shift, confirm) -> list[np.ndarray]:
  """Returns near pairs, as i * m + j, that are so in one part."""
  mask = np.uint64(2**_PART_BITS - 1)
  values = ((hashes >> shift) & mask).astype(np.int64)
  order = np.argsort(values, kind="stable")
  ends = np.concatenate(
    [[0], np.cumsum(np.bincount(values, minlength=2**_PART_BITS))]
  )
  wanted = ((queries >> shift) & mask).astype(np.int64)
  found = []
  for flips in _flips(distance // _PARTS):
    probes = wanted ^ flips
    first, counts = ends[probes], ends[probes + 1] - ends[probes]
    for rows in _blocks(counts):
      some = counts[rows]
      i = np.repeat(np.arange(rows.start, rows.stop), some)
      # The candidates of a query stand in a row of `order`.
      offset = np.arange(len(i)) - np.repeat(np.cumsum(some) - some, some)
      j = order[np.repeat(first[rows], some) + offset]
      close = np.bitwise_count(queries[i] ^ hashes[j]) <= distance
      i, j = i[close], j[close]
      sure = confirm(i, j)
      found.append(i[sure] * len(hashes) + j[sure])
  return found


def _flips(most: int) -> list[int]:
  """Returns all numbers of 16 bits with at most so many bits set."""
  return [
    sum(1 << bit for bit in bits)
    for number in range(most + 1)
    for bits in itertools.combinations(range(_PART_BITS), number)
  ]


def _blocks(counts: np.ndarray) -> list[slice]:
  """Returns rows of about `_AT_ONCE` candidates together, at least one row."""
  number = np.cumsum(counts) // _AT_ONCE
  starts = np.flatnonzero(np.diff(number, prepend=-1))
  edges = [*starts.tolist(), len(counts)]
  return [slice(a, b) for a, b in itertools.pairwise(edges)]
