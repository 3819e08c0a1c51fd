"""What lies in a chip's memory during a training step."""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax import config as config_lib
from clip_jax import losses, sharding
from clip_jax.models import clip
from clip_jax.plan import compiling, hardware, topology


def peak_bytes(compiled: jax.stages.Compiled, *, platform: str) -> int:
  """Returns the most memory that a program holds at once, on one device.

  Arguments and results are included; what is donated counts once. The
  compiler's own peak is right for TPUs, whose temporary buffers it does not
  report whole; elsewhere it leaves the temporary buffers out.
  """
  found = compiled.memory_analysis()
  if platform == "tpu":
    return found.peak_memory_in_bytes
  return (
    found.argument_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes
    + found.temp_size_in_bytes
  )


def available_bytes(where: topology.Topology) -> int | None:
  """Returns what programs can have of one device's memory; None if unknown.

  Simulated devices of a CPU share its memory evenly.
  """
  if not where.is_local:
    return where.chip.memory_bytes
  device = where.devices[0]
  if device.platform == "cpu":
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return pages // jax.local_device_count()
  limit = (device.memory_stats() or {}).get("bytes_limit")
  return limit or (where.chip and where.chip.memory_bytes)


def shard_bytes(tree: Any) -> int:
  """Returns what one device holds of arrays, given as shapes with shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def loss_bytes(
  config: config_lib.Config,
  model: clip.CLIP,
  mesh: jax.sharding.Mesh,
  *,
  platform: str,
) -> int:
  """Returns the peak of the loss and its gradients, compiled by themselves.

  Its arguments, the embeddings, are included.

  Raises:
    compiling.TooLargeError: even that does not fit.
  """
  dtype = jnp.dtype(config.precision)
  split = sharding.batch_sharding(mesh)
  whole = sharding.replicated(mesh)
  shape = (config.batch_size, model.embed_dim)
  embeds = jax.ShapeDtypeStruct(shape, dtype, sharding=split)
  wide = jnp.promote_types(dtype, jnp.float32)
  scalar = jax.ShapeDtypeStruct((), wide, sharding=whole)
  ids = jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=split)
  named = {} if config.loss.duplicates == "ignore" else {"image_ids": ids}
  named |= {"text_ids": ids} if named else {}
  arguments = (embeds, embeds, scalar, scalar, named)
  compute = _loss_and_gradients(config, mesh)
  compiled = compiling.compile_program(jax.jit(compute).lower(*arguments))
  return peak_bytes(compiled, platform=platform)


def _loss_and_gradients(config, mesh) -> Callable:
  kind = losses.KINDS[config.loss.kind]

  def loss(images, texts, scale, bias, ids):
    return kind(
      images,
      texts,
      scale,
      bias if config.loss.kind in losses.BIASED_KINDS else None,
      method=config.loss.method,
      mesh=mesh,
      axes=sharding.BATCH_AXES,
      duplicates=config.loss.duplicates,
      **ids,
    )

  return jax.value_and_grad(loss, argnums=(0, 1, 2))


def in_words(size: float) -> str:
  """Returns a size as people say it: 16911433728 is "15.75 GiB"."""
  for unit, name in ((hardware.GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
    if abs(size) >= unit:
      return f"{size / unit:.2f} {name}"
  return f"{size:.0f} bytes"
