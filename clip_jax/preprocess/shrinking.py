"""Images made smaller once, to be stored."""

import io

from PIL import Image

from clip_jax.preprocess import colour, decoding


def shrink(
  data: bytes,
  *,
  shortest_side: int,
  quality: int,
  limits: decoding.Limits = decoding.DEFAULT_LIMITS,
) -> bytes | None:
  """Returns a large image as a smaller JPEG; None where it is not large.

  It is turned upright, transparency is laid on white, and the shortest side
  becomes `shortest_side` pixels by Pillow's bicubic filter. Grey stays grey.
  Nothing of the metadata is kept.

  Args:
    data: the encoded image.
    shortest_side: in pixels.
    quality: of the JPEG, from 1 to 100, as Pillow has it.
    limits: what is refused before it is decoded.

  Raises:
    ImageError: it cannot be decoded.
  """
  if min(decoding.check_header(data, limits=limits)) <= shortest_side:
    return None
  image = decoding.decode(data, limits=limits, least_side=shortest_side)
  if image.mode != "L":
    image = colour.to_rgb(image)
  w, h = image.size
  size = [max(1, round(shortest_side * n / min(w, h))) for n in (w, h)]
  image = image.resize(size, Image.Resampling.BICUBIC)
  image.info = {}  # Else Pillow might write comments and profiles again.
  buffer = io.BytesIO()
  image.save(buffer, "JPEG", quality=quality)
  return buffer.getvalue()
