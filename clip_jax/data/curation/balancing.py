"""Chooses the pairs that stay, so that no query has more than its part.

A pair with the queries Q stays with the probability

  1 - product over q in Q of (1 - min(1, threshold / count[q])),

for each query draws for itself whether it keeps the pair (MetaCLIP, Algorithm
1). The draws are hashes of seed, pair and query: they depend neither on the
order of the pairs nor on how the work is split.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from clip_jax import errors, terminal
from clip_jax.data import record as record_lib


@dataclasses.dataclass(frozen=True)
class Matches:
  """The queries of each pair, as rows of unequal length.

  Attributes:
    pairs: a hash of each pair, uint64 (pairs,).
    starts: where the queries of each pair begin, and the end of all, int64
      (pairs + 1,).
    queries: positions in the list of queries, uint32 (matches,).
  """

  pairs: np.ndarray
  starts: np.ndarray
  queries: np.ndarray

  def counts(self, number: int) -> np.ndarray:
    """Returns the number of pairs that match each query, int64 (number,)."""
    return np.bincount(self.queries, minlength=number)

  def rows(self) -> np.ndarray:
    """Returns the pair of each match, int64 (matches,)."""
    return np.repeat(np.arange(len(self.pairs)), np.diff(self.starts))


def hash_text(text: str, *, seed: int = 0) -> int:
  """Returns 64 bits that depend on every bit of `text` and `seed`."""
  data = text.encode("utf-8", "surrogatepass")
  key = repr(int(seed)).encode()
  return int.from_bytes(
    hashlib.blake2b(data, digest_size=8, key=key).digest(), "little"
  )


def hash_pair(record: record_lib.Record, *, seed: int = 0) -> int:
  """Returns 64 bits that tell a pair from others, wherever it stands.

  They depend on the key, as keys of different shards may be equal on the
  captions, and on `seed`; not on the order of the captions, which is that of
  the rows of a table. Where the key is a place in a table, they depend on the
  bytes of the image instead.
  """
  name = record.key
  if record_lib.is_row(name):
    name = hashlib.blake2b(record.image, digest_size=16).hexdigest()
  return hash_text("\0".join((name, *sorted(record.texts))), seed=seed)


def digest(data: bytes) -> tuple[int, int]:
  """Returns 128 bits that depend on every bit of `data`, as two numbers."""
  found = hashlib.blake2b(data, digest_size=16).digest()
  return int.from_bytes(found[:8], "little"), int.from_bytes(
    found[8:], "little"
  )


def _mixed(x: np.ndarray) -> np.ndarray:
  """Returns SplitMix64's output for each number (Steele et al., 2014)."""
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def draws(pairs: np.ndarray, queries: np.ndarray) -> np.ndarray:
  """Returns a number in [0, 1) for each pair of hashes, float64.

  Args:
    pairs: hashes of pairs, with the seed in them, uint64 (n,).
    queries: hashes of queries, uint64 (n,).
  """
  mixed = _mixed(_mixed(pairs) ^ queries)
  return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


_PRECISE = 1e-6  # Of a size: what its limit, a float, may miss it by.

# Pairs that a query keeps, on average: of all queries, or of each, (queries,).
Threshold = float | np.ndarray


def probabilities(counts: np.ndarray, threshold: Threshold) -> np.ndarray:
  """Returns with what probability a query keeps one of its pairs, float64."""
  return np.minimum(1.0, threshold / np.maximum(counts, 1))


def kept(
  matches: Matches, query_hashes: np.ndarray, threshold: Threshold
) -> np.ndarray:
  """Whether each pair stays, bool (pairs,).

  Args:
    matches: of all pairs.
    query_hashes: of each query, uint64 (queries,).
    threshold: pairs that a query keeps, on average.
  """
  p = probabilities(matches.counts(len(query_hashes)), threshold)
  drawn = draws(matches.pairs[matches.rows()], query_hashes[matches.queries])
  stays = np.zeros(len(matches.pairs), bool)
  stays[matches.rows()[drawn < p[matches.queries]]] = True
  return stays


def expected_size(
  matches: Matches, counts: np.ndarray, threshold: Threshold
) -> float:
  """Returns the number of pairs that stay on average."""
  p = probabilities(counts, threshold)[matches.queries]
  with np.errstate(divide="ignore"):
    log_gone = np.log1p(-p)
  gone = np.bincount(
    matches.rows(), weights=log_gone, minlength=len(matches.pairs)
  )
  return float(-np.expm1(gone).sum())


def tail_share(counts: np.ndarray, threshold: float) -> float:
  """Returns the share of all matches that queries below a threshold have."""
  total = counts.sum()
  return float(counts[counts < threshold].sum() / total) if total else 0.0


def threshold_of_tail(counts: np.ndarray, share: float) -> float:
  """Returns the least count up to which queries have this share of matches.

  MetaCLIP 2 (section 3.3) so gives each language the threshold at which its
  tail is as large as that of English. 0 where nothing matches.
  """
  ascending = np.sort(counts[counts > 0])
  if not len(ascending):
    return 0.0
  reached = np.cumsum(ascending) / ascending.sum() >= share
  return float(ascending[np.argmax(reached)])


def limits_of_size(
  matches: Matches,
  counts: np.ndarray,
  size: int,
  *,
  limits: Callable[[float], Sequence[float]],
  each: Callable[[Sequence[float]], Threshold],
  highest: float,
) -> list[float]:
  """Returns the limit of each list at which `size` pairs stay on average.

  Args:
    matches: of all pairs.
    counts: pairs of each query.
    size: pairs that stay.
    limits: of each list, where that of the first is given; none may be higher
      at a lower one. Those of the others may move in steps: where the size is
      passed at such a step, all are a part of the way between its two ends.
    each: makes thresholds of limits.
    highest: a limit of the first list at which all stay.

  Raises:
    UserError: fewer pairs match a query, or more stay at any limit.
  """
  matched = int(np.count_nonzero(np.diff(matches.starts)))
  if size > matched:
    raise errors.UserError(
      f"{terminal.counted(size, 'pair is', 'pairs are')} asked for, but only "
      f"{terminal.counted(matched, 'matches', 'match')} a query; ask for "
      "fewer, or add data or queries."
    )

  def stay(found: Sequence[float]) -> float:
    return expected_size(matches, counts, each(found))

  low, high = _narrowed(lambda x: stay(limits(x)) < size, 0.0, highest)
  found = [*limits(high)]
  if stay(found) <= size * (1 + _PRECISE):
    return found
  if not low:
    raise errors.UserError(
      f"{terminal.counted(size, 'pair is', 'pairs are')} asked for, but at any "
      "limit of the first language the others keep some "
      f"{stay(found):.0f}, as their rarest queries lose nothing; ask for more, "
      "or give each language as many queries."
    )
  before = np.array(limits(low))
  way = np.array(found) - before
  _, part = _narrowed(
    lambda x: stay((before + x * way).tolist()) < size, 0.0, 1.0
  )
  return (before + part * way).tolist()


def _narrowed(
  is_low: Callable[[float], bool], low: float, high: float
) -> tuple[float, float]:
  """Returns two numbers between which `is_low` ends to hold, by halving."""
  for _ in range(60):
    middle = (low + high) / 2
    if is_low(middle):
      low = middle
    else:
      high = middle
  return low, high


def entropy(counts: np.ndarray) -> float:
  """Returns the entropy of queries, in bits; 0 where nothing matches."""
  total = counts.sum()
  if not total:
    return 0.0
  share = counts[counts > 0] / total
  return float((share * np.log2(1 / share)).sum())
