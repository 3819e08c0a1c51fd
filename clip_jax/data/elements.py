"""One record to one element of a batch."""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from clip_jax import preprocess as preprocess_lib
from clip_jax.data import record as record_lib

if TYPE_CHECKING:
  from clip_jax.config.schema import Augment

# What `Decoder` keeps: thumbnails, whose decoding is mostly overhead.
_KEPT_ENCODED_BYTES = 4096
_KEPT_PIXELS = 64 * 64
_KEPT_TOTAL_PIXELS = 32 * 2**20


class Decoder:
  """Decodes the images of records; keeps small ones, up to a limit.

  With 32-pixel images, half of a loader's time would go into decoding the same
  few thousand of them in each epoch. A copy in another process starts empty.
  """

  def __init__(
    self, limits: preprocess_lib.Limits = preprocess_lib.DEFAULT_LIMITS
  ):
    """Begins empty; `limits` are those of `preprocess.decode`."""
    self._limits = limits
    self._kept: dict[bytes, Image.Image] = {}
    self._room = _KEPT_TOTAL_PIXELS

  def __reduce__(self) -> tuple:
    return Decoder, (self._limits,)

  def __call__(self, data: bytes) -> Image.Image:
    """Returns the image, which may be shared: it must not be changed.

    Raises:
      ImageError: it cannot be decoded.
    """
    if len(data) > _KEPT_ENCODED_BYTES:
      return preprocess_lib.decode(data, limits=self._limits)
    image = self._kept.get(data)
    if image is None:
      image = preprocess_lib.decode(data, limits=self._limits)
      pixels = image.width * image.height
      if pixels <= min(_KEPT_PIXELS, self._room):
        self._kept[data] = image
        self._room -= pixels
    return image


def train_element(
  record: record_lib.Record,
  *,
  decode: Decoder,
  preprocess: preprocess_lib.Preprocess,
  rng: np.random.Generator,
  resize_ratio: float,
  augment: "Augment | None",
  caption: str,
) -> tuple[np.ndarray, str]:
  """Returns a random crop, uint8 (size, size, 3), and one caption.

  `preprocess.train_image` says what `resize_ratio` and `augment` do.

  Raises:
    BadRecord: the image cannot be used; the reason is the decoder's.
  """
  # Drawn first, so that the choice does not depend on the picture's size.
  text = choose_text(record, rng=rng, caption=caption)
  try:
    pixels = preprocess_lib.train_image(
      decode(record.image),
      preprocess,
      rng=rng,
      resize_ratio=resize_ratio,
      augment=augment,
    )
  except preprocess_lib.ImageError as error:
    raise record_lib.BadRecord(error.reason, record.key) from error
  return pixels, text


def choose_text(
  record: record_lib.Record, *, rng: np.random.Generator, caption: str
) -> str:
  """Returns the caption that a training example has: "random" or "first"."""
  return record.texts[
    rng.integers(len(record.texts)) if caption == "random" else 0
  ]


def eval_element(
  record: record_lib.Record, *, preprocess: preprocess_lib.Preprocess
) -> np.ndarray:
  """Returns the image as evaluation sees it, uint8 (size, size, 3).

  Raises:
    BadRecord: the image cannot be used; the reason is the decoder's.
  """
  try:
    image = preprocess_lib.decode(record.image, limits=preprocess.limits)
    return preprocess_lib.eval_image(image, preprocess)
  except preprocess_lib.ImageError as error:
    raise record_lib.BadRecord(error.reason, record.key) from error
