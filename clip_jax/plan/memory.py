"""The memory that a training step needs on a chip."""

import math
import os
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax import losses, sharding
from clip_jax.plan import compiling, jobs, topology


def peak_bytes(compiled: jax.stages.Compiled, target: topology.Topology) -> int:
  """Returns the peak memory of a program on one device, in bytes.

  Arguments and results are included; donated arrays count once. On TPUs the
  compiler's own peak is used, since its report of temporary buffers is not
  complete there; elsewhere that peak leaves the temporary buffers out.
  """
  found = compiled.memory_analysis()
  assert found is not None
  if target.devices[0].platform == "tpu":
    return found.peak_memory_in_bytes
  return (
    found.argument_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes
    + found.temp_size_in_bytes
  )


def available_bytes(target: topology.Topology) -> int | None:
  """Returns the bytes of a device's memory for programs; None if unknown.

  Simulated devices on a CPU share its memory evenly.
  """
  known = target.chip and target.chip.memory_bytes
  if not target.is_local:
    return known
  device = target.devices[0]
  if device.platform == "cpu":
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return pages // jax.local_device_count()
  limit = (device.memory_stats() or {}).get("bytes_limit")
  return limit or known


def shard_bytes(tree: Any) -> int:
  """Returns a device's bytes of arrays, given as shapes with shardings."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def loss_bytes(job: jobs.Job) -> int:
  """Returns the peak bytes of the loss and its gradients, compiled alone.

  The arguments, which are the embeddings, are included.

  Raises:
    compiling.TooLargeError: the loss alone does not fit.
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
  return peak_bytes(compiling.compile_program(lowered), job.target)
