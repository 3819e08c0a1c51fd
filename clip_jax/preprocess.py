"""One image to one array: decode safely, resize, crop.

`eval_image` equals OpenAI's Pillow path level by level: bicubic resize of the
shortest side in the file's own mode, centre crop, conversion to RGB last. It
departs from it where that path gives no sensible picture, and says so: 16-bit
grey is scaled where OpenAI's path clips it to white, transparency is laid on
white (`Preprocess.alpha`), and EXIF orientation is applied (`decode`).
"""

import contextlib
import dataclasses
import io
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from clip_jax import errors

INTERPOLATIONS = {
  "bicubic": Image.Resampling.BICUBIC,
  "bilinear": Image.Resampling.BILINEAR,
}
RESIZES = ("shortest",)
# What lies behind transparent pixels: white as on a page, or nothing, which
# shows the black that OpenAI's path leaves there.
ALPHAS = ("white", "drop")

# Beyond this ratio of sides only the crop is resampled: the resized image of a
# 1 x 16000 strip would be 224 x 3.6 million pixels.
_MAX_RESIZED_RATIO = 32

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


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """How an image becomes the array that a model was trained on.

  Attributes:
    image_size: the side of the square result in pixels.
    mean: of each channel, on the scale 0 to 1, taken off by `normalize`.
    std: of each channel, on the scale 0 to 1, divided by in `normalize`.
    interpolation: one of `INTERPOLATIONS`.
    resize: "shortest" scales the shortest side to `image_size`.
    alpha: one of `ALPHAS`; opaque images are the same under each.
  """

  image_size: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  interpolation: str = "bicubic"
  resize: str = "shortest"
  alpha: str = "white"

  def __post_init__(self):
    for name, known in (
      ("interpolation", INTERPOLATIONS),
      ("resize", RESIZES),
      ("alpha", ALPHAS),
    ):
      if getattr(self, name) not in known:
        raise errors.unknown(name, getattr(self, name), known)
    if self.image_size < 1:
      raise errors.UserError(
        f"image_size={self.image_size} must be at least 1 pixel."
      )
    for name in ("mean", "std"):
      channels = tuple(float(value) for value in getattr(self, name))
      if len(channels) != 3 or (name == "std" and min(channels) <= 0):
        raise errors.UserError(
          f"{name}={channels} must be three numbers, red, green and blue"
          f"{', all above 0' if name == 'std' else ''}."
        )
      object.__setattr__(self, name, channels)  # A tuple, also from JSON.

  @classmethod
  def from_spec(cls, spec: dict[str, Any]) -> "Preprocess":
    """Returns the preprocessing of a resolved model spec."""
    options = {
      key: spec[key] for key in ("interpolation", "resize") if key in spec
    }
    return cls(
      image_size=spec["image"]["image_size"],
      mean=spec["image_mean"],
      std=spec["image_std"],
      **options,
    )

  @classmethod
  def from_dict(cls, fields: dict[str, Any]) -> "Preprocess":
    """Returns what `to_dict` described."""
    known = [field.name for field in dataclasses.fields(cls)]
    for name in fields:
      if name not in known:
        raise errors.unknown("preprocessing field", name, known)
    return cls(**fields)

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields as plain data."""
    return dataclasses.asdict(self)


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


def eval_image(image: Image.Image, spec: Preprocess) -> np.ndarray:
  """Returns the centre crop of a decoded image, uint8 (size, size, 3)."""

  def centre(margin: int) -> int:
    return round(margin / 2)  # Halves go to the even side, as OpenAI's do.

  return _resize_and_crop(image, spec, spec.image_size, centre)


def train_image(
  image: Image.Image,
  spec: Preprocess,
  *,
  rng: np.random.Generator,
  resize_ratio: float = 1.0,
) -> np.ndarray:
  """Returns a random square crop, uint8 (size, size, 3): paper, section 2.4.

  The shortest side is first resized to `resize_ratio` times the crop's, so a
  ratio of 1 moves the crop along the longer side only.
  """
  if not resize_ratio >= 1:
    raise errors.UserError(
      f"resize_ratio={resize_ratio} must be at least 1, so that the crop of "
      f"{spec.image_size} pixels fits into the resized image."
    )
  short = round(spec.image_size * resize_ratio)
  return _resize_and_crop(
    image, spec, short, lambda margin: int(rng.integers(margin + 1))
  )


def normalize(images: np.ndarray, spec: Preprocess) -> np.ndarray:
  """Returns float32 (..., 3) for uint8 (..., 3), as OpenAI's path computes."""
  scaled = images.astype(np.float32)
  scaled /= np.float32(255)
  scaled -= np.asarray(spec.mean, np.float32)
  scaled /= np.asarray(spec.std, np.float32)
  return scaled


def _resize_and_crop(
  image: Image.Image,
  spec: Preprocess,
  short: int,
  corner: Callable[[int], int],
) -> np.ndarray:
  """Resizes the shortest side to `short`, crops, and converts to RGB.

  `corner` turns the number of pixels to lose into the first one kept; it is
  called for the height and then for the width.
  """
  image = _flatten(image, spec.alpha)
  w, h = image.size
  # int() and this order of operations are torchvision's size rule.
  resized_w = short if w <= h else int(short * w / h)
  resized_h = int(short * h / w) if w <= h else short
  size = spec.image_size
  top, left = corner(resized_h - size), corner(resized_w - size)
  resample = INTERPOLATIONS[spec.interpolation]
  if max(resized_w, resized_h) <= _MAX_RESIZED_RATIO * short:
    image = image.resize((resized_w, resized_h), resample)
    image = image.crop((left, top, left + size, top + size))
  else:
    x, y = w / resized_w, h / resized_h  # Source pixels to a resized one.
    right, bottom = min((left + size) * x, w), min((top + size) * y, h)
    image = image.resize(
      (size, size), resample, (left * x, top * y, right, bottom)
    )
  return np.array(_convert(image, "RGB"))  # (size, size, 3)


def to_rgb(image: Image.Image) -> Image.Image:
  """Returns `image` in mode RGB, transparency laid on white."""
  return _convert(_flatten(image, "white"), "RGB")


def _flatten(image: Image.Image, alpha: str) -> Image.Image:
  """Returns `image` with 8 bits a channel and its transparency resolved."""
  if image.mode.startswith("I;16"):
    # Pillow's conversion would clip: everything above 255 of 65535 is white.
    levels = (np.asarray(image).astype(np.uint32) + 128) // 257
    return Image.fromarray(levels.astype(np.uint8))
  if image.mode in ("I", "F"):
    raise _unsupported(image)
  if image.mode == "PA":  # Else a palette's indices would be interpolated.
    image = image.convert("RGBA")
  if not image.has_transparency_data:
    return image
  if alpha == "white":
    rgba = _convert(image, "RGBA")
    if rgba.getchannel("A").getextrema()[0] < 255:
      page = Image.new("RGBA", image.size, "white")
      return Image.alpha_composite(page, rgba).convert("RGB")
    if image.mode != "P":
      return rgba.convert("RGB")
  if "transparency" in image.info:  # Pillow would warn that it is lost.
    image = image.copy()
    del image.info["transparency"]
  return image


def _convert(image: Image.Image, mode: str) -> Image.Image:
  try:
    return image if image.mode == mode else image.convert(mode)
  except ValueError as error:
    raise _unsupported(image) from error


def _unsupported(image: Image.Image) -> ImageError:
  return ImageError(
    f"An image of Pillow's mode {image.mode!r} has no agreed meaning as red, "
    "green and blue; convert it to 8-bit RGB first.",
    reason="unsupported_mode",
  )
