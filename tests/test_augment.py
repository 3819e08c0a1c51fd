"""Random changes of training images beside the paper's crop."""

import colorsys
import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

from clip_jax import config as config_lib
from clip_jax import errors, preprocess
from clip_jax.preprocess import augment as augment_lib
from clip_jax.train import run as run_lib

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
  # The place is uniform: quarters of the margin before it, over all there is.
  for before, whole, own in ((boxes[:, 0], width, w), (boxes[:, 1], height, h)):
    free = own < whole
    share = before[free] / (whole - own[free])
    for quarter in (0.25, 0.5, 0.75):
      assert np.quantile(share, quarter) == pytest.approx(quarter, abs=0.02)


@pytest.mark.parametrize(
  ("size", "box"),
  [
    ((400, 10), (193, 0, 206, 10)),
    ((10, 400), (0, 193, 10, 206)),
    ((400, 11), (192, 0, 207, 11)),
    ((11, 400), (0, 192, 11, 207)),
  ],
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


def test_what_is_cropped_is_mirrored_and_coloured():
  image = _image()
  crop = _train(image, 3, scale=0.5)
  np.testing.assert_array_equal(
    _train(image, 3, scale=0.5, flip=1.0), crop[:, ::-1]
  )
  assert (_train(image, 3, scale=0.5, hue=0.5) != crop).any()
  square = _train(image, 3)
  np.testing.assert_array_equal(_train(image, 3, flip=1.0), square[:, ::-1])


def _sixteen_bits():
  y, x = np.mgrid[:30, :40]
  return Image.fromarray((x * 1600 + y * 30).astype(np.uint16))


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"interpolation": "bilinear"},
    {"convert_rgb": "before", "alpha": "drop"},
    {
      "resize": "squash",
      "interpolation": "bilinear",
      "antialias": False,
      "convert_rgb": "before",
    },
    {"resize": "longest", "alpha": "drop"},
  ],
)
@pytest.mark.parametrize(
  "mode", ["RGB", "RGBA", "L", "P", "LA", "CMYK", "I;16"]
)
def test_a_crop_is_what_evaluation_makes_of_that_part(mode, options):
  """For every model's preprocessing and every kind of image."""
  image = _sixteen_bits() if mode == "I;16" else _image().convert(mode)
  if mode == "RGBA":
    image.putalpha(Image.linear_gradient("L").resize(image.size))
  spec = dataclasses.replace(SPEC, **options)
  squashed = dataclasses.replace(spec, resize="squash")
  augment = config_lib.Augment(scale=0.3)
  for seed in range(5):
    rngs = [np.random.default_rng(seed) for _ in range(2)]
    crop = preprocess.train_image(image, spec, rng=rngs[0], augment=augment)
    box = augment_lib.crop_box(image.size, augment, rng=rngs[1])
    wanted = preprocess.eval_image(image.crop(box), squashed)
    np.testing.assert_array_equal(crop, wanted)


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


_COLOURS = {"brightness": 0.4, "contrast": 0.3, "saturation": 0.5, "hue": 0.1}


def test_a_share_of_the_images_changes_its_colours():
  image = _image()
  plain, found = np.asarray(image).tobytes(), []
  for seed in range(200):
    changed = _change(image, seed, jitter_prob=0.3, **_COLOURS)
    found.append(np.asarray(changed).tobytes())
  same = found.count(plain)
  assert 120 <= same <= 160
  assert len(set(found)) == 201 - same  # No two changed ones are alike.


def test_all_colours_change_in_a_random_order_and_grey_comes_last():
  """Each change alone is tested above: here they are replayed in order."""
  image, orders = _image(), set()
  for seed in range(40):
    rng = np.random.default_rng(seed)
    rng.random()  # Whether they change.
    order = [list(_COLOURS)[i] for i in rng.permutation(4)]
    wanted = image
    for field in order:
      alone = config_lib.Augment(**{field: _COLOURS[field]})
      wanted = augment_lib.change(wanted, alone, rng=_AfterOne(rng))
    changed = _change(image, seed, **_COLOURS)
    np.testing.assert_array_equal(changed, wanted)
    orders.add(tuple(order))
    grey = np.asarray(_change(image, seed, gray_prob=1.0, **_COLOURS))
    assert np.ptp(grey, axis=-1).max() == 0
    np.testing.assert_array_equal(grey[..., 0], wanted.convert("L"))
  assert len(orders) > 15


class _AfterOne:
  """A generator for one change alone, whose order and chance are certain."""

  def __init__(self, rng):
    self.uniform = rng.uniform

  def random(self):
    return 0.0

  def permutation(self, n):
    assert n == 1
    return [0]


def test_a_share_of_the_images_is_made_grey():
  image = _image()
  pixels, grey = np.asarray(image), 0
  for seed in range(200):
    changed = np.asarray(_change(image, seed, gray_prob=0.2))
    if (changed != pixels).any():
      assert np.ptp(changed, axis=-1).max() == 0
      np.testing.assert_allclose(changed[..., 0], _grey(pixels), atol=1)
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


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    (
      ["augment.scale=0.5", "data.resize_ratio=1.25"],
      r"augment\.scale=0\.5 and data\.resize_ratio=1\.25 both",
    ),
    (["augment.ratio=2"], r"augment\.ratio=2 has no effect"),
    (["augment.jitter_prob=0.5"], r"augment\.jitter_prob=0\.5 has no effect"),
  ],
)
def test_fields_without_effect_are_refused(changes, said):
  config = config_lib.default_config()
  config.data.train, config.steps = "builtin:digits/train", 1
  checked = config_lib.check(config)
  with pytest.raises(errors.UserError, match=said):
    config_lib.with_overrides(checked, changes)
  more = ["augment.scale=0.5", "augment.hue=0.1"]
  config_lib.with_overrides(
    checked, [*changes[:1], *more, "data.resize_ratio=1"]
  )


def test_a_run_trains_on_changed_images():
  config = config_lib.default_config()
  config.model, config.batch_size, config.steps = "tiny-cbow", 8, 1
  config.precision = "float32"
  config.data.train = "builtin:digits/train"
  images = []
  for flip in (0.0, 1.0):
    config.augment.flip = flip
    run = run_lib.make_run(config_lib.check(config))
    with run.batches(0) as batches:
      images.append(np.asarray(next(batches)["image"]))
  np.testing.assert_array_equal(images[1], images[0][:, :, ::-1])
  assert (images[0] != images[1]).any()
