"""Small pictures for a page: thumbnails, crops and heat maps."""

import base64
import io

import numpy as np
from PIL import Image

from clip_jax import preprocess as preprocess_lib

_THUMBNAIL = 320
# Smaller pictures are enlarged with their pixels kept apart.
_SMALL = 96
_HEAT_MAP = 256
# From dark to bright, as people see it who see colours otherwise, too: a few
# points of the colour map "viridis" (van der Walt and Smith, CC0).
_RAMP = np.array(
  [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]],
  np.float64,
)


def thumbnail(data: bytes, *, limits: preprocess_lib.Limits) -> bytes:
  """Returns an encoded image small and encoded anew, without its metadata.

  Args:
    data: the encoded image.
    limits: what is refused before it is decoded.

  Raises:
    ImageError: it cannot be read.
  """
  image = preprocess_lib.to_rgb(preprocess_lib.decode(data, limits=limits))
  return encode(image)


def encode(image: Image.Image) -> bytes:
  """Returns an RGB image as a small PNG or JPEG."""
  longest = max(image.size)
  buffer = io.BytesIO()
  if longest <= _SMALL:
    times = max(1, _THUMBNAIL // longest)
    size = (image.width * times, image.height * times)
    image = image.resize(size, Image.Resampling.NEAREST)
    image.save(buffer, "PNG")
  else:
    image = image.copy()
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BICUBIC)
    image.save(buffer, "JPEG", quality=88)
  return buffer.getvalue()


def media_type(data: bytes) -> str:
  """Returns the media type of what `encode` made."""
  return "image/png" if data.startswith(b"\x89PNG") else "image/jpeg"


def inline(data: bytes) -> str:
  """Returns a picture as a `data:` address."""
  return f"data:{media_type(data)};base64,{base64.b64encode(data).decode()}"


def heat_map(pixels: np.ndarray, values: np.ndarray) -> Image.Image:
  """Returns a picture with the similarities of its patches laid over it.

  Args:
    pixels: uint8 (size, size, 3).
    values: (rows, cols); the least is dark, the greatest bright.
  """
  span = float(values.max() - values.min())
  shares = (values - values.min()) / span if span else np.full_like(values, 0.5)
  size = (_HEAT_MAP, _HEAT_MAP)
  smooth = Image.fromarray(shares.astype(np.float32)).resize(
    size, Image.Resampling.BICUBIC
  )
  colours = Image.fromarray(ramp(np.clip(np.asarray(smooth), 0, 1)))
  kept_apart = len(pixels) <= _SMALL
  how = Image.Resampling.NEAREST if kept_apart else Image.Resampling.BICUBIC
  # In grey, so that all colour is the map's.
  below = Image.fromarray(pixels).convert("L").convert("RGB").resize(size, how)
  return Image.blend(below, colours, 0.6)


def ramp(shares: np.ndarray) -> np.ndarray:
  """Returns the colours, uint8 (..., 3), of numbers from 0 to 1 (...)."""
  points = np.linspace(0, 1, len(_RAMP))
  channels = [np.interp(shares, points, _RAMP[:, i]) for i in range(3)]
  return np.stack(channels, axis=-1).round().astype(np.uint8)
