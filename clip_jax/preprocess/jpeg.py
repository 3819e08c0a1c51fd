"""Small colour JPEGs by simplejpeg, where it is installed (extra `fast`).

It drives the same libjpeg-turbo as Pillow, with less around it: pixels are
equal, level by level, in 0.9 of the time or less. Whatever it does not take
without a warning is left to Pillow, whose word on damaged files counts.
"""

import functools
from typing import Any

import PIL
from PIL import Image, features

# Of larger images Pillow is as fast, or faster: it needs no second copy.
_MAX_PIXELS = 1_000_000


@functools.cache
def _library() -> Any:
  """Returns simplejpeg, or None where it is not installed."""
  try:
    import simplejpeg
  except ImportError:
    return None
  return simplejpeg


def decoder() -> str:
  """Returns the names and versions of what decodes JPEGs here."""
  turbo = features.version("libjpeg_turbo") or "another libjpeg"
  words = f"Pillow {PIL.__version__} (libjpeg-turbo {turbo})"
  if (library := _library()) is not None:
    words += f", simplejpeg {library.__version__}"
  return words


def decode(opened: Image.Image, encoded: bytes) -> Image.Image | None:
  """Returns the pixels of an image, or None where Pillow has to decode it.

  Args:
    opened: as Pillow has read its header, with the limits checked.
    encoded: the bytes of the file.
  """
  library = _library()
  w, h = opened.size
  if (
    library is None
    or opened.format != "JPEG"
    or opened.mode != "RGB"
    or w * h > _MAX_PIXELS
  ):
    return None
  try:
    # Of one size for both readers of the header: the limits hold for it.
    if library.decode_jpeg_header(encoded)[:2] != (h, w):
      return None
    image = Image.fromarray(library.decode_jpeg(encoded, "RGB"))
  except Exception:  # Damaged, or of a kind that it has no name for: KeyError.
    return None
  image.info = opened.info
  return image
