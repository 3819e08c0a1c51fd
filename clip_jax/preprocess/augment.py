"""Random changes of a training image beside the paper's crop.

They are torchvision's, in the order in which open_clip's `aug_cfg` takes them:
a crop of a random size and shape, a mirror image (torchvision alone), other
colours, shades of grey. Hues are rounded to the nearest level.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageEnhance

if TYPE_CHECKING:  # Who only looks at images needs no configs.
  from clip_jax.config.schema import Augment

_TRIES = 10  # As torchvision.
_LEVELS = 256  # Of a hue in Pillow's HSV.


def crop_box(
  size: tuple[int, int], augment: "Augment", *, rng: np.random.Generator
) -> tuple[int, int, int, int]:
  """Returns a random part of an image: left, top, right and bottom in pixels.

  Its area is drawn uniformly from `augment.scale` to 1 of the image's, the
  logarithm of its sides' ratio up to `augment.ratio` either way, until one fits
  into the image, and its place among those that there are: Szegedy et al.,
  arXiv 1409.4842, section 6. After ten that do not fit, which is so of long
  images, it is the largest part in the middle whose sides have no larger ratio.

  Args:
    size: (width, height) of the image.
    augment: `scale` and `ratio` are used.
    rng: how many numbers are drawn depends on the image's size.
  """
  width, height = size
  limit = math.log(augment.ratio)
  for _ in range(_TRIES):
    area = width * height * rng.uniform(augment.scale, 1)
    ratio = math.exp(rng.uniform(-limit, limit))
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      left = int(rng.integers(width - w + 1))
      top = int(rng.integers(height - h + 1))
      return left, top, left + w, top + h
  w = min(width, round(height * augment.ratio))
  h = min(height, round(width * augment.ratio))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def changes(augment: "Augment") -> bool:
  """Whether `change` may change anything."""
  return bool(augment.flip or augment.gray_prob or _colours(augment))


def change(
  image: Image.Image, augment: "Augment", *, rng: np.random.Generator
) -> Image.Image:
  """Returns an RGB image mirrored, in other colours or in grey, at random.

  Nothing is drawn for what `augment` leaves out.
  """
  if augment.flip and rng.random() < augment.flip:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  colours = _colours(augment)
  if colours and rng.random() < augment.jitter_prob:
    for number in rng.permutation(len(colours)):
      amount, move = colours[number]
      image = move(image, amount, rng)
  if augment.gray_prob and rng.random() < augment.gray_prob:
    image = image.convert("L").convert("RGB")
  return image


# An image, the most that it is moved by and a generator -> the moved image.
_Move = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _colours(augment: "Augment") -> list[tuple[float, _Move]]:
  known = (
    (augment.brightness, _enhance(ImageEnhance.Brightness)),
    (augment.contrast, _enhance(ImageEnhance.Contrast)),
    (augment.saturation, _enhance(ImageEnhance.Color)),
    (augment.hue, _turn_hue),
  )
  return [(amount, move) for amount, move in known if amount]


def _enhance(kind: type) -> _Move:
  def move(image, amount, rng):
    return kind(image).enhance(rng.uniform(max(0, 1 - amount), 1 + amount))

  return move


def _turn_hue(image, amount, rng):
  turn = round(rng.uniform(-amount, amount) * _LEVELS)
  hue, saturation, value = image.convert("HSV").split()
  hue = hue.point([(level + turn) % _LEVELS for level in range(_LEVELS)])
  return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
