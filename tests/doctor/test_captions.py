"""Data that teach nothing are told before they cost anything."""

import numpy as np
import pytest

from clip_jax import tokenizer as tokenizer_lib
from clip_jax.data import record as record_lib
from clip_jax.doctor import captions, finding


class _Source:
  """Records whose captions and images are given."""

  def __init__(self, texts, images=None):
    self._texts = texts
    self._images = images or [b"%d" % i for i in range(len(texts))]

  def __len__(self):
    return len(self._texts)

  def __getitem__(self, slot):
    if self._texts[slot] is None:
      raise record_lib.BadRecord("missing_caption", str(slot))
    return record_lib.Record(
      self._images[slot], (self._texts[slot],), str(slot)
    )


@pytest.fixture(scope="module")
def tokenizer():
  return tokenizer_lib.make_tokenizer(context_length=8)


def _check(tokenizer, *args):
  found = captions.check(_Source(*args), tokenizer)
  return {one.check: one for one in found}


def test_distinct_captions_are_fine(tokenizer):
  found = _check(tokenizer, [f"photo {i}" for i in range(30)])
  assert finding.worst(found.values()) == finding.OK
  assert found["duplicate captions"].facts["distinct"] == 30


def test_repeated_captions_are_told_with_the_commonest(tokenizer):
  texts = ["A  dog", "a dog", *(f"photo {i}" for i in range(8))]
  found = _check(tokenizer, texts)["duplicate captions"]
  assert found.verdict == finding.WARNING
  assert found.facts["repeated_fraction"] == pytest.approx(0.2)
  assert found.facts["most_common"] == [{"text": "a dog", "times": 2}]
  assert "loss.duplicates" in found.message


def test_one_caption_for_all_is_a_problem(tokenizer):
  found = _check(tokenizer, ["image"] * 9)["duplicate captions"]
  assert found.verdict == finding.PROBLEM


def test_repeated_images_are_told(tokenizer):
  texts = [f"photo {i}" for i in range(4)]
  found = _check(tokenizer, texts, [b"a", b"a", b"b", b"c"])
  assert found["duplicate images"].verdict == finding.WARNING
  assert found["duplicate captions"].verdict == finding.OK


def test_long_and_empty_captions_are_told(tokenizer):
  long = [" ".join(f"word{i}" for i in range(9))]
  found = _check(tokenizer, [*long, "one", "two"])["caption lengths"]
  assert found.verdict == finding.WARNING and "cut" in found.message
  assert found.facts["cut_fraction"] == pytest.approx(1 / 3)
  found = _check(tokenizer, ["", "one"])["caption lengths"]
  assert found.verdict == finding.WARNING and "empty" in found.message


def test_records_that_cannot_be_read_are_a_problem(tokenizer):
  (found,) = captions.check(_Source([None, None]), tokenizer)
  assert found.verdict == finding.PROBLEM
  found = _check(tokenizer, [None, "one", "two"])
  assert found["duplicate captions"].facts["sampled"] == 2


def test_a_large_source_is_sampled_evenly(tokenizer):
  texts = [f"photo {i}" for i in range(captions.SAMPLED_RECORDS * 3)]
  found = _check(tokenizer, texts)["duplicate captions"]
  assert found.facts["sampled"] == captions.SAMPLED_RECORDS
  assert np.isclose(found.facts["distinct"], captions.SAMPLED_RECORDS)
