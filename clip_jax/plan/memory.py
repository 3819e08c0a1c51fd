"""What lies in a chip's memory during a training step."""

import math
import os
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax import losses, sharding
from clip_jax.plan import compiling, jobs, topology


def peak_bytes(compiled: jax.stages.Compiled, where: topology.Topology) -> int:
  """Returns the most memory that a program holds at once, on one device.

  Arguments and results are included; what is donated counts once. The
  compiler's own peak is right for TPUs, whose temporary buffers it does not
  report whole; elsewhere it leaves the temporary buffers out.
  """
  found = compiled.memory_analysis()
  assert found is not None
  if where.devices[0].platform == "tpu":
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
  known = where.chip and where.chip.memory_bytes
  if not where.is_local:
    return known
  device = where.devices[0]
  if device.platform == "cpu":
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return pages // jax.local_device_count()
  limit = (device.memory_stats() or {}).get("bytes_limit")
  return limit or known


def shard_bytes(tree: Any) -> int:
  """Returns what one device holds of arrays, given as shapes with shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def loss_bytes(job: jobs.Job) -> int:
  """Returns the peak of the loss and its gradients, compiled by themselves.

  Its arguments, the embeddings, are included.

  Raises:
    compiling.TooLargeError: even that does not fit.
  """
  config, mesh = job.config, job.mesh
  kind, duplicates = config.loss.kind, config.loss.duplicates

  def loss(images, texts, scale, bias, ids):
    return losses.KINDS[kind](
      images,
      texts,
      scale,
      bias if kind in losses.BIASED_KINDS else None,
      method=config.loss.method,
      mesh=mesh,
      axes=sharding.BATCH_AXES,
      duplicates=duplicates,
      **ids,
    )

  def array(*shape, dtype):
    whole_or_split = sharding.batch_sharding if shape else sharding.replicated
    return jax.ShapeDtypeStruct(shape, dtype, sharding=whole_or_split(mesh))

  pairs, dtype = config.batch_size, jnp.dtype(config.precision)
  embeds = array(pairs, job.model.embed_dim, dtype=dtype)
  scalar = array(dtype=jnp.promote_types(dtype, jnp.float32))
  names = () if duplicates == "ignore" else ("image_ids", "text_ids")
  ids = dict.fromkeys(names, array(pairs, dtype=jnp.int32))
  compute = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
  lowered = compute.lower(embeds, embeds, scalar, scalar, ids)
  return peak_bytes(compiling.compile_program(lowered), job.where)
