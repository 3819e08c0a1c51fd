"""The training step of a config, ready to be compiled for some devices."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from clip_jax import config as config_lib
from clip_jax import errors, sharding
from clip_jax.checkpoints import state as state_lib
from clip_jax.losses import methods
from clip_jax.models import clip, variants
from clip_jax.packing import packed_text
from clip_jax.plan import caption_lengths, topology
from clip_jax.train import origins as origins_lib
from clip_jax.train import program as program_lib
from clip_jax.train import step as step_lib
from clip_jax.train import text_layout


@dataclasses.dataclass(frozen=True)
class Job:
  """The training step of a config, ready to be compiled for some devices.

  Attributes:
    program: mesh, model and optimizer.
    target: the devices to compile for.
    state: shapes and shardings of the training state.
    batch: shapes and shardings of a batch.
    texts: a description of the captions' layout in memory.
  """

  program: program_lib.Program
  target: topology.Topology
  state: state_lib.TrainState
  batch: dict[str, Any]
  texts: str

  @property
  def config(self) -> config_lib.Config:
    """The config of the program."""
    return self.program.config

  @property
  def mesh(self) -> jax.sharding.Mesh:
    """The mesh of the program."""
    return self.program.mesh

  @property
  def model(self) -> clip.CLIP:
    """The model of the program."""
    return self.program.model

  @property
  def loss_method(self) -> str:
    """The method of the loss; for "auto" the one it chooses for this batch."""
    config = self.config
    if config.loss.method != "auto":
      return config.loss.method
    return methods.automatic(
      config.batch_size // self.mesh.size,
      self.model.embed_dim,
      jnp.dtype(config.precision).itemsize,
      self.mesh.shape.values(),
    )


def make_job(
  config: config_lib.Config,
  target: topology.Topology,
  *,
  examples: int | None = None,
  caption_tokens: int | None = None,
) -> Job:
  """Returns the step of a config for some devices; opens no data.

  Args:
    config: a checked config.
    target: the devices to compile for.
    examples: number of pairs in the data, for a config with `epochs`.
    caption_tokens: mean length of a caption, start and end included; see
      `captions`. None for captions as long as the tower takes, which need
      most memory.

  Raises:
    UserError: the config does not fit the devices, or contradicts itself.
  """
  config = origins_lib.settle(
    config, None, origins_lib.open_sources(config.init, model=config.model)
  )
  step = program_lib.make_program(
    config, examples=examples, devices=target.devices
  )
  layout, bucket = _make_layout(step, caption_tokens)
  return Job(
    program=step,
    target=target,
    state=step.abstract_state(),
    batch=_abstract_batch(step, layout, bucket),
    texts=_describe(step, layout, bucket, caption_tokens),
  )


def takes_micro_batches(job: Job) -> bool:
  """Whether the model allows micro-batches: with batch norms it does not."""
  try:
    step_lib.check_micro_batches(
      job.model,
      name=job.config.model,
      micro_batches=2,
      frozen=job.config.optim.frozen,
    )
  except errors.UserError:
    return False
  return True


def _make_layout(
  step: program_lib.Program, caption_tokens: int | None
) -> tuple[text_layout.TextLayout, int]:
  """Returns the layout of such captions, and its bucket."""
  context = step.model.text.context_length

  def sample(number=text_layout.SAMPLED_CAPTIONS):
    return caption_lengths.sample_lengths(
      caption_tokens or context, number=number, context=context
    )

  layout = step.make_layout(sample)
  if isinstance(layout, text_layout.Packed):
    return layout, layout.buckets[0]
  # The longest caption of a batch decides.
  need = sample(step.config.batch_size).max()
  return layout, next(bucket for bucket in layout.buckets if bucket >= need)


def _describe(step, layout, bucket, caption_tokens) -> str:
  words = layout.describe(bucket)
  if (caption_tokens or 0) >= step.model.text.context_length:
    words += " (none has room for more)"
  elif caption_tokens is not None:
    words += f" ({caption_tokens} tokens in the mean, spread as CC3M's)"
  return words


def _abstract_batch(
  step: program_lib.Program, layout: text_layout.TextLayout, bucket: int
) -> dict[str, Any]:
  split = sharding.batch_sharding(step.mesh)
  pairs = step.config.batch_size

  def array(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

  tokens: Any = array(pairs, bucket)
  if isinstance(layout, text_layout.Packed):
    rows = array(pairs // layout.captions * bucket, layout.length)
    arrays_of: Any = packed_text.PackedText  # Holds shapes instead of arrays.
    tokens = arrays_of(rows, rows, rows, ends=array(pairs))
  images, _ = variants.abstract_inputs(step.model, pairs)
  arrays = {"image": array(*images.shape, dtype=images.dtype), "tokens": tokens}
  return {name: arrays.get(name, array(pairs)) for name in step.batch_fields}
