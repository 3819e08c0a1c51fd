"""Compiles a config's training step, and estimates its memory and time."""

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

# Primitives of kernels whose operations a trace does not show.
_HIDDEN = ("dot_product_attention", "ffi_call", "pallas_call")


@dataclasses.dataclass(frozen=True)
class Plan:
  """Figures of a step before it runs; see `presentation.to_dict`.

  Unknown figures are None, and `reasons` says why.

  Attributes:
    job: the step.
    fits: whether the step fits in the devices' memory.
    peak_bytes: peak memory of one chip.
    available_bytes: memory of one chip that is available to programs.
    compiler_message: the compiler's message if the step does not fit.
    memory: parts of the peak, in bytes of one chip.
    flops_analytic: FLOPs of towers and loss on all chips, without anything
      computed twice.
    flops_compiled: FLOPs of the compiled program on all chips, with those
      that are repeated to save memory.
    collectives: {kind: {"count", "bytes", "seconds"}} of one step on one chip;
      the seconds are None if `step_parts_seconds` is.
    step_parts_seconds: the parts of a step's time: "compute", the products at
      the chip's peak; "memory", their operands and results and the state at
      the memory's bandwidth; "compiler", the compiler's cycles; "exchanges",
      the collectives.
    compile_seconds: time that compiling took here.
    reasons: {name of a figure that is None: why}.
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
    """Two estimates of a step's time in seconds, [low, high].

    One is the roofline: products, the least memory traffic and collectives, all
    at the same time. The other is the sum of the compiler's cycles and the
    collectives. Neither has been measured on a chip.
    """
    if self.step_parts_seconds is None:
      return None
    parts = dict(self.step_parts_seconds)
    compiled = parts.pop("compiler") + parts["exchanges"]
    return sorted((max(parts.values()), compiled))


@dataclasses.dataclass(frozen=True)
class Work:
  """The work of one run of a traced program.

  Attributes:
    flops: FLOPs of matrix products and convolutions, on all devices.
    product_bytes: bytes of their operands and results, on one device.
    collectives: number of each collective of one device.
    hidden: kernels whose operations cannot be counted.
  """

  flops: int
  product_bytes: int
  collectives: collections.Counter[collectives.Collective]
  hidden: frozenset[str]


def read_work(jaxpr: Any) -> Work:
  """Counts the work of a traced program.

  Raises:
    ValueError: a collective is in a while loop, whose length is not known.
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
  """Compiles the step, and estimates its memory, FLOPs and time.

  Args:
    job: the step.
    with_loss: whether to compile the loss alone too, for its peak memory.

  Raises:
    UserError: the step cannot be compiled, for another reason than its size.
  """
  start = time.perf_counter()
  _LOGGER.info(
    "Compiling for %s: a minute or more for a large model or batch ...",
    job.target.name,
  )
  traced = job.program.make_step().trace(job.state, job.batch)
  reasons: dict[str, str] = {}
  compiled = text = message = fits = None
  available = memory.available_bytes(job.target)
  try:
    compiled, text = _compile(job, traced)
  except compiling.TooLargeError as error:
    message, peak, fits = error.message, error.needed_bytes, False
    available = error.available_bytes or available
  seconds = time.perf_counter() - start
  if compiled is not None:
    peak = memory.peak_bytes(compiled, job.target)
    fits = None if available is None else peak <= available
  if peak is None:
    reasons["peak_bytes"] = "the compiler does not say how much it needs"
  if fits is None:
    reasons["fits"] = "the memory of these devices is not known"
  return Plan(
    job=job,
    fits=fits,
    peak_bytes=peak,
    available_bytes=available,
    compiler_message=message,
    memory=_memory(job, peak, with_loss, reasons),
    flops_analytic=analytic_flops(job),
    **_work_figures(job, traced if compiled else None, text, reasons),
    compile_seconds=seconds,
    reasons=reasons,
  )


def _compile(job, traced) -> tuple[jax.stages.Compiled, str | None]:
  """Returns the compiled step, and its text for a chip with known figures."""
  with tempfile.TemporaryDirectory(prefix="clip_jax_plan_") as directory:
    # A local program may run later: a dump would change its cache key.
    dump = None if job.target.is_local else directory
    try:
      compiled = compiling.compile_program(traced.lower(), dump=dump)
    except jax.errors.JaxRuntimeError as error:
      raise errors.UserError(
        f"The compiler rejects this step: {errors.first_line(error)}"
      ) from None
    return compiled, job.target.chip and compiling.read_text(compiled, dump)


def _work_figures(job, traced, text, reasons) -> dict[str, Any]:
  """Returns the fields of a plan about the work of a step.

  Args:
    job: the step.
    traced: the traced step; None if it does not compile.
    text: the compiled program's text; None if there is none.
    reasons: gets the reasons why figures are None.
  """
  names = ("flops_compiled", "collectives", "step_parts_seconds")
  if traced is None:
    unknown = (*names[:2], "step_seconds")
    why = "the step does not compile for this memory"
    reasons |= dict.fromkeys(unknown, why)
    return dict.fromkeys(names)
  work = read_work(traced.jaxpr.jaxpr)
  if work.hidden:
    hidden = ", ".join(sorted(work.hidden))
    reasons["flops_compiled"] = f"operations of {hidden} cannot be counted"
  parts = seconds_of = None
  try:
    parts = _step_parts(job, work, text)
    seconds_of = make_network(job.target, job.mesh).seconds
  except ValueError as error:
    reasons["step_seconds"] = str(error)
  exchanges = collectives.summary(work.collectives, seconds_of)
  if parts is not None:
    parts["exchanges"] = sum(x["seconds"] for x in exchanges.values())
  operations = None if work.hidden else work.flops
  return dict(zip(names, (operations, exchanges, parts), strict=True))


def analytic_flops(job: jobs.Job) -> int:
  """Returns a step's FLOPs on all devices, without anything computed twice."""

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
  """Returns the parts of the peak in bytes: exact ones, and the rest."""
  state = job.state
  trees = {
    **{"parameters": state.params, "batch_statistics": state.batch_stats},
    **{"optimizer": state.opt_state, "average": state.ema, "batch": job.batch},
  }
  exact = {part: memory.shard_bytes(tree) for part, tree in trees.items()}
  rest = None if peak is None else peak - sum(exact.values())
  if peak is None:
    reasons["memory.rest"] = reasons["peak_bytes"]
  loss = None
  try:
    if not with_loss:
      reasons["memory.loss_alone"] = "not asked for"
    elif not job.model.contrastive:
      reasons["memory.loss_alone"] = "the objective compares no pairs"
    else:
      loss = memory.loss_bytes(job)
  except compiling.TooLargeError as error:
    reasons["memory.loss_alone"] = f"too large by itself: {error.message}"
  return {**exact, "rest": rest, "loss_alone": loss}


def _step_parts(job, work, text) -> dict[str, float]:
  """Returns the parts of a step's time in seconds, without collectives.

  Raises:
    ValueError: they cannot be estimated.
  """
  chip = job.target.chip
  if chip is None:
    kind = job.target.devices[0].device_kind
    raise ValueError(f"there are no published figures for a {kind!r}")
  if text is None:
    raise ValueError(
      "this libtpu's programs cannot be read; install the version for this jax"
    )
  # The optimizer reads and writes the whole state.
  moved_bytes = work.product_bytes + 2 * memory.shard_bytes(job.state)
  return {
    "compute": work.flops / job.mesh.size / chip.peak_flops,
    "memory": moved_bytes / chip.memory_bandwidth,
    "compiler": cycles.count(text) / chip.clock_hertz,
  }


def make_network(
  target: topology.Topology, mesh: jax.sharding.Mesh
) -> interconnect.Network:
  """Returns the network between the devices of a mesh."""
  assert target.chip is not None
  coordinates = tuple(tuple(device.coords) for device in mesh.devices.flatten())
  # For TPUs of this machine: the extent of their coordinates, without rings.
  reach = tuple(max(axis) + 1 for axis in zip(*coordinates, strict=True))
  shape = tuple(target.shape) or reach
  return interconnect.Network(
    coordinates=coordinates,
    shape=shape,
    wrap=target.wrap or (False,) * len(shape),
    link_bandwidth=target.chip.link_bandwidth,
  )
