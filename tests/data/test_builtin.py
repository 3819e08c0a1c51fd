"""The built-in digits: what they promise to be."""

import hashlib
import importlib.resources
import io
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from clip_jax import tokenizer
from clip_jax.data import builtin, sources


def _pixels(record):
  with Image.open(io.BytesIO(record.image)) as image:
    return np.asarray(image)


def _scans(record):
  return {int(part[4:]) for part in record.key.split("_") if part[0] == "s"}


def test_the_scans_are_those_of_the_published_file():
  # Made of scikit-learn's copy of the file: uint8 pixels, then uint8 digits.
  path = importlib.resources.files("clip_jax") / "assets" / builtin.SCANS_FILE
  with path.open("rb") as file, np.load(file) as arrays:
    images, digits = arrays["images"], arrays["digits"]
  assert images.shape == (1797, 8, 8)
  assert np.bincount(digits).tolist() == [
    178, 182, 177, 183, 181, 182, 181, 179, 174, 180
  ]  # fmt: skip
  digest = hashlib.sha256(images.tobytes() + digits.tobytes()).hexdigest()
  assert digest == (
    "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
  )


@pytest.mark.parametrize("split", ["train", "test"])
def test_digits_are_the_scans_with_their_labels(split):
  scans, digits = builtin.scans()
  source = sources.open_source(f"builtin:digits/{split}")
  assert source.class_names == builtin.WORDS
  for index in range(0, len(source), 37):
    record = source[index]
    (scan,) = _scans(record)
    assert record.label == digits[scan]
    assert all(builtin.WORDS[record.label] in text for text in record.texts)
    pixels = _pixels(record)
    assert pixels.shape == (32, 32)
    # Enlarging smooths: made small again, it is still closest to its scan.
    small = pixels.reshape(8, 4, 8, 4).mean((1, 3))
    distances = np.abs(small - scans).mean((1, 2))
    assert np.argmin(distances) == scan


def test_digits_splits_are_disjoint_and_stratified():
  train, test = (builtin.scan_ids(split) for split in ("train", "test"))
  everything = np.concatenate([*train, *test])
  assert sorted(everything) == list(range(1797))
  for own, others in zip(train, test, strict=True):
    assert abs(len(own) - 4 * len(others)) <= 4
  assert len(sources.open_source("builtin:digits/train")) == 1433
  assert len(sources.open_source("builtin:digits/test")) == 364


@pytest.mark.parametrize("name", ["digits", "two_digits"])
def test_evaluation_prompts_are_other_captions_of_the_same_words(name):
  train = sources.open_source(f"builtin:{name}/train")
  seen = {text for index in range(100) for text in train[index].texts}
  prompts = {
    template.format(label)
    for template in train.templates
    for label in train.class_names
  }
  assert len(train[0].texts) > 1
  assert not seen & prompts
  # A word that is never trained has an embedding by chance, and moves a class
  # by it: a run lost ten points of accuracy so.
  assert _words(train.templates) <= _words(train[0].texts)


def _words(texts):
  return {word for text in texts for word in re.findall(r"[a-z]+", text)}


def test_twenty_numbers_are_unseen_and_every_digit_is_seen_in_both_places():
  unseen = set(builtin.UNSEEN_NUMBERS)
  assert len(unseen) == 20
  seen = set(range(100)) - unseen
  for digit in range(10):
    assert sum(number // 10 == digit for number in seen) == 8
    assert sum(number % 10 == digit for number in seen) == 8


@pytest.mark.parametrize(
  ("split", "length", "numbers"),
  [("train", 20_000, 80), ("test", 2_000, 80), ("unseen", 1_000, 20)],
)
def test_two_digits_show_their_numbers_only(split, length, numbers):
  source = sources.open_source(f"builtin:two_digits/{split}")
  assert len(source) == length
  assert source.class_names[37] == "three seven"
  own_scans = builtin.scan_ids("train" if split == "train" else "test")
  labels = set()
  # All numbers turn up in the first hundred; scans everywhere.
  for index in [*range(100), *range(100, length, 61)]:
    record = source[index]
    labels.add(record.label)
    assert all(source.class_names[record.label] in t for t in record.texts)
    parts = record.key.split("_")
    assert parts[0] == f"{index:05d}"
    for part, digit in zip(parts[1:], divmod(record.label, 10), strict=True):
      assert int(part[4:]) in own_scans[digit]
  assert len(labels) == numbers
  assert labels.isdisjoint(builtin.UNSEEN_NUMBERS) == (split != "unseen")


def test_two_digits_lie_side_by_side_in_their_order():
  source = sources.open_source("builtin:two_digits/train")
  record = source[123]
  left, right = (
    builtin._enlarged(int(part[4:]), 16) for part in record.key.split("_")[1:]
  )
  pixels = _pixels(record)
  assert pixels.shape == (32, 32)

  def is_in(half, scan):
    return any(np.array_equal(half[y : y + 16], scan) for y in range(17))

  assert is_in(pixels[:, :16], left)
  assert is_in(pixels[:, 16:], right)
  assert not is_in(pixels[:, :16], right)


def test_sixteen_tints_are_unseen_and_every_colour_and_digit_is_seen():
  unseen = set(builtin.UNSEEN_PAIRS)
  assert len(unseen) == 16
  seen = [divmod(pair, 10) for pair in range(80) if pair not in unseen]
  colours, digits = (np.bincount(x) for x in zip(*seen, strict=True))
  assert colours.tolist() == [8] * 8
  assert set(digits.tolist()) == {6, 7}


@pytest.mark.parametrize(
  ("split", "length", "pairs"),
  [("train", 20_000, 64), ("test", 800, 80), ("unseen", 400, 16)],
)
def test_tinted_digits_show_what_their_captions_say(split, length, pairs):
  source = sources.open_source(f"builtin:tinted_digits/{split}")
  assert len(source) == length
  assert source.class_names[37] == "yellow seven"
  own_scans = builtin.scan_ids("train" if split == "train" else "test")
  labels, places, others = set(), set(), set()
  for index in [*range(100), *range(100, length, 61)]:
    record = source[index]
    labels.add(record.label)
    colour, digit = source.class_names[record.label].split()
    words = record.texts[0].split()
    rest = set(words) - {colour, digit}
    assert len(rest) == len(words) - 2
    assert 2 <= len(rest) <= 6
    others |= rest
    places.add((words.index(colour), words.index(digit)))
    assert int(record.key.partition("_scan")[2]) in own_scans[record.label % 10]
    pixels = _pixels(record)
    brightest = pixels.reshape(-1, 3)[pixels.sum(axis=2).argmax()]
    tint = np.array(builtin.COLOURS[colour])
    np.testing.assert_allclose(
      brightest / brightest.sum(), tint / tint.sum(), atol=0.02
    )
  assert len(labels) == pairs
  assert labels.isdisjoint(builtin.UNSEEN_PAIRS) == (split == "train")
  assert others <= set(builtin.DISTRACTORS)
  assert len(places) > 20  # Neither word has a place of its own.


def test_distractors_are_words_of_one_token_that_name_nothing_shown():
  words = {*builtin.COLOURS, *builtin.WORDS}
  assert words.isdisjoint(builtin.DISTRACTORS)
  assert len(set(builtin.DISTRACTORS)) == len(builtin.DISTRACTORS)
  ids = tokenizer.make_tokenizer()([*words, *builtin.DISTRACTORS])
  assert (ids.argmax(axis=1) == 2).all()  # Start, the word, end.


def test_records_do_not_depend_on_what_was_read_before():
  first = sources.open_source("builtin:two_digits/unseen")
  second = pickle.loads(pickle.dumps(first))
  records = [first[i] for i in range(9)]
  assert [second[i] for i in reversed(range(9))] == records[::-1]
  assert first.fingerprint == second.fingerprint
  assert len({record.image for record in records}) == 9


@pytest.mark.parametrize("name", builtin.SPLITS)
def test_there_is_no_record_behind_the_last_one(name):
  source = sources.open_source(f"builtin:{name}/test")
  for index in (-1, len(source)):  # Else a loop over it would never end.
    with pytest.raises(IndexError):
      source[index]


def test_fingerprints_tell_the_sets_apart():
  fingerprints = {
    sources.open_source(f"builtin:{name}/{split}").fingerprint
    for name, splits in builtin.SPLITS.items()
    for split in splits
  }
  assert len(fingerprints) == 8
  # A run resumes only on data with the fingerprint that it began with.
  assert (
    "e7d25573f4e578c500660e5daebac799a2a3d6313359874439bb5160fa64b59e"
    in fingerprints
  )


def test_heavy_packages_are_imported_only_when_needed():
  code = (
    "import sys; from clip_jax.data import pipeline, prepare, sources;"
    "assert not {'tensorflow_datasets', 'tensorflow', 'flax'}"
    " & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
