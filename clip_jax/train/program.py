"""Builds mesh, model and optimizer; allocates nothing, opens no data."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from clip_jax import config as config_lib
from clip_jax import errors, sharding
from clip_jax.checkpoints import run_model
from clip_jax.checkpoints import state as state_lib
from clip_jax.models import clip
from clip_jax.train import optim, text_layout
from clip_jax.train import step as step_lib


@dataclasses.dataclass(frozen=True)
class Program:
  """Mesh, model and optimizer, which a run and its plan have in common.

  Attributes:
    config: the checked config.
    mesh: the mesh of devices.
    spec: the description of the model.
    model: the module.
    tx: the optimizer.
    total_steps: the number of updates of the whole run; None if not known.
  """

  config: config_lib.Config
  mesh: jax.sharding.Mesh
  spec: dict[str, Any]
  model: clip.CLIP
  tx: optax.GradientTransformation
  total_steps: int | None

  @property
  def keeps_average(self) -> bool:
    """Whether the run keeps moving averages of its parameters."""
    return self.config.optim.ema_decay > 0

  def abstract_state(self) -> state_lib.TrainState:
    """Returns shapes, types and shardings of the state."""
    return state_lib.abstract_state(
      self.model, self.tx, self.mesh, ema=self.keeps_average
    )

  def init_state(self) -> state_lib.TrainState:
    """Returns the initial state for the config's seed."""
    return state_lib.init_state(
      self.model,
      self.tx,
      self.mesh,
      seed=self.config.seed,
      scheme=self.config.init.scheme,
      ema=self.keeps_average,
    )

  @property
  def batch_fields(self) -> tuple[str, ...]:
    """The fields of a batch that a step uses."""
    ids = () if self.config.loss.duplicates == "ignore" else ("image_ids",)
    return ("image", "tokens", "bad", *ids)

  def make_step(self) -> Callable[..., tuple[Any, step_lib.Measured]]:
    """Returns the jitted update: see `step.make_train_step`."""
    config = self.config
    return step_lib.make_train_step(
      self.model,
      self.tx,
      self.mesh,
      loss=config.loss,
      optim=config.optim,
      micro_batches=config.micro_batches,
      seed=config.seed,
      captioning_weight=config.objective.captioning_weight,
    )

  def make_layout(
    self, sample: Callable[[], np.ndarray]
  ) -> text_layout.TextLayout:
    """Returns the layout of a batch's captions in memory.

    Args:
      sample: returns the lengths of some captions; called only for packing.
    """
    groups = self.mesh.size * self.config.micro_batches
    return text_layout.make_layout(
      self.config.data.text_layout,
      tower=self.model.text,
      captions=self.config.batch_size // groups,
      groups=groups,
      sample=sample,
      packs=self.model.head is None,
    )


def make_program(
  config: config_lib.Config,
  *,
  examples: int | None = None,
  devices: Sequence[sharding.Device] | None = None,
) -> Program:
  """Returns the program of `config`.

  Args:
    config: the checked config, in which a model "from_init" is described.
    examples: the number of examples, for a config that counts epochs; None if
      it is not known.
    devices: the devices that train; None for all devices of all processes.

  Raises:
    UserError: the config does not fit the devices, or contradicts itself.
  """
  mesh = sharding.make_mesh(
    data=config.mesh.data, fsdp=config.mesh.fsdp, devices=devices
  )
  sharding.check_batch_size(
    config.batch_size, mesh, micro_batches=config.micro_batches
  )
  spec = run_model.spec(
    config.model,
    config.model_overrides,
    objective=config.objective.kind,
    loss=config.loss.kind,
  )
  model = run_model.make(config)
  step_lib.check_micro_batches(
    model,
    name=config.model,
    micro_batches=config.micro_batches,
    frozen=config.optim.frozen,
  )
  total_steps = config.steps
  if config.epochs is not None and examples is not None:
    total_steps = _steps_of_epochs(
      config.epochs,
      examples,
      batch_size=config.batch_size,
      at_least=config.min_steps,
    )
  return Program(
    config=config,
    mesh=mesh,
    spec=spec,
    model=model,
    tx=optim.make_optimizer(
      config.optim,
      precision=config.precision,
      # The number of steps is only a constant in the schedule.
      total_steps=total_steps
      or (config.optim.warmup_steps or 0) + config.optim.cooldown_steps + 1,
      image_kind=spec["image"]["kind"],
    ),
    total_steps=total_steps,
  )


def _steps_of_epochs(
  epochs: float, examples: int, *, batch_size: int, at_least: int
) -> int:
  most = config_lib.MOST_STEPS
  try:
    steps = math.ceil(epochs * examples / batch_size)
  except OverflowError:
    steps = most + 1
  if steps > most:
    raise errors.UserError(
      f"epochs={epochs:g} of these data take more than the {most:,} steps that "
      "can be counted; give fewer epochs."
    )
  return max(steps, at_least)
