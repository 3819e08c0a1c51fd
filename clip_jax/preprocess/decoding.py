"""Encoded bytes of any origin to a Pillow image, or to an `ImageError`."""

import dataclasses
import os
import re

from PIL import Image

from clip_jax import errors, regular_files
from clip_jax.preprocess import bounds, jpeg, silence

_ORIENTATION_TAG = 0x0112  # EXIF 2.3, section 4.6.4.
_UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
_ORIENTED_BY = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")

_JPEGS = ("JPEG", "MPO")
# Without `Limits.max_pixels`: what decodes in about a second, whatever the file
# holds, on one core of an AMD EPYC. A pixel of JPEG 2000 takes up to 40 ns, of
# AVIF 20, of a BMP of run lengths 90, of others 17 (a PNG of 16 bits). Those of
# a JPEG are enough for a phone of 200 megapixels. None is an image in memory.
_MAX_PIXELS = {
  **dict.fromkeys((*_JPEGS, None), 250_000_000),
  "JPEG2000": 25_000_000,
  "AVIF": 50_000_000,
  "BMP_RLE": 8_000_000,
}
_MAX_OTHER_PIXELS = 64_000_000
# A larger JPEG is decoded at a half, a quarter or an eighth of its sides, which
# no resize to a model's size can tell from the whole.
_WHOLE_JPEG_PIXELS = 25_000_000
# Images that are not read, by how they begin: a name for the message.
_UNREAD = {
  "HEIC": re.compile(rb"....ftyp(?:hei|hev|mif1|msf1)", re.DOTALL),
  "AVIF": re.compile(rb"....ftypavi", re.DOTALL),
  "JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
  "Photoshop": re.compile(rb"8BPS"),
  "OpenEXR": re.compile(rb"v/1\x01"),
  "JPEG 2000": re.compile(rb"\0\0\0\x0cjP|\xff\x4f\xff\x51"),
  "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
  "PPM": re.compile(rb"P[1-7fFy][\s#]"),
  "icon": re.compile(rb"\0\0[\1\2]\0[^\0]"),
  "SVG": re.compile(rb"\s*<(?:svg|\?xml.*<svg|!DOCTYPE svg)", re.DOTALL),
}


# Those that exchange width and height.
_SIDEWAYS = (
  *(Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE),
  *(Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270),
)


class ImageError(errors.UserError):
  """An image that cannot be used; `reason` is one short word for counting.

  One of unreadable, empty, too_many_bytes, not_an_image, lfs_pointer,
  unknown_format, unsupported_image, side_too_long, too_many_pixels,
  too_many_scans, too_complex, truncated, damaged and unsupported_mode.
  """

  def __init__(self, message: str, *, reason: str = "damaged"):
    super().__init__(message)
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class Limits:
  """What `decode` accepts, checked against the header before decoding.

  Attributes:
    max_pixels: of an image; None is 250 million of a JPEG, 25 of a JPEG 2000,
      50 of an AVIF, 8 of a BMP of run lengths and 64 of any other.
    max_scan_seconds: that a JPEG in several scans should take about.
    max_encoded_bytes: of a file.
    max_side: of an image in pixels.
    formats: names of Pillow's plugins; each further one adds attack surface.
  """

  max_pixels: int | None = None
  max_scan_seconds: float = 1.0
  max_encoded_bytes: int = 64 * 2**20
  max_side: int = 16_384
  formats: tuple[str, ...] = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"),
  )

  def pixels_of(self, kind: str | None) -> int:
    """Returns the most pixels of an image of a kind by `bounds.kind_of`."""
    if self.max_pixels is not None:
      return self.max_pixels
    return _MAX_PIXELS.get(kind, _MAX_OTHER_PIXELS)


DEFAULT_LIMITS = Limits()


WITHOUT_MEANING = ("I", "F")  # Modes whose numbers have no known range.
NAMELESS = "The image"  # In messages, where it has no path.
Encoded = bytes | bytearray | memoryview | str | os.PathLike


def decode(
  data: Encoded | Image.Image,
  *,
  limits: Limits = DEFAULT_LIMITS,
  upright: bool = True,
  least_side: int = 1,
) -> Image.Image:
  """Decodes one image of any origin, the first frame of an animated one.

  Args:
    data: the encoded bytes, the path of a file, or a Pillow image.
    limits: what is refused before it is decoded.
    upright: turn the image as EXIF says; OpenAI's path does not.
    least_side: pixels a side that a JPEG keeps, if it has them, where it is so
      large that it is decoded at a fraction of its size.

  Returns:
    The loaded image in its file's own mode, since OpenAI's path resizes before
    it converts to RGB; `to_rgb` converts it.

  Raises:
    ImageError: whatever is wrong with `data`.
  """
  if isinstance(data, Image.Image):
    image, name = data, NAMELESS
    check_size(image.size, limits, kind=bounds.kind_of(image))
  else:
    image, name, encoded = _open_checked(data, limits)
    if (fast := jpeg.decode(image, encoded)) is not None:
      image = fast
    _shrink_while_decoding(image, least_side)
  try:
    with silence.kept():
      image.load()
  except Exception as error:  # Pillow's decoders raise nearly any type.
    raise _broken(error, name) from error
  if image.mode in WITHOUT_MEANING:
    raise unsupported_mode(image)
  return _turn_upright(image) if upright else image


def unsupported_mode(image: Image.Image) -> ImageError:
  """Returns the error for pixels of a type that is no colour."""
  return ImageError(
    f"An image of Pillow's mode {image.mode!r} has no agreed meaning as red, "
    "green and blue; convert it to 8-bit RGB first.",
    reason="unsupported_mode",
  )


def check_header(
  data: Encoded, *, limits: Limits = DEFAULT_LIMITS
) -> tuple[int, int]:
  """Returns the width and height in the file, before EXIF turns the image.

  Raises:
    ImageError: `decode` would not read an image with such a header.
  """
  return _open_checked(data, limits)[0].size


@dataclasses.dataclass(frozen=True)
class Header:
  """The properties of an image that its header gives.

  Attributes:
    width: in pixels, of the image turned upright.
    height: likewise.
    format: Pillow's name of it.
    mode: Pillow's name of the pixels' type, as stored.
  """

  width: int
  height: int
  format: str
  mode: str


def read_header(data: Encoded, *, limits: Limits = DEFAULT_LIMITS) -> Header:
  """Returns the facts of an image's header; no pixel is decoded.

  Raises:
    ImageError: `decode` would not read the image.
  """
  image, *_ = _open_checked(data, limits)
  width, height = image.size
  # A TIFF's size is that of the image turned; a PNG would be decoded in search
  # of what may stand behind its pixels.
  is_png = image.format == "PNG"
  says = "exif" in image.info if is_png else image.format != "TIFF"
  if says and _turn(image) in _SIDEWAYS:
    width, height = height, width
  return Header(width, height, image.format or "", image.mode)


def _open_checked(
  data: Encoded, limits: Limits
) -> tuple[Image.Image, str, bytes]:
  """Returns the image, not decoded yet, its name in messages and its bytes."""
  encoded, name = _read(data, limits)
  file = bounds.MeteredFile(encoded)
  image = _open(encoded, file, limits, name)
  check_size(image.size, limits, kind=bounds.kind_of(image), name=name)
  try:
    bounds.check_opened(
      image, encoded, max_scan_seconds=limits.max_scan_seconds
    )
  except Exception as error:  # A TIFF's tags may be of any type.
    raise _broken(error, name) from error
  file.allow_load()
  return image, name, encoded


def _shrink_while_decoding(image: Image.Image, least_side: int) -> None:
  w, h = image.size
  if image.format not in _JPEGS or w * h <= _WHOLE_JPEG_PIXELS:
    return
  scale = 2
  while scale < 8 and w * h > _WHOLE_JPEG_PIXELS * scale**2:
    scale *= 2
  while scale > 1 and min(w, h) < scale * least_side:
    scale //= 2
  image.draft(None, (w // scale, h // scale))


def _read(data: Encoded, limits: Limits) -> tuple[bytes, str]:
  """Returns the encoded bytes and their name in messages."""
  if isinstance(data, bytes | bytearray | memoryview):
    name = NAMELESS
    try:
      encoded = bytes(data)
    except ValueError as error:  # A view that was released.
      raise ImageError(
        f"{name}: cannot be read: {error}.", reason="unreadable"
      ) from error
  elif isinstance(data, str | os.PathLike):
    name = os.fspath(data)
    errors.check_local(NAMELESS, name)
    try:
      encoded = regular_files.read_regular(name, limit=limits.max_encoded_bytes)
    except regular_files.NotRegularError as error:
      raise ImageError(str(error), reason="unreadable") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path.
      raise ImageError(
        f"{name or repr(name)}: cannot be read: "
        f"{getattr(error, 'strerror', error)}.",
        reason="unreadable",
      ) from error
  else:
    raise ImageError(
      "An image is given as bytes, as a path or as a Pillow image, got "
      f"{type(data).__name__}.",
      reason="unreadable",
    )
  if not encoded:
    raise ImageError(f"{name}: is empty (0 bytes).", reason="empty")
  if len(encoded) > limits.max_encoded_bytes:
    raise ImageError(
      f"{name}: has more than the {limits.max_encoded_bytes:,} bytes allowed.",
      reason="too_many_bytes",
    )
  return encoded, name


def _open(
  encoded: bytes, file: bounds.MeteredFile, limits: Limits, name: str
) -> Image.Image:
  """Reads the header by the one plugin that knows it; decodes nothing yet.

  `Image.open` would do, but it warns of large images before we can refuse them.
  """
  for plugin in limits.formats:
    if plugin not in Image.OPEN:
      Image.init()
    if plugin not in Image.OPEN:  # Pillow was built without it.
      continue
    factory, accept = Image.OPEN[plugin]
    if accept is None or accept(encoded[:16]) is True:
      try:
        bounds.check_encoded(plugin, encoded)
        # Pillow warns of metadata and of further frames, which are not used.
        with silence.kept():
          return factory(file, "")
      except Exception as error:  # As above.
        raise _broken(error, name) from error
  for kind, beginning in _UNREAD.items():
    if beginning.match(encoded[:1024]):
      raise ImageError(
        f"{name}: is an image of the kind {kind}, which is not read; convert it"
        f" to one of {', '.join(limits.formats)}.",
        reason="unsupported_image",
      )
  if encoded.startswith(regular_files.LFS):
    raise ImageError(
      f"{name}: is a pointer of Git LFS; get the image by `git lfs pull`.",
      reason="lfs_pointer",
    )
  text = _is_text(encoded[:256])
  raise ImageError(
    f"{name}: is {'text' if text else 'in an unknown format'}, not an image of "
    f"the formats {', '.join(limits.formats)}.",
    reason="not_an_image" if text else "unknown_format",
  )


def _is_text(head: bytes) -> bool:
  """Tells a web page saved as an image from an unknown format."""
  return all(byte >= 32 or byte in b"\t\n\r" for byte in head)


def check_size(
  size: tuple[int, int],
  limits: Limits,
  *,
  kind: str | None = None,
  name: str = NAMELESS,
) -> None:
  """Raises ImageError unless an image of a size may be decoded.

  Args:
    size: width and height in pixels.
    limits: on them.
    kind: of the image, by `bounds.kind_of`.
    name: of the image in messages.
  """
  w, h = size
  if min(w, h) < 1:
    raise ImageError(f"{name}: has no pixels ({w} x {h}).", reason="empty")
  if max(w, h) > limits.max_side:
    raise ImageError(
      f"{name}: is {w} x {h} pixels; a side may have {limits.max_side:,}.",
      reason="side_too_long",
    )
  if w * h > (most := limits.pixels_of(kind)):
    raise ImageError(
      f"{name}: is {w} x {h} pixels, {w * h:,} in all; {most:,} are allowed"
      f"{f' of the kind {kind}' if kind else ''}. Raise that by --max-pixels, "
      "in a config by data.max_pixels, in Python by clip.with_max_pixels(N).",
      reason="too_many_pixels",
    )


def _broken(error: Exception, name: str) -> ImageError:
  """Returns the error for data that Pillow could not read."""
  message = str(error).rstrip(".") or type(error).__name__
  if isinstance(error, bounds.WorkError):
    reason = error.reason
  elif isinstance(error, Image.DecompressionBombError):
    reason = "too_many_pixels"
  elif isinstance(error, EOFError) or "truncated" in message.lower():
    reason = "truncated"
  else:
    reason = "damaged"
  return ImageError(
    f"{name}: {reason.replace('_', ' ')}: {message}.", reason=reason
  )


def _turn(image: Image.Image) -> Image.Transpose | None:
  try:
    with silence.kept():
      return _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 0))
  except Exception:  # Broken metadata does not harm the picture.
    return None


def _turn_upright(image: Image.Image) -> Image.Image:
  method = _turn(image)
  if method is None:
    return image
  turned = image.transpose(method)
  for key in _ORIENTED_BY:  # So that the image is not turned a second time.
    turned.info.pop(key, None)
  return turned
