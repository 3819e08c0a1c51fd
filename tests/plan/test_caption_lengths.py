import numpy as np
import pytest

from clip_jax.packing import placement
from clip_jax.plan import caption_lengths


@pytest.mark.parametrize("mean", [4, 12, 40, 70])
def test_lengths_have_the_mean_within_the_context(mean):
  lengths = caption_lengths.sample_lengths(mean, number=512, context=77)
  # Whole tokens: the mean moves in steps as the spread is scaled.
  assert lengths.mean() == pytest.approx(mean, abs=0.1)
  assert 3 <= lengths.min() < mean < lengths.max() <= 77
  again = caption_lengths.sample_lengths(mean, number=512, context=77)
  np.testing.assert_array_equal(lengths, again)


@pytest.mark.parametrize("mean", [1, 3, 77, 1000])
def test_means_that_leave_no_room_are_those_of_every_caption(mean):
  lengths = caption_lengths.sample_lengths(mean, number=5, context=77)
  assert set(lengths) == {min(mean, 77)}


def test_lengths_at_the_mean_of_cc3m_have_its_deviation():
  lengths = caption_lengths.sample_lengths(12, number=4096, context=77)
  # 4.5 words at 10.3; a little less at 10.
  assert lengths.std() == pytest.approx(4.5 * 10 / 10.3, abs=0.1)


def test_rows_are_planned_for_the_fullest_group():
  rows = {"captions": 128, "groups": 256, "length": 80}
  spread = caption_lengths.sample_lengths(12, number=512, context=77)
  equal, real = (
    placement.row_buckets(lengths, **rows)[0]
    for lengths in (np.full(512, 12), spread)
  )
  assert equal < real
