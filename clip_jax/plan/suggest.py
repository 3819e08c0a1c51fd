"""Searches for the cheapest way to train a config's batch that fits.

Cheapest is what computes least a second time, then what exchanges least: first
the memory of the activations is traded for work, in small steps, and at each
step parameters are split as little as fits. The batch and the result stay as
they are.
"""

import dataclasses
import itertools
import logging
import math
from collections.abc import Iterator

import jax
import ml_collections

from clip_jax import errors, sharding
from clip_jax.config import overrides
from clip_jax.plan import jobs, memory, planner, topology
from clip_jax.train import step

# What the backward pass computes again, as a part of the forward pass: of a
# Vision Transformer the products of attention and what is elementwise, or all
# of it. ("dots" keeps the logits of attention too, the largest arrays of all,
# so it saves next to nothing.)
_REMAT = {"none": 0.0, "dots_no_batch": 0.1, "full": 1.0}
_MOST_MICRO_BATCHES = 32
# Estimates of what an untried choice needs may be this far off before the
# compiler is asked.
_MARGIN = 1.25
_TOWERS = ("image", "text")


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
  def work(self) -> float:
    """Returns what is computed again, as a part of the forward pass."""
    again = 1.0 if self.micro_batches > 1 else 0.0
    if self.remat is not None:
      again += _REMAT[self.remat]
    return again

  @property
  def order(self) -> tuple:
    """Returns the sort key: cheapest first."""
    tiles = 0 if self.method == "auto" else 1
    return self.work, tiles, self.micro_batches, self.fsdp

  def overrides(self, job: jobs.Job) -> list[str]:
    """Returns the changes of the config, as on the command line."""
    changes = [f"mesh.data={job.mesh.size // self.fsdp}"]
    changes.append(f"mesh.fsdp={self.fsdp}")
    if self.remat is not None:
      changes += [
        f"model_overrides.{part}.remat={self.remat}"
        for part in _TOWERS
        if hasattr(getattr(job.model, part), "remat")
      ]
    changes.append(f"micro_batches={self.micro_batches}")
    changes.append(f"loss.method={self.method}")
    return changes


@dataclasses.dataclass(frozen=True)
class Suggestion:
  """What a search has found.

  Attributes:
    choice: the cheapest that fits, or the closest where none does.
    plan: of it.
    overrides: that make it, as on the command line, without "--config.".
    tried: every choice that was compiled, with its plan.
  """

  choice: Choice
  plan: planner.Plan
  overrides: list[str]
  tried: list[tuple[Choice, planner.Plan]]

  @property
  def fits(self) -> bool:
    """Whether anything fits."""
    return bool(self.plan.fits)


def suggest(
  config: ml_collections.ConfigDict,
  where: topology.Topology,
  *,
  most_compilations: int = 12,
  **options: int | None,
) -> Suggestion:
  """Searches mesh, remat, micro-batches and loss method, cheapest first.

  A choice that by the figures of an earlier one needs far too much is not
  compiled.

  Args:
    config: checked; what it says of these four does not matter.
    where: the devices.
    most_compilations: after which the search ends.
    **options: of `jobs.make_job`.

  Raises:
    UserError: the batch does not split over the devices, or the memory of the
      devices is not known.
  """
  base = jobs.make_job(
    _with(config, ["mesh.data=-1", "mesh.fsdp=1", "micro_batches=1"]),
    where,
    **options,
  )
  available = memory.available_bytes(where)
  if available is None:
    raise errors.UserError(
      f"The memory of a {where.devices[0].device_kind!r} is not known, so "
      "nothing can be told to fit."
    )
  states = {fsdp: _state_bytes(base, fsdp) for fsdp in _splits(where)}
  choices = sorted(_choices(base), key=lambda choice: choice.order)
  tried: list[tuple[Choice, planner.Plan]] = []

  def compile_choice(choice: Choice) -> planner.Plan:
    changes = choice.overrides(base)
    logging.info("Trying %s", " ".join(changes))
    job = jobs.make_job(_with(config, changes), where, **options)
    plan = planner.make_plan(job, with_loss=False)
    tried.append((choice, plan))
    return plan

  for choice in choices:
    if len(tried) == most_compilations:
      break
    if _may_fit(choice, states[choice.fsdp], tried, available):
      plan = compile_choice(choice)
      if plan.fits:
        return _suggestion(base, choice, plan, tried)
  if not tried:  # Not even the parameters go in: show the most frugal.
    compile_choice(max(choices, key=lambda choice: (choice.fsdp, choice.order)))
  choice, plan = min(tried, key=lambda entry: entry[1].peak_bytes or math.inf)
  return _suggestion(base, choice, plan, tried)


def _suggestion(base, choice, plan, tried) -> Suggestion:
  return Suggestion(choice, plan, choice.overrides(base), tried)


def _with(config, changes) -> ml_collections.ConfigDict:
  changed = config.copy_and_resolve_references()
  for change in changes:
    overrides.apply_override(changed, change)
  return changed


def _choices(base: jobs.Job) -> Iterator[Choice]:
  """Yields what can be chosen for these devices and this model."""
  devices = base.mesh.size
  rows = base.config.batch_size // devices
  can_remat = any(
    hasattr(getattr(base.model, part), "remat") for part in _TOWERS
  )
  for fsdp, remat, parts, method in itertools.product(
    _splits(base.where),
    _REMAT if can_remat else (None,),
    _parts(rows) if _takes_parts(base) else (1,),
    ("auto", "two_level", "ring") if devices > 1 else ("auto",),
  ):
    if method == "two_level" and fsdp in (1, devices):
      continue  # One axis alone: the same as a gather or a ring.
    yield Choice(fsdp, remat, parts, method)


def _splits(where: topology.Topology) -> list[int]:
  """Returns sizes of `fsdp`: none, whole axes of the network, all."""
  devices = len(where.devices)
  sizes = {1, devices}
  for sides in itertools.permutations(where.shape):
    sizes |= set(itertools.accumulate(sides, lambda a, b: a * b))
  if not where.shape:
    sizes |= {n for n in (2, 4, 8) if devices % n == 0}
  return sorted(sizes)


def _state_bytes(base: jobs.Job, fsdp: int) -> int:
  """Returns what a device holds at least, its gradients included."""
  mesh = sharding.make_mesh(data=-1, fsdp=fsdp, devices=base.where.devices)
  shapes = (base.state, base.state.params, base.batch)
  placed = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes[:2],
    sharding.tree_shardings(shapes[:2], mesh),
  )
  return memory.shard_bytes((placed, base.batch))


def _parts(rows: int) -> list[int]:
  return [
    2**power
    for power in range(int(math.log2(_MOST_MICRO_BATCHES)) + 1)
    if rows % 2**power == 0
  ]


def _takes_parts(base: jobs.Job) -> bool:
  """Whether the model can see some pairs at a time: batch norms cannot."""
  try:
    step.make_model(_with(base.config, ["micro_batches=2"]))
  except errors.UserError:
    return False
  return True


def _may_fit(choice, state, tried, available) -> bool:
  """Whether a choice could fit, by its state and by what others needed."""
  if state > available:
    return False
  for other, plan in tried:
    if plan.peak_bytes is None or not _is_thriftier(other, choice):
      continue
    rest = plan.memory["rest"] * other.micro_batches / choice.micro_batches
    if state + rest / _MARGIN > available:
      return False
  return True


def _is_thriftier(other: Choice, choice: Choice) -> bool:
  """Whether `other` keeps as little of a part's activations, or less."""
  keeps = list(_REMAT)
  same = other.remat == choice.remat
  return same or keeps.index(other.remat) > keeps.index(choice.remat)
