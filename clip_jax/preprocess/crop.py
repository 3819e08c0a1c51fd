"""A Pillow image to the square array of a `Preprocess`."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from clip_jax import errors
from clip_jax.preprocess import augment as augment_lib
from clip_jax.preprocess import colour
from clip_jax.preprocess.spec import PreprocessSpec

if TYPE_CHECKING:
  from clip_jax.config.schema import Augment

# A larger resized image is resampled only where it is cropped, also in
# evaluation: that of a 1 x 16000 strip would have 224 x 3.6 million pixels.
# Pillow's passes then round elsewhere, so that levels may differ by two.
_MAX_RESIZED_PIXELS = 2**24

# Up to this ratio of its sides Pillow resizes any image along its rows first.
_MAX_RATIO = 2

# Pixels of the result on each side of one that its filter may reach to.
_REACH = 3

# The number of pixels to lose on an axis -> the first one kept.
_CENTRES: dict[str, Callable[[int], int]] = {
  "round": lambda margin: round(margin / 2),  # Halves to the even number.
  "floor": lambda margin: margin // 2,
}


def eval_image(image: Image.Image, spec: PreprocessSpec) -> np.ndarray:
  """Returns a decoded image as evaluation sees it, uint8 (size, size, 3)."""
  size = _SIZES[spec.resize](image.size, spec.resized_side)
  corner = _CENTRES[spec.crop_rounding]
  return _resize_and_crop(image, spec, size, corner, exact=True)


def train_image(
  image: Image.Image,
  spec: PreprocessSpec,
  *,
  rng: np.random.Generator,
  resize_ratio: float = 1.0,
  augment: "Augment | None" = None,
) -> np.ndarray:
  """Returns a random crop, uint8 (size, size, 3): paper, section 2.4.

  It is a square of the resized image, unless `augment` asks for others.

  The shortest side is first resized to `resize_ratio` times the crop's, so a
  ratio of 1 moves the crop along the longer side only. That is so for every
  `spec.resize`: the augmentation replaces the squashing, padding or central
  margin of evaluation, and keeps its interpolation and colours.

  Only the crop is resized, which saves a sixth of the time. Pillow takes its
  place in float32, so that on average fewer than one value in 200 (3 in 100
  where an image is 16,000 pixels wide) is rounded to a neighbouring level. In
  crops of noise or hard edges 3 in 100 may be, and single values to the next
  level but one.

  Where `augment.scale` is below 1, a part of the image that may be longer than
  wide takes the square's place, and is squashed into one; `resize_ratio` is
  then not used. What else `augment` asks for comes after the crop.
  """
  if augment is not None and augment.scale < 1:
    box = augment_lib.crop_box(image.size, augment, rng=rng)
    crop = _resize_part(image, spec, box)
  else:
    crop = _random_square(image, spec, rng=rng, resize_ratio=resize_ratio)
  if augment is None or not augment_lib.changes(augment):
    return crop
  return np.array(augment_lib.change(Image.fromarray(crop), augment, rng=rng))


def _random_square(image, spec, *, rng, resize_ratio):
  if not resize_ratio >= 1:
    raise errors.UserError(
      f"resize_ratio={resize_ratio} must be at least 1, so that the crop of "
      f"{spec.image_size} pixels fits into the resized image."
    )
  side = round(spec.image_size * resize_ratio)
  return _resize_and_crop(
    image,
    spec,
    _shortest(image.size, side),
    lambda margin: int(rng.integers(margin + 1)),
    exact=False,
  )


def _resize_part(image, spec, box):
  """Returns the box (left, top, right, bottom) as the square of the spec."""
  image = colour.flatten(image, spec.alpha).crop(box)
  if spec.convert_rgb == "before":
    image = colour.convert(image, "RGB")
  image = _resize(image, spec, (spec.image_size, spec.image_size))
  return np.array(colour.convert(image, "RGB"))


def normalize(images: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
  """Returns float32 (..., 3) for uint8 (..., 3), as OpenAI's path computes."""
  scaled = images.astype(np.float32)
  scaled /= np.float32(255)
  scaled -= np.asarray(spec.mean, np.float32)
  scaled /= np.asarray(spec.std, np.float32)
  return scaled


def _shortest(size: tuple[int, int], side: int) -> tuple[int, int]:
  w, h = size
  # int() and this order of operations are torchvision's size rule.
  return (side, int(side * h / w)) if w <= h else (int(side * w / h), side)


def _longest(size: tuple[int, int], side: int) -> tuple[int, int]:
  ratio = max(length / side for length in size)
  # OpenCLIP fails where a strip's short side rounds to no pixel.
  w, h = (max(1, round(length / ratio)) for length in size)
  return w, h


# `resize` -> (width, height) of the resized image.
_SIZES = {
  "shortest": _shortest,
  "longest": _longest,
  "squash": lambda size, side: (side, side),
}


def _resize_and_crop(
  image: Image.Image,
  spec: PreprocessSpec,
  resized: tuple[int, int],
  corner: Callable[[int], int],
  *,
  exact: bool,
) -> np.ndarray:
  """Resizes to (width, height) `resized`, pads, crops, and gives RGB.

  `corner` turns the number of pixels to lose into the first one kept; it is
  called for the height and then for the width. `exact` asks for the values of
  the whole resized image.
  """
  image = colour.flatten(image, spec.alpha)
  if spec.convert_rgb == "before":
    image = colour.convert(image, "RGB")
  size = spec.image_size
  w, h = resized
  top, left = corner(max(h - size, 0)), corner(max(w - size, 0))
  in_two_passes = _is_in_two_passes(image, spec, resized)
  if w * h > _MAX_RESIZED_PIXELS:
    x, y = image.width / w, image.height / h  # Source pixels to a resized one.
    right = min((left + size) * x, image.width)
    bottom = min((top + size) * y, image.height)
    image = _resize(
      image, spec, (size, size), box=(left * x, top * y, right, bottom)
    )
  elif in_two_passes and not exact:
    image = _resize_crop(image, spec, resized, left=left, top=top)
  else:
    if in_two_passes and size < w:
      # Pillow's own two passes; the second has only the crop's columns to do.
      image = _resize(image, spec, (w, image.height))
      image = image.crop((left, 0, left + size, image.height))
      left, w = 0, size
    image = _resize(image, spec, (w, h))
    image = _pad(image, size, spec.fill)
    image = image.crop((left, top, left + size, top + size))
  return np.array(colour.convert(image, "RGB"))  # (size, size, 3)


def _resize_crop(
  image: Image.Image,
  spec: PreprocessSpec,
  resized: tuple[int, int],
  *,
  left: int,
  top: int,
) -> Image.Image:
  """Resizes what a crop shows, in Pillow's two passes, rows first.

  One call does both, but for high images in an order that depends on the crop.
  """
  size, (w, h) = spec.image_size, resized
  x, y = image.width / w, image.height / h
  right = min((left + size) * x, image.width)
  bottom = min((top + size) * y, image.height)
  if h == size and image.height <= image.width:
    box = (left * x, 0, right, image.height)
    return _resize(image, spec, (size, size), box=box)
  # The rows that the second pass reads.
  first = max(0, math.floor(top * y - _REACH * y))
  last = min(image.height, math.ceil(bottom + _REACH * y))
  image = image.crop((0, first, image.width, last))
  box = (left * x, 0, right, image.height)
  image = _resize(image, spec, (size, image.height), box=box)
  box = (0, top * y - first, size, bottom - first)
  return _resize(image, spec, (size, size), box=box)


def _is_in_two_passes(image, spec, resized) -> bool:
  """Whether Pillow resizes along rows and then columns, both to fewer pixels.

  It is so for any image that is at most twice as high as wide; what is padded
  is left out.
  """
  w, h = resized
  return (
    spec.antialias
    and image.mode in ("RGB", "L")
    and spec.image_size <= w < image.width
    and spec.image_size <= h < image.height <= _MAX_RATIO * image.width
  )


def _resize(image, spec, size, *, box=None):
  if spec.antialias:
    resample = spec.resample
    return image.resize(size, resample, box)
  box = box or (0, 0, *image.size)
  return Image.fromarray(_two_taps(np.asarray(image), size, box))


def _two_taps(
  pixels: np.ndarray,
  size: tuple[int, int],
  box: tuple[float, float, float, float],
) -> np.ndarray:
  """Bilinear interpolation without a low-pass filter, uint8 as its source.

  The centres of the first and the last pixel are half a pixel inside of the
  edges. Arithmetic and its order are float32 as in `tf.image.resize` with
  antialias=False; big_vision casts its result to uint8, which truncates.

  Args:
    pixels: uint8 (height, width, 3).
    size: (width, height) of the result.
    box: left, top, right, bottom: the part of `pixels` to resize.
  """
  h, w = pixels.shape[:2]
  x0, x1, along_x = _taps(w, size[0], box[0], box[2])
  y0, y1, along_y = _taps(h, size[1], box[1], box[3])
  along_x, along_y = along_x[:, None], along_y[:, None, None]

  def row(y):
    left, right = (pixels[y[:, None], x].astype(np.float32) for x in (x0, x1))
    return left + (right - left) * along_x  # (rows, cols, 3)

  top, bottom = row(y0), row(y1)
  return (top + (bottom - top) * along_y).astype(np.uint8)


def _taps(length, resized, start, end):
  """Returns two source positions a pixel and the weight of the second."""
  scale = np.float32(end - start) / np.float32(resized)
  centres = np.arange(resized, dtype=np.float32) + np.float32(0.5)
  at = centres * scale + np.float32(start) - np.float32(0.5)
  floor = np.floor(at)
  first = np.clip(floor.astype(int), 0, length - 1)
  second = np.clip(np.ceil(at).astype(int), 0, length - 1)
  return first, second, at - floor


def _pad(image: Image.Image, size: int, fill: int) -> Image.Image:
  """Centres `image` on a page of at least `size` pixels a side.

  The page has the image's own mode, as in OpenCLIP: `fill` is a level of each
  channel, and the number of a colour where there is a palette.
  """
  w, h = image.size
  if min(w, h) >= size:
    return image
  bands = len(image.getbands())
  page = Image.new(
    image.mode,
    (max(w, size), max(h, size)),
    fill if bands == 1 else (fill,) * bands,
  )
  if image.mode == "P" and (palette := image.getpalette()):
    page.putpalette(palette)
  page.paste(image, (max(size - w, 0) // 2, max(size - h, 0) // 2))
  return page
