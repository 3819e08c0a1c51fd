"""Corruptions of images at five severities, as pure functions of a seed.

Blur, noise, contrast and JPEG are as strong as those of ImageNet-C (Hendrycks &
Dietterich 2019, section 4), which are made for images of 224 pixels: what has a
width in pixels grows with the shortest side of larger and smaller images.
"""

import hashlib
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from clip_jax import errors
from clip_jax import preprocess as preprocess_lib
from clip_jax.data import record as record_lib
from clip_jax.data import sources
from clip_jax.data.sources import views

SEVERITIES = (1, 2, 3, 4, 5)
_SIDE = 224  # Pixels of ImageNet-C's images.
_BLURS = (1, 2, 3, 4, 6)  # Standard deviations in pixels of `_SIDE`.
_NOISES = (0.08, 0.12, 0.18, 0.26, 0.38)  # Standard deviations, of white.
_CONTRASTS = (0.4, 0.3, 0.2, 0.1, 0.05)  # Shares that are left.
_QUALITIES = (25, 18, 15, 10, 7)
_SHIFTS = (0.05, 0.1, 0.15, 0.2, 0.3)  # Of each side; our own.


def _gaussian_blur(
  image: Image.Image, severity: int, rng: np.random.Generator
) -> Image.Image:
  del rng
  width = _BLURS[severity - 1] * min(image.size) / _SIDE
  return image.filter(ImageFilter.GaussianBlur(width))


def _gaussian_noise(
  image: Image.Image, severity: int, rng: np.random.Generator
) -> Image.Image:
  """Adds noise; of large images in cells, so that resizing leaves it there."""
  pixels = np.asarray(image, np.float32)
  height, width, _ = pixels.shape
  cells = max(min(height, width) / _SIDE, 1)
  rows = (np.arange(height) / cells).astype(int)
  cols = (np.arange(width) / cells).astype(int)
  noise = rng.standard_normal((rows[-1] + 1, cols[-1] + 1, 3), np.float32)
  spread = 255 * _NOISES[severity - 1]
  return _as_image(pixels + spread * noise[rows][:, cols])


def _contrast(
  image: Image.Image, severity: int, rng: np.random.Generator
) -> Image.Image:
  """Moves each colour towards its mean."""
  del rng
  pixels = np.asarray(image, np.float32)
  mean = pixels.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
  return _as_image(mean + _CONTRASTS[severity - 1] * (pixels - mean))


def _jpeg(
  image: Image.Image, severity: int, rng: np.random.Generator
) -> Image.Image:
  del rng
  file = io.BytesIO()
  image.save(file, "JPEG", quality=_QUALITIES[severity - 1])
  return Image.open(file).convert("RGB")


def _shift(
  image: Image.Image, severity: int, rng: np.random.Generator
) -> Image.Image:
  """Moves the image along both sides; its edge pixels fill what gets free."""
  share = _SHIFTS[severity - 1]
  pixels = np.asarray(image)
  places = []
  for size, sign in zip(pixels.shape[:2], rng.choice((-1, 1), 2), strict=True):
    moved = np.arange(size) - sign * max(round(share * size), 1)
    places.append(np.clip(moved, 0, size - 1))
  rows, cols = places
  return Image.fromarray(np.ascontiguousarray(pixels[rows][:, cols]))


def _as_image(pixels: np.ndarray) -> Image.Image:
  return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


CORRUPTIONS: dict[
  str, Callable[[Image.Image, int, np.random.Generator], Image.Image]
] = {
  "gaussian_blur": _gaussian_blur,
  "gaussian_noise": _gaussian_noise,
  "contrast": _contrast,
  "jpeg": _jpeg,
  "shift": _shift,
}


def corrupt(
  image: Image.Image, name: str, severity: int, *, seed: int, key: str
) -> Image.Image:
  """Returns a corrupted copy of an image, in RGB.

  Args:
    image: of any mode.
    name: one of `CORRUPTIONS`.
    severity: one of `SEVERITIES`.
    seed: of the run; with `key` and `name` it decides what is random, so that
      an image has the same noise and direction at each severity.
    key: names the image.

  Raises:
    UserError: there is no such corruption or severity.
  """
  if name not in CORRUPTIONS:
    raise errors.unknown("corruption", name, CORRUPTIONS)
  if severity not in SEVERITIES:
    raise errors.unknown("severity", str(severity), map(str, SEVERITIES))
  said = f"{seed} {name} {key}".encode("utf-8", "surrogateescape")
  digest = hashlib.blake2b(said, digest_size=16).digest()
  rng = np.random.default_rng(int.from_bytes(digest))
  return CORRUPTIONS[name](preprocess_lib.to_rgb(image), severity, rng)


def _bytes_of_png(image: Image.Image) -> int:
  """Returns the most bytes of an RGB image as a PNG that is not compressed."""
  width, height = image.size
  return 1024 + height * (3 * width + 1) * 1025 // 1024


class Corrupted(views.Part):
  """The records of a source with corrupted images, as PNG files.

  An image that is too large to be read from one is first halved.
  """

  def __init__(
    self,
    source: sources.Source,
    name: str,
    severity: int,
    *,
    seed: int = 0,
    limits: preprocess_lib.Limits = preprocess_lib.DEFAULT_LIMITS,
  ):
    """Reads nothing.

    Args:
      source: any.
      name: one of `CORRUPTIONS`.
      severity: one of `SEVERITIES`.
      seed: as in `corrupt`.
      limits: as in `preprocess.decode`.
    """
    super().__init__(source, np.arange(len(source)), name, severity, seed)
    self._how = name, severity, seed
    self._limits = limits

  def __getitem__(self, index: int) -> record_lib.Record:
    record = super().__getitem__(index)
    name, severity, seed = self._how
    try:
      image = preprocess_lib.decode(record.image, limits=self._limits)
      image = preprocess_lib.to_rgb(image)
      # As a PNG a photo has more bytes than as a JPEG, perhaps too many.
      while _bytes_of_png(image) > self._limits.max_encoded_bytes:
        image = image.reduce(2)
      changed = corrupt(image, name, severity, seed=seed, key=record.key)
    except preprocess_lib.ImageError as error:
      raise record_lib.BadRecord(error.reason, record.key) from error
    file = io.BytesIO()
    changed.save(file, "PNG", compress_level=0)
    return record_lib.Record(
      image=file.getvalue(),
      texts=record.texts,
      key=record.key,
      label=record.label,
    )
