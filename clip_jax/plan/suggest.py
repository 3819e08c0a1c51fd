"""Searches for the cheapest way to train a config's batch that fits in memory.

The cheapest way recomputes least in the backward pass, and among those needs
the least communication: it splits the parameters as little as fits. The batch
and the result stay the same.
"""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from clip_jax import config as config_lib
from clip_jax import errors, sharding
from clip_jax.checkpoints import run_model
from clip_jax.models import (
  block_chain,
  flops,
  freezing,
  paths,
  resnet,
  variants,
)
from clip_jax.plan import jobs, memory, planner, topology
from clip_jax.train import step_flops

_LOGGER = logging.getLogger(__name__)

# What the backward pass recomputes, as a fraction of the forward pass: in a
# Vision Transformer the products of attention and all elementwise operations
# ("dots_no_batch"), or everything. ("dots" is left out: it also keeps the
# logits of attention, the largest arrays of all, so it saves hardly anything.)
# Only ResNets have nested blocks; the text tower beside one then uses "full".
_REMAT: dict[str | None, float] = {
  None: 0.0,  # For towers without that choice.
  "none": 0.0,
  "dots_no_batch": 0.1,
  "full": 1.0,
  block_chain.NESTED: 2.0,
}
_MOST_COMPILATIONS = 12
# Operations that take a part of their first argument.
_CUTS = {"slice", "dynamic_slice", "squeeze"}
_MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
# A choice is compiled if its estimated memory exceeds what is available by at
# most this factor.
_MARGIN = 1.25


@dataclasses.dataclass(frozen=True)
class Choice:
  """One way to train the same batch.

  Attributes:
    fsdp: number of devices that split parameters and optimizer state.
    remat: what the backward pass keeps; None if no tower has that choice.
    micro_batches: number of parts that the towers compute one after another.
    method: method of the loss.
  """

  fsdp: int
  remat: str | None
  micro_batches: int
  method: str

  @property
  def order(self) -> tuple:
    """Returns the sort key: those that recompute least come first."""
    again = _REMAT[self.remat] + (self.micro_batches > 1)
    return again, self.method != "auto", self.micro_batches, self.fsdp

  def overrides(self, job: jobs.Job) -> list[str]:
    """Returns the changes of the config, as texts "FIELD=VALUE"."""
    return [
      f"mesh.data={job.mesh.size // self.fsdp}",
      f"mesh.fsdp={self.fsdp}",
      *self.remat_overrides(job),
      f"micro_batches={self.micro_batches}",
      f"loss.method={self.method}",
    ]

  def remat_overrides(self, job: jobs.Job) -> list[str]:
    """Returns the changes that set the towers' remat."""
    changes = []
    for part in paths.TOWERS:
      tower = getattr(job.model, part)
      if self.remat is not None and hasattr(tower, "remat"):
        remat = self.remat
        if remat == block_chain.NESTED and not _can_nest(tower):
          remat = "full"
        changes.append(f"model_overrides.{part}.remat={remat}")
    return changes


@dataclasses.dataclass(frozen=True)
class Suggestion:
  """The result of a search.

  Attributes:
    choice: the cheapest choice that fits, or else the closest to fitting.
    plan: the plan of that choice.
    tried: every choice that was compiled, with its plan.
  """

  choice: Choice
  plan: planner.Plan
  tried: list[tuple[Choice, planner.Plan]]

  @property
  def overrides(self) -> list[str]:
    """The changes of the config that make it, as texts "FIELD=VALUE"."""
    return self.choice.overrides(self.plan.job)

  @property
  def fits(self) -> bool:
    """Whether the choice fits."""
    return bool(self.plan.fits)


def suggest(
  config: config_lib.Config,
  target: topology.Topology,
  **options: int | None,
) -> Suggestion:
  """Searches mesh, remat, micro-batches and loss method, cheapest first.

  A choice is not compiled if the arrays that its towers keep for the backward
  pass are too large, or if by the figures of an earlier choice it needs far too
  much memory.

  Args:
    config: a checked config; its values of these four fields are ignored.
    target: the devices to train on.
    **options: options of `jobs.make_job`.

  Raises:
    UserError: the batch does not split over the devices, or the memory of the
      devices is not known.
  """

  def make_job(changes):
    changed = config_lib.with_overrides(config, changes)
    return jobs.make_job(changed, target, **options)

  search = _Search(make_job)
  choices = sorted(_choices(search.base), key=lambda choice: choice.order)
  for choice in choices:
    if len(search.tried) == _MOST_COMPILATIONS:
      break
    if search.may_fit(choice) and search.compile(choice).fits:
      return Suggestion(*search.tried[-1], search.tried)
  if not search.tried:  # Nothing can fit: compile the choice that needs least.
    search.compile(max(choices, key=lambda choice: (choice.fsdp, choice.order)))
  closest = min(search.tried, key=lambda entry: entry[1].peak_bytes or math.inf)
  return Suggestion(*closest, search.tried)


class _Search:
  """The choices tried so far, and lower bounds on the memory of others.

  Args:
    make_job: returns the job with the given overrides.

  Attributes:
    base: the job whose choices are searched.
    tried: every choice that was compiled, with its plan.
    state: returns the bytes of the state on a device, given `fsdp`.
    kept: returns the bytes that the towers keep for the backward pass, given
      overrides and micro-batches.
  """

  def __init__(self, make_job: Callable[[list[str]], jobs.Job]):
    self._make_job = make_job
    self.base = self._make_job(
      ["mesh.data=-1", "mesh.fsdp=1", "micro_batches=1"]
    )
    self.tried: list[tuple[Choice, planner.Plan]] = []
    self.state = functools.cache(self._state)
    self.kept = functools.cache(self._kept)
    target = self.base.target
    available = memory.available_bytes(target)
    if available is None:
      raise errors.UserError(
        f"The memory of a {target.devices[0].device_kind!r} is not known, so "
        "--suggest cannot tell what fits; leave it out, or give a --topology."
      )
    self._available = available

  def compile(self, choice: Choice) -> planner.Plan:
    """Returns the plan of a choice, and adds it to `tried`."""
    changes = choice.overrides(self.base)
    _LOGGER.info("Trying %s", " ".join(changes))
    plan = planner.make_plan(self._make_job(changes), with_loss=False)
    self.tried.append((choice, plan))
    return plan

  def may_fit(self, choice: Choice) -> bool:
    """Whether a choice could fit, by lower bounds and by earlier plans."""
    state, available = self.state(choice.fsdp), self._available
    if state > available or self.least(choice) > available:
      return False
    keeps = list(_REMAT)  # From most to least.
    for other, plan in self.tried:
      keeps_more = keeps.index(other.remat) < keeps.index(choice.remat)
      rest = plan.memory["rest"]
      if rest is None or keeps_more:
        continue
      rest *= other.micro_batches / choice.micro_batches
      if state + rest / _MARGIN > available:
        return False
    return True

  def least(self, choice: Choice) -> int:
    """Returns a lower bound on a device's memory, in bytes."""
    changes = tuple(choice.remat_overrides(self.base))
    return self.state(choice.fsdp) + self.kept(changes, choice.micro_batches)

  def _state(self, fsdp: int) -> int:
    """Returns the bytes of state, gradients and batch on one device."""
    base = self.base
    mesh = sharding.make_mesh(data=-1, fsdp=fsdp, devices=base.target.devices)
    state = dataclasses.replace(base.program, mesh=mesh).abstract_state()
    return memory.shard_bytes((state, state.params, base.batch))

  def _kept(self, changes: tuple[str, ...], parts: int) -> int:
    """Returns the bytes that towers keep for the backward pass on one device.

    They are the residuals of the transposed function, without its arguments.
    The compiler may recompute some of them instead, as a remat policy does, but
    then takes much longer to compile.
    """
    config, state, batch = self.base.config, self.base.state, self.base.batch
    # A loop copies its kernels, which need not be kept.
    model = variants.without_loops(
      run_model.make(config_lib.with_overrides(config, changes))
    )
    frozen = freezing.Frozen.of(
      state.params, state.batch_stats, config.optim.frozen
    )

    def local(x):
      rows, *others = x.sharding.shard_shape(x.shape)
      return jax.ShapeDtypeStruct((rows // parts, *others), x.dtype)

    def back(*arrays):
      return step_flops.run_towers(model, frozen, *arrays)[1]

    program = jax.make_jaxpr(back)(
      jax.tree.map(step_flops.unsharded, state.variables),
      *jax.tree.map(local, (batch["image"], batch["tokens"])),
    ).jaxpr
    given = set(map(id, program.invars))
    for equation in program.eqns:  # So are the parts of an argument.
      if equation.primitive.name in _CUTS and id(equation.invars[0]) in given:
        given |= set(map(id, equation.outvars))
    # An array that several rules keep counts once.
    kept = {id(held): held for held in program.outvars}
    return flops.array_bytes(
      *(held for name, held in kept.items() if name not in given)
    )


def _choices(base: jobs.Job) -> Iterator[Choice]:
  """Yields all choices for these devices and this model."""
  devices = base.mesh.size
  rows = base.config.batch_size // devices
  parts = [number for number in _MICRO_BATCHES if rows % number == 0]
  towers = [getattr(base.model, part) for part in paths.TOWERS]
  can_choose = any(hasattr(tower, "remat") for tower in towers)
  remats = [name for name in _REMAT if (name is not None) == can_choose]
  if can_choose and not any(map(_can_nest, towers)):
    remats.remove(block_chain.NESTED)
  for fsdp, remat, number, method in itertools.product(
    _splits(base.target),
    remats,
    parts if jobs.takes_micro_batches(base) else (1,),
    ("auto", "two_level", "ring") if devices > 1 else ("auto",),
  ):
    if method == "two_level" and fsdp in (1, devices):
      continue  # On one axis it is the same as "gathered" or "ring".
    yield Choice(fsdp, remat, number, method)


def _can_nest(tower: Any) -> bool:
  return isinstance(tower, resnet.ModifiedResNet)


def _splits(target: topology.Topology) -> list[int]:
  """Returns sizes of `fsdp`: 1, products of the network's axes, and all."""
  devices = len(target.devices)
  sizes = {1, devices}
  for sides in itertools.permutations(target.shape):
    sizes |= set(itertools.accumulate(sides, lambda a, b: a * b))
  if not target.shape:
    sizes |= {n for n in (2, 4, 8) if devices % n == 0}
  return sorted(sizes)
