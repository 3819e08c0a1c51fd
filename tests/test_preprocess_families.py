"""Each family's path, against golden hashes and against the obvious code.

The hashes are of the families' own libraries, see tools/golden/preprocess.py,
which also draws the images.
"""

import importlib
import json
import math
import pathlib
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

import by_path
from clip_jax import errors
from clip_jax import preprocess as preprocess_lib

ROOT = pathlib.Path(__file__).parents[1]
MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.25, 0.2)


script = by_path.load("tools/golden/preprocess.py")
GOLDEN = json.loads(script.GOLDEN.read_text())
N = script.IMAGE_SIZE


@pytest.fixture(scope="module")
def images():
  return script.odd_images()


def make_spec(family, **changes):
  fields, _, _ = script.FAMILIES[family]
  # The libraries drop what lies behind alpha, unless they say otherwise.
  fields = {"alpha": "drop", **fields, **changes}
  return preprocess_lib.Preprocess(N, MEAN, STD, **fields)


def differing(images, spec, digests):
  results = [
    script.digest(preprocess_lib.eval_image(image, spec)) for _, image in images
  ]
  names = [name for name, _ in images]
  return [
    name
    for name, result, digest in zip(names, results, digests, strict=True)
    if result != digest
  ]


def test_the_images_are_those_of_the_golden_file(images):
  digests = [script.source_digest(image) for _, image in images]
  assert digests == GOLDEN["sources"].split()
  assert len(digests) == 200
  assert {image.mode for _, image in images} == {
    *("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")
  }


@pytest.mark.parametrize("family", script.FAMILIES)
def test_each_family_equals_its_library_level_by_level(family, images):
  digests = GOLDEN["families"][family]["results"].split()
  assert differing(images, make_spec(family), digests) == []


@pytest.mark.parametrize(
  ("family", "changes"),
  [
    ("openai", {"crop_rounding": "floor"}),
    ("openai", {"convert_rgb": "before"}),
    ("openai", {"interpolation": "bilinear"}),
    ("openai", {"resize": "squash"}),
    ("openai", {"alpha": "white"}),
    ("open_clip longest", {"fill": 1}),
    ("timm 0.9", {"crop_fraction": 0.91}),
    ("huggingface clip", {"crop_rounding": "round"}),
    ("huggingface clip", {"convert_rgb": "after"}),
    ("huggingface siglip", {"interpolation": "bilinear"}),
    ("big_vision", {"antialias": True}),
  ],
)
def test_a_wrong_field_is_seen(family, changes, images):
  digests = GOLDEN["families"][family]["results"].split()
  assert len(differing(images, make_spec(family, **changes), digests)) >= 4


# The same once more, by plain code that can be read beside the libraries'.


def centre(image, left, top):
  return image.crop((left, top, left + N, top + N)).convert("RGB")


def shortest(image, side, resample):
  w, h = image.size
  size = (side, int(side * h / w)) if w <= h else (int(side * w / h), side)
  return image.resize(size, resample)


def openai(image, side=N, resample=Image.Resampling.BICUBIC):
  image = shortest(image, side, resample)
  left = int(round((image.width - N) / 2.0))  # noqa: RUF046 - as published.
  top = int(round((image.height - N) / 2.0))  # noqa: RUF046
  return centre(image, left, top)


def squash(image, resample):
  return image.resize((N, N), resample).convert("RGB")


def longest(image, resample, fill):
  w, h = image.size
  ratio = max(w, h) / N
  size = max(1, round(w / ratio)), max(1, round(h / ratio))
  image = image.resize(size, resample)
  palette = image.getpalette()
  w, h = N - size[0], N - size[1]
  bands = len(image.getbands())
  image = ImageOps.expand(
    image,
    (w // 2, h // 2, (w + 1) // 2, (h + 1) // 2),
    fill if bands == 1 else (fill,) * bands,
  )
  if palette:
    image.putpalette(palette)
  return image.convert("RGB")


def on_white(image):
  if "A" in image.getbands() or "transparency" in image.info:
    rgba = image.convert("RGBA")
    page = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(page, rgba).convert("RGB")
  return image.convert("RGB")


def huggingface(image):
  image = shortest(on_white(image), N, Image.Resampling.BICUBIC)
  return centre(image, (image.width - N) // 2, (image.height - N) // 2)


def big_vision(image):
  """Pixel by pixel, with exact sums where the library has float32."""
  pixels = np.asarray(image.convert("RGB")).astype(float)
  for axis in (1, 0):
    length = pixels.shape[axis]
    at = (np.arange(N) + 0.5) * length / N - 0.5
    low = np.floor(at).astype(int)
    shape = [1, 1, 1]
    shape[axis] = N
    first, second = (
      np.take(pixels, np.clip(i, 0, length - 1), axis) for i in (low, low + 1)
    )
    pixels = first + (second - first) * (at - low).reshape(shape)
  return pixels  # Levels with fractions.


BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
PLAIN = {
  "openai": openai,
  "open_clip shortest": lambda image: openai(image, N, BILINEAR),
  "open_clip squash": lambda image: squash(image, BICUBIC),
  "open_clip longest": lambda image: longest(image, BICUBIC, 0),
  "open_clip longest fill": lambda image: longest(image, BILINEAR, 114),
  "timm 0.9": lambda image: openai(image.convert("RGB"), math.floor(N / 0.9)),
  "huggingface clip": huggingface,
  "huggingface siglip": lambda image: squash(on_white(image), BICUBIC),
  "huggingface siglip2": lambda image: squash(on_white(image), BILINEAR),
}


@pytest.mark.parametrize("family", PLAIN)
def test_each_family_equals_plain_code(family, images):
  spec = make_spec(family)
  for name, image in images:
    with warnings.catch_warnings():
      # Pillow warns of a palette's transparency, which these paths lose.
      warnings.simplefilter("ignore", UserWarning)
      expected = PLAIN[family](script.undo_departures(image))
    actual = preprocess_lib.eval_image(image, spec)
    assert np.array_equal(actual, np.asarray(expected)), name


def test_interpolation_without_antialiasing_equals_plain_code(images):
  spec = make_spec("big_vision")
  for name, image in images:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", UserWarning)
      expected = big_vision(script.undo_departures(image))
    actual = preprocess_lib.eval_image(image, spec)
    # Truncated: within a level below. A float32 position near 300 is off by up
    # to 3e-5 pixels, of up to 255 levels each.
    below = expected - actual
    assert below.min() > -0.01, name
    assert below.max() < 1.01, name


@pytest.mark.parametrize(
  ("family", "processor", "options"),
  [
    (
      "huggingface clip",
      "clip.image_processing_pil_clip.CLIPImageProcessorPil",
      {
        "size": {"shortest_edge": N},
        "crop_size": {"height": N, "width": N},
      },
    ),
    (
      "huggingface siglip",
      "siglip.image_processing_pil_siglip.SiglipImageProcessorPil",
      {"size": {"height": N, "width": N}},
    ),
    (
      "huggingface siglip2",
      "siglip.image_processing_pil_siglip.SiglipImageProcessorPil",
      {"size": {"height": N, "width": N}, "resample": 2},
    ),
  ],
)
def test_the_installed_transformers_gives_the_same_pixels(
  family, processor, options, images
):
  module, name = f"transformers.models.{processor}".rsplit(".", 1)
  process = getattr(importlib.import_module(module), name)(
    do_rescale=False, do_normalize=False, **options
  )
  spec = make_spec(family)
  for name, image in images:
    pixels = process(script.undo_departures(image))["pixel_values"][0]
    actual = preprocess_lib.eval_image(image, spec)
    assert np.array_equal(actual, np.moveaxis(np.asarray(pixels), 0, -1)), name


@pytest.mark.parametrize("family", script.FAMILIES)
def test_training_crops_come_from_the_shortest_side_resized(family, images):
  spec = make_spec(family)
  for _, image in images[:40]:
    crop = preprocess_lib.train_image(
      image, spec, rng=np.random.default_rng(0), resize_ratio=1.1
    )
    assert crop.shape == (N, N, 3)
  # Of a picture with two halves, wide, no crop shows both ends: not squashed.
  wide = np.zeros((60, 240, 3), np.uint8)
  wide[:, :80, 0] = wide[:, 160:, 2] = 255
  rng = np.random.default_rng(1)
  for _ in range(20):
    crop = preprocess_lib.train_image(Image.fromarray(wide), spec, rng=rng)
    assert not (crop[..., 0].any() and crop[..., 2].any())


def test_a_strip_too_narrow_for_the_longest_side_keeps_one_pixel():
  image = Image.new("RGB", (1, 5000), "red")
  actual = preprocess_lib.eval_image(image, make_spec("open_clip longest"))
  columns = actual.any((0, 2)).nonzero()[0]
  assert columns.tolist() == [(N - 1) // 2]


def test_an_interpolation_without_a_meaning_is_refused():
  with pytest.raises(errors.UserError, match="antialias=False"):
    make_spec("big_vision", interpolation="bicubic")
  with pytest.raises(errors.UserError, match="antialias=False"):
    make_spec("big_vision", convert_rgb="after")
