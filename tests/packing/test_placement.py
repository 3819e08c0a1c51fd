"""Captions in shared rows: every one once, whole, and beside no other."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_jax.packing import placement

START, END = 98, 99


def captions_of(rng, captions, context, longest=None):
  """Returns tokens, with one end-of-text each, and their lengths."""
  lengths = rng.integers(1, (longest or context) + 1, captions)
  tokens = rng.integers(1, START, (captions, context)).astype(np.int32)
  for row, length in zip(tokens, lengths, strict=True):
    row[length - 1 :] = 0
    row[length - 1] = END
  return tokens, lengths


@st.composite
def _batches(draw):
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  groups = draw(st.integers(1, 4))
  captions = groups * draw(st.integers(1, 40))
  context = draw(st.integers(1, 30))
  longest = draw(st.integers(1, context))
  tokens, lengths = captions_of(rng, captions, context, longest)
  length = context + draw(st.integers(0, 40))
  return tokens, lengths, groups, length, draw(st.integers(0, 3))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(_batches())
def test_every_caption_lies_whole_in_one_segment_of_its_group(batch):
  tokens, lengths, groups, length, spare = batch
  placed = placement.place(lengths, groups=groups, length=length)
  rows = placed.rows + spare
  packed = placed.pack(tokens, rows=rows)
  shape = (groups * rows, length)
  for name in ("tokens", "segments", "positions"):
    assert packed[name].shape == shape
    assert packed[name].dtype == np.int32
  assert packed["ends"].shape == lengths.shape
  per_group = len(lengths) // groups
  found = set()
  for caption, end in enumerate(packed["ends"]):
    # An end counts within its group's rows.
    first = caption // per_group * rows
    row, last = divmod(int(end), length)
    row += first
    assert first <= row < first + rows
    segment = packed["segments"][row, last]
    mine = np.flatnonzero(packed["segments"][row] == segment)
    # In one piece, in its order, and read at the end-of-text token.
    want = tokens[caption, : lengths[caption]]
    np.testing.assert_array_equal(packed["tokens"][row, mine], want)
    np.testing.assert_array_equal(mine, mine[0] + np.arange(len(want)))
    np.testing.assert_array_equal(
      packed["positions"][row, mine], np.arange(len(want))
    )
    assert mine[-1] == last
    assert packed["tokens"][row, last] == END
    assert segment > 0
    found.add((row, segment))
  assert len(found) == len(lengths)
  # Nothing else is there.
  assert (packed["segments"] > 0).sum() == lengths.sum()
  padding = packed["segments"] == 0
  assert not packed["tokens"][padding].any()
  assert not packed["positions"][padding].any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
  st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(20, 45)
)
def test_rows_are_those_of_first_fit_decreasing(lengths, length):
  rooms = []  # By hand: each caption, longest first, in the first row it fits.
  for size in sorted(lengths, reverse=True):
    fits = [i for i, room in enumerate(rooms) if room >= size]
    if not fits:
      rooms.append(length)
    rooms[fits[0] if fits else -1] -= size
  lengths = np.array(lengths)
  assert placement.rows_needed(lengths, length) == len(rooms)
  placed = placement.place(lengths, groups=1, length=length)
  assert placed.rows == len(rooms)
  filled = np.bincount(placed.row, lengths, minlength=len(rooms))
  assert sorted(length - filled) == sorted(rooms)


def test_too_few_rows_are_refused():
  tokens, lengths = captions_of(np.random.default_rng(0), 12, 9)
  placed = placement.place(lengths, groups=2, length=9)
  with pytest.raises(ValueError, match="do not fit"):
    placed.pack(tokens, rows=placed.rows - 1)


def _short_captions(rng, captions):
  return np.clip(rng.lognormal(2.3, 0.42, captions).astype(int) + 2, 3, 77)


@pytest.mark.parametrize(
  ("captions", "groups"), [(16, 1), (64, 32), (512, 8), (4096, 1)]
)
def test_the_first_rung_suffices_but_for_rare_batches(captions, groups):
  rng = np.random.default_rng(5)
  overflows, batches = 0, 40
  sample = _short_captions(rng, 512)
  rungs = placement.ladder(sample, captions=captions, groups=groups, length=80)
  for _ in range(batches):
    lengths = _short_captions(rng, captions * groups)
    placed = placement.place(lengths, groups=groups, length=80)
    overflows += placed.rows > rungs[0]
  assert overflows <= 1  # Of 40 batches; one in a thousand is expected.
  assert list(rungs) == sorted(set(rungs))
  assert rungs[-1] == captions
  # Not for want of thrift: the mean caption fills a quarter of a row or less.
  assert rungs[0] <= math.ceil(0.27 * captions)


@pytest.mark.parametrize(
  "draw",
  [
    lambda rng, captions: rng.integers(38, 45, captions),
    lambda rng, captions: rng.choice([41, 12], captions),
    lambda rng, captions: rng.integers(3, 78, captions),
  ],
  ids=["half a row", "half a row or short", "any"],
)
@pytest.mark.parametrize(("captions", "groups"), [(32, 8), (512, 8)])
def test_it_suffices_for_lengths_that_pack_badly(draw, captions, groups):
  rng = np.random.default_rng(6)
  sample = draw(rng, 512)
  rungs = placement.ladder(sample, captions=captions, groups=groups, length=80)
  needs = [
    placement.rows_needed(draw(rng, captions), 80) for _ in range(50 * groups)
  ]
  fullest = np.reshape(needs, (50, groups)).max(axis=1)
  assert (fullest > rungs[0]).sum() <= 1


def test_long_captions_have_a_row_each():
  rungs = placement.ladder(np.full(9, 77), captions=6, groups=2, length=80)
  assert rungs == (6,)


def test_the_ladder_is_a_function_of_its_arguments():
  sample = _short_captions(np.random.default_rng(1), 50)
  first, second = (
    placement.ladder(sample, captions=30, groups=3, length=80) for _ in range(2)
  )
  assert first == second
