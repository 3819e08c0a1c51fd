"""Checks the values of a description against the fields of its modules."""

import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from clip_jax import errors

# What a field takes, by its type.
_TAKES = {
  bool: "true or false",
  float: "a number",
  int: "a whole number of at least 0",
  str: "a name",
  types.NoneType: "null",
}


def check(module: type, values: Mapping[str, Any], *, prefix: str = "") -> None:
  """Raises UserError unless values are of the types that a module annotates.

  Args:
    module: the class whose fields they are; of a name that ends in "_kind", a
      description leaves that out.
    values: by field of a description; other fields are not checked.
    prefix: what stands before a field's name in the message.
  """
  for name, hint in typing.get_type_hints(module).items():
    field = name.removesuffix("_kind")
    if field not in values:
      continue
    union = isinstance(hint, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    if not any(_is(values[field], kind) for kind in kinds):
      takes = [_taken(kind) for kind in kinds]
      raise errors.UserError(
        f"Model field {prefix + field!r} takes {' or '.join(takes)}; got "
        f"{values[field]!r:.100}."
      )


def _taken(kind: Any) -> str:
  """Returns what a field of this type takes, in words."""
  if typing.get_origin(kind) is not tuple:
    return _TAKES[kind]
  parts = typing.get_args(kind)
  each = "whole numbers" if parts[0] is int else "numbers"
  return f"a list of {'one or more' if ... in parts else len(parts)} {each}"


def _is(value: Any, kind: Any) -> bool:
  if typing.get_origin(kind) is tuple:
    each, *others = typing.get_args(kind)
    return (
      isinstance(value, list | tuple)
      and (len(value) > 0 if others == [...] else len(value) == 1 + len(others))
      and all(_is(x, each) for x in value)
    )
  if isinstance(value, bool):
    return kind is bool
  if kind is float:
    return isinstance(value, int | float) and math.isfinite(value)
  return isinstance(value, kind) and (kind is not int or value >= 0)
