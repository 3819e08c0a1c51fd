"""Visits all logits of a batch tile by tile, with texts sent around a ring.

Every device keeps its images, and visits their logits with the texts of all
devices. Each device's block of texts is sent around a ring of devices, one hop
in each step. A block is cut into chunks; a chunk is gathered over the axes that
are not in the ring, so that a step visits the chunks of all their devices at
once. A chunk is visited with one row tile of the images after another.

The state of a row (what is accumulated over its logits) stays on its device.
The state of a column is sent around with its text and is back on its own device
after as many hops as the ring has devices, so that one pass serves both
directions. The ring is that of Inf-CL (Cheng et al. 2024, arXiv 2410.17243),
which makes one pass for each direction.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from clip_jax.losses import methods


def ring_order(sizes: Sequence[int]) -> list[int]:
  """Returns an order of all devices in which neighbours are one hop apart.

  It is the reflected Gray code of mixed radix: one coordinate changes by one in
  each step. The last device is a neighbour of the first, over the link that
  closes the torus, if a size is even; that axis changes slowest. On a TPU only
  hops between neighbours can run at the same time as the computation.

  Args:
    sizes: sizes of the mesh axes, in the order that numbers the devices row by
      row.
  """
  lead = next((i for i, size in enumerate(sizes) if size % 2 == 0), 0)
  axes = [lead, *(i for i in range(len(sizes)) if i != lead)]
  paths: list[tuple[int, ...]] = [()]
  for axis in reversed(axes):
    paths = [
      (position, *path)
      for position in range(sizes[axis])
      for path in (reversed(paths) if position % 2 else paths)
    ]
  strides = [1, *itertools.accumulate(reversed(sizes), lambda a, b: a * b)]
  strides = strides[-2::-1]
  return [
    sum(p * strides[axis] for p, axis in zip(path, axes, strict=True))
    for path in paths
  ]


def _hop(tree: Any, axes: tuple[str, ...]) -> Any:
  """Sends `tree` to the next device of the ring."""
  order = ring_order([lax.axis_size(axis) for axis in axes])
  pairs = list(zip(order, [*order[1:], order[0]], strict=True))
  return jax.tree.map(lambda x: lax.ppermute(x, axes, pairs), tree)


def gather(x: jax.Array, axes: tuple[str, ...], *, axis: int) -> jax.Array:
  """Concatenates `x` of all devices on the mesh `axes` along its `axis`."""
  for name in reversed(axes):
    x = lax.all_gather(x, name, axis=axis, tiled=True)
  return x


def scatter_sum(x: jax.Array, axes: tuple[str, ...], *, axis: int) -> jax.Array:
  """Sums over the devices on the mesh `axes`; each keeps its part of `axis`.

  The mesh axes are summed one by one: for several at once XLA makes an
  all-reduce and cuts the result, which sends twice the bytes.
  """
  for name in axes:
    x = lax.psum_scatter(x, name, scatter_dimension=axis, tiled=True)
  return x


def own_part(x: jax.Array, axes: tuple[str, ...], *, axis: int) -> jax.Array:
  """Returns this device's part of an array that `gather` made."""
  if not axes:
    return x
  size = x.shape[axis] // lax.axis_size(axes)
  start = lax.axis_index(axes) * size
  return lax.dynamic_slice_in_dim(x, start, size, axis=axis)


def split(tree: Any, parts: int, fills: Any = 0) -> Any:
  """Cuts the first axis into equal parts, padded with `fills` at the end."""

  def cut(x, fill):
    size = -(-len(x) // parts)
    padding = [(0, size * parts - len(x))] + [(0, 0)] * (x.ndim - 1)
    x = jnp.pad(x, padding, constant_values=fill)
    return x.reshape(parts, size, *x.shape[1:])

  if not isinstance(fills, dict):
    return jax.tree.map(lambda x: cut(x, fills), tree)
  return {name: cut(x, fills.get(name, 0)) for name, x in tree.items()}


def join(tree: Any, count: int) -> Any:
  """Undoes `split` for arrays whose first axis had `count` elements."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], tree)


def _pack(marks: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """Stacks arrays (chunks, columns) of equal type, to send them in one hop."""
  kinds = sorted({x.dtype.name for x in marks.values()})
  return {
    kind: jnp.stack([x for x in marks.values() if x.dtype == kind], axis=1)
    for kind in kinds
  }


def _unpack(
  packed: dict[str, jax.Array], marks: dict[str, jax.Array]
) -> dict[str, jax.Array]:
  """Undoes `_pack` for one chunk; `marks` has the arrays' names and types."""
  rows = {kind: iter(stacked) for kind, stacked in packed.items()}
  return {name: next(rows[x.dtype.name]) for name, x in marks.items()}


def sweep(
  tile: Callable[[Any, Any, Any, Any], tuple[Any, Any]],
  *,
  layout: methods.Layout,
  rows: Any,
  row_state: Any,
  texts: jax.Array,
  marks: dict[str, jax.Array],
  home_marks: dict[str, jax.Array],
  start: Any,
  settle: Callable[[Any], Any],
  merge: Callable[[Any, Any], Any],
) -> tuple[Any, Any]:
  """Visits every tile of the logits, for this device's rows and all columns.

  Args:
    tile: takes (rows, (texts, marks), row_state, column_state), one tile of
      each, and returns both states with this tile's logits added.
    layout: how the logits are divided.
    rows: arrays (row_tiles, rows, …) that `tile` reads.
    row_state: arrays (row_tiles, rows, …) that `tile` accumulates.
    texts: (chunks, texts, embed), the texts of this device.
    marks: small arrays (chunks, columns) for the texts of all devices on the
      gather axes; they are sent around the ring with the texts.
    home_marks: like `marks`, but not sent: `tile` gets them only in the first
      step, where the columns are those of these devices and include the rows'
      own texts.
    start: the column state (columns, …) of a chunk before its first row tile.
    settle: turns the column state of a chunk after its last row tile into the
      form that is sent; those of all chunks are stacked.
    merge: adds two column states of that form.

  Returns:
    The row state of this device's images over all texts, and the column state,
    in the form that is sent, of this device's texts over the images of the
    whole ring.
  """

  def see_chunk(row_state, columns):
    chunk, packed, extra = columns
    texts = gather(chunk, layout.gather_axes, axis=0)
    columns = texts, _unpack(packed, marks) | extra

    def see_tile(column_state, inputs):
      rows, row_state = inputs
      row_state, column_state = tile(rows, columns, row_state, column_state)
      return column_state, row_state

    column_state, row_state = lax.scan(see_tile, start, (rows, row_state))
    return row_state, settle(column_state)

  def see_block(row_state, block, extra):
    return lax.scan(see_chunk, row_state, (*block, extra))

  def step(carry, _):
    row_state, block, column_state = carry
    # Neither hop needs this step's result, so both can run at the same time as
    # its computation: the column state follows its block one step behind.
    upcoming = _hop(block, layout.ring_axes)
    arrived = _hop(column_state, layout.ring_axes)
    row_state, column_state = see_block(row_state, block, {})
    return (row_state, upcoming, merge(arrived, column_state)), None

  block = texts, _pack(marks)
  row_state, column_state = see_block(row_state, block, home_marks)
  if not layout.ring_axes:
    return row_state, column_state
  # The first step is not part of the loop, since only it has own pairs.
  carry = row_state, _hop(block, layout.ring_axes), column_state
  steps = lax.axis_size(layout.ring_axes) - 1
  (row_state, _, column_state), _ = lax.scan(step, carry, length=steps)
  return row_state, _hop(column_state, layout.ring_axes)
