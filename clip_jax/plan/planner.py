"""Compiles the step that a config would train with, and says what it takes."""

import collections
import dataclasses
import logging
import tempfile
import time
from typing import Any

import jax

from clip_jax import errors
from clip_jax.models import flops
from clip_jax.plan import (
  collectives,
  compiling,
  cycles,
  interconnect,
  jobs,
  memory,
  topology,
)
from clip_jax.train import step_flops

_LOGGER = logging.getLogger(__name__)

# Kernels by JAX's names of them: a trace does not show what they compute.
_HIDDEN = ("dot_product_attention", "ffi_call", "pallas_call")


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is known of a step before it runs; see `report.to_dict`.

  What cannot be told is None, and `reasons` says why, by name.

  Attributes:
    job: the step.
    fits: whether it compiles for, or fits in, the devices' memory.
    peak_bytes: the most that one chip holds.
    available_bytes: what it has.
    compiler_message: the compiler's words where it does not fit.
    memory: parts of the peak, in bytes of one chip.
    flops_analytic: of the towers and the loss, each done once, of all chips.
    flops_compiled: of the program that is compiled, with what it computes
      again to save memory, of all chips.
    collectives: {kind: {"count", "bytes", "seconds"}} of one step on one chip;
      the seconds are None where `step_parts_seconds` is.
    step_parts_seconds: what a step waits for: "compute", the products at the
      chip's peak; "memory", their operands and results and the state at the
      memory's bandwidth; "compiler", the compiler's cycles; "exchanges".
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
  collectives: dict[str, dict[str, Any]] | None
  step_parts_seconds: dict[str, float] | None
  compile_seconds: float
  reasons: dict[str, str]

  @property
  def step_seconds(self) -> list[float] | None:
    """Seconds of a step: two ends between which the truth may lie, low first.

    One is the roofline: products, the least traffic and exchanges, all at the
    same time. The other is what the compiler's cycles add up to, and the
    exchanges after them. Neither has been measured on a chip.
    """
    if self.step_parts_seconds is None:
      return None
    parts = dict(self.step_parts_seconds)
    compiled = parts.pop("compiler") + parts["exchanges"]
    return sorted((max(parts.values()), compiled))


@dataclasses.dataclass(frozen=True)
class Work:
  """What a traced program does in one run.

  Attributes:
    flops: of matrix products and convolutions, of all devices.
    product_bytes: of their operands and results, of one device.
    collectives: exchanges of one device, and how often.
    hidden: kernels whose operations cannot be counted.
  """

  flops: int
  product_bytes: int
  collectives: collections.Counter[collectives.Collective]
  hidden: frozenset[str]


def read_work(jaxpr: Any) -> Work:
  """Counts what a traced program does.

  Raises:
    ValueError: a while loop, whose length is not known, holds such work.
  """
  operations = product_bytes = 0
  hidden = set()
  for call in flops.calls(jaxpr):
    name = call.equation.primitive.name
    if name.startswith(_HIDDEN):
      hidden.add(name)
    count = flops.call_flops(call)
    if count and call.times is not None:
      operations += count
      product_bytes += call.times * flops.array_bytes(
        *call.equation.invars, *call.equation.outvars
      )
  exchanges = collectives.read(jaxpr)
  return Work(operations, product_bytes, exchanges, frozenset(hidden))


def make_plan(job: jobs.Job, *, with_loss: bool = True) -> Plan:
  """Compiles the step and counts what it takes.

  Args:
    job: the step.
    with_loss: compile the loss by itself too, to tell its part of the memory.

  Raises:
    UserError: the step cannot be compiled, for another reason than its size.
  """
  start = time.perf_counter()
  _LOGGER.info(
    "Compiling for %s: a minute or more for a large model or batch ...",
    job.where.name,
  )
  traced = job.program.make_step().trace(job.state, job.batch)
  reasons: dict[str, str] = {}
  compiled = text = exchanges = operations = parts = peak = fits = None
  refused: compiling.TooLargeError | None = None
  available = memory.available_bytes(job.where)
  try:
    with tempfile.TemporaryDirectory(prefix="clip_jax_plan_") as directory:
      # A program that is to run stays as it is in the cache.
      dump = None if job.where.is_local else directory
      compiled = compiling.compile_program(traced.lower(), dump=dump)
      if job.where.chip is not None:
        text = compiling.read_text(compiled, dump)
  except compiling.TooLargeError as error:
    refused = error
    available = error.available_bytes or available
    unknown = ("flops_compiled", "collectives", "step_seconds")
    why = "the step does not compile for this memory"
    reasons |= dict.fromkeys(unknown, why)
  except jax.errors.JaxRuntimeError as error:
    raise errors.UserError(
      f"The compiler refuses this step: {str(error).splitlines()[0]}"
    ) from None
  seconds = time.perf_counter() - start
  if compiled is not None:
    peak = memory.peak_bytes(compiled, job.where)
    fits = None if available is None else peak <= available
  elif refused is not None:
    peak, fits = refused.needed_bytes, False
  if peak is None:
    reasons["peak_bytes"] = "the compiler does not say how much it needs"
  if fits is None:
    reasons["fits"] = "the memory of these devices is not known"
  if refused is None:
    work = read_work(traced.jaxpr.jaxpr)
    operations = None if work.hidden else work.flops
    if work.hidden:
      names = ", ".join(sorted(work.hidden))
      reasons["flops_compiled"] = f"operations of {names} cannot be counted"
    exchanges = collectives.summary(work.collectives)
    try:
      times = _step_parts(job, work, text)
      network = make_network(job.where, job.mesh)
      exchanges = collectives.summary(work.collectives, network.seconds)
      times["exchanges"] = sum(x["seconds"] for x in exchanges.values())
      parts = times
    except ValueError as error:
      reasons["step_seconds"] = str(error)
  return Plan(
    job=job,
    fits=fits,
    peak_bytes=peak,
    available_bytes=available,
    compiler_message=refused and refused.message,
    memory=_memory(job, peak, with_loss, reasons),
    flops_analytic=analytic_flops(job),
    flops_compiled=operations,
    collectives=exchanges,
    step_parts_seconds=parts,
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


def _memory(job, peak, with_loss, reasons) -> dict[str, int | None]:
  """Returns the parts of the peak: exact ones, and what is left of it."""
  exact = {
    "parameters": memory.shard_bytes(job.state.params),
    "batch_statistics": memory.shard_bytes(job.state.batch_stats),
    "optimizer": memory.shard_bytes(job.state.opt_state),
    "average": memory.shard_bytes(job.state.ema),
    "batch": memory.shard_bytes(job.batch),
  }
  parts: dict[str, int | None] = {**exact}
  parts["rest"] = None if peak is None else peak - sum(exact.values())
  if peak is None:
    reasons["memory.rest"] = reasons["peak_bytes"]
  parts["loss_alone"] = None
  if not with_loss:
    reasons["memory.loss_alone"] = "not asked for"
    return parts
  try:
    parts["loss_alone"] = memory.loss_bytes(job)
  except compiling.TooLargeError as error:
    reasons["memory.loss_alone"] = f"too large by itself: {error.message}"
  return parts


def _step_parts(job, work, text) -> dict[str, float]:
  """Returns the seconds of a step by what takes them, without exchanges.

  Raises:
    ValueError: they cannot be told.
  """
  chip = job.where.chip
  if chip is None:
    kind = job.where.devices[0].device_kind
    raise ValueError(f"no figures are at hand for a {kind!r}")
  if text is None:
    raise ValueError(
      "this libtpu's programs cannot be read; take the one for this jax"
    )
  # The optimizer reads the whole state and writes it.
  moved_bytes = work.product_bytes + 2 * memory.shard_bytes(job.state)
  return {
    "compute": work.flops / job.mesh.size / chip.peak_flops,
    "memory": moved_bytes / chip.memory_bandwidth,
    "compiler": cycles.count(text) / chip.clock_hertz,
  }


def make_network(
  where: topology.Topology, mesh: jax.sharding.Mesh
) -> interconnect.Network:
  """Returns where the devices of a mesh sit in the network."""
  assert where.chip is not None
  coordinates = tuple(tuple(device.coords) for device in mesh.devices.flatten())
  # TPUs of this machine: as far as they reach, without rings.
  reach = tuple(max(axis) + 1 for axis in zip(*coordinates, strict=True))
  shape = tuple(where.shape) or reach
  return interconnect.Network(
    coordinates=coordinates,
    shape=shape,
    wrap=where.wrap or (False,) * len(shape),
    link_bandwidth=where.chip.link_bandwidth,
  )
