"""Kinds of values in a format's config: what is allowed, and what it means."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from clip_jax.convert.engine.config_reader import Kind, Wrong

# More than any model has; a hostile number must not cause a loop or overflow.
MAX_INTEGER = 1 << 24
MAX_PIXELS = 1 << 14
MAX_WIDTH = 1 << 14
MAX_DEPTH = 1 << 10
# Of means and standard deviations of channels, for pixels from 0 to 1.
MAX_CHANNEL = 1e6
LEAST_DEVIATION = 1e-6
_MAX_FLOAT32 = (2 - 2**-23) * 2.0**127


def checked(
  allowed: str,
  holds: Callable[[Any], bool],
  convert: Callable[[Any], Any] = lambda value: value,
) -> Kind:
  """Returns the kind of field whose values satisfy `holds`."""

  def read(value):
    if not holds(value):
      raise ValueError
    return convert(value)

  return Kind(allowed, read)


def or_null(kind: Kind, null: Any = None) -> Kind:
  """Returns the kind of field that may also be null, which means `null`."""
  return Kind(
    f"{kind.allowed}, or null",
    lambda value: null if value is None else kind.read(value),
  )


def is_number(value: Any) -> bool:
  """Whether a JSON value is a number that is finite in float32."""
  return type(value) in (int, float) and abs(value) <= _MAX_FLOAT32


def up_to(most: int) -> Kind:
  """Returns the kind of field whose values are integers from 1 to `most`."""
  return checked(
    f"a whole number from 1 to {most}",
    lambda x: type(x) is int and 1 <= x <= most,
  )


INTEGER = up_to(MAX_INTEGER)
WIDTH = up_to(MAX_WIDTH)
DEPTH = up_to(MAX_DEPTH)
TOKEN_ID = checked(
  f"the id of one token, from 0 to {MAX_INTEGER}",
  lambda x: type(x) is int and 0 <= x <= MAX_INTEGER,
)
TEXT = checked("text", lambda x: type(x) is str)
NUMBER = checked("a finite number", is_number, float)
EPSILON = checked("from 0 to 1", lambda x: is_number(x) and 0 <= x < 1, float)


def _side(value: Any) -> int:
  sides = value if isinstance(value, list) else [value, value]
  if len(sides) != 2 or any(
    type(side) is not int or not 1 <= side <= MAX_PIXELS for side in sides
  ):
    raise ValueError
  if sides[0] != sides[1]:
    raise Wrong("square, which all models here are")
  return sides[0]


# The side of a square: a number, or two equal numbers.
PIXELS = Kind(f"a number of pixels, from 1 to {MAX_PIXELS}", _side)


def _channels(words: str, least: float) -> Kind:
  """Returns the kind of field for means or standard deviations of channels."""

  def holds(x):
    numbers = isinstance(x, list) and len(x) == 3 and all(map(is_number, x))
    return numbers and least <= min(x) <= max(x) <= MAX_CHANNEL

  return checked(words, holds, lambda x: [float(number) for number in x])


_THREE = "three numbers, red, green and blue"
MEANS = _channels(_THREE, -MAX_CHANNEL)
DEVIATIONS = _channels(f"{_THREE}, above 0", LEAST_DEVIATION)


_MAX_LOG_SCALE = 80.0  # The largest float32 is about e^88.


def _scale(log: Any) -> float:
  if abs(NUMBER.read(log)) > _MAX_LOG_SCALE:
    raise ValueError
  return math.exp(log)


LOG_SCALE = Kind(
  "the logarithm of a scale",
  _scale,
  lambda scale: math.log(scale) if scale > 0 else math.inf,
)


def one_of(known: Mapping[Any, Any]) -> Kind:
  """Returns the kind of field whose values are the keys of `known`.

  Args:
    known: their value -> ours; the first of several with the same is written.
  """
  back = {ours: theirs for theirs, ours in reversed(list(known.items()))}
  types = set(map(type, known))

  def read(value):
    if type(value) not in types or value not in known:
      raise ValueError
    return known[value]

  first = next(iter(known))
  return Kind(
    f"one of {', '.join(sorted(map(str, known)))}",
    read,
    lambda ours: back.get(ours, first),
    tuple(back),
  )


def choice(*names: str) -> Kind:
  """Returns the kind of field whose values have the same names as ours."""
  return one_of({name: name for name in names})


def exactly(*values: Any) -> Kind:
  """Returns the kind of field for which only these values are supported."""
  return checked(
    " or ".join(map(json.dumps, values)),
    lambda found: any(found == x and type(found) is type(x) for x in values),
  )


FLAG = exactly(True, False)


# The width of an MLP over its tower's; more than 64 is no model's.
RATIO = checked(
  "a number above 0 that makes an MLP, 64 at most",
  lambda x: is_number(x) and 0 < x <= 64,
)


def mlp_dim(ratio: float, tower: Mapping[str, Any]) -> int:
  """Returns the width of a tower's MLPs; raises ValueError if not from 1 on."""
  return INTEGER.read(int(tower["width"] * ratio))
