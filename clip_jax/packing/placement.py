"""Places captions in rows of tokens, so that little of a row is padding.

Captions are much shorter than rows: with CC3M's captions (12.3 tokens in the
mean, of 77) and one caption in each row, 84 % is padding. The captions of a
group (those that one device computes at once) are placed by first-fit
decreasing: longest first, each into the first row with room for it. With 16,
128 and 512 captions, rows of 80 tokens are then 82, 97 and 98 % full, within
one row of the smallest possible number, so a better search would gain nothing.
Static shapes cost more (see `row_buckets`): the rows that a batch is given are
62, 79 and 90 % full. Placing 4,096 captions takes 3 ms in one group and 20 ms
in 32.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterator

import numpy as np

# Share of the batches that need more rows than the first bucket has.
OVERFLOW_PROBABILITY = 1e-3
# Size of a bucket over the one before. Every bucket in use is compiled.
_BUCKET_RATIO = 1.5
_SIMULATED_GROUPS = 64
# Row lengths are multiples of a TPU's eight sublanes: by its compiler, 80
# tokens take 0.93 of the time of 77. Longer rows need more attention, and small
# groups fill them less: ViT-B/32's text tower with 32 captions takes 131, 153,
# 155 and 193 GFLOP a step in rows of 80, 128, 160 and 256. With 512 captions
# they are within 12 %, and 128 leads by 7 % in the time of v5e's compiler.
_ROW_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class Placement:
  """The row and position of each caption, for one or several groups.

  Attributes:
    lengths: (captions,), number of tokens of each caption.
    row: (captions,), its row, counted within its group.
    start: (captions,), position of its first token in the row.
    segment: (captions,), its number in the row, from 1.
    groups: number of groups, which share the captions equally, in order.
    length: tokens in a row.
    rows: rows needed by the group that needs most.
  """

  lengths: np.ndarray
  row: np.ndarray
  start: np.ndarray
  segment: np.ndarray
  groups: int
  length: int
  rows: int

  def pack(self, tokens: np.ndarray, *, rows: int) -> dict[str, np.ndarray]:
    """Returns the fields of `clip_jax.packing.packed_text.PackedText`, int32.

    Args:
      tokens: (captions, context); the first `lengths` tokens of each are used.
      rows: number of rows of every group.

    Raises:
      ValueError: a group needs more rows.
    """
    if rows < self.rows:
      raise ValueError(f"{self.rows} rows do not fit into rows={rows}.")
    lengths = self.lengths
    captions = len(lengths)
    group = np.arange(captions) // (captions // self.groups)
    at = self.row * self.length + self.start  # Within the group.
    # Position by position, caption after caption.
    position = np.arange(lengths.sum())
    position -= np.repeat(np.cumsum(lengths) - lengths, lengths)
    first = group * (rows * self.length) + at
    index = np.repeat(first, lengths) + position
    used = np.arange(tokens.shape[1]) < lengths[:, None]

    def spread(values):
      flat = np.zeros(self.groups * rows * self.length, np.int32)
      flat[index] = values
      return flat.reshape(-1, self.length)

    return {
      "tokens": spread(tokens[used]),
      "segments": spread(np.repeat(self.segment, lengths)),
      "positions": spread(position),
      "ends": (at + lengths - 1).astype(np.int32),
    }


def row_length(context_length: int) -> int:
  """Returns the length of packed rows for captions of `context_length`."""
  return -(-context_length // _ROW_MULTIPLE) * _ROW_MULTIPLE


def place(lengths: np.ndarray, *, groups: int, length: int) -> Placement:
  """Places captions into rows, group by group.

  Args:
    lengths: (captions,), tokens of each caption: 1 to `length`.
    groups: number of equal parts into which the captions are cut, in order.
    length: tokens in a row.
  """
  lengths = np.asarray(lengths, np.int64)
  assert not len(lengths) % groups, "Groups hold equally many captions."
  assert lengths.min(initial=1) > 0, "A caption has a token at least."
  assert lengths.max(initial=1) <= length, "A caption fits into a row."
  parts = [_place_group(part, length) for part in np.split(lengths, groups)]
  row, start, segment = np.concatenate(parts, axis=1)
  return Placement(
    lengths=lengths,
    row=row,
    start=start,
    segment=segment,
    groups=groups,
    length=length,
    rows=int(row.max(initial=-1)) + 1,
  )


def _place_group(lengths: np.ndarray, length: int) -> np.ndarray:
  """Returns row, start and segment (3, captions) of one group's captions."""
  placed = np.empty((3, len(lengths)), np.int64)
  order = np.argsort(-lengths, kind="stable")
  counts = np.bincount(lengths, minlength=length + 1)
  # Where in `order` the captions of each size begin, longest first.
  after = counts[::-1].cumsum()[::-1] - counts
  row = 0
  for pattern, repeats in _patterns(counts.tolist(), length):
    start, segment = 0, 1
    for size, number in pattern:
      first = after[size]
      after[size] += repeats * number
      chosen = order[first : after[size]].reshape(repeats, number)
      each = np.arange(number)
      placed[0, chosen] = row + np.arange(repeats)[:, None]
      placed[1, chosen] = start + size * each
      placed[2, chosen] = segment + each
      start += size * number
      segment += number
    row += repeats
  return placed


def _patterns(
  counts: list[int], length: int
) -> Iterator[tuple[list[tuple[int, int]], int]]:
  """Yields rows, each as a list of (size, number) of its captions.

  With each comes how often it repeats. This is first-fit decreasing, row by
  row: a row takes the longest remaining caption that fits, until none does.

  Args:
    counts: number of captions of each size, indexed by size.
    length: tokens in a row.
  """
  left = sum(counts)
  longest = length
  while left:
    pattern, room, size = [], length, longest
    while room:
      size = min(size, room)
      while size and not counts[size]:
        size -= 1
      if not size:
        break
      if not pattern:
        longest = size  # No longer caption is left for later rows.
      number = min(counts[size], room // size)
      pattern.append((size, number))
      room -= number * size
      size -= 1
    repeats = min(counts[size] // number for size, number in pattern)
    for size, number in pattern:
      counts[size] -= repeats * number
      left -= repeats * number
    yield pattern, repeats


def rows_needed(lengths: np.ndarray, length: int) -> int:
  """Returns the number of rows of `length` that a group's captions need."""
  counts = np.bincount(lengths, minlength=length + 1).tolist()
  return sum(repeats for _, repeats in _patterns(counts, length))


def row_buckets(
  sample: np.ndarray, *, captions: int, groups: int, length: int
) -> tuple[int, ...]:
  """Returns the numbers of rows that a group may be padded to, ascending.

  The first is estimated to suffice for all groups of a batch except once in a
  thousand batches: it is the mean of the needed rows plus as many standard
  deviations as the number of groups requires. A batch that needs more takes a
  later one; the last has one row for each caption, which always suffices.

  Args:
    sample: lengths of some captions of the data, at least one.
    captions: number of captions in a group.
    groups: number of groups in a batch; the one that needs most rows decides.
    length: tokens in a row.
  """
  rng = np.random.default_rng(0)  # The same on every process.
  # A bootstrap: resampling the sample accounts for its own uncertainty.
  needs = [
    rows_needed(rng.choice(rng.choice(sample, len(sample)), captions), length)
    for _ in range(_SIMULATED_GROUPS)
  ]
  # The number of rows may vary more than that of tokens: if captions take about
  # half a row, those that are longer than half need a row of their own.
  variance = sample.var() * captions * (1 + captions / len(sample))
  deviation = max(np.std(needs), math.sqrt(variance) / length)
  tail = statistics.NormalDist().inv_cdf(1 - OVERFLOW_PROBABILITY / groups)
  first = np.mean(needs) + tail * deviation
  buckets = [min(math.ceil(first), captions)]
  while buckets[-1] < captions:
    buckets.append(min(math.ceil(buckets[-1] * _BUCKET_RATIO), captions))
  return tuple(buckets)
