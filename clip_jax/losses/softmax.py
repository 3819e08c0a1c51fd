"""The softmax loss on one device of many, with a custom gradient.

All logits are taken relative to the pair's own logit. With a_ij = z_ij - z_ii,
the loss of row i is log(1 + sum_{j != i} exp a_ij). Such differences keep their
digits near convergence, where z_ii - log(sum) would lose them. The gradient is
p_ij = exp(a_ij - loss_i) at j != i and expm1(-loss_i) at the own text; that of
the temperature is sum_j p_ij (cos_ij - cos_ii), which is not a difference of
large sums. For the columns b_ij = z_ij - z_jj takes the place of a_ij.

If a row has k positives, the own text among them, each has the target 1/k, and
near convergence their a_ij are near 0. Therefore log k is split off: the loss
is rest_i + log k - (mean a_ij of the positives), where rest_i = log(1 + (sum of
exp a_ij over negatives + sum of expm1 a_ij over the other positives) / k), and
the gradient of a positive is expm1(a_ij - rest_i) / k.

In the forward pass, each row and column keeps (m, s): the largest difference so
far, at least 0, and the sum of exp(difference - m). Two of these merge exactly
into one, in any order (Milakov and Gimelshein 2018, arXiv 1805.02867). So those
of rows stay on their device, and those of columns are sent with their text.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from clip_jax.losses import pairs, sweep, targets


class Copies(NamedTuple):
  """Sums over the other positives of each row or column.

  Attributes:
    count: number of other positives.
    lead: sum of their differences.
  """

  count: jax.Array
  lead: jax.Array


class Totals(NamedTuple):
  """Sums over the visited logits of each row or column.

  The logits are differences from the row's or column's own logit.

  Attributes:
    largest: the largest difference, at least 0, that of the own logit.
    others: sum of exp(difference - largest) over all but the own pair; for
      other positives, exp(-largest) is subtracted from each term.
    copies: sums over other positives; None if there cannot be any.
  """

  largest: jax.Array
  others: jax.Array
  copies: Copies | None

  @property
  def rest(self) -> jax.Array:
    """Log-sum-exp of all differences, minus the log of the positives' number.

    This is `rest_i` of the module's docstring.
    """
    # largest + log(others / k + exp(-largest)), exact also for tiny `others`.
    others = self.others * self.share
    return self.largest + jnp.log1p(others + jnp.expm1(-self.largest))

  @property
  def share(self) -> jax.Array | float:
    """The target of each positive."""
    return 1.0 if self.copies is None else 1 / (1 + self.copies.count)

  @property
  def loss(self) -> jax.Array:
    """Cross-entropy with the target spread evenly over the positives."""
    if self.copies is None:
      return self.rest
    rest = self.rest + jnp.log1p(self.copies.count)
    return rest - self.share * self.copies.lead


def _merge(one: Totals, other: Totals) -> Totals:
  largest = jnp.maximum(one.largest, other.largest)
  others = one.others * jnp.exp(one.largest - largest)
  others += other.others * jnp.exp(other.largest - largest)
  copies = jax.tree.map(jnp.add, one.copies, other.copies)
  return Totals(largest, others, copies)


def _tile_totals(
  differences: jax.Array, relations: targets.Relations, axis: int
) -> Totals:
  counted = targets.without(relations, differences, -jnp.inf)
  largest = jnp.maximum(counted.max(axis), 0)
  above = jnp.expand_dims(largest, axis)
  others = jnp.exp(counted - above)
  if relations.copies is None:
    return Totals(largest, others.sum(axis), None)
  # For differences above 1 the plain difference is as exact, and cannot
  # overflow.
  near = jnp.expm1(jnp.minimum(differences, 1)) * jnp.exp(-above)
  near = jnp.where(differences < 1, near, others - jnp.exp(-above))
  others = jnp.where(relations.copies, near, others).sum(axis)
  lead = jnp.where(relations.copies, differences, 0).sum(axis)
  count = relations.copies.sum(axis, dtype=differences.dtype)
  return Totals(largest, others, Copies(count, lead))


def _scatter(totals: Totals, axes: tuple[str, ...]) -> Totals:
  """Merges the columns' totals (chunks, columns) over the gathered axes."""
  if not axes:
    return totals
  largest = lax.pmax(totals.largest, axes)
  others = totals.others * jnp.exp(totals.largest - largest)
  scatter = functools.partial(sweep.scatter_sum, axes=axes, axis=1)
  return Totals(
    sweep.own_part(largest, axes, axis=1),
    scatter(others),
    jax.tree.map(scatter, totals.copies),
  )


def _forward(options, batch, scale):
  """Returns (loss, row totals, column totals) of this device's pairs."""
  layout = options.layout

  def visit(seen, row_totals, column_totals):
    above_row = scale * (seen.cosines - seen.rows["own"][:, None])
    above_column = scale * (seen.cosines - seen.columns["own"])
    return (
      _merge(row_totals, _tile_totals(above_row, seen.relations, 1)),
      _merge(column_totals, _tile_totals(above_column, seen.relations, 0)),
    )

  def start(zeros):
    copies = options.duplicates == "positive" and batch.ids
    return Totals(
      zeros(), zeros(), Copies(zeros(), zeros()) if copies else None
    )

  marks = {"own": pairs.own_cosines(batch)}
  row_totals, column_totals = pairs.walk(
    visit,
    options,
    batch,
    row_marks=marks,
    column_marks=marks,
    row_start=start,
    column_start=start,
    settle=lambda totals: totals,
    merge=_merge,
  )
  column_totals = _scatter(column_totals, layout.gather_axes)
  column_totals = sweep.join(column_totals, len(batch.images))
  losses = pairs.mean(row_totals.loss + column_totals.loss, layout.axes)
  return losses / 2, row_totals, column_totals


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def loss(
  options: pairs.Options, batch: pairs.Batch, scale: jax.Array
) -> jax.Array:
  """Returns the loss of the global batch, the same on every device.

  Args:
    options: layout and duplicates.
    batch: this device's pairs.
    scale: scalar of at least float32, varying over the mesh as the images do.
  """
  return _forward(options, batch, scale)[0]


def _loss_forward(options, batch, scale):
  value, *totals = _forward(options, batch, scale)
  return value, (batch, scale, totals)


def _loss_backward(options, residuals, cotangent):
  batch, scale, totals = residuals

  def probabilities(differences, marks, relations):
    logits = scale * differences - marks["rest"]
    weights = jnp.exp(logits)
    if relations.copies is not None:
      copies = jnp.expm1(logits)
      weights = marks["share"] * jnp.where(relations.copies, copies, weights)
    return targets.without(relations, weights)

  def weigh(seen):
    rows = {name: x[:, None] for name, x in seen.rows.items() if x.ndim == 1}
    above_row = seen.cosines - rows["own"]
    above_column = seen.cosines - seen.columns["own"]
    by_row = probabilities(above_row, rows, seen.relations)
    by_column = probabilities(above_column, seen.columns, seen.relations)
    temperature = by_row * above_row + by_column * above_column
    return by_row + by_column, (temperature,)

  own_cosines = pairs.own_cosines(batch)
  marks = [
    {"own": own_cosines, "rest": part.rest}
    | ({} if part.copies is None else {"share": part.share})
    for part in totals
  ]
  own: Any = 0  # The gradient with respect to each pair's own logit.
  for part in totals:
    own += part.share * jnp.expm1(-part.rest)
  count = pairs.global_pairs(len(own), options.layout.axes)
  factor = cotangent.astype(batch.kind) / (2 * count)
  images, texts, (temperature,) = pairs.gradients(
    weigh,
    options,
    batch,
    own=own,
    factor=factor * scale,
    sums=1,
    row_marks=marks[0],
    column_marks=marks[1],
  )
  return (
    pairs.Batch(images, texts, jax.tree.map(lambda _: None, batch.ids)),
    factor * temperature.sum(),
  )


loss.defvjp(_loss_forward, _loss_backward)
