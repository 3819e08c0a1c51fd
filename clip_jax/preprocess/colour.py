"""Any of Pillow's modes to RGB: transparency, palettes and 16 bits."""

import numpy as np
from PIL import Image

from clip_jax.preprocess import decoding


def to_rgb(image: Image.Image) -> Image.Image:
  """Returns `image` in mode RGB, transparency laid on white."""
  return convert(flatten(image, "white"), "RGB")


def flatten(image: Image.Image, alpha: str) -> Image.Image:
  """Returns `image` with 8 bits a channel and its transparency resolved."""
  if image.mode.startswith("I;16"):
    # Pillow's conversion would clip: everything above 255 of 65535 is white.
    levels = (np.asarray(image).astype(np.uint32) + 128) // 257
    return Image.fromarray(levels.astype(np.uint8))
  if image.mode in decoding.WITHOUT_MEANING:
    raise decoding.unsupported_mode(image)
  if image.mode == "PA":  # Else a palette's indices would be interpolated.
    image = image.convert("RGBA")
  if not image.has_transparency_data:
    return image
  if alpha == "white":
    rgba = convert(image, "RGBA")
    if np.asarray(rgba.getchannel("A")).min() < 255:
      page = Image.new("RGBA", image.size, "white")
      return Image.alpha_composite(page, rgba).convert("RGB")
    if image.mode != "P":
      return rgba.convert("RGB")
  if "transparency" in image.info:  # Pillow would warn that it is lost.
    image = image.copy()
    del image.info["transparency"]
  return image


def convert(image: Image.Image, mode: str) -> Image.Image:
  """Returns `image` in Pillow's `mode`, or raises `ImageError`."""
  try:
    return image if image.mode == mode else image.convert(mode)
  except ValueError as error:
    raise decoding.unsupported_mode(image) from error
