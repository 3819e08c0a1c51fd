"""Code that both losses share: products, own pairs, the walk and gradients.

The logits of a pair itself, image i with text i, are called "own": own cosines,
own text. `walk` visits the logits tile by tile; besides the embeddings it
carries "marks", small arrays with numbers for each image or text.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from clip_jax.losses import methods, sweep, targets

# The index of padding, which belongs to no pair.
FILLS = {"index": -1}


@dataclasses.dataclass(frozen=True)
class Options:
  """The static options of a loss.

  Attributes:
    layout: how the logits are divided.
    duplicates: how pairs with equal ids count, a name in `targets.DUPLICATES`.
  """

  layout: methods.Layout
  duplicates: str = "ignore"


class Batch(NamedTuple):
  """This device's pairs.

  Attributes:
    images: (pairs of this device, embed).
    texts: the same shape and type.
    ids: int32 (pairs of this device,) under "image_ids" and "text_ids", if they
      are known.
  """

  images: jax.Array
  texts: jax.Array
  ids: dict[str, jax.Array]

  @property
  def kind(self) -> jnp.dtype:
    """The type of all but the operands of matrix products."""
    return at_least_float32(self.images)


class Seen(NamedTuple):
  """A tile of the logits.

  Attributes:
    cosines: (rows, columns), the cosine similarities.
    relations: which of them are excluded, and which are other positives.
    rows: arrays (rows, …) of the images: "embeds" and their marks.
    columns: arrays (columns, …) of the texts: "embeds" and their marks.
  """

  cosines: jax.Array
  relations: targets.Relations
  rows: dict[str, jax.Array]
  columns: dict[str, jax.Array]


def at_least_float32(x: jax.Array) -> jnp.dtype:
  """Returns the type of all but the operands of matrix products."""
  return jnp.promote_types(x.dtype, jnp.float32)


def product(
  subscripts: str, left: jax.Array, right: jax.Array, dtype: jnp.dtype
) -> jax.Array:
  """Returns an einsum of operands of `dtype`, summed in at least float32."""
  return jnp.einsum(
    subscripts,
    left.astype(dtype),
    right.astype(dtype),
    precision=lax.Precision.HIGHEST,
    preferred_element_type=jnp.promote_types(dtype, jnp.float32),
  )


def own_cosines(batch: Batch) -> jax.Array:
  """Returns the cosine of each pair (pairs,), without the other logits.

  `jnp.diagonal` of logits that are split would send all of them.
  """
  images, texts = (x.astype(batch.kind) for x in (batch.images, batch.texts))
  return (images * texts).sum(axis=-1)


def index(images: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """Returns the position of each pair in the global batch, int32 (pairs,)."""
  # Made of the images, so that inside `shard_map` it varies as they do.
  position = lax.full_like(images, 0, jnp.int32, shape=(len(images),))
  if axes:
    position += lax.axis_index(axes).astype(jnp.int32) * len(images)
  return position + jnp.arange(len(images), dtype=jnp.int32)


def mean(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """Returns the mean of `x` (pairs of this device,) over all devices' pairs."""
  total = lax.psum(x.sum(), axes) if axes else x.sum()
  return total / global_pairs(len(x), axes)


def global_pairs(pairs: int, axes: tuple[str, ...]) -> int:
  """Returns the number of pairs on all devices."""
  return pairs * math.prod(lax.axis_size(axis) for axis in axes)


def walk(
  visit: Callable[[Seen, Any, Any], tuple[Any, Any]],
  options: Options,
  batch: Batch,
  *,
  row_marks: dict[str, jax.Array],
  column_marks: dict[str, jax.Array],
  row_start: Callable[[Callable[..., jax.Array]], Any],
  column_start: Callable[[Callable[..., jax.Array]], Any],
  settle: Callable[[Any], Any],
  merge: Callable[[Any, Any], Any],
) -> tuple[Any, Any]:
  """Visits the logits of this device's images with all texts, tile by tile.

  Args:
    visit: takes (tile, row state, column state) and returns both states with
      this tile's logits added.
    options: layout and duplicates.
    batch: this device's pairs.
    row_marks: arrays (pairs,) for the images that `visit` reads.
    column_marks: arrays (pairs,) for the texts; they are sent with the texts.
    row_start: makes the initial row state; takes a function that returns zeros
      for each row, of the shape it is given.
    column_start: makes the initial column state in the same way.
    settle: see `sweep.sweep`.
    merge: see `sweep.sweep`.

  Returns:
    The row state (pairs, …) of this device's images over all texts, and the
    column state (chunks, columns, …) of its texts, as `sweep.sweep` leaves it.
  """
  layout, count = options.layout, len(batch.images)
  padded = bool(count % layout.row_tiles or count % layout.chunks)
  shared = {"index": index(batch.images, layout.axes), **batch.ids}
  rows = sweep.split(
    {"embeds": batch.images, **shared, **row_marks}, layout.row_tiles, FILLS
  )
  texts = sweep.split(batch.texts, layout.chunks)
  marks = sweep.split({**shared, **column_marks}, layout.chunks, FILLS)
  marks = {
    name: sweep.gather(x, layout.gather_axes, axis=1)
    for name, x in marks.items()
  }
  # Without padding, only the first step has columns with a row's own pair.
  home_marks = {} if padded else {"index": marks.pop("index")}

  def tile(rows, columns, row_state, column_state):
    texts, columns = columns
    seen = Seen(
      product("id,jd->ij", rows["embeds"], texts, batch.images.dtype),
      targets.relations(
        rows, columns, duplicates=options.duplicates, padded=padded
      ),
      rows,
      columns | {"embeds": texts},
    )
    return visit(seen, row_state, column_state)

  def zeros(*shape):
    """Returns zeros that vary over the mesh as the images do."""
    return lax.full_like(batch.images, 0, batch.kind, shape=shape)

  wide = global_pairs(texts.shape[1], layout.gather_axes)
  row_state, column_state = sweep.sweep(
    tile,
    layout=layout,
    rows=rows,
    row_state=row_start(lambda *shape: zeros(*rows["index"].shape, *shape)),
    texts=texts,
    marks=marks,
    home_marks=home_marks,
    start=column_start(lambda *shape: zeros(wide, *shape)),
    settle=settle,
    merge=merge,
  )
  return sweep.join(row_state, count), column_state


def gradients(
  weigh: Callable[[Seen], tuple[jax.Array, tuple[jax.Array, ...]]],
  options: Options,
  batch: Batch,
  *,
  own: jax.Array,
  factor: jax.Array,
  sums: int,
  row_marks: dict[str, jax.Array],
  column_marks: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
  """Returns the gradients of images and texts, and the rows' sums.

  The logits are recomputed tile by tile. A text's gradient is sent around the
  ring with its text, in float32, and summed over the gathered axes.

  Args:
    weigh: takes a tile and returns the derivative of the loss with respect to
      its cosines, without `factor` and 0 at own pairs, and a tuple of `sums`
      arrays (rows, columns).
    options: layout and duplicates.
    batch: this device's pairs.
    own: (pairs,), the derivative with respect to the pairs' own cosines,
      without `factor`.
    factor: scalar that multiplies both gradients.
    sums: number of arrays of `weigh` that are summed over each row.
    row_marks: see `walk`.
    column_marks: see `walk`.
  """
  images, texts, _ = batch
  embed = images.shape[1]

  def visit(seen, row_state, text_gradient):
    image_gradient, totals = row_state
    weights, terms = weigh(seen)
    totals = tuple(
      total + term.sum(axis=1)
      for total, term in zip(totals, terms, strict=True)
    )
    # In the embeddings' type: rounding the weights to it loses no more than
    # rounding the gradients, which are returned in that type.
    image_gradient += product(
      "ij,jd->id", weights, seen.columns["embeds"], images.dtype
    )
    text_gradient += product(
      "ij,id->jd", weights, seen.rows["embeds"], images.dtype
    )
    return (image_gradient, totals), text_gradient

  (image_gradient, totals), text_gradient = walk(
    visit,
    options,
    batch,
    row_marks=row_marks,
    column_marks=column_marks,
    row_start=lambda zeros: (zeros(embed), (zeros(),) * sums),
    column_start=lambda zeros: zeros(embed),
    settle=lambda x: sweep.scatter_sum(x, options.layout.gather_axes, axis=0),
    merge=jnp.add,
  )
  text_gradient = sweep.join(text_gradient, len(texts))
  image_gradient += own[:, None] * texts.astype(batch.kind)
  text_gradient += own[:, None] * images.astype(batch.kind)
  return (
    (factor * image_gradient).astype(images.dtype),
    (factor * text_gradient).astype(texts.dtype),
    totals,
  )
