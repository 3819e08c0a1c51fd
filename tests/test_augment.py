"""Random changes of training images beside the paper's crop."""

import colorsys
import math

import numpy as np
import pytest
from PIL import Image

from clip_jax import config as config_lib
from clip_jax import errors, preprocess
from clip_jax.preprocess import augment as augment_lib

SPEC = preprocess.Preprocess(16, mean=(0.5,) * 3, std=(0.5,) * 3)


def _image(width=40, height=30):
  y, x = np.mgrid[:height, :width]
  pixels = np.stack([x * 5 + 20, y * 6 + 30, (x + y) * 3], axis=-1)
  return Image.fromarray(pixels.astype(np.uint8))


def _train(image, seed=0, **fields):
  return preprocess.train_image(
    image,
    SPEC,
    rng=np.random.default_rng(seed),
    augment=config_lib.Augment(**fields),
  )


def _change(image, seed=0, **fields):
  return augment_lib.change(
    image,
    config_lib.Augment(**fields),
    rng=np.random.default_rng(seed),
  )


def test_the_defaults_change_nothing_and_draw_nothing():
  rngs = [np.random.default_rng(1) for _ in range(2)]
  plain = preprocess.train_image(_image(), SPEC, rng=rngs[0])
  same = preprocess.train_image(
    _image(), SPEC, rng=rngs[1], augment=config_lib.Augment()
  )
  np.testing.assert_array_equal(plain, same)
  assert rngs[0].random() == rngs[1].random()


def test_crops_have_areas_and_shapes_as_asked_for():
  augment = config_lib.Augment(scale=0.25, ratio=2.0)
  rng = np.random.default_rng(0)
  width, height = 300, 280
  boxes = np.array(
    [
      augment_lib.crop_box((width, height), augment, rng=rng)
      for _ in range(20_000)
    ]
  )
  w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
  area, ratio = w * h / (width * height), np.log(w / h)
  assert boxes.min() == 0
  assert boxes[:, 2].max() == width and boxes[:, 3].max() == height
  assert 0.248 <= area.min() < 0.26 and 0.95 < area.max() <= 1
  assert abs(ratio).max() <= math.log(2.03)
  # What fits is taken: of small areas all shapes, evenly.
  small = ratio[area < 0.4]
  counts, _ = np.histogram(
    small, bins=4, range=(-math.log(2.03), math.log(2.03))
  )
  assert counts.min() > 0.85 * counts.max()
  # The place is uniform: mean of the left margin over what is left of it.
  free = w < width
  share = boxes[free, 0] / (width - w[free])
  assert share.mean() == pytest.approx(0.5, abs=0.02)
  assert np.quantile(share, 0.25) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
  ("size", "box"),
  [((400, 10), (193, 0, 206, 10)), ((10, 400), (0, 193, 10, 206))],
)
def test_of_a_strip_the_middle_is_taken(size, box):
  augment = config_lib.Augment(scale=0.9)
  for seed in range(20):
    rng = np.random.default_rng(seed)
    assert augment_lib.crop_box(size, augment, rng=rng) == box
  assert augment_lib.crop_box((1, 1), augment, rng=rng) == (0, 0, 1, 1)


def test_a_crop_is_that_part_resized():
  image, seen = _image(), set()
  for seed in range(30):
    augment = config_lib.Augment(scale=0.3)
    box = augment_lib.crop_box(
      image.size, augment, rng=np.random.default_rng(seed)
    )
    wanted = image.crop(box).resize((16, 16), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(_train(image, seed, scale=0.3), wanted)
    seen.add(box)
  assert len(seen) > 25


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "I;16", "LA", "CMYK"])
def test_images_of_every_mode_are_cropped(mode):
  image = _image().convert("RGB" if mode == "I;16" else mode)
  if mode == "I;16":
    image = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40))
  pixels = _train(image, scale=0.5, flip=0.5, hue=0.1, contrast=0.5)
  assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8


def test_a_share_of_the_images_is_mirrored():
  image = _image(16, 16)
  pixels = np.asarray(image)
  mirrored = 0
  for seed in range(400):
    changed = np.asarray(_change(image, seed, flip=0.25))
    is_mirrored = bool((changed != pixels).any())
    np.testing.assert_array_equal(
      changed, pixels[:, ::-1] if is_mirrored else pixels
    )
    mirrored += is_mirrored
  assert 70 <= mirrored <= 130
  np.testing.assert_array_equal(_change(image, flip=1.0), pixels[:, ::-1])


def _blend(pixels, other, factor):
  return np.clip(other + factor * (pixels - other), 0, 255)


def _grey(pixels):
  return pixels @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation"])
def test_colours_move_by_their_formula(field):
  image = _image()
  pixels = np.asarray(image).astype(float)
  others = {
    "brightness": np.zeros_like(pixels),
    "contrast": np.full_like(pixels, round(_grey(pixels).mean())),
    "saturation": np.repeat(_grey(pixels)[..., None], 3, axis=-1),
  }
  factors = []
  for seed in range(40):
    changed = np.asarray(_change(image, seed, **{field: 0.4})).astype(float)
    moved, other = pixels - others[field], changed - others[field]
    inner = (changed > 2) & (changed < 253) & (abs(moved) > 40)
    factor = np.median(other[inner] / moved[inner])
    factors.append(factor)
    np.testing.assert_allclose(
      changed, _blend(pixels, others[field], factor), atol=4
    )
  assert 0.59 < min(factors) < 0.7 and 1.3 < max(factors) < 1.41


def test_hues_turn_and_brightness_stays():
  pixels = np.array([[[200, 40, 40], [40, 200, 90], [60, 80, 220]]], np.uint8)
  turns = []
  for seed in range(40):
    changed = np.asarray(_change(Image.fromarray(pixels), seed, hue=0.2))
    before, after = (
      np.array([colorsys.rgb_to_hsv(*(colour / 255)) for colour in p[0]])
      for p in (pixels, changed)
    )
    turn = (after[:, 0] - before[:, 0] + 0.5) % 1 - 0.5
    assert np.ptp(turn) < 0.02  # All by the same.
    np.testing.assert_allclose(after[:, 1:], before[:, 1:], atol=0.02)
    turns.append(turn.mean())
  assert -0.21 < min(turns) < -0.1 and 0.1 < max(turns) < 0.21


def test_a_share_of_the_images_changes_its_colours():
  image = _image()
  fields = dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
  plain, colours = np.asarray(image), []
  for seed in range(200):
    changed = np.asarray(_change(image, seed, jitter_prob=0.3, **fields))
    colours.append(changed.tobytes())
  same = colours.count(plain.tobytes())
  assert 120 <= same <= 160
  assert len(set(colours)) >= 200 - same  # No two alike, in any order.


def test_a_share_of_the_images_is_made_grey():
  image = _image()
  grey = 0
  for seed in range(200):
    changed = np.asarray(_change(image, seed, gray_prob=0.2))
    if (changed != np.asarray(image)).any():
      assert np.ptp(changed, axis=-1).max() == 0
      np.testing.assert_allclose(
        changed[..., 0], _grey(np.asarray(image)), atol=1
      )
      grey += 1
  assert 20 <= grey <= 60


@pytest.mark.parametrize(
  ("override", "said"),
  [
    ("augment.scale=0", "more than 0 and at most 1"),
    ("augment.scale=1.5", "more than 0 and at most 1"),
    ("augment.ratio=0.75", "between 1 and 10"),
    ("augment.hue=0.6", "between 0 and 0.5"),
    ("augment.flip=-0.1", "between 0 and 1"),
    ("augment.flip=nan", "a finite number"),
    ("augment.fliip=1", "flip"),
  ],
)
def test_what_is_not_allowed_is_refused(override, said):
  config = config_lib.default_config()
  config.data.train, config.steps = "builtin:digits/train", 1
  with pytest.raises(errors.UserError, match=said):
    config_lib.with_overrides(config_lib.check(config), [override])


def test_two_choices_of_the_crop_are_refused():
  config = config_lib.default_config()
  config.data.train, config.steps = "builtin:digits/train", 1
  config.augment.scale, config.data.resize_ratio = 0.5, 1.25
  with pytest.raises(errors.UserError, match=r"augment\.scale and data\."):
    config_lib.check(config)
