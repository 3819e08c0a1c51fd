"""Corruptions, intervals and baselines beside slow ways to compute them."""

import collections
import dataclasses
import io
import math

import numpy as np
import pytest
from PIL import Image

import colours
import memory_source
from clip_jax import errors, preprocess
from clip_jax.data import sources
from clip_jax.evals import corruptions, reading, robustness, shifts


def picture(height=20, width=30):
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 256, (4, 5, 3), np.uint8)
  return Image.fromarray(coarse).resize((width, height))


def corrupt(image, name, severity, *, seed=0, key="a"):
  return corruptions.corrupt(image, name, severity, seed=seed, key=key)


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_a_corruption_grows_and_depends_on_seed_and_key_alone(name):
  pixels = np.random.default_rng(0).integers(0, 256, (110, 120, 3), np.uint8)
  image = Image.fromarray(pixels)
  clean, distances = np.asarray(image, float), []
  for severity in corruptions.SEVERITIES:
    first = np.asarray(corrupt(image, name, severity))
    assert first.shape == clean.shape and first.dtype == np.uint8
    again = np.asarray(corrupt(image.copy(), name, severity))
    np.testing.assert_array_equal(first, again)
    distances.append(np.abs(first - clean).mean())
  assert distances == sorted(distances) and distances[0] > 0
  others = [
    np.asarray(corrupt(image, name, 5, seed=seed, key=key))
    for seed, key in ((0, "a"), (1, "a"), (0, "b"), (0, "d"), (0, "e"))
  ]
  random = name in ("gaussian_noise", "shift")
  assert random == any(np.any(x != others[0]) for x in others[1:])


def test_contrast_and_shift_are_those_of_a_slow_loop():
  image = picture()
  pixels = np.asarray(image, float)
  mean = pixels.mean(axis=(0, 1))
  got = np.asarray(corrupt(image, "contrast", 3), float)
  assert np.abs(got - (mean + 0.2 * (pixels - mean))).max() <= 0.51
  got = np.asarray(corrupt(image, "shift", 4))  # By a fifth: 4 rows, 6 columns.
  found = []
  for down in (-4, 4):
    for right in (-6, 6):
      want = np.zeros_like(got)
      for i in range(20):
        for j in range(30):
          row, col = min(max(i - down, 0), 19), min(max(j - right, 0), 29)
          want[i, j] = pixels[row, col]
      found.append(np.array_equal(got, want))
  assert sum(found) == 1


def test_noise_has_its_deviation_and_survives_resizing():
  for size, factor in ((224, 1), (896, 4)):
    grey = Image.new("RGB", (size, size), (128, 128, 128))
    noisy = corrupt(grey, "gaussian_noise", 1)
    small = np.asarray(noisy.reduce(factor) if factor > 1 else noisy, float)
    # 150,000 values; without the cells it would be a fourth in the large one.
    assert small.std() == pytest.approx(0.08 * 255, rel=0.02)


def test_blur_grows_with_the_image():
  edge = np.zeros((64, 64, 3), np.uint8)
  edge[:, 32:] = 255
  small = Image.fromarray(edge)
  large = small.resize((448, 448), Image.Resampling.NEAREST)
  for severity in (1, 5):
    widths = []
    for image in (small, large):
      row = np.asarray(corrupt(image, "gaussian_blur", severity))[0, :, 0]
      rise = np.diff(row.astype(float)) / 255
      places = np.arange(len(rise)) / image.width
      mean = (rise * places).sum()
      widths.append(math.sqrt((rise * (places - mean) ** 2).sum()))
    want = (1, 2, 3, 4, 6)[severity - 1] / 224
    assert widths[1] == pytest.approx(want, rel=0.1)  # Pillow's is of boxes.
    assert widths[0] == pytest.approx(want, rel=0.2)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "1", "CMYK"])
def test_every_kind_of_image_is_corrupted(mode):
  image = Image.new("I;16", (9, 8)) if mode == "I;16" else picture(8, 9)
  image = image if mode == "I;16" else image.convert(mode)
  for name in corruptions.CORRUPTIONS:
    found = corrupt(image, name, 2)
    assert (found.mode, found.size) == ("RGB", (9, 8))
  assert corrupt(picture(1, 1), "shift", 5).size == (1, 1)


def test_unknown_corruptions_are_refused():
  with pytest.raises(errors.UserError, match="Did you mean 'shift'"):
    corrupt(picture(), "shft", 1)
  with pytest.raises(errors.UserError, match="severity '6'"):
    corrupt(picture(), "shift", 6)


@pytest.fixture
def data(tmp_path):
  for name, channel in colours.COLOURS.items():
    for i in range(2):
      path = tmp_path / name / f"{i}.png"
      colours.save(path, channel, dark=40, bright=200)
  (tmp_path / "red" / "1.png").write_bytes(colours.NO_PNG)
  return f"folder:{tmp_path}"


def test_corrupted_records_keep_all_but_their_image(data):
  source = sources.open_source(data)
  changed = corruptions.Corrupted(source, "contrast", 5)
  assert len(changed) == len(source)
  assert changed.class_names == source.class_names
  for i in (0, 2):
    old, new = source[i], changed[i]
    assert (new.key, new.label, new.texts) == (old.key, old.label, old.texts)
    image = preprocess.decode(new.image)
    want = corrupt(preprocess.decode(old.image), "contrast", 5, key=old.key)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(want))
  with pytest.raises(sources.BadRecord):
    changed[5]
  assert changed.fingerprint != source.fingerprint


def _noisy(directory, sizes):
  """Writes a JPEG of each size (width, height), all of one class."""
  directory.mkdir()
  for i, (width, height) in enumerate(sizes):
    pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3))
    Image.fromarray(pixels.astype(np.uint8)).save(directory / f"{i}.jpg")


@pytest.mark.parametrize("size, want", [((200, 150), 1), ((211, 153), 2)])
def test_a_photo_too_large_for_a_png_is_halved_first(tmp_path, size, want):
  _noisy(tmp_path / "red", [size])
  source = sources.open_source(f"folder:{tmp_path}")
  # As a PNG the first has 90,150 bytes and a little more, the second 97,000.
  limits = preprocess.Limits(max_encoded_bytes=92_000)
  changed = corruptions.Corrupted(source, "gaussian_noise", 1, limits=limits)
  image = preprocess.decode(changed[0].image, limits=limits)
  assert image.size == tuple(-(-side // want) for side in size)


def test_no_image_that_can_be_read_in_all_forms_is_an_error(
  tmp_path, monkeypatch
):
  for i, bright in enumerate((255, 90)):
    path = tmp_path / "red" / f"{i}.png"
    colours.save(path, colours.COLOURS["red"], bright=bright)

  def fails_for(brightness):
    def change(image, severity, rng):
      if image.getextrema()[0][1] == brightness:
        raise preprocess.ImageError("broken", reason="damaged")
      return image

    return change

  kinds = {"jpeg": fails_for(255), "shift": fails_for(90)}
  monkeypatch.setattr(corruptions, "CORRUPTIONS", kinds)
  with pytest.raises(errors.UserError, match="in all of its corrupted forms"):
    robustness.evaluate(f"folder:{tmp_path}", colours.functions())


def test_robustness_measures_every_corruption_at_every_severity(data):
  seen = []
  found = robustness.evaluate(
    data,
    colours.functions(),
    reading=reading.Reading(4, 1, lambda *counts: seen.append(counts)),
  )
  kinds = [(x["name"], x["severity"]) for x in found["corruptions"]]
  assert kinds == [(n, s) for n in corruptions.CORRUPTIONS for s in range(1, 6)]
  # A picture of one colour keeps it.
  assert {x["top1"] for x in found["corruptions"]} == {1.0}
  assert found["top1"] == found["clean"]["top1"] == 1
  assert found["corrupted_top1"] == found["relative"] == 1
  assert found["examples"] == 5
  assert list(found["bad_records"].values()) == [1]
  assert seen[-1] == (26 * 6, 26 * 6)


def test_the_bootstrap_is_that_of_a_slow_loop():
  rng = np.random.default_rng(5)
  right = rng.random((3, 11)) < 0.6
  got = robustness.bootstrap(right, seed=2, resamples=60)
  draws = np.random.default_rng(2)
  want = []
  for count in (50, 10):  # As many at once.
    for rows in draws.integers(11, size=(count, 11)):
      want.append([np.mean([row[i] for i in rows]) for row in right])
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_summary_has_means_and_intervals():
  rng = np.random.default_rng(1)
  right = rng.random((3, 400)) < np.array([[0.8], [0.6], [0.4]])
  found = robustness.summary(right, [("a", 1), ("b", 1)], seed=0)
  one, two = found["corruptions"]
  accuracies = right.mean(axis=1)
  assert [one["top1"], two["top1"]] == pytest.approx(accuracies[1:])
  assert one["relative"] == pytest.approx(accuracies[1] / accuracies[0])
  assert found["corrupted_top1"] == pytest.approx(accuracies[1:].mean())
  assert found["mean_by_corruption"] == {"a": one["top1"], "b": two["top1"]}
  # Of independent examples both intervals are about that of the normal law.
  spread = 1.96 * math.sqrt(one["top1"] * (1 - one["top1"]) / 400)
  for name in ("bootstrap_interval_95", "top1_interval_95"):
    low, high = one[name]
    assert high - low == pytest.approx(2 * spread, rel=0.15)
    assert low < one["top1"] < high
  low, high = found["relative_interval_95"]
  assert low < found["relative"] < high
  none = robustness.summary(np.zeros((2, 3), bool), [("a", 1)], seed=0)
  assert none["relative"] is None and none["relative_interval_95"] is None


def test_effective_robustness_is_what_is_above_the_line():
  # ViT-B/32: 63.2 % on ImageNet, 55.9 % on V2, where 50.0 % is expected.
  line = shifts.baselines()["imagenet_v2"]
  assert line.expected(0.632) == pytest.approx(0.500, abs=1e-3)
  found = shifts.effective_robustness(0.632, 0.559, "imagenet_v2")
  assert found == pytest.approx(0.059, abs=1e-3)
  assert shifts.effective_robustness(0.7, 0.6, shifts.Baseline(1, 0)) == (
    pytest.approx(-0.1)
  )
  with pytest.raises(errors.UserError, match="Did you mean 'imagenet_v2'"):
    shifts.effective_robustness(0.5, 0.5, "imagenetv2")
  for pair in ((63.2, 0.5), (0.5, 55.9)):
    with pytest.raises(errors.UserError, match="fraction"):
      shifts.effective_robustness(*pair, "imagenet_v2")


def test_a_baseline_is_the_line_of_least_squares():
  x = np.array([0.3, 0.5, 0.6, 0.8])
  exact = 1 / (1 + np.exp(-(0.9 * np.log(x / (1 - x)) - 0.4)))
  line = shifts.fit_baseline(x, exact)
  found = line.slope, line.intercept, line.r2
  assert found == pytest.approx((0.9, -0.4, 1))
  noisy = exact + np.array([0.02, -0.03, 0.01, 0.0])
  line = shifts.fit_baseline(x, noisy)
  u, v = (np.log(p / (1 - p)) for p in (x, noisy))
  slope = ((u - u.mean()) * (v - v.mean())).sum() / ((u - u.mean()) ** 2).sum()
  assert line.slope == pytest.approx(slope)
  assert line.intercept == pytest.approx(v.mean() - slope * u.mean())
  assert line.r2 == pytest.approx(np.corrcoef(u, v)[0, 1] ** 2)
  for bad, said in (
    (([0.5, 1.0], [0.4, 0.5]), "strictly between"),
    (([0.5], [0.4]), "two models"),
    (([0.5, 0.6], [0.4]), "both accuracies"),
  ):
    with pytest.raises(errors.UserError, match=said):
      shifts.fit_baseline(*bad)


def test_jpeg_is_pillows():
  file = io.BytesIO()
  picture().save(file, "JPEG", quality=15)
  want = np.asarray(Image.open(file))
  got = np.asarray(corrupt(picture(), "jpeg", 3))
  np.testing.assert_array_equal(got, want)


def test_images_of_several_labels_have_no_accuracy(data):
  source = sources.open_source(data)
  records = [
    dataclasses.replace(source[i], label=None, labels=(0, 2)) for i in (0, 1)
  ]
  several = memory_source.MemorySource(records)
  bad = collections.Counter()
  with pytest.raises(errors.UserError, match="several labels an image"):
    robustness._measure(
      several, colours.functions(), np.eye(3), bad, reading.DEFAULT
    )
