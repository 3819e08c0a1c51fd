"""The loss of the whole batch and its gradients, as one device computes them.

The towers see this device's pairs alone; the loss sees those of all devices.
With micro-batches the towers see some pairs at a time: gradient caching (Gao
et al. 2021, arXiv 2101.06983). All pairs are embedded without keeping
activations, the loss of all embeddings gives their gradients, and each part is
embedded once more to carry these into the parameters. The result is that of
the whole batch, for one more forward pass and the memory of one part.
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
    total: what is minimised.
    terms: those that it is the weighted sum of, by name; empty where it is one.
  """

  total: jax.Array
  terms: dict[str, jax.Array]


# From what the model makes of this device's pairs.
LossFunction = Callable[[clip.ClipOutput], Losses]


@flax.struct.dataclass
class Part:
  """Some pairs of the batch.

  Attributes:
    image: uint8 (pairs, height, width, 3).
    tokens: int32 (pairs, length), or `PackedText`.
    examples: int32 (pairs,), their numbers in the global batch.
  """

  image: jax.Array
  tokens: Any
  examples: jax.Array


@dataclasses.dataclass(frozen=True)
class Towers:
  """A model whose parameters lie on the mesh in parts.

  Attributes:
    model: of `sharded.place`.
    specs: the PartitionSpec of each parameter.
    frozen: what is not trained.
  """

  model: clip.CLIP
  specs: Any
  frozen: freezing.Frozen

  def embed(
    self, params: Any, batch_stats: Any, part: Part, key: jax.Array
  ) -> tuple[clip.ClipOutput, Any]:
    """Returns what the model makes of `part`, and the new statistics."""
    params = sharded.whole(params, self.specs, dtype=self.model.dtype)
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
    """Returns the logit scale and the logit bias, None without them."""
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
  """Returns losses, gradients and statistics, all pairs at a time.

  Args:
    towers: the model.
    loss: of the model's output for this device's pairs.
    params: this device's parts of the parameters.
    batch_stats: the same on every device.
    part: this device's pairs.
    key: of what is random in this update.

  Returns:
    The losses of the whole batch; the gradient of the trained parameters, the
    share of this device's pairs; the new batch statistics.
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
  """Returns the same as `direct`, embedding in `micro_batches` parts.

  Batch norms must be locked: others need the statistics of all pairs at once.
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
  """Returns what belongs to pairs: all but temperature and bias."""
  none: Any = None
  return dataclasses.replace(output, logit_scale=none, logit_bias=None)
