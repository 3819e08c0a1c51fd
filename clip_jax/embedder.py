"""The embedding functions of a module, jitted and batched."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from clip_jax import sharding
from clip_jax.models import padding, sharded

# Batches are padded to one of these, so that few programs are compiled.
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@functools.partial(jax.jit, static_argnames=("module", "method", "mesh"))
def _embed(variables, inputs, *, module, method, mesh):
  def embed(module, variables, inputs):
    embeds = module.apply(variables, inputs, method=method)
    return embeds.astype(jnp.float32)

  if mesh is None:
    return embed(module, variables, inputs)
  specs = sharding.tree_specs(variables, mesh)
  placed = sharded.place(module, specs["params"])

  def on_device(variables, inputs):
    params = sharded.whole(
      variables["params"], specs["params"], dtype=module.dtype
    )
    return embed(placed, {**variables, "params": params}, inputs)

  split = P(sharding.BATCH_AXES)
  embeds = jax.shard_map(
    on_device, mesh=mesh, in_specs=(specs, split), out_specs=split
  )(variables, inputs)
  return jax.lax.with_sharding_constraint(embeds, sharding.replicated(mesh))


class Encoder:
  """The embedding functions of one module, compiled once per batch size.

  Any number of inputs is cut and padded into batches of `BATCH_SIZES`. On a
  mesh each batch is split over all devices, which gather split parameters layer
  by layer, and the result is whole on every process; all processes then call
  with the same inputs.
  """

  def __init__(
    self,
    module: nn.Module,
    *,
    mesh: jax.sharding.Mesh | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
  ):
    self.module = module
    self.mesh = mesh
    devices = 1 if mesh is None else mesh.size
    self.batch_sizes = sorted(
      {-(-size // devices) * devices for size in batch_sizes}
    )

  def embed_images(self, variables: Any, images: np.ndarray) -> np.ndarray:
    """Returns float32 (n, embed) of uint8 `images` (n, size, size, 3)."""
    return self._run(variables, images, "encode_image")

  def embed_tokens(self, variables: Any, tokens: np.ndarray) -> np.ndarray:
    """Returns float32 (n, embed) of int32 `tokens` (n, length).

    Columns that hold padding alone are not computed where the tower allows it.
    """
    tokens = padding.shortened(self.module.text, np.asarray(tokens))
    return self._run(variables, tokens, "encode_text")

  def _run(self, variables, inputs, method):
    inputs = np.asarray(inputs)
    if not len(inputs):
      return np.zeros((0, self.module.embed_dim), np.float32)
    largest, parts = self.batch_sizes[-1], []
    for start in range(0, len(inputs), largest):
      part = inputs[start : start + largest]
      embeds = _embed(
        variables,
        self._place(part),
        module=self.module,
        method=method,
        mesh=self.mesh,
      )
      parts.append(np.asarray(embeds)[: len(part)])
    return np.concatenate(parts)

  def _place(self, part):
    """Pads `part` to a batch size with copies of its first row."""
    size = next(size for size in self.batch_sizes if size >= len(part))
    # A real row keeps the padding's embeddings finite.
    padding = np.repeat(part[:1], size - len(part), axis=0)
    batch = np.concatenate([part, padding])
    if self.mesh is None:
      return batch
    return jax.make_array_from_callback(
      batch.shape, sharding.batch_sharding(self.mesh), lambda at: batch[at]
    )
