"""How one tensor of a checkpoint lies in our tree: layouts, both ways.

`d` is a width, `H` a number of heads and `k` a head's size; `out` and `in` are
the sides of torch's linear layers, which are ours transposed.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Transform:
  """A bijection between one tensor of theirs and one or several of ours.

  Attributes:
    ours: takes their tensor, returns ours.
    theirs: takes our tensors, returns theirs.
  """

  ours: Callable[[np.ndarray], Sequence[np.ndarray]]
  theirs: Callable[[Sequence[np.ndarray]], np.ndarray]


def _single(
  ours: Callable[[np.ndarray], np.ndarray],
  theirs: Callable[[np.ndarray], np.ndarray],
) -> Transform:
  return Transform(lambda x: (ours(x),), lambda parts: theirs(parts[0]))


IDENTITY = _single(lambda x: x, lambda x: x)
# [out, in] <-> (in, out).
LINEAR = _single(lambda x: x.T, lambda x: x.T)
# [out, in, rows, cols] <-> (rows, cols, in, out).
CONV = _single(
  lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
)


def reshape(ours: tuple[int, ...], theirs: tuple[int, ...]) -> Transform:
  """The same numbers in the same order under another shape."""
  if math.prod(ours) != math.prod(theirs):
    raise ValueError(f"{ours} and {theirs} differ in size.")
  # A shape that does not fit is left alone: the engine reports it.
  size = math.prod(theirs)
  return _single(
    lambda x: x.reshape(ours) if x.size == size else x,
    lambda x: x.reshape(theirs) if x.size == size else x,
  )


def linear_to_heads(heads: int) -> Transform:
  """[H * k, in] <-> (in, H, k): a separate query, key or value."""
  return _single(
    lambda x: x.T.reshape(x.shape[1], heads, -1),
    lambda x: x.reshape(x.shape[0], -1).T,
  )


def bias_to_heads(heads: int) -> Transform:
  """[H * k] <-> (H, k)."""
  return _single(lambda x: x.reshape(heads, -1), lambda x: x.reshape(-1))


def heads_to_linear(heads: int) -> Transform:
  """[out, H * k] <-> (H, k, out): the projection after attention."""
  return _single(
    lambda x: x.T.reshape(heads, -1, x.shape[0]),
    lambda x: x.reshape(-1, x.shape[2]).T,
  )


def fused_linear_to_heads(heads: int, parts: int = 3) -> Transform:
  """[parts * H * k, in] <-> `parts` of (in, H, k), in the order q, k, v."""
  one = linear_to_heads(heads)
  return Transform(
    lambda x: tuple(one.ours(part)[0] for part in np.split(x, parts)),
    lambda parts: np.concatenate([one.theirs((part,)) for part in parts]),
  )


def fused_bias_to_heads(heads: int, parts: int = 3) -> Transform:
  """[parts * H * k] <-> `parts` of (H, k), in the order q, k, v."""
  return Transform(
    lambda x: tuple(part.reshape(heads, -1) for part in np.split(x, parts)),
    lambda parts: np.concatenate([part.reshape(-1) for part in parts]),
  )


def box(axes: int) -> Transform:
  """[1, …, ...] <-> (...): `axes` axes of length one before the others."""
  return _single(
    lambda x: x.reshape(x.shape[axes:]),
    lambda x: x.reshape((1,) * axes + x.shape),
  )


def _to_grid(rows: np.ndarray) -> np.ndarray:
  side = math.isqrt(len(rows))
  return rows.reshape(side, side, *rows.shape[1:])


# [side, side, width] <-> (patches, width).
GRID = _single(lambda x: x.reshape(-1, *x.shape[2:]), _to_grid)


def flat_to_heads(heads: int) -> Transform:
  """[in, H * k] <-> (in, H, k)."""
  return _single(
    lambda x: x.reshape(x.shape[0], heads, -1),
    lambda x: x.reshape(x.shape[0], -1),
  )


def flat_from_heads(heads: int) -> Transform:
  """[H * k, out] <-> (H, k, out)."""
  return _single(
    lambda x: x.reshape(heads, -1, x.shape[1]),
    lambda x: x.reshape(-1, x.shape[2]),
  )


def flat_to_patches(patch_size: int) -> Transform:
  """[rows * cols * in, out] <-> (rows, cols, in, out)."""
  p = patch_size
  return _single(
    lambda x: x.reshape(p, p, -1, x.shape[1]),
    lambda x: x.reshape(-1, x.shape[3]),
  )


def linear_to_patches(patch_size: int) -> Transform:
  """[out, rows * cols * in] <-> (rows, cols, in, out)."""
  p = patch_size
  return _single(
    lambda x: x.T.reshape(p, p, -1, x.shape[0]),
    lambda x: x.reshape(-1, x.shape[3]).T,
  )
