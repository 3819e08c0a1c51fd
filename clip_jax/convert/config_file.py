"""JSON configs of other libraries, read field by field."""

import math
import pathlib
from typing import Any

from clip_jax import errors, json_text

MAX_BYTES = 1 << 22
# Beyond every model: a hostile number must not become a loop or an overflow.
MAX_INTEGER = 1 << 24
MAX_WIDTH = 1 << 14
MAX_DEPTH = 1 << 10
_MAX_PIXELS = 1 << 14
# Means and deviations of channels, of images from 0 to 1.
MAX_CHANNEL = 1e6
LEAST_DEVIATION = 1e-6
_REQUIRED = object()


def read(path: pathlib.Path, *, strict: bool = False) -> dict[str, Any]:
  """Returns the object in a JSON file.

  Args:
    path: of the file.
    strict: a key that stands twice in an object, and NaN, are errors.

  Raises:
    UserError: there is none.
  """
  try:
    return json_text.read(path, max_bytes=MAX_BYTES, strict=strict)
  except FileNotFoundError:
    raise errors.UserError(
      f"{path} does not exist; fetch it, as it belongs to the model."
    ) from None
  except OSError as error:
    raise errors.UserError(
      f"{path} cannot be read: {error.strerror}. Make it readable, or fetch it "
      "again."
    ) from None


def peek(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object in a JSON file, an empty one where there is none."""
  try:
    return read(path) if path.is_file() else {}
  except errors.UserError:
    return {}


class Fields:
  """A config's fields, each taken once; what is left over is an error."""

  def __init__(self, where: str, data: Any):
    if not isinstance(data, dict):
      raise errors.DamagedError(
        f"{where} must be a JSON object, got {data!r:.60}; fetch or make the "
        "file again."
      )
    self._where = where
    self._data = dict(data)

  def has(self, field: str) -> bool:
    """Whether the field is there and not taken yet."""
    return field in self._data

  def take(
    self,
    field: str,
    default: Any = _REQUIRED,
    *,
    kind: type | tuple[type, ...] = int,
  ) -> Any:
    """Returns a field of the type `kind`; null passes where it is the default.

    Raises:
      UserError: it is missing without a default, or of another type.
    """
    value = self._data.pop(field, default)
    if value is _REQUIRED:
      raise errors.UserError(
        f"{self._where} lacks {field}; fetch or make the file again."
      )
    if value is None and default is None:
      return None
    kinds = kind if isinstance(kind, tuple) else (kind,)
    fits = isinstance(value, kinds) and (
      bool in kinds or not isinstance(value, bool)
    )
    if float in kinds and type(value) is int and abs(value) < 1 << 53:
      value, fits = float(value), True
    if isinstance(value, float) and not math.isfinite(value):
      fits = False
    if not fits:
      names = " or ".join(one.__name__ for one in kinds)
      raise errors.UserError(
        f"{self._where}.{field}={value!r:.100} must be of type {names}."
      )
    return value

  def positive(
    self, field: str, default: Any = _REQUIRED, *, most: int = MAX_INTEGER
  ) -> int:
    """Returns a whole number from 1 to `most`."""
    value = self.take(field, default)
    if not 1 <= value <= most:
      raise errors.UserError(
        f"{self._where}.{field}={value!r:.20} must be from 1 to {most}."
      )
    return value

  def choose(self, field: str, default: Any, known: dict[Any, Any]) -> Any:
    """Returns what `known` has for a field's value."""
    value = self._data.pop(field, default)
    if isinstance(value, list | dict) or value not in known:
      shown = ", ".join(map(repr, known))
      raise errors.UserError(
        f"{self._where}.{field}={value!r:.100} is not held; known: {shown}."
      )
    return known[value]

  def neutral(self, field: str, *values: Any) -> None:
    """Takes a field that is held at these values only, the first by default.

    Raises:
      UserError: it has another value; the field is named.
    """
    value = self._data.pop(field, values[0])
    if not any(value == one and type(value) is type(one) for one in values):
      raise errors.UserError(
        f"{self._where}.{field}={value!r:.100} is not held here (only "
        f"{' or '.join(map(repr, values))} is)."
      )

  def ignore(self, *fields: str) -> None:
    """Takes fields that say nothing about what is computed."""
    for field in fields:
      self._data.pop(field, None)

  def done(self) -> None:
    """Raises UserError if a field was not taken."""
    if self._data:
      raise errors.UserError(
        f"{self._where} has fields that are not known: "
        f"{', '.join(sorted(map(str, self._data)))}. A newer version of its "
        "library may have written it; they cannot be ignored."
      )


def square(size: Any, where: str) -> int:
  """Returns the side of a square size, from a number or two equal ones."""
  sides: list[Any] = list(size) if isinstance(size, list | tuple) else [size]
  if (
    len(set(map(str, sides))) != 1
    or len(sides) > 2
    or type(sides[0]) is not int
    or not 1 <= sides[0] <= _MAX_PIXELS
  ):
    raise errors.UserError(
      f"{where}={size!r:.100} is no square size in whole pixels, which towers "
      "here have."
    )
  return sides[0]


def channels(values: Any, where: str) -> list[float]:
  """Returns three numbers, for red, green and blue."""
  if (
    not isinstance(values, list | tuple)
    or len(values) != 3
    or not all(
      isinstance(value, int | float)
      and not isinstance(value, bool)
      and abs(value) <= MAX_CHANNEL
      for value in values
    )
  ):
    raise errors.UserError(
      f"{where}={values!r:.100} must be three numbers, red, green and blue."
    )
  return [float(value) for value in values]
