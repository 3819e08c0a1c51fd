"""Turns images of any kind that users have into what `decode` takes.

Arrays of numpy, JAX and PyTorch are recognised by their shape and dtype, so
that none of these libraries is imported only to recognise its arrays.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np
from PIL import Image

from clip_jax import errors
from clip_jax.preprocess import decoding

# An array is uint8 of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4).
ImageInput = Image.Image | np.ndarray | decoding.Encoded | IO[bytes]

_CHANNELS = (1, 3, 4)  # Grey, RGB, RGBA.
_NUMBERS = ("int", "uint", "float")  # Types that can be made to bytes.
_ACCEPTED = (
  "a path, encoded bytes, an open file, a Pillow image or a uint8 array"
)


def each(images: Any) -> Iterable[ImageInput]:
  """Returns the images one by one, a list where their number is known.

  Args:
    images: one image, an iterable of them, or an array (n, h, w, channels).

  Raises:
    UserError: `images` is none of these.
  """
  if _is_array(images):
    if len(images.shape) == 4:
      return list(_checked(images))
    is_numbers = _kind(images).startswith(_NUMBERS)
    if len(images.shape) == 1 and not (is_numbers and images.shape[0]):
      return list(images)  # Of paths; numpy makes numbers of no paths.
    return [images]
  if isinstance(images, Image.Image | decoding.Encoded) or hasattr(
    images, "read"
  ):
    return [images]
  unordered = isinstance(images, Mapping | set | frozenset)
  if unordered or not isinstance(images, Iterable):
    raise errors.UserError(
      f"Images are given as {_ACCEPTED}, or a list of these; got "
      f"{type(images).__name__}."
    )
  return images if isinstance(images, Iterator) else list(images)


def read(
  image: ImageInput, *, limits: decoding.Limits = decoding.DEFAULT_LIMITS
) -> Image.Image:
  """Returns one image, decoded and upright.

  Args:
    image: of any kind.
    limits: what is refused before it is decoded.

  Raises:
    UserError: an array is not as `ImageInput` says; the message has the line
      that makes it so.
    ImageError: whatever else is wrong with it.
  """
  if _is_array(image):
    array = _checked(image)
    if array.ndim > 3:
      raise errors.UserError(
        f"One image was expected, got an array of shape {array.shape}; take "
        "its images one by one, or give it by itself instead of in a list."
      )
    if array.ndim == 3 and array.shape[2] == 1:
      array = array[:, :, 0]
    if array.size:
      h, w = array.shape[:2]
      decoding.check_size((w, h), limits)  # Before Pillow has a copy.
      return decoding.decode(Image.fromarray(array), limits=limits)
    image = b""
  elif hasattr(image, "read"):
    image = _content(image, limits)
  elif not isinstance(image, Image.Image | decoding.Encoded):
    raise decoding.ImageError(
      f"An image is {_ACCEPTED}; got {type(image).__name__}.",
      reason="unreadable",
    )
  return decoding.decode(image, limits=limits)


def _content(file: Any, limits: decoding.Limits) -> bytes:
  """Returns the content of an open file, from its start where it can seek."""
  name = getattr(file, "name", "The file")
  if getattr(file, "closed", False):
    raise decoding.ImageError(
      f"{name}: is closed; open it again.", reason="unreadable"
    )
  try:
    return _read(file, name, limits)
  except errors.UserError:
    raise
  except Exception as error:  # Those of archives raise nearly any type.
    raise decoding.ImageError(
      f"{name}: cannot be read: {errors.first_line(error)}.",
      reason="unreadable",
    ) from error


def _read(file: Any, name: str, limits: decoding.Limits) -> bytes:
  if getattr(file, "seekable", lambda: False)():
    file.seek(0)
  data = file.read(limits.max_encoded_bytes + 1)
  if not isinstance(data, bytes | bytearray | memoryview):
    if data is None:
      raise BlockingIOError("no data is there yet")
    raise decoding.ImageError(
      f"{name}: is open as text; open it with mode 'rb'.",
      reason="unreadable",
    )
  parts, size = [bytes(data)], len(data)
  while data and size <= limits.max_encoded_bytes:  # Pipes give less at a time.
    data = file.read(limits.max_encoded_bytes + 1 - size) or b""
    parts.append(bytes(data))
    size += len(data)
  return b"".join(parts)


def _is_array(value: Any) -> bool:
  # Some have a shape, too, which may be an error to ask for.
  if isinstance(value, decoding.Encoded):
    return False
  return hasattr(value, "shape") and hasattr(value, "dtype")


def _kind(array: Any) -> str:
  """Returns the name of an array's type, such as "uint8"."""
  return str(getattr(array.dtype, "name", array.dtype)).rpartition(".")[2]


def _checked(array: Any) -> np.ndarray:
  """Returns uint8 (…, h, w) or (…, h, w, channels) as numpy.

  Raises:
    UserError: it is of another type or shape; says what to write.
  """
  if hasattr(array, "detach"):  # Of PyTorch, which may keep its history.
    array = array.detach()
  shape = tuple(array.shape)
  kind = _kind(array)
  axes = len(shape)
  first = axes >= 3 and shape[-1] not in _CHANNELS and shape[-3] in _CHANNELS
  fits = axes == 2 or (axes in (3, 4) and shape[-1] in _CHANNELS)
  if kind == "uint8" and fits:
    with _readable(kind, shape):
      if hasattr(array, "cpu"):  # Of PyTorch, whose tensor may be remote.
        array = array.cpu()
      return np.asarray(array)
  got = f"{kind} of shape {shape}"
  if first:
    got += ", channels first"
  if kind == "uint8" and axes == 1:
    is_torch = type(array).__module__.startswith("torch")
    of = "x.numpy()" if is_torch else "x"
    way_on = f"If these are the bytes of a file, give {of}.tobytes()."
  elif not fits and not first:
    way_on = "Give (height, width, 3), or a list of such arrays."
  else:
    with _readable(kind, shape):
      way_on = _remedy(array, kind, moved=first)
  raise errors.UserError(
    "An image array must be uint8 from 0 to 255 of shape (height, width, 3); "
    f"got {got}. {way_on}"
  )


@contextlib.contextmanager
def _readable(kind: str, shape: tuple[int, ...]) -> Iterator[None]:
  """Turns what a library says of an array without numbers into a UserError."""
  try:
    yield
  except (NotImplementedError, RuntimeError, TypeError) as error:
    raise errors.UserError(
      f"An image array of {kind} and shape {shape} cannot be read: "
      f"{errors.first_line(error)} Give one that holds its numbers, dense."
    ) from None


def _remedy(array: Any, kind: str, *, moved: bool) -> str:
  """Returns the advice about an array of the wrong type or order of axes."""
  library = type(array).__module__.partition(".")[0]
  is_torch = library == "torch"
  x = "x"
  if moved and is_torch:
    x = "x.movedim(-3, -1)"
  elif moved:
    x = f"{'np' if library == 'numpy' else 'jnp'}.moveaxis(x, -3, -1)"
  if kind == "uint8":
    return f"Write {x}."
  as_bytes = ".byte()" if is_torch else ".astype('uint8')"
  if kind not in ("bool", "bfloat16") and not kind.startswith(_NUMBERS):
    return "Give the image as bytes from 0 to 255."
  low, high = 0.0, 0.0
  if 0 not in array.shape:
    low, high = float(array.min()), float(array.max())
  is_float = kind.startswith(("float", "bfloat"))
  if not (low >= 0 and high <= 255):
    way_on = "scale them to 0 to 255"
    if is_float:
      way_on = "give the image as it was before it was normalised"
    return f"Its numbers go from {low:.3g} to {high:.3g}: {way_on}."
  if is_float:
    scaled = f"(255 * {x})" if high <= 1 else x
    return f"Write {scaled}.round(){as_bytes}."
  return f"Write {f'(255 * {x})' if kind == 'bool' else x}{as_bytes}."
