"""Fields of a config: their checks, meanings and units."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

MOST_STEPS = 2**31 - 1  # The number of updates is a 32-bit integer.

# A check returns None for an allowed value, else what is allowed, as text.
Check = Callable[[Any], str | None]


def at_least(low: float) -> Check:
  """Allows numbers from `low` up."""
  return lambda value: None if value >= low else f"at least {low}"


def countable(low: int) -> Check:
  """Allows numbers of updates from `low` up, as far as a run counts."""
  return between(low, MOST_STEPS)


def between(low: float, high: float) -> Check:
  """Allows numbers from `low` to `high`, both included."""
  wanted = f"between {low} and {high}"
  return lambda value: None if low <= value <= high else wanted


def below_one(value: float) -> str | None:
  """Allows 0 and fractions."""
  return None if 0 <= value < 1 else "at least 0 and less than 1"


def one_of(known: Sequence[str]) -> Check:
  """Allows some names."""
  wanted = "one of " + ", ".join(known)
  return lambda value: None if value in known else wanted


def axis_size(value: int) -> str | None:
  """Allows sizes of a mesh's axis."""
  return None if value == -1 or value >= 1 else "-1 (all the rest) or >= 1"


def above_zero(value: float) -> str | None:
  """Allows parts of a whole, but not 0."""
  return None if 0 < value <= 1 else "more than 0 and at most 1"


def positive(value: float) -> str | None:
  """Allows numbers above 0."""
  return None if value > 0 else "more than 0"


def not_empty(value: str) -> str | None:
  """Allows any text but an empty one."""
  return None if value else "a name or an address, not an empty text"


def address(value: str) -> str | None:
  """Allows any text, and says how to give one."""
  return None if value else "set: --config.data.train=ADDRESS"


def knob(
  default: Any,
  check: Check = lambda value: None,
  help: str = "",
  *,
  unit: str = "",
) -> Any:
  """Returns a field of a config with its check, meaning and unit."""
  metadata = {"check": check, "help": help, "unit": unit}
  return dataclasses.field(default=default, metadata=metadata)
