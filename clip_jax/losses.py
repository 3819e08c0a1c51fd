"""Contrastive losses over the global batch; the only home of collectives.

Every method gives the same value and the same gradients; they differ in what
a device holds. `dense` holds all logits, `gathered` a device's rows of them.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clip_jax import errors


def _logits(
  image_embeds: jax.Array, text_embeds: jax.Array, logit_scale: jax.Array
) -> jax.Array:
  """Returns scaled cosines (images, texts) in at least float32."""
  kind = jnp.promote_types(image_embeds.dtype, jnp.float32)
  cosines = jnp.einsum(
    "ie,te->it",
    image_embeds,
    text_embeds,
    precision=lax.Precision.HIGHEST,
    preferred_element_type=kind,
  )
  return logit_scale.astype(kind) * cosines


def _positives(
  image_embeds: jax.Array, text_embeds: jax.Array, logit_scale: jax.Array
) -> jax.Array:
  """Returns the logits of the true pairs, without the matrix around them."""
  kind = jnp.promote_types(image_embeds.dtype, jnp.float32)
  products = image_embeds.astype(kind) * text_embeds.astype(kind)
  return logit_scale.astype(kind) * products.sum(axis=-1)


def _dense_softmax(image_embeds, text_embeds, logit_scale):
  logits = _logits(image_embeds, text_embeds, logit_scale)  # (images, texts)
  both = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
  positives = _positives(image_embeds, text_embeds, logit_scale)
  return jnp.mean(both / 2 - positives)


def _local_softmax(image_embeds, text_embeds, logit_scale, *, axes, pairs):
  """One device's part: its images against every text.

  Rows are complete here. A column is spread over the devices, so its
  log-sum-exp takes the largest logit and the sum over all of them. Only one
  side is gathered, and the matrix is made once for both directions.
  """
  all_texts = lax.all_gather(text_embeds, axes, tiled=True)  # (pairs, embed)
  logits = _logits(image_embeds, all_texts, logit_scale)  # (rows, pairs)
  rows = jax.nn.logsumexp(logits, axis=1)
  largest = lax.pmax(lax.stop_gradient(logits).max(axis=0), axes)  # (pairs,)
  sums = lax.psum(jnp.exp(logits - largest).sum(axis=0), axes)
  columns = largest + jnp.log(sums)  # (pairs,), the same on every device
  positives = _positives(image_embeds, text_embeds, logit_scale)
  local = jnp.sum(rows / 2 - positives)
  return (lax.psum(local, axes) + columns.sum() / 2) / pairs


def _sigmoid_sum(image_embeds, text_embeds, scale, bias, *, first_row):
  """Sums -log sigmoid(±logit) over images that start at row `first_row`.

  The sign is + for an image's own text and - for any other.
  """
  logits = _logits(image_embeds, text_embeds, scale) + bias  # (images, texts)
  rows = first_row + jnp.arange(logits.shape[0])
  own = rows[:, None] == jnp.arange(logits.shape[1])
  return jax.nn.softplus(jnp.where(own, -logits, logits)).sum()


def _dense_sigmoid(image_embeds, text_embeds, logit_scale, logit_bias):
  total = _sigmoid_sum(
    image_embeds, text_embeds, logit_scale, logit_bias, first_row=0
  )
  return total / image_embeds.shape[0]


def _local_sigmoid(
  image_embeds, text_embeds, logit_scale, logit_bias, *, axes, pairs
):
  """One device's part: its images against every text."""
  all_texts = lax.all_gather(text_embeds, axes, tiled=True)  # (pairs, embed)
  local = _sigmoid_sum(
    image_embeds,
    all_texts,
    logit_scale,
    logit_bias,
    first_row=lax.axis_index(axes) * image_embeds.shape[0],
  )
  return lax.psum(local, axes) / pairs


def _dense(whole, local, arrays, *, mesh, axes):
  del local, mesh, axes
  return whole(*arrays)


def _gathered(whole, local, arrays, *, mesh, axes):
  """Runs `local` on each device's rows of the first two arrays."""
  del whole
  if mesh is None:
    raise errors.UserError("loss.method='gathered' needs a mesh of devices.")
  split, repeated = (P(axes),) * 2, (P(),) * (len(arrays) - 2)
  return jax.shard_map(
    functools.partial(local, axes=axes, pairs=arrays[0].shape[0]),
    mesh=mesh,
    in_specs=split + repeated,
    out_specs=P(),
  )(*arrays)


METHODS: dict[str, Callable] = {"dense": _dense, "gathered": _gathered}


def _run(whole, local, arrays, *, method, mesh, axes):
  if method == "auto":
    method = "dense" if mesh is None else "gathered"
  if method not in METHODS:
    raise errors.unknown("loss method", method, METHODS)
  arrays = tuple(map(jnp.asarray, arrays))
  return METHODS[method](whole, local, arrays, mesh=mesh, axes=axes)


def softmax_loss(
  image_embeds: jax.Array,
  text_embeds: jax.Array,
  logit_scale: jax.Array,
  logit_bias: jax.Array | None = None,
  *,
  method: str = "auto",
  mesh: Mesh | None = None,
  axes: tuple[str, ...] = (),
) -> jax.Array:
  """Returns the symmetric cross-entropy over all pairs (paper, figure 3).

  Args:
    image_embeds: (pairs, embed), unit length, the global batch.
    text_embeds: (pairs, embed), row i belongs to row i of the images.
    logit_scale: scalar that multiplies the cosines.
    logit_bias: changes nothing: a softmax does not see what all logits share.
    method: a name in `METHODS`; "auto" takes "gathered" on a mesh.
    mesh: the devices that hold the batch; None for one device.
    axes: names of the mesh axes that split the batch.

  Returns:
    The scalar mean of image-to-text and text-to-image cross-entropy, in nats,
    in at least float32.

  Raises:
    UserError: unknown method, or "gathered" without a mesh.
  """
  del logit_bias
  return _run(
    _dense_softmax,
    _local_softmax,
    (image_embeds, text_embeds, logit_scale),
    method=method,
    mesh=mesh,
    axes=axes,
  )


def sigmoid_loss(
  image_embeds: jax.Array,
  text_embeds: jax.Array,
  logit_scale: jax.Array,
  logit_bias: jax.Array | None,
  *,
  method: str = "auto",
  mesh: Mesh | None = None,
  axes: tuple[str, ...] = (),
) -> jax.Array:
  """Returns the pairwise sigmoid loss (Zhai et al. 2023, equation 1).

  Args:
    image_embeds: (pairs, embed), unit length, the global batch.
    text_embeds: (pairs, embed), row i belongs to row i of the images.
    logit_scale: scalar that multiplies the cosines.
    logit_bias: scalar that is added to the scaled cosines.
    method: a name in `METHODS`; "auto" takes "gathered" on a mesh.
    mesh: the devices that hold the batch; None for one device.
    axes: names of the mesh axes that split the batch.

  Returns:
    The scalar mean over images of the sum over all texts of the binary
    cross-entropy, in nats, in at least float32.

  Raises:
    UserError: no bias, unknown method, or "gathered" without a mesh.
  """
  if logit_bias is None:
    raise errors.UserError(
      "The sigmoid loss needs a logit bias, which this model has not; give it "
      "one with --config.model_overrides.init_logit_bias=-10."
    )
  return _run(
    _dense_sigmoid,
    _local_sigmoid,
    (image_embeds, text_embeds, logit_scale, logit_bias),
    method=method,
    mesh=mesh,
    axes=axes,
  )


KINDS: dict[str, Callable[..., jax.Array]] = {
  "sigmoid": sigmoid_loss,
  "softmax": softmax_loss,
}

# Those that need the model's logit bias.
BIASED_KINDS = ("sigmoid",)
