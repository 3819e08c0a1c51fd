"""Reads sizes from the shapes of a checkpoint's tensors, without a config.

A table has a row for each size:

    width  ln_final.weight              0 of 1
    depth  transformer.resblocks.{i}.

The first row is the length of axis 0 of a tensor, which must have 1 axis; the
second is the number of layers, whose numbers take the place of `{i}`.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert.tensor import Tensor


class Sizes:
  """Reads tables of sizes; raises UserError if a row's tensor is missing."""

  def __init__(self, tensors: Mapping[str, Tensor], name: str):
    self._shapes = {key: tensor.shape for key, tensor in tensors.items()}
    self._name = name

  def __call__(self, table: str, **facts: Any) -> dict[str, int]:
    """Returns the sizes of a table; `facts` fill the braces in its names."""
    found = {}
    for row in table.split("\n"):
      if row.strip():
        field, key, *axis = row.split()
        key = key.format(**facts, i="{i}")
        found[field] = self._axis(key, *axis) if axis else self.count(key)
    return found

  def _axis(self, key: str, index: str, _: str, rank: str) -> int:
    shape = self._shapes.get(key)
    if shape is None or len(shape) != int(rank) or min(shape) < 1:
      got = "nothing" if shape is None else list(shape)
      raise errors.UserError(
        f"{self._name}: {key} must be an array with {rank} axes, got {got}; "
        "fetch or make it again."
      )
    return shape[int(index)]

  def count(self, key: str) -> int:
    """Returns the number of layers whose names match `key` with its `{i}`."""
    pattern = re.escape(key).replace(r"\{i\}", r"(\d+)")
    found = {m[1] for name in self._shapes if (m := re.match(pattern, name))}
    if not found:
      raise errors.UserError(
        f"{self._name} has no layer named like {key}…; fetch or make it again."
      )
    return len(found)

  def square(self, cells: int, key: str) -> int:
    """Returns the side of a square grid of the `cells` positions of `key`."""
    side = math.isqrt(max(cells, 0))
    if not side or side * side != cells:
      raise errors.UserError(
        f"{self._name}: {key} has {cells} positions, which do not form a "
        "square."
      )
    return side
