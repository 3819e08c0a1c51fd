"""The methods: how each divides the logits over mesh axes, rings and tiles.

`choose` makes a `Layout` from a method's name and from sizes alone.
"""

import dataclasses
import math
from collections.abc import Collection, Sequence

import jax
from jax import lax

from clip_jax import errors

# The memory of the smallest supported chip, a TPU v5e: 16 GB
# (cloud.google.com/tpu/docs/v5e). A constant, since the devices of a planned
# run are not here to be asked.
DEVICE_BYTES = 16 * 10**9
# The part of it up to which `auto` chooses `gathered`, the simplest method. If
# two axes split the batch, `two_level` is about as fast at any size; on one
# axis the ring has as many steps as there are devices, however small they are.
GATHERED_PART = {"two axes": 0.002, "one axis": 0.02}


@dataclasses.dataclass(frozen=True)
class Tile:
  """The largest part of the logits that a device holds at once.

  Attributes:
    rows: number of images.
    columns: number of texts, of all gathered devices together.
  """

  rows: int = 1024
  columns: int = 2048


@dataclasses.dataclass(frozen=True)
class Layout:
  """How the logits are divided over devices, steps and tiles.

  Attributes:
    axes: mesh axes that split the batch.
    ring_axes: those of them on which texts are sent from device to device.
    gather_axes: those of them over which texts are gathered.
    row_tiles: number of equal parts into which a device's images are cut.
    chunks: number of equal parts into which a device's texts are cut; one part
      of each device on `gather_axes` is gathered at a time.
  """

  axes: tuple[str, ...]
  ring_axes: tuple[str, ...]
  gather_axes: tuple[str, ...]
  row_tiles: int
  chunks: int


def _sizes(axes: Sequence[str]) -> dict[str, int]:
  return {axis: lax.axis_size(axis) for axis in axes}


# Which of the axes with more than one device each method gathers; the others
# form a ring. `dense` is `gathered` on one device; on several devices
# `clip_jax.losses` gathers both images and texts before.
GATHERED = {
  "dense": slice(None),
  "gathered": slice(None),
  "ring": slice(0),
  "two_level": slice(-1, None),
}
METHODS = ("auto", *GATHERED)


def gathered_bytes(pairs: int, devices: int, embed: int, itemsize: int) -> int:
  """Returns an estimate of the peak of `gathered` on a device, in bytes.

  Args:
    pairs: number of pairs in the global batch.
    devices: number of devices that split it.
    embed: dimensions of an embedding.
    itemsize: bytes of a number in an embedding.
  """
  logits = pairs * (pairs // devices) * 4
  texts = pairs * embed * (itemsize + 4)  # The texts and their gradients.
  return logits + texts


def choose(
  method: str, image_embeds: jax.Array, *, axes: tuple[str, ...], tile: Tile
) -> Layout:
  """Returns the layout of a method; "auto" chooses by size and mesh.

  If one device's rows of logits and all texts are small compared to its memory
  (`GATHERED_PART`), "auto" chooses "gathered". Otherwise it chooses a method
  whose memory is proportional to a device's pairs: "two_level" if two axes
  split the batch, since it takes about the square root of the ring's steps,
  else "ring".

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
  """Returns the method that "auto" chooses.

  Args:
    pairs: number of pairs on one device.
    embed: dimensions of an embedding.
    itemsize: bytes of a number in an embedding.
    sizes: sizes of the mesh axes that split the batch.
  """
  devices = math.prod(sizes)
  needed = gathered_bytes(pairs * devices, devices, embed, itemsize)
  torus = sum(size > 1 for size in sizes) > 1
  part = GATHERED_PART["two axes" if torus else "one axis"]
  if needed <= part * DEVICE_BYTES:
    return "gathered"
  return "two_level" if torus else "ring"
