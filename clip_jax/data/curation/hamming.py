"""Finds the hashes of 64 bits that differ in few bits, without all pairs.

Hashes at a distance of at most r differ in at most r // 4 bits in one of their
four parts of 16 bits. So each part of a query is looked up in a table, and with
it all values that differ in so few bits (multi-index hashing; Norouzi et al.,
arXiv 1307.2982).
"""

import itertools
from collections.abc import Callable

import numpy as np
from scipy import sparse

from clip_jax import errors

MAX_DISTANCE = 12
_PARTS, _PART_BITS = 4, 16
_AT_ONCE = 2**16  # Candidates, for bounded memory.
_JOINED_AT_ONCE = 2**18  # Likewise; fewer, as each block may spare others.
_MANY = 8  # Members of a group, or candidates, that it is worth to pass over.


def first(
  queries: np.ndarray,
  hashes: np.ndarray,
  distance: int,
  *,
  confirm: Callable[[np.ndarray, np.ndarray], np.ndarray],
  found: np.ndarray,
) -> np.ndarray:
  """Returns the position of the first hash that is near each query, int64 (n,).

  What is behind the first is not looked at, so that many hashes near each other
  take little more time than as many that are not, and no list of pairs is made.

  Args:
    queries: uint64 (n,).
    hashes: uint64 (m,).
    distance: bits in which `queries[i]` and `hashes[j]` differ, at most.
    confirm: of arrays i and j, says which of these pairs count, bool.
    found: of an earlier search, int64 (n,): what is not before it is not looked
      for. At most m, which stands for none.

  Raises:
    UserError: the distance is above `MAX_DISTANCE`.
  """
  check(distance)
  found = found.copy()
  for part in range(_PARTS):

    def near(i: np.ndarray, j: np.ndarray, part: int = part) -> None:
      for sure in (
        lambda i, j: j < found[i],
        lambda i, j: _is_new(queries[i] ^ hashes[j], distance, part),
        confirm,
      ):
        stays = sure(i, j)
        i, j = i[stays], j[stays]
      np.minimum.at(found, i, j)

    wanted, values = _parts(queries, part), _parts(hashes, part)
    # Those of one value are in a row, and there in their own order.
    order = np.argsort(values, kind="stable")
    counts = np.bincount(values, minlength=2**_PART_BITS)
    ends = np.concatenate([[0], np.cumsum(counts)])
    for flips in _flips(distance // _PARTS):
      probes = wanted ^ flips
      _first_in(found, ends[probes], ends[probes + 1], order, near)
  return found


def _first_in(
  found: np.ndarray,
  low: np.ndarray,
  high: np.ndarray,
  order: np.ndarray,
  near: Callable[[np.ndarray, np.ndarray], None],
) -> None:
  """Gives to `near` the candidates of each query until one is found.

  Args:
    found: the best one of each query, which `near` changes.
    low: where a query's candidates begin in `order`.
    high: where they end.
    order: their positions, which ascend from low to high.
    near: of arrays i and j.
  """
  rows, at_once = np.flatnonzero(low < high), _MANY
  while len(rows):
    rows = rows[order[low[rows]] < found[rows]]
    counts = np.minimum(high[rows] - low[rows], at_once)
    for block in _blocks(counts, _AT_ONCE):
      some = counts[block]
      i = np.repeat(rows[block], some)
      offset = np.arange(len(i)) - np.repeat(np.cumsum(some) - some, some)
      near(i, order[low[i] + offset])
    low[rows] += counts
    rows = rows[low[rows] < high[rows]]
    at_once *= 2


def join(
  queries: np.ndarray,
  hashes: np.ndarray,
  distance: int,
  labels: np.ndarray,
  *,
  confirm: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
  """Returns labels, the same where near pairs connect, int64 (n,).

  Of what is joined already no pair is looked at again, so that many hashes near
  each other take little more time than as many that are not.

  Args:
    queries: of the first of each pair, uint64 (n,).
    hashes: of the second, uint64 (n,).
    distance: bits in which `queries[i]` and `hashes[j]` differ, at most.
    labels: from 0 to n - 1, the same for what is joined already.
    confirm: of arrays i and j, says which of these pairs count, bool.

  Raises:
    UserError: the distance is above `MAX_DISTANCE`.
  """
  check(distance)
  groups = _Groups(labels)
  for part in range(_PARTS):

    def near(i: np.ndarray, j: np.ndarray, part: int = part) -> None:
      close = _is_new(queries[i] ^ hashes[j], distance, part)
      close[close] = groups.labels[i[close]] != groups.labels[j[close]]
      i, j = i[close], j[close]
      sure = confirm(i, j)
      groups.add(i[sure], j[sure])

    wanted, values = _parts(queries, part), _parts(hashes, part)
    for flips in _flips(distance // _PARTS):
      _join_in(groups, wanted ^ flips, values, near)
  groups.settle()
  return groups.labels


class _Groups:
  """Labels that are joined, many pairs at a time."""

  def __init__(self, labels: np.ndarray):
    self.labels = labels.astype(np.int64)
    self._pairs: list[tuple[np.ndarray, np.ndarray]] = []
    self._waiting = 0

  def add(self, i: np.ndarray, j: np.ndarray) -> None:
    """Takes in pairs, which count from the next `settle` on at the latest."""
    if len(i):
      self._pairs.append((self.labels[i], self.labels[j]))
      self._waiting += len(i)
    if self._waiting > len(self.labels):
      self.settle()

  def settle(self) -> None:
    """Joins what was taken in."""
    if not self._waiting:
      return
    pairs = tuple(
      np.concatenate(side) for side in zip(*self._pairs, strict=True)
    )
    graph = sparse.coo_array(
      (np.ones(self._waiting, bool), pairs), shape=(len(self.labels),) * 2
    )
    joined = sparse.csgraph.connected_components(graph, directed=False)[1]
    self.labels = joined.astype(np.int64)[self.labels]
    self._pairs, self._waiting = [], 0


def _join_in(
  groups: _Groups,
  probes: np.ndarray,
  values: np.ndarray,
  near: Callable[[np.ndarray, np.ndarray], None],
) -> None:
  """Gives to `near` the pairs of one value and of two labels.

  What is joined meanwhile is left out after the first block of candidates, and
  then each time that twice as many are done.
  """
  start, blocks, number = 0, 1, len(values)
  sizes = np.bincount(values, minlength=2**_PART_BITS)
  ends = np.cumsum(sizes) - sizes
  while start < number:
    groups.settle()
    # In the order of values, then of large groups, each of these is in a row.
    labels = groups.labels
    large = np.bincount(labels)[labels] >= _MANY
    keys = values * (number + 1) + np.where(large, labels + 1, 0)
    order = np.argsort(keys)
    keys = keys[order]
    low, counts = ends[probes[start:]], sizes[probes[start:]]
    own_low, own_size = np.zeros((2, len(low)), np.int64)
    rows = np.flatnonzero(large[start:])
    own = (probes * (number + 1) + labels + 1)[start:][rows]
    own_low[rows] = np.searchsorted(keys, own)
    own_size[rows] = np.searchsorted(keys, own, "right") - own_low[rows]
    counts = counts - own_size
    for rows in _blocks(counts, _JOINED_AT_ONCE)[:blocks]:
      some = counts[rows]
      i = np.repeat(np.arange(rows.start, rows.stop), some)
      at = np.arange(len(i)) + np.repeat(
        low[rows] - np.cumsum(some) + some, some
      )
      at += np.where(at >= own_low[i], own_size[i], 0)
      near(start + i, order[at])
      done = rows.stop
    start, blocks = start + done, 2 * blocks


def check(distance: int) -> None:
  """Raises UserError for a distance that is not searched for."""
  if not 0 <= distance <= MAX_DISTANCE:
    raise errors.UserError(
      f"A distance of {distance} bits is not searched for; give 0 to "
      f"{MAX_DISTANCE}; more finds images that only look alike."
    )


def _parts(bits: np.ndarray, part: int) -> np.ndarray:
  """Returns one of the four parts of each hash, int64."""
  return (bits >> np.uint64(part * _PART_BITS)).astype(np.int64) % 2**_PART_BITS


def _is_new(differs: np.ndarray, distance: int, part: int) -> np.ndarray:
  """Whether hashes are near and no part before has found them, bool.

  Hashes that agree in all parts are found in each; to compare them once spares
  most of the work where many look alike.

  Args:
    differs: the bits in which two hashes differ, uint64 (n,).
    distance: their number, at most.
    part: that has found them.
  """
  new = np.bitwise_count(differs) <= distance
  for before in range(part):
    bits = np.bitwise_count(_parts(differs[new], before))
    new[new] = bits > distance // _PARTS
  return new


def _flips(most: int) -> list[int]:
  """Returns all numbers of 16 bits with at most so many bits set."""
  return [
    sum(1 << bit for bit in bits)
    for number in range(most + 1)
    for bits in itertools.combinations(range(_PART_BITS), number)
  ]


def _blocks(counts: np.ndarray, at_once: int) -> list[slice]:
  """Returns rows of about so many candidates together, at least one row."""
  number = np.cumsum(counts) // at_once
  starts = np.flatnonzero(np.diff(number, prepend=-1))
  edges = [*starts.tolist(), len(counts)]
  return [slice(a, b) for a, b in itertools.pairwise(edges)]
