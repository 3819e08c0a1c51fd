"""The softmax loss on one device of many, with its gradient by hand.

Everything is measured from a pair's own logit. With a_ij = z_ij - z_ii, row
i's loss is log(1 + sum_{j != i} exp a_ij), made of logits' differences, which
keep their digits near convergence, where z_ii - log(sum) would lose them. Its
gradient is p_ij = exp(a_ij - loss_i) at j != i and expm1(-loss_i) at the own
text, and the temperature's is sum_j p_ij (cos_ij - cos_ii): no difference of
large sums. The columns' part is the same with b_ij = z_ij - z_jj.

Of k positives, the own text among them, each has a target of 1/k, and near
convergence all a_ij of theirs are near 0. So 1/k is taken out: the loss is
rest_i + log k less the positives' mean a_ij, where rest_i is log(1 + (sum of
exp a_ij over negatives + sum of expm1 a_ij over the other positives) / k), and
the gradient of a positive is expm1(a_ij - rest_i) / k.

Forward, each row and column keeps (m, s): the largest difference so far, at
least 0, and the sum of exp(difference - m). Two such merge exactly into one
(Milakov and Gimelshein 2018, arXiv 1805.02867), in any order, so that rows keep
theirs on their device and columns send theirs along with their text.
Backward, the logits are made again tile by tile; a text's gradient travels
with the text in float32, or is scattered back over the gathered axes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from clip_jax.losses import kernel, pairs, sweep, targets


class Totals(NamedTuple):
  """What rows or columns have accumulated, measured from their own logit.

  Attributes:
    largest: the largest difference, at least that of the own logit, 0.
    others: sum of exp(difference - largest) over all but the own pair; of other
      positives, of that less exp(-largest).
    copies: number of other positives; None where none can be.
    lead: sum of their differences; None where none can be.
  """

  largest: jax.Array
  others: jax.Array
  copies: jax.Array | None
  lead: jax.Array | None

  @property
  def rest(self) -> jax.Array:
    """Log-sum-exp of all differences, less the log of the positives."""
    # log(others / k + exp(-largest)), exact also where `others` is tiny.
    others = self.others * self.share
    return self.largest + jnp.log1p(others + jnp.expm1(-self.largest))

  @property
  def share(self) -> jax.Array | float:
    """The target of each positive."""
    return 1.0 if self.copies is None else 1 / (1 + self.copies)

  @property
  def loss(self) -> jax.Array:
    """Cross-entropy with the target spread evenly over the positives."""
    if self.copies is None:
      return self.rest
    return self.rest + jnp.log1p(self.copies) - self.share * self.lead


def _no_totals(zeros: jax.Array, *, copies: bool) -> Totals:
  return Totals(zeros, zeros, *(zeros if copies else None,) * 2)


def _merge(one: Totals, other: Totals) -> Totals:
  largest = jnp.maximum(one.largest, other.largest)
  others = one.others * jnp.exp(one.largest - largest)
  others += other.others * jnp.exp(other.largest - largest)
  if one.copies is None:
    return Totals(largest, others, None, None)
  return Totals(
    largest, others, one.copies + other.copies, one.lead + other.lead
  )


def _tile_totals(
  differences: jax.Array, relations: targets.Relations, axis: int
) -> Totals:
  counted = targets.without(relations, differences, -jnp.inf)
  largest = jnp.maximum(counted.max(axis), 0)
  above = jnp.expand_dims(largest, axis)
  others = jnp.exp(counted - above)
  if relations.copies is None:
    return Totals(largest, others.sum(axis), None, None)
  # Of larger differences the plain one is as exact, and overflows nowhere.
  near = jnp.expm1(jnp.minimum(differences, 1)) * jnp.exp(-above)
  near = jnp.where(differences < 1, near, others - jnp.exp(-above))
  others = jnp.where(relations.copies, near, others).sum(axis)
  lead = jnp.where(relations.copies, differences, 0).sum(axis)
  copies = relations.copies.sum(axis, dtype=differences.dtype)
  return Totals(largest, others, copies, lead)


def _scatter(totals: Totals, axes: tuple[str, ...]) -> Totals:
  """Merges the totals (chunks, columns) of the gathered devices."""
  if not axes:
    return totals
  largest = lax.pmax(totals.largest, axes)
  others = totals.others * jnp.exp(totals.largest - largest)
  scatter = functools.partial(sweep.scatter_sum, axes=axes, axis=1)
  return Totals(
    sweep.own_part(largest, axes, axis=1),
    scatter(others),
    *jax.tree.map(scatter, (totals.copies, totals.lead)),
  )


def _by_kernel(mode, rows, texts, columns, scale, row_totals, column_totals):
  of_rows, of_columns = kernel.tile_statistics(
    rows["embeds"],
    texts,
    rows["own"],
    columns["own"],
    scale,
    interpret=mode == "interpret",
  )
  return (
    _merge(row_totals, Totals(*of_rows, None, None)),
    _merge(column_totals, Totals(*of_columns, None, None)),
  )


def _marks(images, texts, ids, layout):
  own = pairs.own_cosines(images, texts)
  return {"index": pairs.index(images, layout.axes), "own": own, **ids}


def _forward(options, images, texts, scale, ids):
  """Returns (loss, row totals, column totals), the totals of own pairs."""
  layout = options.layout
  count, kind = len(images), pairs.at_least_float32(images)
  relate = functools.partial(
    targets.relations,
    duplicates=options.duplicates,
    padded=pairs.is_padded(count, layout),
  )

  def tile(rows, columns, row_totals, column_totals):
    texts, columns = columns
    relations = relate(rows, columns)
    if options.kernel != "off" and relations == (None, None):
      return _by_kernel(
        options.kernel, rows, texts, columns, scale, row_totals, column_totals
      )
    cosines = pairs.product("id,jd->ij", rows["embeds"], texts, images.dtype)
    above_row = scale * (cosines - rows["own"][:, None])
    above_column = scale * (cosines - columns["own"])
    return (
      _merge(row_totals, _tile_totals(above_row, relations, 1)),
      _merge(column_totals, _tile_totals(above_column, relations, 0)),
    )

  marks = _marks(images, texts, ids, layout)
  rows = sweep.split({"embeds": images, **marks}, layout.row_tiles, pairs.FILLS)
  columns = pairs.column_parts(texts, marks, layout)
  wide = columns["texts"].shape[1] * pairs.gathered_devices(layout)
  copies = options.duplicates == "positive" and bool(ids)
  zeros = functools.partial(pairs.zeros, images, kind)
  row_totals, column_totals = sweep.sweep(
    tile,
    layout=layout,
    rows=rows,
    row_state=_no_totals(zeros(*rows["own"].shape), copies=copies),
    **columns,
    start=_no_totals(zeros(wide), copies=copies),
    settle=lambda totals: totals,
    merge=_merge,
  )
  row_totals = sweep.join(row_totals, count)
  column_totals = _scatter(column_totals, layout.gather_axes)
  column_totals = sweep.join(column_totals, count)
  losses = pairs.total(row_totals.loss + column_totals.loss, layout.axes)
  whole = pairs.whole_batch(images, layout.axes)
  return losses / (2 * whole), row_totals, column_totals


def _backward(options, images, texts, scale, ids, totals):
  """Returns gradients before the factor scale / (2 pairs), own pairs left out.

  Those of images and texts in float32, and the temperature's for each image.
  """
  layout = options.layout
  count, kind = len(images), pairs.at_least_float32(images)
  dtype = images.dtype
  relate = functools.partial(
    targets.relations,
    duplicates=options.duplicates,
    padded=pairs.is_padded(count, layout),
  )

  def probabilities(differences, rest, share, relations):
    logits = scale * differences - rest
    weights = jnp.exp(logits)
    if relations.copies is not None:
      copies = jnp.expm1(logits)
      weights = share * jnp.where(relations.copies, copies, weights)
    return targets.without(relations, weights)

  def tile(rows, columns, row_state, text_gradient):
    texts, columns = columns
    image_gradient, temperature = row_state
    cosines = pairs.product("id,jd->ij", rows["embeds"], texts, dtype)
    relations = relate(rows, columns)
    rows_of = {name: x[:, None] for name, x in rows.items() if x.ndim == 1}
    above_row = cosines - rows_of["own"]
    above_column = cosines - columns["own"]
    by_row = probabilities(
      above_row, rows_of["rest"], rows_of.get("share"), relations
    )
    by_column = probabilities(
      above_column, columns["rest"], columns.get("share"), relations
    )
    temperature += (by_row * above_row + by_column * above_column).sum(axis=1)
    # As exact as the embeddings: their rounding of the weights is no larger
    # than that of the gradients, which come out in their type.
    both = by_row + by_column
    image_gradient += pairs.product("ij,jd->id", both, texts, dtype)
    text_gradient += pairs.product("ij,id->jd", both, rows["embeds"], dtype)
    return (image_gradient, temperature), text_gradient

  marks = [
    _marks(images, texts, ids, layout)
    | {"rest": part.rest}
    | ({} if part.copies is None else {"share": part.share})
    for part in totals
  ]
  rows = sweep.split(
    {"embeds": images, **marks[0]}, layout.row_tiles, pairs.FILLS
  )
  columns = pairs.column_parts(texts, marks[1], layout)
  wide = columns["texts"].shape[1] * pairs.gathered_devices(layout)
  zeros = functools.partial(pairs.zeros, images, kind)
  (image_gradient, temperature), text_gradient = sweep.sweep(
    tile,
    layout=layout,
    rows=rows,
    row_state=(zeros(*rows["embeds"].shape), zeros(*rows["own"].shape)),
    **columns,
    start=zeros(wide, images.shape[1]),
    settle=lambda x: sweep.scatter_sum(x, layout.gather_axes, axis=0),
    merge=jnp.add,
  )
  return sweep.join((image_gradient, text_gradient, temperature), count)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def loss(
  options: pairs.Options,
  images: jax.Array,
  texts: jax.Array,
  scale: jax.Array,
  ids: dict[str, jax.Array],
) -> jax.Array:
  """Returns the loss of the whole batch, the same on every device.

  Args:
    options: the walk and the targets.
    images: (pairs of this device, embed).
    texts: the same shape and type.
    scale: scalar of at least float32, varying over the mesh as the images do.
    ids: int32 (pairs of this device,) under "image_ids" and "text_ids".
  """
  return _forward(options, images, texts, scale, ids)[0]


def _loss_forward(options, images, texts, scale, ids):
  value, *totals = _forward(options, images, texts, scale, ids)
  return value, (images, texts, scale, ids, totals)


def _loss_backward(options, residuals, cotangent):
  images, texts, scale, ids, totals = residuals
  kind = pairs.at_least_float32(images)
  image_gradient, text_gradient, temperature = _backward(
    options, images, texts, scale, ids, totals
  )
  own: Any = 0  # The gradient of each pair's own logit.
  for part in totals:
    own += part.share * jnp.expm1(-part.rest)
  own = own[:, None]
  image_gradient += own * texts.astype(kind)
  text_gradient += own * images.astype(kind)
  whole = pairs.whole_batch(images, options.layout.axes)
  factor = cotangent.astype(kind) / (2 * whole)
  return (
    (factor * scale * image_gradient).astype(images.dtype),
    (factor * scale * text_gradient).astype(texts.dtype),
    factor * temperature.sum(),
    jax.tree.map(lambda _: None, ids),
  )


loss.defvjp(_loss_forward, _loss_backward)
