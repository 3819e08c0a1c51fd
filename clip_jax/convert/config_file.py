"""Reads JSON configs of other libraries field by field."""

import math
import pathlib
from typing import Any

from clip_jax import errors, json_text

MAX_BYTES = 1 << 22
# More than any model has; a hostile number must not cause a loop or overflow.
MAX_INTEGER = 1 << 24
MAX_WIDTH = 1 << 14
MAX_DEPTH = 1 << 10
_MAX_PIXELS = 1 << 14
# Named means and standard deviations of channels, for pixels from 0 to 1.
MAX_CHANNEL = 1e6
LEAST_DEVIATION = 1e-6
_REQUIRED = object()


def read(path: pathlib.Path, *, strict: bool = False) -> dict[str, Any]:
  """Returns the object in a JSON file.

  Args:
    path: path of the file.
    strict: whether a key that occurs twice in an object, or NaN, is an error.

  Raises:
    UserError: the file cannot be read, or holds no JSON object.
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
  """Returns the object in a JSON file; {} if there is no valid one."""
  try:
    return read(path) if path.is_file() else {}
  except errors.UserError:
    return {}


class Fields:
  """Fields of a config, each to be taken once; `done` rejects the others."""

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
    """Returns a field of the type `kind`; null is valid if it is the default.

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
    """Returns the entry of `known` for a field's value."""
    value = self._data.pop(field, default)
    if isinstance(value, list | dict) or value not in known:
      shown = ", ".join(map(repr, known))
      raise errors.UserError(
        f"{self._where}.{field}={value!r:.100} is not supported; known: "
        f"{shown}."
      )
    return known[value]

  def neutral(self, field: str, *values: Any) -> None:
    """Takes a field for which only these values are supported.

    The first of them is the default.

    Raises:
      UserError: it has another value; the message names the field.
    """
    value = self._data.pop(field, values[0])
    if not any(value == one and type(value) is type(one) for one in values):
      raise errors.UserError(
        f"{self._where}.{field}={value!r:.100} is not supported (only "
        f"{' or '.join(map(repr, values))})."
      )

  def ignore(self, *fields: str) -> None:
    """Takes fields that do not change what a model computes."""
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
      f"{where}={size!r:.100} must be one number of whole pixels, or two equal "
      "ones: the towers here take square images."
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
