"""The loss of the whole batch and its gradients, as one device computes them.

The towers process this device's pairs only; the loss compares the pairs of all
devices. With micro-batches the towers process a part of the pairs at a time, by
gradient caching (Gao et al. 2021, arXiv 2101.06983): all pairs are embedded
without keeping activations, the loss of all embeddings gives the gradients of
the embeddings, and each part is embedded once more to propagate these gradients
to the parameters. The result is that of the whole batch; it costs one more
forward pass and needs memory for the activations of one part only.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from clip_jax import sharding
from clip_jax.models import clip, freezing, sharded


@flax.struct.dataclass
class Losses:
  """Losses of the whole batch, in nats, the same on every device.

  Attributes:
    total: the loss that is minimised.
    terms: if `total` is a weighted sum, the losses in it by name; else empty.
  """

  total: jax.Array
  terms: dict[str, jax.Array]


# Takes the model's output for this device's pairs.
LossFunction = Callable[[clip.ClipOutput], Losses]


@flax.struct.dataclass
class Part:
  """Some pairs of the batch.

  Attributes:
    image: uint8 (pairs, height, width, 3).
    tokens: int32 (pairs, length), or `PackedText`.
    examples: int32 (pairs,), the numbers of the pairs in the global batch.
  """

  image: jax.Array
  tokens: Any
  examples: jax.Array


@dataclasses.dataclass(frozen=True)
class Towers:
  """A model whose parameters are split over the mesh.

  Attributes:
    model: the result of `sharded.place`.
    specs: the PartitionSpec of each parameter.
    frozen: the parameters that are not trained.
  """

  model: clip.CLIP
  specs: Any
  frozen: freezing.Frozen

  def embed(
    self, params: Any, batch_stats: Any, part: Part, key: jax.Array
  ) -> tuple[clip.ClipOutput, Any]:
    """Returns the model's output for `part` and the new batch statistics."""
    params = sharded.gather_beside_layers(
      params, self.specs, dtype=self.model.dtype
    )
    output, updated = self.model.apply(
      {"params": params, "batch_stats": batch_stats},
      part.image,
      part.tokens,
      train=True,
      locked=self.frozen.towers,
      locked_norms=self.frozen.norms,
      examples=part.examples,
      axes=sharding.BATCH_AXES,
      mutable=["batch_stats"],
      rngs={"dropout": key},
    )
    return output, updated.get("batch_stats", {})

  def temperature(self, params: Any) -> tuple[jax.Array, jax.Array | None]:
    """Returns the logit scale and the logit bias; None for a missing one."""
    found: Any = self.model.apply(
      {"params": params}, method=clip.CLIP.temperature
    )
    return found


def direct(
  towers: Towers,
  loss: LossFunction,
  params: Any,
  batch_stats: Any,
  part: Part,
  key: jax.Array,
) -> tuple[Losses, Any, Any]:
  """Returns losses, gradients and statistics, computed for all pairs at once.

  Args:
    towers: the model.
    loss: a function of the model's output for this device's pairs.
    params: this device's parts of the parameters.
    batch_stats: the batch statistics, the same on every device.
    part: this device's pairs.
    key: the random key of this update.

  Returns:
    The losses of the whole batch; this device's share of the gradient of the
    trained parameters; the new batch statistics.
  """

  def objective(trained):
    merged = towers.frozen.merge(params, trained)
    output, stats = towers.embed(merged, batch_stats, part, key)
    found = loss(output)
    return found.total, (found, stats)

  (_, (found, stats)), gradients = jax.value_and_grad(objective, has_aux=True)(
    towers.frozen.select(params)
  )
  return found, gradients, stats


def cached(
  towers: Towers,
  loss: LossFunction,
  params: Any,
  batch_stats: Any,
  part: Part,
  key: jax.Array,
  *,
  micro_batches: int,
) -> tuple[Losses, Any, Any]:
  """Returns the same as `direct`; embeds the pairs in `micro_batches` parts.

  All batch norms must be locked, because a batch norm that is not needs the
  statistics of all pairs.
  """
  trained = towers.frozen.select(params)
  parts = jax.tree.map(
    lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), part
  )

  def embed(trained, part):
    merged = towers.frozen.merge(params, trained)
    output, _ = towers.embed(merged, batch_stats, part, key)
    return of_pairs(output)

  def temperature(trained):
    return towers.temperature(towers.frozen.merge(params, trained))

  outputs = lax.map(lambda part: embed(trained, part), parts)
  (scale, bias), temperature_vjp = jax.vjp(temperature, trained)

  def objective(pairs, scale, bias):
    found = loss(dataclasses.replace(pairs, logit_scale=scale, logit_bias=bias))
    return found.total, found

  flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
  (of_flat, *of_temperature), found = jax.grad(
    objective, argnums=(0, 1, 2), has_aux=True
  )(flat, scale, bias)
  (gradients,) = temperature_vjp(tuple(of_temperature))

  def replay(total, part_and_gradients):
    part, of_outputs = part_and_gradients
    _, vjp = jax.vjp(lambda trained: embed(trained, part), trained)
    return jax.tree.map(jnp.add, total, *vjp(of_outputs)), None

  of_outputs = jax.tree.map(
    lambda x, like: x.reshape(like.shape), of_flat, outputs
  )
  gradients, _ = lax.scan(replay, gradients, (parts, of_outputs))
  return found, gradients, batch_stats


def of_pairs(output: clip.ClipOutput) -> clip.ClipOutput:
  """Returns the outputs that belong to pairs, without logit scale and bias."""
  none: Any = None
  return dataclasses.replace(output, logit_scale=none, logit_bias=None)
