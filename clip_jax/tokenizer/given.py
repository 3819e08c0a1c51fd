"""Checks of what users give as texts and as ids."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from clip_jax import errors

_DECODE: dict[type, str] = dict.fromkeys(
  (bytes, bytearray), "; write it as .decode()."
)


def texts(given: Any) -> list[str]:
  """Returns a list of texts, from one text or several.

  Raises:
    UserError: the argument is neither, or one of them is no text.
  """
  if isinstance(given, str):
    return [given]
  # Sets have no order; an array may have no axis.
  refused = bytes | bytearray | Mapping | set | frozenset
  is_one = isinstance(given, refused) or getattr(given, "shape", None) == ()
  if is_one or not isinstance(given, Iterable):
    raise errors.UserError(
      "Texts are given as one str or as a list of several, got "
      f"{type(given).__name__}{_DECODE.get(type(given), '.')}"
    )
  found = list(given)
  for text in found:
    if not isinstance(text, str):
      raise errors.UserError(
        f"A text must be a str, got {type(text).__name__}"
        f"{_DECODE.get(type(text), '.')}"
      )
  return found


def ids(given: Any) -> list[int]:
  """Returns the ids of one text.

  Raises:
    UserError: they are no whole numbers.
  """
  try:
    found = np.asarray(given).ravel()
  except (TypeError, ValueError):  # Of several lengths, or not numpy's type.
    found = np.array([""])
  if found.size and found.dtype.kind not in "iu":
    raise errors.UserError(
      f"The ids of a text are whole numbers, got {given!r:.100}."
    )
  return found.tolist()
