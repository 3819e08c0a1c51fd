"""Sizes read off a checkpoint's tensors, where no config says them."""

import math
import re
from collections.abc import Mapping

from clip_jax import errors

HEAD_DIM = 64  # Of both towers: OpenAI's rule.


class Axes:
  """Sizes of a checkpoint's axes, by tensor; an absent one is an error."""

  def __init__(self, shapes: Mapping[str, tuple[int, ...]], name: str):
    self._shapes = shapes
    self._name = name

  def __call__(self, key: str, index: int, *, rank: int) -> int:
    """Returns axis `index` of the tensor `key`, which must have `rank`."""
    shape = self._shapes.get(key)
    if shape is None or len(shape) != rank or min(shape) < 1:
      got = "nothing" if shape is None else list(shape)
      raise errors.UserError(
        f"{self._name}: {key} must be an array with {rank} axes, got {got}."
      )
    return shape[index]

  def count(self, pattern: str) -> int:
    """Counts the layers that the names list by the group of `pattern`."""
    found = {m[1] for key in self._shapes if (m := re.search(pattern, key))}
    if not found:
      raise errors.UserError(
        f"{self._name} has no layer named like {pattern!r}."
      )
    return len(found)

  def square(self, cells: int, key: str) -> int:
    """Returns the side of a square grid of `cells`."""
    side = math.isqrt(cells)
    if side * side != cells:
      raise errors.UserError(
        f"{self._name}: {key} has {cells} positions, which make no square."
      )
    return side
