"""Encoded bytes of any origin to a Pillow image, or to an `ImageError`."""

import contextlib
import dataclasses
import io
import os
import threading
import warnings

from PIL import Image

from clip_jax import errors

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

_WARNINGS_LOCK = threading.Lock()


class ImageError(errors.UserError):
  """An image that cannot be used; `reason` is one short word for counting.

  One of unreadable, empty, too_many_bytes, not_an_image, unknown_format,
  side_too_long, too_many_pixels, truncated, damaged and unsupported_mode.
  """

  def __init__(self, message: str, *, reason: str = "damaged"):
    super().__init__(message)
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class Limits:
  """What `decode` accepts, checked against the header before decoding."""

  max_encoded_bytes: int = 20_000_000
  max_pixels: int = 25_000_000
  max_side: int = 16_384
  # Names of Pillow's plugins; each one more is more attack surface.
  formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


DEFAULT_LIMITS = Limits()


def decode(
  data: bytes | str | os.PathLike | Image.Image,
  *,
  limits: Limits = DEFAULT_LIMITS,
  upright: bool = True,
) -> Image.Image:
  """Decodes one image of any origin, the first frame of an animated one.

  Args:
    data: the encoded bytes, the path of a file, or a Pillow image.
    limits: what is refused before it is decoded.
    upright: turn the image as EXIF says; OpenAI's path does not.

  Returns:
    The loaded image in its file's own mode, since OpenAI's path resizes before
    it converts to RGB; `to_rgb` converts it.

  Raises:
    ImageError: whatever is wrong with `data`.
  """
  if isinstance(data, Image.Image):
    image, name = data, "The image"
  else:
    encoded, name = _read(data, limits)
    image = _open(encoded, limits, name)
  _check_size(image.size, limits, name)
  try:
    image.load()
  except Exception as error:  # Pillow's decoders raise nearly any of them.
    raise _broken(error, name) from error
  return _turn_upright(image) if upright else image


def _read(data: bytes | str | os.PathLike, limits: Limits) -> tuple[bytes, str]:
  """Returns the encoded bytes and what messages call them."""
  if isinstance(data, bytes | bytearray | memoryview):
    encoded, name = bytes(data), "The image"
  elif isinstance(data, str | os.PathLike):
    name = os.fspath(data)
    try:
      with open(name, "rb") as file:
        encoded = file.read(limits.max_encoded_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path.
      raise ImageError(
        f"{name}: cannot be read: {getattr(error, 'strerror', error)}.",
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


def _open(encoded: bytes, limits: Limits, name: str) -> Image.Image:
  """Reads the header by the one plugin that knows it; decodes nothing yet.

  `Image.open` would do, but it warns of large images before we can refuse them.
  """
  for plugin in limits.formats:
    if plugin not in Image.OPEN:
      Image.init()
    factory, accept = Image.OPEN[plugin]
    if accept is None or accept(encoded[:16]) is True:
      try:
        with _no_warnings(plugin):
          return factory(io.BytesIO(encoded), "")
      except Exception as error:  # As above.
        raise _broken(error, name) from error
  text = _is_text(encoded[:256])
  raise ImageError(
    f"{name}: is {'text' if text else 'in an unknown format'}, not an image of "
    f"the formats {', '.join(limits.formats)}.",
    reason="not_an_image" if text else "unknown_format",
  )


def _is_text(head: bytes) -> bool:
  """Tells a web page saved as an image from an unknown format."""
  return all(byte >= 32 or byte in b"\t\n\r" for byte in head)


@contextlib.contextmanager
def _no_warnings(plugin: str):
  """Silences the one warning that a header can still cause.

  A GIF's first frame may be larger than its screen, of which Pillow warns
  itself. The filters belong to the process: hence the lock, and GIFs only.
  """
  if plugin != "GIF":
    yield
    return
  with _WARNINGS_LOCK, warnings.catch_warnings():
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    yield


def _check_size(size: tuple[int, int], limits: Limits, name: str) -> None:
  w, h = size
  if min(w, h) < 1:
    raise ImageError(f"{name}: has no pixels ({w} x {h}).", reason="empty")
  if max(w, h) > limits.max_side:
    raise ImageError(
      f"{name}: is {w} x {h} pixels; a side may have {limits.max_side:,}.",
      reason="side_too_long",
    )
  if w * h > limits.max_pixels:
    raise ImageError(
      f"{name}: is {w} x {h} pixels; {limits.max_pixels:,} in all are allowed.",
      reason="too_many_pixels",
    )


def _broken(error: Exception, name: str) -> ImageError:
  """Returns the error for data that Pillow could not read."""
  message = str(error).rstrip(".") or type(error).__name__
  if isinstance(error, Image.DecompressionBombError):
    reason = "too_many_pixels"
  elif isinstance(error, EOFError) or "truncated" in message.lower():
    reason = "truncated"
  else:
    reason = "damaged"
  return ImageError(
    f"{name}: {reason.replace('_', ' ')}: {message}.", reason=reason
  )


def _turn_upright(image: Image.Image) -> Image.Image:
  try:
    method = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG))
  except Exception:  # Broken metadata spoils no picture.
    method = None
  if method is None:
    return image
  turned = image.transpose(method)
  for key in _ORIENTED_BY:  # So that nobody turns it again.
    turned.info.pop(key, None)
  return turned
