"""The sigmoid loss on one device of many, with its gradient by hand.

Each logit counts by itself (SigLIP, Zhai et al. 2023, equation 1 and section
3.3, where texts travel in chunks), so nothing but a sum is kept of a tile.
Backward, the logits are made again tile by tile; a text's gradient travels
with the text in float32, or is scattered back over the gathered axes.
"""

import functools

import jax
import jax.numpy as jnp

from clip_jax.losses import pairs, sweep, targets


def _prepare(options, images, texts, ids):
  """Returns the rows and the columns that a walk takes, and their relations."""
  layout = options.layout
  marks = {"index": pairs.index(images, layout.axes), **ids}
  rows = sweep.split({"embeds": images, **marks}, layout.row_tiles, pairs.FILLS)
  relate = functools.partial(
    targets.relations,
    duplicates=options.duplicates,
    padded=pairs.is_padded(len(images), layout),
  )
  return rows, pairs.column_parts(texts, marks, layout), relate


def _forward(options, images, texts, scale, bias, ids):
  layout = options.layout
  rows, columns, relate = _prepare(options, images, texts, ids)

  def tile(rows, columns, row_losses, column_state):
    texts, columns = columns
    cosines = pairs.product("id,jd->ij", rows["embeds"], texts, images.dtype)
    relations = relate(rows, columns)
    logits = scale * cosines + bias
    if relations.copies is not None:
      logits = jnp.where(relations.copies, -logits, logits)
    losses = targets.without(relations, jax.nn.softplus(logits))
    return row_losses + losses.sum(axis=1), column_state

  kind = pairs.at_least_float32(images)
  row_losses, _ = sweep.sweep(
    tile,
    layout=layout,
    rows=rows,
    row_state=pairs.zeros(images, kind, *rows["index"].shape),
    **columns,
    start=(),
    settle=lambda nothing: nothing,
    merge=lambda nothing, _: nothing,
  )
  row_losses = sweep.join(row_losses, len(images))
  own_logits = scale * pairs.own_cosines(images, texts) + bias
  losses = row_losses + jax.nn.softplus(-own_logits)
  whole = pairs.whole_batch(images, layout.axes)
  return pairs.total(losses, layout.axes) / whole


def _backward(options, images, texts, scale, bias, ids):
  """Returns gradients before the factor 1 / pairs, own pairs left out.

  Those of images and texts without the scale, in float32, and those of
  temperature and bias for each image.
  """
  layout = options.layout
  rows, columns, relate = _prepare(options, images, texts, ids)
  dtype, kind = images.dtype, pairs.at_least_float32(images)

  def tile(rows, columns, row_state, text_gradient):
    texts, columns = columns
    image_gradient, temperature, offset = row_state
    cosines = pairs.product("id,jd->ij", rows["embeds"], texts, dtype)
    relations = relate(rows, columns)
    logits = scale * cosines + bias
    weights = jax.nn.sigmoid(logits)
    if relations.copies is not None:
      weights = jnp.where(relations.copies, -jax.nn.sigmoid(-logits), weights)
    weights = targets.without(relations, weights)
    temperature += (weights * cosines).sum(axis=1)
    offset += weights.sum(axis=1)
    # As exact as the embeddings: their rounding of the weights is no larger
    # than that of the gradients, which come out in their type.
    image_gradient += pairs.product("ij,jd->id", weights, texts, dtype)
    text_gradient += pairs.product("ij,id->jd", weights, rows["embeds"], dtype)
    return (image_gradient, temperature, offset), text_gradient

  zeros = functools.partial(pairs.zeros, images, kind)
  wide = columns["texts"].shape[1] * pairs.gathered_devices(layout)
  by_row = zeros(*rows["index"].shape)
  row_state, text_gradient = sweep.sweep(
    tile,
    layout=layout,
    rows=rows,
    row_state=(zeros(*rows["embeds"].shape), by_row, by_row),
    **columns,
    start=zeros(wide, images.shape[1]),
    settle=lambda x: sweep.scatter_sum(x, layout.gather_axes, axis=0),
    merge=jnp.add,
  )
  return sweep.join((*row_state, text_gradient), len(images))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def loss(
  options: pairs.Options,
  images: jax.Array,
  texts: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  ids: dict[str, jax.Array],
) -> jax.Array:
  """Returns the loss of the whole batch, the same on every device.

  Args:
    options: the walk and the targets.
    images: (pairs of this device, embed).
    texts: the same shape and type.
    scale: scalar of at least float32, varying over the mesh as the images do.
    bias: the same.
    ids: int32 (pairs of this device,) under "image_ids" and "text_ids".
  """
  return _forward(options, images, texts, scale, bias, ids)


def _loss_forward(options, *arguments):
  return _forward(options, *arguments), arguments


def _loss_backward(options, arguments, cotangent):
  images, texts, scale, bias, ids = arguments
  kind = pairs.at_least_float32(images)
  image_gradient, temperature, offset, text_gradient = _backward(
    options, *arguments
  )
  cosines = pairs.own_cosines(images, texts)
  own = -jax.nn.sigmoid(-(scale * cosines + bias))
  image_gradient += own[:, None] * texts.astype(kind)
  text_gradient += own[:, None] * images.astype(kind)
  factor = cotangent.astype(kind)
  factor /= pairs.whole_batch(images, options.layout.axes)
  return (
    (factor * scale * image_gradient).astype(images.dtype),
    (factor * scale * text_gradient).astype(texts.dtype),
    factor * (temperature + own * cosines).sum(),
    factor * (offset + own).sum(),
    jax.tree.map(lambda _: None, ids),
  )


loss.defvjp(_loss_forward, _loss_backward)
