"""Near neighbours among embeddings: within clusters, or among all of some.

All pairs of a million embeddings are too many. SemDeDup (Abbas et al., arXiv
2303.09540) compares within the clusters of k-means only; what lies on both
sides of a border is missed.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

ROWS_PER_CLUSTER = 1000  # On average, by default.
_ROWS = 4096  # Of a block on the device.
_ROUNDS = 12
_TRAINED = 256  # Embeddings that each centre is found from, on average.
_ROUNDING = 1e-6  # Of a cosine in float32: that of equal rows is not quite 1.
_dot = functools.partial(jnp.dot, precision="highest")


@jax.jit
def _assign(embeds: jax.Array, centres: jax.Array) -> jax.Array:
  return jnp.argmax(_dot(embeds, centres.T), axis=1)


@jax.jit
def _sums(
  embeds: jax.Array, numbers: jax.Array, weights: jax.Array, like: jax.Array
) -> jax.Array:
  """Returns the sum of each cluster's embeddings, of the shape of `like`."""
  return jnp.zeros_like(like).at[numbers].add(embeds * weights[:, None])


@jax.jit
def _above(first: jax.Array, second: jax.Array, least: float) -> jax.Array:
  return _dot(first, second.T) >= least - _ROUNDING


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
  filling = np.zeros((size - len(rows), rows.shape[1]), rows.dtype)
  return np.concatenate([rows, filling])


def _starts(number: int) -> Iterator[int]:
  return iter(range(0, number, _ROWS))


def assign(embeds: np.ndarray, centres: np.ndarray) -> np.ndarray:
  """Returns the nearest centre of each of the unit `embeds`, int64 (n,)."""
  found = [np.zeros(0, np.int64)]
  for start in _starts(len(embeds)):
    rows = embeds[start : start + _ROWS]
    numbers = np.asarray(_assign(_padded(rows, _ROWS), centres))
    found.append(numbers[: len(rows)].astype(np.int64))
  return np.concatenate(found)


def kmeans(embeds: np.ndarray, clusters: int) -> np.ndarray:
  """Returns centres of unit length, float32 (clusters, embed).

  Spherical k-means that starts from the first rows, and sees the first
  `256 * clusters` only: give them in an order that has nothing to do with what
  they are.

  Args:
    embeds: of unit length, float32 (n, embed).
    clusters: at most n.
  """
  centres = embeds[:clusters].astype(np.float32)
  embeds = embeds[: _TRAINED * clusters]
  before = None
  for _ in range(_ROUNDS):
    numbers = assign(embeds, centres)
    if before is not None and np.array_equal(numbers, before):
      break
    before = numbers
    total = jnp.zeros(centres.shape, jnp.float32)
    for start in _starts(len(embeds)):
      rows = embeds[start : start + _ROWS]
      some = np.zeros(_ROWS, np.int64)
      some[: len(rows)] = numbers[start : start + _ROWS]
      weights = (np.arange(_ROWS) < len(rows)).astype(np.float32)
      total += _sums(_padded(rows, _ROWS), some, weights, centres)
    total = np.asarray(total)
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    # A cluster that nothing is nearest to stays where it is.
    centres = np.where(lengths > 0, total / np.maximum(lengths, 1e-12), centres)
  return centres


def near_within(
  embeds: np.ndarray, *, similarity: float, clusters: int | None = None
) -> np.ndarray:
  """Returns pairs i < j that connect what is near, int64 (pairs, 2).

  Of n embeddings of a cluster that are near each other, also by others between
  them, n - 1 pairs are given.

  Args:
    embeds: of unit length, float32 (n, embed), in an order that has nothing to
      do with what they are.
    similarity: cosine of a pair, at least, but for rounding.
    clusters: by default one for each 1000 embeddings.
  """
  number = len(embeds)
  clusters = clusters or max(1, round(number / ROWS_PER_CLUSTER))
  if not number:
    return np.zeros((0, 2), np.int64)
  numbers = assign(embeds, kmeans(embeds, min(clusters, number)))
  order = np.argsort(numbers, kind="stable")
  found = [np.zeros((0, 2), np.int64)]
  for rows in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
    labels = _groups(embeds[rows], similarity)
    _, first, of = np.unique(labels, return_index=True, return_inverse=True)
    stars = np.stack([rows[first[of]], rows], axis=1)
    found.append(stars[stars[:, 0] < stars[:, 1]])
  return np.concatenate(found)


def _groups(embeds: np.ndarray, similarity: float) -> np.ndarray:
  """Returns a label for each row, the same where near ones connect them."""
  labels = np.arange(len(embeds), dtype=np.int32)
  for i, j, above in _near_blocks(embeds, embeds, similarity, once=True):
    # Each group takes one pair to another, so that they are half as many after
    # each round, and no list of all pairs is made.
    first = labels[i : i + above.shape[0]]
    second = labels[j : j + above.shape[1]]
    while True:
      leaving = above & (first[:, None] != second[None])
      down = np.flatnonzero(leaving.any(axis=1))
      right = np.flatnonzero(leaving.any(axis=0))
      if not len(down):
        break
      pairs = (
        np.append(first[down], first[leaving[:, right].argmax(axis=0)]),
        np.append(second[leaving[down].argmax(axis=1)], second[right]),
      )
      graph = sparse.coo_array(
        (np.ones(len(pairs[0]), bool), pairs), shape=(len(labels),) * 2
      )
      joined = sparse.csgraph.connected_components(graph, directed=False)[1]
      labels[:] = joined[labels]
  return labels


def near_between(
  embeds: np.ndarray, others: np.ndarray, *, similarity: float
) -> np.ndarray:
  """Returns i and j of near pairs of two sets, int64 (at most n + m, 2).

  Of all pairs those are given of each i and the first j that it is near, and of
  each j and the first i. All are compared, and never listed.

  Args:
    embeds: of unit length, float32 (n, embed).
    others: likewise (m, embed).
    similarity: cosine of `embeds[i]` and `others[j]`, at least, but for
      rounding.
  """
  ahead = np.full(len(embeds), len(others))
  back = np.full(len(others), len(embeds))
  for i, j, above in _near_blocks(embeds, others, similarity):
    for firsts, start, other, near in (
      (ahead, i, j, above),
      (back, j, i, above.T),
    ):
      rows = np.flatnonzero(near.any(axis=1))
      np.minimum.at(firsts, start + rows, other + near[rows].argmax(axis=1))
  mine = np.flatnonzero(ahead < len(others))
  theirs = np.flatnonzero(back < len(embeds))
  return np.concatenate(
    [
      np.stack([mine, ahead[mine]], axis=1),
      np.stack([back[theirs], theirs], axis=1),
    ]
  )


def _near_blocks(
  embeds: np.ndarray,
  others: np.ndarray,
  similarity: float,
  *,
  once: bool = False,
) -> Iterator[tuple[int, int, np.ndarray]]:
  """Yields where a block begins, and which of its pairs are near, bool.

  Args:
    embeds: of the first of each pair.
    others: of the second.
    similarity: cosine of a near pair, at least.
    once: whether both are the same, so that (j, i) is left out for (i, j).
  """
  for i in _starts(len(embeds)):
    first = embeds[i : i + _ROWS]
    for j in _starts(len(others)):
      if once and j < i:
        continue
      second = others[j : j + _ROWS]
      above = _above(
        _padded(first, _block(len(first))),
        _padded(second, _block(len(second))),
        similarity,
      )
      yield i, j, np.asarray(above)[: len(first), : len(second)]


def _block(rows: int) -> int:
  """Returns a power of two, so that few programs are compiled."""
  return max(64, 1 << (rows - 1).bit_length())
