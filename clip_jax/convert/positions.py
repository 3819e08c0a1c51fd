"""Resizes position embeddings for another image size, by a named method.

Codebases resize a grid of positions in different ways, whose results differ by
as much as the embeddings themselves. Each method here is the matrix that one of
them applies along an axis, in float64.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.convert import portable
from clip_jax.convert.tensor import Tensor

# Pixels of one side; towers for larger images do not have a grid of positions.
MAX_IMAGE_SIZE = 4096

_LEAVES = {
  "vit": "params/image/position_embedding",
  "resnet": "params/image/attention_pool/position_embedding",
}


def _triangle(x: np.ndarray) -> np.ndarray:
  return np.maximum(0, 1 - np.abs(x))


def _keys(x: np.ndarray, a: float) -> np.ndarray:
  """Returns the cubic convolution kernel of Keys (1981); slope `a` at 1."""
  x = np.abs(x)
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = a * (((x - 5) * x + 8) * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _centres(old: int, new: int) -> np.ndarray:
  """Returns the centres of the `new` cells in coordinates of the `old` ones."""
  return (np.arange(new) + 0.5) * old / new - 0.5


def _convolve(
  old: int,
  new: int,
  *,
  kernel: Callable[[np.ndarray], np.ndarray],
  antialias: bool,
) -> np.ndarray:
  """Returns weights by `kernel`, which antialiasing widens when shrinking."""
  scale = max(old / new, 1.0) if antialias else 1.0
  away = np.arange(old) - _centres(old, new)[:, None]
  weights = kernel(away / scale)
  return weights / weights.sum(axis=1, keepdims=True)


def _clamped_cubic(old: int, new: int) -> np.ndarray:
  """Returns torch's cubic weights: four cells, clamped at the edges."""
  centre = _centres(old, new)
  first = np.floor(centre).astype(int) - 1
  weights = np.zeros((new, old))
  for tap in range(4):
    cell = first + tap
    np.add.at(
      weights,
      (np.arange(new), np.clip(cell, 0, old - 1)),
      _keys(centre - cell, a=-0.75),
    )
  return weights


def _align_corners(old: int, new: int) -> np.ndarray:
  """Returns linear weights with aligned corners, as `scipy.ndimage.zoom`."""
  at = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0.0)
  return _triangle(np.arange(old) - at[:, None])


# Functions of (old, new) numbers of cells that return the matrix (new, old).
METHODS: dict[str, Callable[[int, int], np.ndarray]] = {
  # open_clip, on loading; Pillow's cubic.
  "bicubic_antialias": functools.partial(
    _convolve, kernel=functools.partial(_keys, a=-0.5), antialias=True
  ),
  # HuggingFace's interpolate_pos_encoding, torch's default.
  "bicubic": _clamped_cubic,
  # SigLIP 2 NaFlex.
  "bilinear_antialias": functools.partial(
    _convolve, kernel=_triangle, antialias=True
  ),
  # timm on loading an npz; borisdayma/clip-jax.
  "bilinear": functools.partial(_convolve, kernel=_triangle, antialias=False),
  # big_vision.
  "align_corners": _align_corners,
}


def resize_grid(
  grid: np.ndarray, new: tuple[int, int], method: str
) -> np.ndarray:
  """Returns a grid (rows, cols, width) resized to `new`, in float64."""
  rows, cols = (
    METHODS[method](was, becomes)
    for was, becomes in zip(grid.shape, new, strict=False)
  )
  return np.einsum("rR,cC,RCd->rcd", rows, cols, grid.astype(np.float64))


def resized(
  tensor: Tensor,
  image: dict[str, Any],
  image_size: int,
  *,
  old_grid: tuple[int, int],
  method: str | None,
) -> tuple[Tensor, dict[str, Any]]:
  """Returns resized position embeddings; those of class tokens do not change.

  Args:
    tensor: (class tokens + patches, width).
    image: the image tower's description, with the old image size.
    image_size: the new image size in pixels.
    old_grid: rows and cols of the patches.
    method: one of `METHODS`.

  Returns:
    The new embeddings, in their dtype, and notes about the source.

  Raises:
    UserError: the patches do not fill `image_size`, or `method` is unknown.
  """
  if method not in METHODS:
    raise errors.unknown("resize method", str(method), METHODS)
  side = grid_side(image, image_size)
  new_grid = (side, side)
  what = {
    "method": method,
    **{"old_image_size": image["image_size"], "new_image_size": image_size},
    **{"old_grid": list(old_grid), "new_grid": list(new_grid)},
  }
  if new_grid == tuple(old_grid):
    return tensor, what
  rows, width = tensor.shape
  class_rows = rows - math.prod(old_grid)

  def change(array):
    grid = array[class_rows:].reshape(*old_grid, width)
    new = resize_grid(grid, new_grid, method).reshape(-1, width)
    return np.concatenate([array[:class_rows], new.astype(tensor.dtype)])

  shape = (class_rows + math.prod(new_grid), width)
  return tensor.map(change, shape), what


def old_grid(
  cells: int, given: tuple[int, int] | None = None
) -> tuple[int, int]:
  """Returns the rows and cols of `cells` positions.

  Raises:
    UserError: they do not form a square and no grid is `given`, or `given` has
      another number of positions.
  """
  side = math.isqrt(cells)
  if given is None and side * side != cells:
    raise errors.UserError(
      f"The source has {cells} positions, which do not form a square. Give "
      "--old-grid ROWSxCOLS, and --image-size for the square images of the new "
      "model."
    )
  rows, cols = given or (side, side)
  if rows * cols != cells:
    raise errors.UserError(
      f"--old-grid {rows}x{cols} has {rows * cols} patches; the source has "
      f"{cells} positions. Give numbers whose product that is."
    )
  return rows, cols


def resize(
  model: portable.Portable, image_size: int, method: str | None
) -> portable.Portable:
  """Returns the model with another image size.

  Only the image tower's position embedding changes, at the time it is read.

  Args:
    model: a model with an image tower.
    image_size: the new image size in pixels.
    method: one of `METHODS`.

  Raises:
    UserError: the patches do not fill `image_size`, or `method` is unknown.
  """
  if "image" not in model.spec:
    raise errors.UserError(
      "--image-size resizes the positions of an image tower; this model has "
      "only a text tower. Leave it out."
    )
  if model.source.get("resized", {}).get("new_image_size") == image_size:
    return model  # Its reader has resized it, since the grid was not square.
  if image_size > MAX_IMAGE_SIZE:
    raise errors.UserError(
      f"--image-size {image_size} is more than {MAX_IMAGE_SIZE} pixels, the "
      "largest that positions are resized to."
    )
  image = model.spec["image"]
  path = _LEAVES[image["kind"]]
  side = grid_side(image, image["image_size"])
  grid = (side, side)
  tensor, what = resized(
    model.leaves[path], image, image_size, old_grid=grid, method=method
  )
  leaves = {**model.leaves, path: tensor}
  image = {**image, "image_size": image_size}
  if image["kind"] == "vit":
    image["drop_edge"] = image_size % image["patch_size"] != 0
  spec = {**model.spec, "image": image}
  model.report.infer("image.image_size", image_size, "flag")
  model.report.facts["resized"] = what
  return model.changed("resized", what, spec=spec, leaves=leaves)


def grid_side(image: dict, image_size: int) -> int:
  """Returns the number of rows (and cols) of the features of square images.

  Args:
    image: the description of an image tower.
    image_size: image size in pixels.

  Raises:
    UserError: the features do not fill the image.
  """
  if image["kind"] == "resnet":
    # A ResNet's stem halves the size twice, each stage but the first once.
    cell = 2 ** (len(image["depths"]) + 1)
  else:
    cell = image["patch_size"]
  if image_size < cell or (image_size % cell and not image.get("drop_edge")):
    raise errors.UserError(
      f"--image-size {image_size} must be a multiple of {cell}, the side of "
      "a patch: the size of patches cannot change. Try "
      f"{max(1, round(image_size / cell)) * cell}."
    )
  return image_size // cell
