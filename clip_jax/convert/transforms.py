"""Transforms between a checkpoint's tensors and our arrays, both ways."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax.models import resnet

# Axes of their tensor and of our array; those in parentheses are one axis. `h`
# heads have the size `k`; `p` and `q` are the sides of a patch, `r` and `c` the
# rows and cols of patches. torch's linear layers, [o, i], are transposed.
LAYOUTS = {
  "T": ("o i", "i o"),
  "conv": ("o i p q", "p q i o"),
  "heads": ("(h k) i", "i h k"),  # A separate query, key or value.
  "bias": ("(h k)", "h k"),
  "out": ("o (h k)", "h k o"),  # The projection after attention.
  "flat_heads": ("i (h k)", "i h k"),
  "flat_out": ("(h k) o", "h k o"),
  "patches": ("o (p q i)", "p q i o"),
  "flat_patches": ("(p q i) o", "p q i o"),
  "grid": ("r c o", "(r c) o"),
}
# Their tensor is a concatenation of two or three of our arrays.
_FUSED = {
  "fused2": ("heads", 2),
  "fused2_bias": ("bias", 2),
  "fused3": ("heads", 3),
  "fused3_bias": ("bias", 3),
}
# Number of leading axes of length one in their tensor.
_BOXES = {"-": 0, "box": 1, "box2": 2}


@dataclasses.dataclass(frozen=True)
class Transform:
  """A bijection between one tensor of theirs and one or several of our arrays.

  Attributes:
    ours: takes their tensor, returns our arrays.
    theirs: takes our arrays, returns their tensor.
  """

  ours: Callable[[np.ndarray], Sequence[np.ndarray]]
  theirs: Callable[[Sequence[np.ndarray]], np.ndarray]


def of_rule(rule: str, tower: Mapping[str, Any]) -> Transform:
  """Returns the transform of a rule of the tables above, for a tower."""
  if rule in _BOXES:
    boxes = _BOXES[rule]
    return Transform(
      lambda x: (x.reshape(x.shape[boxes:]),),
      lambda parts: parts[0].reshape((1,) * boxes + parts[0].shape),
    )
  layout, count = _FUSED.get(rule, (rule, 1))
  theirs, ours = LAYOUTS[layout]
  sizes = _sizes(tower)

  def join(parts):
    found = [_relay(part, ours, theirs, sizes) for part in parts]
    return np.concatenate(found) if len(found) > 1 else found[0]

  return Transform(
    lambda x: [_relay(y, theirs, ours, sizes) for y in np.split(x, count)], join
  )


IDENTITY = of_rule("-", {})


def heads(tower: Mapping[str, Any]) -> int:
  """Returns a tower's number of heads; those of a ResNet are in its pool."""
  if "depths" in tower:
    return resnet.pool_heads(tower["width"], len(tower["depths"]))
  return tower["heads"]


def _sizes(tower: Mapping[str, Any]) -> dict[str, int]:
  """Returns the lengths of axes that follow from a tower's description."""
  sizes = {}
  if "depths" in tower or "heads" in tower:
    sizes["h"] = heads(tower)
  if "patch_size" in tower:
    sizes["p"] = sizes["q"] = tower["patch_size"]
    sizes["r"] = tower["image_size"] // tower["patch_size"]
  return sizes


def _axes(layout: str) -> list[list[str]]:
  """Returns a list of names for each axis of a layout."""
  return [x.strip("()").split() for x in re.findall(r"\w+|\(.*?\)", layout)]


def _relay(
  x: np.ndarray, have: str, want: str, sizes: Mapping[str, int]
) -> np.ndarray:
  """Returns an array of the layout `have` in the layout `want`."""
  lengths = {}
  for group, length in zip(_axes(have), x.shape, strict=True):
    known = {axis: sizes[axis] for axis in group[:-1] if axis in sizes}
    rest = length // math.prod(known.values())
    lengths |= {axis: known.get(axis, rest) for axis in group}
  names = list(lengths)
  order = [names.index(axis) for group in _axes(want) for axis in group]
  shape = [math.prod(lengths[a] for a in group) for group in _axes(want)]
  return x.reshape(list(lengths.values())).transpose(order).reshape(shape)
