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


def _dense(image_embeds, text_embeds, logit_scale):
  logits = _logits(image_embeds, text_embeds, logit_scale)  # (images, texts)
  both = jax.nn.logsumexp(logits, axis=1) + jax.nn.logsumexp(logits, axis=0)
  positives = _positives(image_embeds, text_embeds, logit_scale)
  return jnp.mean(both / 2 - positives)


def _gathered_local(image_embeds, text_embeds, logit_scale, *, axes, pairs):
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


def _gathered(image_embeds, text_embeds, logit_scale, *, mesh, axes):
  local = functools.partial(
    _gathered_local, axes=axes, pairs=image_embeds.shape[0]
  )
  return jax.shard_map(
    local, mesh=mesh, in_specs=(P(axes), P(axes), P()), out_specs=P()
  )(image_embeds, text_embeds, logit_scale)


METHODS: dict[str, Callable] = {
  "dense": lambda *arrays, mesh, axes: _dense(*arrays),
  "gathered": _gathered,
}


def softmax_loss(
  image_embeds: jax.Array,
  text_embeds: jax.Array,
  logit_scale: jax.Array,
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
    method: a name in `METHODS`; "auto" takes "gathered" on a mesh.
    mesh: the devices that hold the batch; None for one device.
    axes: names of the mesh axes that split the batch.

  Returns:
    The scalar mean of image-to-text and text-to-image cross-entropy, in nats,
    in at least float32.

  Raises:
    UserError: unknown method, or "gathered" without a mesh.
  """
  if method == "auto":
    method = "dense" if mesh is None else "gathered"
  if method not in METHODS:
    raise errors.unknown("loss method", method, METHODS)
  if method == "gathered" and mesh is None:
    raise errors.UserError("loss.method='gathered' needs a mesh of devices.")
  arrays = map(jnp.asarray, (image_embeds, text_embeds, logit_scale))
  return METHODS[method](*arrays, mesh=mesh, axes=axes)


KINDS: dict[str, Callable[..., jax.Array]] = {"softmax": softmax_loss}
