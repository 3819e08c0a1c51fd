"""Compiles the step that a config would train with, and says what it takes."""

import dataclasses
import logging
import tempfile
import time

import jax

from clip_jax import errors
from clip_jax.models import flops
from clip_jax.plan import (
  collectives,
  compiling,
  estimate,
  interconnect,
  jobs,
  memory,
  topology,
  walk,
)
from clip_jax.train import step_flops


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is known of a step before it runs; see `to_dict`.

  What cannot be told is None, and `reasons` says why, by name.

  Attributes:
    job: the step.
    fits: whether it compiles for, or fits in, the devices' memory.
    peak_bytes: the most that one chip holds.
    available_bytes: what it has.
    compiler_message: the compiler's words where it does not fit.
    memory: parts of the peak, in bytes of one chip.
    flops_analytic: of the towers and the loss, each done once, of all chips.
    flops_compiled: counted in the compiled program, of all chips.
    flops_traced: counted in what JAX traces, of all chips.
    collectives: {kind: {"count", "bytes"}} of one step on one chip.
    estimate: of the time.
    compile_seconds: that this took here.
    reasons: why something is None.
  """

  job: jobs.Job
  fits: bool | None
  peak_bytes: int | None
  available_bytes: int | None
  compiler_message: str | None
  memory: dict[str, int | None]
  flops_analytic: int
  flops_compiled: int | None
  flops_traced: int | None
  collectives: dict[str, dict[str, int]] | None
  estimate: estimate.Estimate | None
  compile_seconds: float
  reasons: dict[str, str]


def make_plan(job: jobs.Job, *, with_loss: bool = True) -> Plan:
  """Compiles the step and counts what it takes.

  Args:
    job: the step.
    with_loss: compile the loss by itself too, to tell its part of the memory.

  Raises:
    UserError: the step cannot be compiled, for another reason than its size.
  """
  start = time.perf_counter()
  logging.info(
    "Compiling for %s: a minute or more for a large model or batch ...",
    job.where.name,
  )
  step = job.program.make_step()
  lowered = step.lower(job.state, job.batch)
  reasons: dict[str, str] = {}
  compiled = text = message = None
  try:
    with tempfile.TemporaryDirectory(prefix="clip_jax_plan_") as directory:
      # A program that is to run stays as it is in the cache.
      dump = None if job.where.is_local else directory
      compiled = compiling.compile_program(lowered, dump=dump)
      text = compiling.read_text(compiled, dump)
  except compiling.TooLargeError as error:
    message = error
  except jax.errors.JaxRuntimeError as error:
    raise errors.UserError(
      f"The compiler refuses this step: {str(error).splitlines()[0]}"
    ) from None
  seconds = time.perf_counter() - start
  available = memory.available_bytes(job.where)
  if message is not None and message.available_bytes:
    available = message.available_bytes
  peak = _peak(job, compiled, message, reasons)
  counted = _count(job, compiled, text, reasons)
  analytic = analytic_flops(job)
  return Plan(
    job=job,
    fits=_fits(compiled, peak, available, reasons),
    peak_bytes=peak,
    available_bytes=available,
    compiler_message=message and message.message,
    memory=_memory(job, peak, with_loss, reasons),
    flops_analytic=analytic,
    flops_compiled=counted and _flops(job, counted, reasons),
    flops_traced=_traced_flops(job, step, reasons),
    collectives=counted and collectives.summary(counted.collectives),
    estimate=counted and _estimate(job, counted, analytic, reasons),
    compile_seconds=seconds,
    reasons=reasons,
  )


def analytic_flops(job: jobs.Job) -> int:
  """Returns the operations of one step of all devices, each done once."""

  def own(x):  # One device's part.
    return jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype)

  image, tokens = jax.tree.map(own, (job.batch["image"], job.batch["tokens"]))
  return step_flops.update_flops(
    job.model,
    image,
    tokens,
    frozen=job.config.optim.frozen,
    parts=job.mesh.size,
  )


def _peak(job, compiled, message, reasons) -> int | None:
  if compiled is not None:
    return memory.peak_bytes(compiled, platform=_platform(job))
  if message.needed_bytes is None:
    reasons["peak_bytes"] = "the compiler does not say how much it needs"
  return message.needed_bytes


def _platform(job: jobs.Job) -> str:
  return job.where.devices[0].platform


def _fits(compiled, peak, available, reasons) -> bool | None:
  if compiled is None:
    return False
  if available is None:
    reasons["fits"] = "the memory of these devices is not known"
    return None
  return peak <= available


def _memory(job, peak, with_loss, reasons) -> dict[str, int | None]:
  """Returns the parts of the peak: exact ones, and what is left of it."""
  parts: dict[str, int | None] = {
    "parameters": memory.shard_bytes(job.state.params),
    "batch_statistics": memory.shard_bytes(job.state.batch_stats),
    "optimizer": memory.shard_bytes(job.state.opt_state),
    "average": memory.shard_bytes(job.state.ema),
    "batch": memory.shard_bytes(job.batch),
  }
  rest = None if peak is None else peak - sum(parts.values())
  if rest is None:
    reasons["memory.rest"] = reasons["peak_bytes"]
  parts["rest"] = rest
  parts["loss_alone"] = None
  if not with_loss:
    reasons["memory.loss_alone"] = "not asked for"
    return parts
  try:
    parts["loss_alone"] = memory.loss_bytes(
      job.config, job.model, job.mesh, platform=_platform(job)
    )
  except compiling.TooLargeError as error:
    reasons["memory.loss_alone"] = f"too large by itself: {error.message}"
  return parts


def _traced_flops(job, step, reasons) -> int | None:
  try:
    return flops.count(step, job.state, job.batch)
  except ValueError as error:
    reasons["flops_traced"] = str(error)
    return None


def _count(job, compiled, text, reasons) -> walk.Totals | None:
  if text is not None:
    return walk.walk(text, devices=job.mesh.size)
  why = "the step does not compile for this memory"
  if compiled is not None:
    why = "this libtpu's programs cannot be read; take the one for this jax"
  for name in ("flops_compiled", "collectives", "step_seconds"):
    reasons[name] = why
  return None


def _flops(job, counted, reasons) -> int | None:
  if counted.hidden:
    names = ", ".join(sorted(counted.hidden))
    reasons["flops_compiled"] = f"operations of {names} cannot be counted"
    return None
  if counted.unknown_loops:
    reasons["flops_compiled"] = (
      f"the length of {len(counted.unknown_loops)} loops is not known"
    )
    return None
  return counted.flops * job.mesh.size


def _estimate(job, counted, analytic, reasons) -> estimate.Estimate | None:
  where = job.where
  if where.chip is None:
    kind = where.devices[0].device_kind
    reasons["step_seconds"] = f"no figures are at hand for a {kind!r}"
    return None
  if counted.unknown_loops:
    reasons["step_seconds"] = reasons["flops_compiled"]
    return None
  network = make_network(where, job.mesh)
  found = estimate.estimate(
    counted,
    chip=where.chip,
    network=network,
    least_flops=analytic / job.mesh.size if counted.hidden else 0,
  )
  if found is None:
    reasons["step_seconds"] = "the compiler gives no cycles"
  elif counted.uncosted:
    names = ", ".join(sorted(counted.uncosted))
    reasons["step_seconds.high"] = f"without {names}, which have no estimate"
  return found


def make_network(
  where: topology.Topology, mesh: jax.sharding.Mesh
) -> interconnect.Network:
  """Returns where the devices of a mesh sit in the network."""
  coordinates = tuple(tuple(device.coords) for device in mesh.devices.flatten())
  shape = tuple(where.shape)
  if not shape:  # TPUs of this machine: as far as they reach, without rings.
    shape = tuple(max(axis) + 1 for axis in zip(*coordinates, strict=True))
  return interconnect.Network(
    coordinates=coordinates,
    shape=shape,
    wrap=where.wrap or (False,) * len(shape),
    link_bandwidth=where.chip.link_bandwidth,
  )
