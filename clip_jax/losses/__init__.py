"""Contrastive losses over the global batch, with their collectives.

`local_loss` is for one device inside `jax.shard_map`; `softmax_loss` and
`sigmoid_loss` wrap it for whole arrays. All methods give the value and the
gradients of `reference`; they differ in what a device holds at a time:

    dense      all logits
    gathered   the logits of its images with all texts, gathered at once
    ring       a tile of logits; texts are sent from device to device
    two_level  a tile of logits; texts are gathered over the last mesh axis
               that is larger than 1 and sent around a ring of the others
    auto       chosen by size and mesh, see clip_jax.losses.methods

`sweep` and `pairs` visit all tiles; `softmax` and `sigmoid` have the formulas.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clip_jax import errors, versions
from clip_jax.losses import methods, pairs, reference, sigmoid, softmax, sweep
from clip_jax.losses.methods import METHODS, Tile
from clip_jax.losses.targets import DUPLICATES, text_ids

__all__ = [
  "BIASED_KINDS",
  "DUPLICATES",
  "KINDS",
  "METHODS",
  "Tile",
  "batch_mean",
  "local_loss",
  "reference",
  "sigmoid_loss",
  "softmax_loss",
  "text_ids",
]

versions.check()


def _softmax(options, batch, scale, bias):
  del bias  # A term that is the same in all logits does not change a softmax.
  return softmax.loss(options, batch, scale)


def _sigmoid(options, batch, scale, bias):
  if bias is None:
    raise errors.UserError(
      "The sigmoid loss needs a logit bias, but this model has none; add one "
      "with --config.model_overrides.init_logit_bias=-10."
    )
  return sigmoid.loss(options, batch, scale, bias)


_LOCAL = {"sigmoid": _sigmoid, "softmax": _softmax}

# The kinds of loss that need the model's logit bias.
BIASED_KINDS = ("sigmoid",)


def local_loss(kind: str) -> Callable[..., jax.Array]:
  """Returns the loss of that kind for one device inside `jax.shard_map`.

  It takes (image_embeds, text_embeds, logit_scale, logit_bias=None, *, axes=(),
  method="auto", duplicates="ignore", image_ids=None, text_ids=None,
  tile=Tile()) and returns the scalar loss of the global batch, in nats and at
  least float32, the same on every device.

  - image_embeds, text_embeds: (pairs of this device, embed), unit length; row
    i of one belongs to row i of the other. Their gradients, of the global
    batch's loss, have their type; the sums before are in at least float32.
  - logit_scale multiplies the cosines, logit_bias is added to them; scalars,
    the same on every device. If they are varying over the mesh, as the
    embeddings are, their gradient is each device's share of the sum; if they
    are not, it is the sum.
  - axes: mesh axes that split the batch, in the order that numbers its rows;
    () on one device, without collectives.
  - method: a name in `METHODS`.
  - duplicates: how pairs (i, j), i != j, with equal image ids or text ids
    count: "ignore" takes them as negatives, "mask" leaves them out, "positive"
    takes them as positives: the softmax's target is spread evenly over the
    positives of a row and of a column, the sigmoid's label is 1.
  - image_ids, text_ids: int32 (pairs of this device,); None if unknown. For
    texts see `text_ids`.
  - tile: the largest part of the logits that "ring" and "two_level" hold.

  Only reverse-mode derivatives are defined.

  Raises:
    UserError: unknown kind, method or `duplicates`; no bias for a sigmoid;
      shapes that do not match.
  """
  if kind not in _LOCAL:
    raise errors.unknown("loss kind", kind, _LOCAL)
  return functools.partial(_local, _LOCAL[kind])


def batch_mean(values: jax.Array, *, axes: tuple[str, ...] = ()) -> jax.Array:
  """Returns the mean of one value a pair over the whole batch.

  It is the same on every device, and so is its gradient's scale: each device's
  gradient is its own share of the sum.

  Args:
    values: (pairs of this device,), as many on every device.
    axes: mesh axes that split the batch; () on one device.
  """
  mean = values.mean()
  return lax.pmean(mean, axes) if axes else mean


def _local(
  function: Callable[..., Any],
  image_embeds: jax.Array,
  text_embeds: jax.Array,
  logit_scale: jax.Array,
  logit_bias: jax.Array | None = None,
  *,
  axes: tuple[str, ...] = (),
  method: str = "auto",
  duplicates: str = "ignore",
  image_ids: jax.Array | None = None,
  text_ids: jax.Array | None = None,
  tile: Tile = Tile(),  # noqa: B008 - frozen.
) -> jax.Array:
  if duplicates not in DUPLICATES:
    raise errors.unknown("loss.duplicates", duplicates, DUPLICATES)
  _check_shapes(image_embeds, text_embeds, image_ids, text_ids)
  dtype = jnp.promote_types(image_embeds.dtype, text_embeds.dtype)
  if dtype != jnp.bfloat16:  # The products of float16 overflow.
    dtype = jnp.promote_types(dtype, jnp.float32)
  images, texts = (x.astype(dtype) for x in (image_embeds, text_embeds))
  kind = pairs.at_least_float32(images)
  # Makes the scalars vary over the mesh as the embeddings do. If they did not
  # vary before, the transpose of this addition sums their gradients.
  zero = lax.full_like(images, 0, kind, shape=())
  scale, bias = (
    None if x is None else jnp.asarray(x).astype(kind) + zero
    for x in (logit_scale, logit_bias)
  )
  ids = {"image_ids": image_ids, "text_ids": text_ids}
  ids = {name: x for name, x in ids.items() if x is not None}
  if duplicates == "ignore":
    ids = {}
  gather_all = method == "dense" and axes
  if gather_all:
    # Gathered in float32, so that the gradients are summed in float32 too.
    images, texts = (
      sweep.gather(x.astype(kind), axes, axis=0).astype(dtype)
      for x in (images, texts)
    )
    ids = {name: sweep.gather(x, axes, axis=0) for name, x in ids.items()}
  layout = methods.choose(
    method, images, axes=() if gather_all else axes, tile=tile
  )
  options = pairs.Options(layout, duplicates)
  loss = function(options, pairs.Batch(images, texts, ids), scale, bias)
  # The value is the same on all devices; after the mean JAX knows it, too.
  return lax.pmean(loss, axes) if gather_all else loss


def _check_shapes(images, texts, image_ids, text_ids):
  """Raises UserError unless the arrays have a row for each pair."""
  if images.ndim != 2 or images.shape != texts.shape or not images.size:
    raise errors.UserError(
      "The embeddings of images and texts must both be (pairs, embed), of at "
      f"least one pair; got {images.shape} and {texts.shape}."
    )
  for name, ids in (("image_ids", image_ids), ("text_ids", text_ids)):
    if ids is not None and ids.shape != images.shape[:1]:
      raise errors.UserError(
        f"{name} must hold one number a pair, {images.shape[:1]}; got "
        f"{ids.shape}."
      )


def _global(
  kind: str,
  image_embeds: jax.Array,
  text_embeds: jax.Array,
  logit_scale: jax.Array,
  logit_bias: jax.Array | None = None,
  *,
  mesh: Mesh | None = None,
  axes: tuple[str, ...] = (),
  image_ids: jax.Array | None = None,
  text_ids: jax.Array | None = None,
  **options: str,
) -> jax.Array:
  """Returns the loss of whole arrays, split over `axes` of `mesh`.

  The other arguments are those of `local_loss`, for the global batch. If `mesh`
  is None, it is computed on one device.

  Raises:
    UserError: as `local_loss` does; pairs that do not split over the mesh.
  """

  def run(embeds, scalars, ids):
    return local_loss(kind)(
      *embeds,
      *scalars,
      image_ids=ids[0],
      text_ids=ids[1],
      axes=() if mesh is None else axes,
      **options,
    )

  embeds, scalars, ids = jax.tree.map(
    jnp.asarray,
    (
      (image_embeds, text_embeds),
      (logit_scale, logit_bias),
      (image_ids, text_ids),
    ),
  )
  _check_shapes(*embeds, *ids)
  if mesh is not None:
    for axis in axes:
      errors.check_known("mesh axis", axis, mesh.axis_names)
    devices = math.prod(mesh.shape[axis] for axis in axes)
    if len(embeds[0]) % devices:
      raise errors.UserError(
        f"{len(embeds[0])} pairs do not split evenly over the {devices} "
        f"devices of the mesh axes {axes}."
      )
    run = jax.shard_map(
      run, mesh=mesh, in_specs=(P(axes), P(), P(axes)), out_specs=P()
    )
  return run(embeds, scalars, ids)


def softmax_loss(
  image_embeds: jax.Array,
  text_embeds: jax.Array,
  logit_scale: jax.Array,
  logit_bias: jax.Array | None = None,
  **options: Any,
) -> jax.Array:
  """Returns the mean of both cross-entropies, in nats (paper, Figure 3).

  Args:
    image_embeds: (pairs, embed), unit length, of the global batch.
    text_embeds: (pairs, embed), unit length.
    logit_scale: scalar.
    logit_bias: None; this loss has none.
    **options: `mesh` and the options of `local_loss`: axes, image_ids,
      text_ids, method, duplicates and tile. Without a mesh the loss is computed
      on one device.

  Raises:
    UserError: as `local_loss` does; pairs that do not split over the mesh.
  """
  return _global(
    "softmax", image_embeds, text_embeds, logit_scale, logit_bias, **options
  )


def sigmoid_loss(
  image_embeds: jax.Array,
  text_embeds: jax.Array,
  logit_scale: jax.Array,
  logit_bias: jax.Array | None,
  **options: Any,
) -> jax.Array:
  """Returns the mean over images of the sum over texts of a binary loss.

  In nats (Zhai et al. 2023, equation 1). The arguments are those of
  `softmax_loss`, but `logit_bias` is a scalar.
  """
  return _global(
    "sigmoid", image_embeds, text_embeds, logit_scale, logit_bias, **options
  )


# Losses of whole arrays by kind.
KINDS: dict[str, Callable[..., jax.Array]] = {
  "softmax": softmax_loss,
  "sigmoid": sigmoid_loss,
}
