"""Captions side by side in rows of tokens, so that little of them is padding.

Captions are short and rows are not: at the lengths of CC3M's captions (12.3
tokens in the mean, of 77) one caption a row is 84 % padding. The captions of a
group (what one device computes at once) are placed by first-fit decreasing:
longest first, each into the first row with room for it. With 16, 128 and 512
captions rows of 80 tokens are then 82, 97 and 98 % full, less than a row from
the fewest rows that could hold them; better searches have nothing to win. What
is lost beside it is the price of static shapes (see `ladder`): the rows that a
batch is given are 62, 79 and 90 % full. 4,096 captions take 3 ms in one group
and 20 ms in 32.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterator

import numpy as np

# A batch in a thousand needs more rows than the first rung of the ladder has.
OVERFLOW_PROBABILITY = 1e-3
# From rung to rung: every one that is used is a compilation.
_RUNG_RATIO = 1.5
_SIMULATED_GROUPS = 64
# Rows of whole sublanes, of which a TPU has eight: by its compiler, 80 tokens
# take 0.93 of the time of 77. Longer rows cost attention, and small groups fill
# them worse: ViT-B/32's text tower with 32 captions takes 131, 153, 155, 193
# GFLOP a step in rows of 80, 128, 160, 256. With 512 captions they are within
# 12 %, and 128 leads by 7 % in the time that v5e's compiler gives.
_ROW_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where the captions of some groups lie.

  Attributes:
    lengths: (captions,), the tokens of each.
    row: (captions,), within its group.
    start: (captions,), where in its row.
    segment: (captions,), which caption of its row, from 1.
    groups: that share the captions equally, in their order.
    length: of a row.
    rows: that the fullest group takes.
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
      tokens: (captions, context), of which the leading `lengths` are taken.
      rows: of every group.

    Raises:
      ValueError: a group takes more rows.
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
  """Returns how long packed rows are, for captions of `context_length`."""
  return -(-context_length // _ROW_MULTIPLE) * _ROW_MULTIPLE


def place(lengths: np.ndarray, *, groups: int, length: int) -> Placement:
  """Places captions into rows, group by group.

  Args:
    lengths: (captions,), tokens of each: 1 to `length`.
    groups: equal parts of the captions, in their order.
    length: of a row.
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
  # Where the captions of each size begin in `order`, longest first.
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
  """Yields rows as (size, number) of captions, and how often they repeat.

  First-fit decreasing, row by row: a row takes the longest caption left that
  fits, until none does. Equal rows are found at once.

  Args:
    counts: how many captions there are of each size, by size.
    length: of a row.
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
        longest = size  # No longer one is left for any later row.
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
  """Returns how many rows of `length` one group's captions take."""
  counts = np.bincount(lengths, minlength=length + 1).tolist()
  return sum(repeats for _, repeats in _patterns(counts, length))


def ladder(
  sample: np.ndarray, *, captions: int, groups: int, length: int
) -> tuple[int, ...]:
  """Returns the numbers of rows that a group may have, ascending.

  The first suffices for all groups of a batch but once in a thousand batches,
  as far as the sample tells: it is the mean need plus as many deviations as
  the number of groups asks for. A batch that needs more takes a later one, at
  the latest that of one caption a row, which always suffices.

  Args:
    sample: lengths of some captions of the data, at least one.
    captions: in a group.
    groups: in a batch; the fullest decides.
    length: of a row.
  """
  rng = np.random.default_rng(0)  # Every process finds the same rows.
  # Drawn anew for each, the sample shows how uncertain it is itself.
  needs = [
    rows_needed(rng.choice(rng.choice(sample, len(sample)), captions), length)
    for _ in range(_SIMULATED_GROUPS)
  ]
  # Rows may need more than tokens do: of captions of half a row, the longer
  # ones find no partner.
  variance = sample.var() * captions * (1 + captions / len(sample))
  deviation = max(np.std(needs), math.sqrt(variance) / length)
  tail = statistics.NormalDist().inv_cdf(1 - OVERFLOW_PROBABILITY / groups)
  first = np.mean(needs) + tail * deviation
  rungs = [min(math.ceil(first), captions)]
  while rungs[-1] < captions:
    rungs.append(min(math.ceil(rungs[-1] * _RUNG_RATIO), captions))
  return tuple(rungs)
