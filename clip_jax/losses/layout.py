"""How one device walks over the logits: which axes gather, which form a ring.

A method's name becomes a `Layout` from sizes alone, before anything runs.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence

import jax
from jax import lax

from clip_jax import errors

# The memory of the smallest chip in reach, a TPU v5e: 16 GB
# (cloud.google.com/tpu/docs/v5e). The devices of a planned run cannot be asked.
DEVICE_BYTES = 16 * 10**9
# What part of it the loss may hold before `auto` leaves the simplest method.
# Where two axes split the batch, `two_level` is about as fast at any size; on
# one axis the ring takes as many steps as there are devices, however small.
GATHERED_PART = {"two axes": 0.002, "one axis": 0.02}


@dataclasses.dataclass(frozen=True)
class Tile:
  """The largest part of the logits that a device holds at once.

  Attributes:
    rows: images.
    columns: texts, those of all gathered devices together.
  """

  rows: int = 1024
  columns: int = 2048


@dataclasses.dataclass(frozen=True)
class Layout:
  """A walk over all logits.

  Attributes:
    axes: mesh axes that split the batch.
    ring_axes: those on which blocks of texts travel from device to device.
    gather_axes: those whose devices' texts are seen together.
    row_tiles: equal parts that this device's images are cut into.
    chunks: equal parts that a device's texts are cut into; one part of each
      device on `gather_axes` is gathered at a time.
  """

  axes: tuple[str, ...]
  ring_axes: tuple[str, ...]
  gather_axes: tuple[str, ...]
  row_tiles: int
  chunks: int


def _sizes(axes: Sequence[str]) -> dict[str, int]:
  return {axis: lax.axis_size(axis) for axis in axes}


# Which of the axes with more than one device each method gathers; texts travel
# around a ring of the others. `dense` is `gathered` on one device; see
# `clip_jax.losses` for several.
GATHERED = {
  "dense": slice(None),
  "gathered": slice(None),
  "ring": slice(0),
  "two_level": slice(-1, None),
}
METHODS = ("auto", *GATHERED)


def gathered_bytes(pairs: int, devices: int, embed: int, itemsize: int) -> int:
  """Returns about what `gathered` holds on a device at its peak, in bytes.

  Args:
    pairs: of the global batch.
    devices: that split it.
    embed: dimensions of an embedding.
    itemsize: bytes of a number in an embedding.
  """
  logits = pairs * (pairs // devices) * 4
  texts = pairs * embed * (itemsize + 4)  # Themselves and their gradients.
  return logits + texts


def choose(
  method: str, image_embeds: jax.Array, *, axes: tuple[str, ...], tile: Tile
) -> Layout:
  """Returns the walk of a method; "auto" chooses by size and mesh.

  While one device's rows of logits and all texts are small against its memory
  (`GATHERED_PART`), everything is gathered at once. Else memory decides: both
  other methods need memory in proportion to a device's pairs, and `two_level`
  takes a square root of the ring's steps, so it is taken where two axes split
  the batch.

  Args:
    method: a name in `METHODS`.
    image_embeds: (pairs of this device, embed).
    axes: mesh axes that split the batch.
    tile: the largest part of the logits to hold.

  Raises:
    UserError: unknown method.
  """
  if method not in METHODS:
    raise errors.unknown("loss method", method, METHODS)
  if method == "auto":
    pairs, embed = image_embeds.shape
    method = automatic(
      pairs, embed, image_embeds.dtype.itemsize, _sizes(axes).values()
    )
  pairs, sizes = len(image_embeds), _sizes(axes)
  wide = tuple(axis for axis in axes if sizes[axis] > 1)
  gather_axes = wide[GATHERED[method]]
  gathered = math.prod(sizes[axis] for axis in gather_axes)
  if method in ("dense", "gathered"):
    tile = Tile(rows=pairs, columns=pairs * gathered)
  return Layout(
    axes=axes,
    ring_axes=tuple(axis for axis in wide if axis not in gather_axes),
    gather_axes=gather_axes,
    row_tiles=math.ceil(pairs / tile.rows),
    chunks=math.ceil(pairs / max(tile.columns // gathered, 1)),
  )


def automatic(
  pairs: int, embed: int, itemsize: int, sizes: Collection[int]
) -> str:
  """Returns the method that "auto" stands for.

  Args:
    pairs: of one device.
    embed: dimensions of an embedding.
    itemsize: bytes of a number in an embedding.
    sizes: of the mesh axes that split the batch.
  """
  devices = math.prod(sizes)
  needed = gathered_bytes(pairs * devices, devices, embed, itemsize)
  torus = sum(size > 1 for size in sizes) > 1
  part = GATHERED_PART["two axes" if torus else "one axis"]
  if needed <= part * DEVICE_BYTES:
    return "gathered"
  return "two_level" if torus else "ring"
