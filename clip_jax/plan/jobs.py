"""A config's step, ready to be compiled for some devices."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from clip_jax import sharding
from clip_jax.models import clip, packing, variants
from clip_jax.plan import topology
from clip_jax.train import initial, optim, text_layout
from clip_jax.train import step as step_lib


@dataclasses.dataclass(frozen=True)
class Job:
  """A config's step, ready to be compiled for some devices.

  Attributes:
    config: checked.
    where: the devices.
    mesh: of them.
    model: the module.
    tx: the optimizer.
    total_steps: updates of the run; None where it is not known.
    state: shapes and shardings.
    batch: likewise.
    texts: how the captions lie in memory, in words.
  """

  config: ml_collections.ConfigDict
  where: topology.Topology
  mesh: jax.sharding.Mesh
  model: clip.CLIP
  tx: optax.GradientTransformation
  total_steps: int | None
  state: step_lib.TrainState
  batch: dict[str, Any]
  texts: str


def make_job(
  config: ml_collections.ConfigDict,
  where: topology.Topology,
  *,
  examples: int | None = None,
  caption_tokens: int | None = None,
) -> Job:
  """Returns the step of a config for some devices; opens no data.

  Args:
    config: checked.
    where: the devices.
    examples: in the data, for a config that counts epochs.
    caption_tokens: of each caption, its start and end included; None for as
      many as the tower takes, the most that a batch can need.

  Raises:
    UserError: the config does not fit the devices, or itself.
  """
  if config.model == initial.FROM_INIT:
    config = initial.settle(config, None, initial.open_sources(config))
  mesh = sharding.make_mesh(
    data=config.mesh.data, fsdp=config.mesh.fsdp, devices=where.devices
  )
  sharding.check_batch_size(
    config.batch_size, mesh, micro_batches=config.micro_batches
  )
  model = step_lib.make_model(config)
  total_steps = config.steps
  if total_steps is None and examples is not None:
    total_steps = math.ceil(config.epochs * examples / config.batch_size)
  spec = variants.spec(config.model, config.model_overrides.to_dict())
  tx = optim.make_optimizer(
    config,
    # The length is a number in the schedule: the program stays the same.
    total_steps=total_steps or config.optim.warmup_steps + 1,
    image_kind=spec["image"]["kind"],
  )
  layout = _make_layout(config, model, mesh, caption_tokens)
  return Job(
    config=config,
    where=where,
    mesh=mesh,
    model=model,
    tx=tx,
    total_steps=total_steps,
    state=step_lib.abstract_state(
      model, tx, mesh, ema=step_lib.keeps_average(config)
    ),
    batch=_abstract_batch(config, model, mesh, *layout),
    texts=layout[0].describe(layout[1]),
  )


def _make_layout(
  config, model, mesh, caption_tokens
) -> tuple[text_layout.Layout, int]:
  """Returns how captions of so many tokens lie in memory, and its size."""
  context = model.text.context_length
  need = min(caption_tokens or context, context)
  groups = mesh.size * config.micro_batches
  layout = text_layout.make_layout(
    config.data.text_layout,
    tower=model.text,
    captions=config.batch_size // groups,
    groups=groups,
    sample=lambda: np.full(text_layout.SAMPLED_CAPTIONS, need),
  )
  if isinstance(layout, text_layout.Packed):
    return layout, layout.rungs[0]
  return layout, next(rung for rung in layout.rungs if rung >= need)


def _abstract_batch(config, model, mesh, layout, rung) -> dict[str, Any]:
  split = sharding.batch_sharding(mesh)
  pairs = config.batch_size

  def array(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

  tokens: Any = array(pairs, rung)
  if isinstance(layout, text_layout.Packed):
    rows = array(pairs // layout.captions * rung, layout.length)
    tokens = packing.PackedText(rows, rows, rows, ends=array(pairs))
  images, _ = variants.abstract_inputs(model, pairs)
  return {
    "image": array(*images.shape, dtype=images.dtype),
    "tokens": tokens,
    "bad": array(pairs),
  }
