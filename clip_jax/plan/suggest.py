"""Searches for the cheapest way to train a config's batch that fits.

Cheapest is what computes least a second time, then what exchanges least: first
the memory of the activations is traded for work, in small steps, and at each
step parameters are split as little as fits. The batch and the result stay as
they are.
"""

import dataclasses
import functools
import itertools
import logging
import math
from collections.abc import Iterator
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
  sharded,
  variants,
)
from clip_jax.plan import jobs, memory, planner, topology
from clip_jax.train import step_flops

_LOGGER = logging.getLogger(__name__)

# What the backward pass computes again, as a part of the forward pass: of a
# Vision Transformer the products of attention and what is elementwise, or all
# of it. ("dots" keeps the logits of attention too, the largest arrays of all,
# so it saves next to nothing.) Only ResNets have blocks to nest; a text tower
# beside one then keeps as little as it can.
_REMAT: dict[str | None, float] = {
  None: 0.0,  # Of towers that have no choice.
  "none": 0.0,
  "dots_no_batch": 0.1,
  "full": 1.0,
  block_chain.NESTED: 2.0,
}
_MOST_COMPILATIONS = 12
_MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
# Estimates of what an untried choice needs may be this far off before the
# compiler is asked.
_MARGIN = 1.25


@dataclasses.dataclass(frozen=True)
class Choice:
  """One way to train the same batch.

  Attributes:
    fsdp: devices that split parameters and optimizer.
    remat: what the backward pass keeps; None where no tower can choose.
    micro_batches: parts that the towers take at a time.
    method: of the loss.
  """

  fsdp: int
  remat: str | None
  micro_batches: int
  method: str

  @property
  def order(self) -> tuple:
    """Returns the sort key: first what computes least a second time."""
    again = _REMAT[self.remat] + (self.micro_batches > 1)
    return again, self.method != "auto", self.micro_batches, self.fsdp

  def overrides(self, job: jobs.Job) -> list[str]:
    """Returns the changes of the config, as on the command line."""
    return [
      f"mesh.data={job.mesh.size // self.fsdp}",
      f"mesh.fsdp={self.fsdp}",
      *self.remat_overrides(job),
      f"micro_batches={self.micro_batches}",
      f"loss.method={self.method}",
    ]

  def remat_overrides(self, job: jobs.Job) -> list[str]:
    """Returns the changes that set what the towers keep."""
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
  """What a search has found.

  Attributes:
    choice: the cheapest that fits, or the closest where none does.
    plan: of it.
    tried: every choice that was compiled, with its plan.
  """

  choice: Choice
  plan: planner.Plan
  tried: list[tuple[Choice, planner.Plan]]

  @property
  def overrides(self) -> list[str]:
    """What makes it, as on the command line, without "--config."."""
    return self.choice.overrides(self.plan.job)

  @property
  def fits(self) -> bool:
    """Whether anything fits."""
    return bool(self.plan.fits)


def suggest(
  config: config_lib.Config,
  where: topology.Topology,
  **options: int | None,
) -> Suggestion:
  """Searches mesh, remat, micro-batches and loss method, cheapest first.

  A choice is not compiled that needs too much by what its towers keep for the
  backward pass, or far too much by the figures of an earlier one.

  Args:
    config: checked; what it says of these four does not matter.
    where: the devices.
    **options: of `jobs.make_job`.

  Raises:
    UserError: the batch does not split over the devices, or the memory of the
      devices is not known.
  """
  search = _Search(config, where, options)
  choices = sorted(_choices(search.base), key=lambda choice: choice.order)
  for choice in choices:
    if len(search.tried) == _MOST_COMPILATIONS:
      break
    if search.may_fit(choice) and search.compile(choice).fits:
      return Suggestion(*search.tried[-1], search.tried)
  if not search.tried:  # Not even the parameters go in: show the most frugal.
    search.compile(max(choices, key=lambda choice: (choice.fsdp, choice.order)))
  closest = min(search.tried, key=lambda entry: entry[1].peak_bytes or math.inf)
  return Suggestion(*closest, search.tried)


class _Search:
  """What has been tried of a config, and what choices need at least.

  Attributes:
    base: the job whose choices are searched.
    tried: every choice that was compiled, with its plan.
    state: returns a device's part of the state, by `fsdp`.
    kept: returns what the towers keep, by overrides and micro-batches.
  """

  def __init__(self, config, where, options):
    self._config, self._where, self._options = config, where, options
    self.base = self._make_job(
      ["mesh.data=-1", "mesh.fsdp=1", "micro_batches=1"]
    )
    self.tried: list[tuple[Choice, planner.Plan]] = []
    self.state = functools.cache(self._state)
    self.kept = functools.cache(self._kept)
    available = memory.available_bytes(where)
    if available is None:
      raise errors.UserError(
        f"The memory of a {where.devices[0].device_kind!r} is not known, so "
        "nothing can be told to fit."
      )
    self._available = available

  def _make_job(self, changes) -> jobs.Job:
    config = config_lib.with_overrides(self._config, changes)
    return jobs.make_job(config, self._where, **self._options)

  def compile(self, choice: Choice) -> planner.Plan:
    """Returns the plan of a choice, and remembers it."""
    changes = choice.overrides(self.base)
    _LOGGER.info("Trying %s", " ".join(changes))
    plan = planner.make_plan(self._make_job(changes), with_loss=False)
    self.tried.append((choice, plan))
    return plan

  def may_fit(self, choice: Choice) -> bool:
    """Whether a choice could fit, by what it and others need."""
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
    """Returns what a device needs at least, in bytes."""
    changes = tuple(choice.remat_overrides(self.base))
    return self.state(choice.fsdp) + self.kept(changes, choice.micro_batches)

  def _state(self, fsdp: int) -> int:
    """Returns a device's part of the state, the gradients and the batch."""
    base = self.base
    mesh = sharding.make_mesh(data=-1, fsdp=fsdp, devices=base.where.devices)
    shapes = (base.state, base.state.params)
    placed = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes,
      sharded.tree_shardings(shapes, mesh),
    )
    return memory.shard_bytes((placed, base.batch))

  def _kept(self, changes: tuple[str, ...], parts: int) -> int:
    """Returns what the towers keep for the backward pass, on one device.

    It is what their transposed function holds, but for its arguments. The
    compiler may compute some of it again rather than keep it; then it would
    take a policy's place, and much longer to compile.
    """
    config, state, batch = self.base.config, self.base.state, self.base.batch
    # A loop's copies of its kernels are no part of what must be kept.
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

    def whole(x):
      return jax.ShapeDtypeStruct(x.shape, x.dtype)

    program = jax.make_jaxpr(back)(
      jax.tree.map(whole, state.variables),
      *jax.tree.map(local, (batch["image"], batch["tokens"])),
    ).jaxpr
    given = set(map(id, program.invars))
    # What several rules keep is one array.
    kept = {id(held): held for held in program.outvars}
    return flops.array_bytes(
      *(held for name, held in kept.items() if name not in given)
    )


def _choices(base: jobs.Job) -> Iterator[Choice]:
  """Yields what can be chosen for these devices and this model."""
  devices = base.mesh.size
  rows = base.config.batch_size // devices
  parts = [number for number in _MICRO_BATCHES if rows % number == 0]
  towers = [getattr(base.model, part) for part in paths.TOWERS]
  can_choose = any(hasattr(tower, "remat") for tower in towers)
  remats = [name for name in _REMAT if (name is not None) == can_choose]
  if can_choose and not any(map(_can_nest, towers)):
    remats.remove(block_chain.NESTED)
  for fsdp, remat, number, method in itertools.product(
    _splits(base.where),
    remats,
    parts if jobs.takes_micro_batches(base) else (1,),
    ("auto", "two_level", "ring") if devices > 1 else ("auto",),
  ):
    if method == "two_level" and fsdp in (1, devices):
      continue  # One axis alone: the same as a gather or a ring.
    yield Choice(fsdp, remat, number, method)


def _can_nest(tower: Any) -> bool:
  return isinstance(tower, resnet.ModifiedResNet)


def _splits(where: topology.Topology) -> list[int]:
  """Returns sizes of `fsdp`: none, whole axes of the network, all."""
  devices = len(where.devices)
  sizes = {1, devices}
  for sides in itertools.permutations(where.shape):
    sizes |= set(itertools.accumulate(sides, lambda a, b: a * b))
  if not where.shape:
    sizes |= {n for n in (2, 4, 8) if devices % n == 0}
  return sorted(sizes)
