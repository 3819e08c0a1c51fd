"""Data that teach nothing are told before they cost anything."""

import io

import numpy as np
import pytest
from PIL import Image

from clip_jax import preprocess as preprocess_lib
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.data import record as record_lib
from clip_jax.doctor import caption_checks, finding, sampling
from clip_jax.models import variants


def _png(shade):
  file = io.BytesIO()
  Image.new("L", (4, 3), shade).save(file, "png")
  return file.getvalue()


class _Source:
  """Records whose captions and images are given."""

  def __init__(self, texts, images=None):
    self._texts = texts
    self._images = images or [_png(i % 250) for i in range(len(texts))]

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


@pytest.fixture(scope="module")
def preprocess():
  return preprocess_lib.Preprocess.from_spec(variants.spec("tiny-vit", {}))


@pytest.fixture
def check(tokenizer, preprocess):
  def run(*args, **options):
    sample = sampling.read(_Source(*args), preprocess)
    found = caption_checks.check(sample, tokenizer, **options)
    return {one.check: one for one in found}

  return run


def test_distinct_captions_are_fine(check):
  found = check([f"photo {i}" for i in range(30)])
  assert finding.worst(found.values()) == finding.OK
  assert found["duplicate captions"].facts["distinct"] == 30


def test_repeated_captions_are_told_with_the_commonest(check):
  texts = ["A  dog", "a dog", *(f"photo {i}" for i in range(8))]
  found = check(texts)["duplicate captions"]
  assert found.verdict == finding.WARNING
  assert found.facts["repeated_fraction"] == pytest.approx(0.2)
  assert found.facts["most_common"] == [{"text": "a dog", "times": 2}]
  assert "loss.duplicates" in found.message


@pytest.mark.parametrize("duplicates", ["mask", "positive"])
def test_repeated_captions_that_the_loss_knows_of_are_fine(check, duplicates):
  texts = ["a dog", "a dog", *(f"photo {i}" for i in range(8))]
  found = check(texts, duplicates=duplicates)["duplicate captions"]
  assert found.verdict == finding.OK
  assert "20.0%" in found.message
  assert f"loss.duplicates={duplicates}" in found.message


def test_repeated_captions_are_no_matter_where_pairs_are_not_compared(check):
  texts = ["a dog", "a dog", *(f"photo {i}" for i in range(8))]
  found = check(texts, contrastive=False)["duplicate captions"]
  assert found.verdict == finding.OK
  assert found.message == "20.0% of 10 captions come more than once."


@pytest.mark.parametrize("count", [1, 9])
def test_one_caption_for_all_is_a_problem(check, count):
  found = check(["image"] * count)["duplicate captions"]
  assert found.verdict == finding.PROBLEM


def test_repeated_images_are_told(check):
  texts = [f"photo {i}" for i in range(4)]
  found = check(texts, [_png(shade) for shade in (0, 0, 1, 2)])
  assert found["duplicate images"].verdict == finding.WARNING
  assert found["duplicate captions"].verdict == finding.OK


def test_long_and_empty_captions_are_told(check):
  long = [" ".join(f"word{i}" for i in range(9))]
  found = check([*long, "one", "two"])["caption lengths"]
  assert found.verdict == finding.WARNING and "cut" in found.message
  assert found.facts["cut_fraction"] == pytest.approx(1 / 3)
  found = check(["", "one"])["caption lengths"]
  assert found.verdict == finding.WARNING and "empty" in found.message
  found = check(["", *long])["caption lengths"]
  assert "1 of 2 sampled captions are empty" in found.message
  assert "50% of the captions are longer than the 8 tokens" in found.message


def test_bad_records_are_held_against_what_a_run_lets_pass(preprocess):
  texts = [f"photo {i}" for i in range(10)]
  images = [_png(i) for i in range(10)]
  fine = sampling.read(_Source(texts, images), preprocess)
  assert sampling.check(fine, max_bad_fraction=0.0).verdict == finding.OK
  texts[3], images[7] = None, images[7][:40]
  sample = sampling.read(_Source(texts, images), preprocess)
  # A tenth is missing; of nine images, one is broken.
  assert sample.bad_fraction == pytest.approx(0.2)
  found = sampling.check(sample, max_bad_fraction=0.3)
  assert found.verdict == finding.WARNING and found.facts["bad"] == 2
  assert "1 missing_caption" in found.message and "first 3, 7" in found.message
  found = sampling.check(sample, max_bad_fraction=0.1)
  assert found.verdict == finding.PROBLEM and "10.00%" in found.message


def test_nothing_is_said_of_captions_that_cannot_be_read(check, preprocess):
  assert check([None, None]) == {}
  sample = sampling.read(_Source([None, None]), preprocess)
  found = sampling.check(sample, max_bad_fraction=0.5)
  assert found.verdict == finding.PROBLEM


def test_a_large_source_is_sampled_evenly(check, preprocess):
  texts = [f"photo {i}" for i in range(sampling.MOST_READ * 3)]
  found = check(texts)["duplicate captions"]
  assert found.facts["sampled"] == sampling.MOST_READ
  assert np.isclose(found.facts["distinct"], sampling.MOST_READ)
  sample = sampling.read(_Source(texts), preprocess)
  assert sample.decoded == sampling.MOST_DECODED
