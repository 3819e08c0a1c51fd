"""The sigmoid loss on one device of many, with a custom gradient.

Each logit counts by itself (SigLIP, Zhai et al. 2023, equation 1; section 3.3
sends texts in chunks), so only a sum is kept of each tile.
"""

import functools

import jax
import jax.numpy as jnp

from clip_jax.losses import pairs, targets


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def loss(
  options: pairs.Options,
  batch: pairs.Batch,
  scale: jax.Array,
  bias: jax.Array,
) -> jax.Array:
  """Returns the loss of the global batch, the same on every device.

  Args:
    options: layout and duplicates.
    batch: this device's pairs.
    scale: scalar of at least float32, varying over the mesh as the images do.
    bias: scalar, likewise.
  """

  def visit(seen, row_losses, column_state):
    logits = scale * seen.cosines + bias
    if seen.relations.copies is not None:
      logits = jnp.where(seen.relations.copies, -logits, logits)
    losses = targets.without(seen.relations, jax.nn.softplus(logits))
    return row_losses + losses.sum(axis=1), column_state

  row_losses, _ = pairs.walk(
    visit,
    options,
    batch,
    row_marks={},
    column_marks={},
    row_start=lambda zeros: zeros(),
    column_start=lambda zeros: (),
    settle=lambda nothing: nothing,
    merge=lambda nothing, _: nothing,
  )
  own_logits = scale * pairs.own_cosines(batch) + bias
  return pairs.mean(
    row_losses + jax.nn.softplus(-own_logits), options.layout.axes
  )


def _loss_forward(options, *arguments):
  return loss(options, *arguments), arguments


def _loss_backward(options, arguments, cotangent):
  batch, scale, bias = arguments

  def weigh(seen):
    logits = scale * seen.cosines + bias
    weights = jax.nn.sigmoid(logits)
    copies = seen.relations.copies
    if copies is not None:
      weights = jnp.where(copies, -jax.nn.sigmoid(-logits), weights)
    weights = targets.without(seen.relations, weights)
    return weights, (weights * seen.cosines, weights)

  cosines = pairs.own_cosines(batch)
  own = -jax.nn.sigmoid(-(scale * cosines + bias))
  factor = cotangent.astype(batch.kind)
  factor /= pairs.global_pairs(len(cosines), options.layout.axes)
  images, texts, (temperature, offset) = pairs.gradients(
    weigh,
    options,
    batch,
    own=own,
    factor=factor * scale,
    sums=2,
    row_marks={},
    column_marks={},
  )
  return (
    pairs.Batch(images, texts, jax.tree.map(lambda _: None, batch.ids)),
    factor * (temperature + own * cosines).sum(),
    factor * (offset + own).sum(),
  )


loss.defvjp(_loss_forward, _loss_backward)
