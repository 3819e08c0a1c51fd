"""The one function that advances the state of a run.

The loop jits the step, a planner lowers it, the tests call it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clip_jax import config as config_lib
from clip_jax import errors, losses, sharding
from clip_jax.checkpoints import state as state_lib
from clip_jax.models import clip, freezing, resnet, sharded, variants
from clip_jax.train import gradients as gradients_lib


@flax.struct.dataclass
class Measured:
  """Scalars of one update, the same on every device.

  Attributes:
    loss: of this batch, before the update, in nats.
    terms: the losses that it is the weighted sum of, by name; empty where it
      is one.
    logit_scale: that multiplied the cosines; None of a model without any.
    gradient_norm: global norm before clipping.
    skipped: updates skipped so far, this one included.
    bad_records: damaged records that this batch met and replaced.
  """

  loss: jax.Array
  terms: dict[str, jax.Array]
  logit_scale: jax.Array | None
  gradient_norm: jax.Array
  skipped: jax.Array
  bad_records: jax.Array


def check_micro_batches(
  model: clip.CLIP, *, name: str, micro_batches: int, frozen: str
) -> None:
  """Raises UserError where batch norms would see some pairs at a time.

  Args:
    model: in training.
    name: of the model, for the message.
    micro_batches: of a batch.
    frozen: `config.optim.frozen`.
  """
  if micro_batches == 1 or not isinstance(model.image, resnet.ModifiedResNet):
    return
  shapes = variants.abstract_variables(model)
  locked = freezing.Frozen.of(
    shapes["params"], shapes["batch_stats"], frozen
  ).norms
  norms = freezing.norm_paths(shapes["batch_stats"])
  if free := [norm for norm in norms if norm not in locked]:
    raise errors.UserError(
      f"micro_batches={micro_batches} does not go with batch norms in "
      f"training, {len(free)} of them in {name!r}: their statistics "
      "are of the whole batch, which no micro-batch sees. Set micro_batches=1, "
      "take a Vision Transformer, or lock them with "
      "--config.optim.frozen='^image/'."
    )


def make_train_step(
  model: clip.CLIP,
  tx: optax.GradientTransformation,
  mesh: Mesh,
  *,
  loss: config_lib.Loss,
  optim: config_lib.Optim,
  micro_batches: int,
  seed: int,
  captioning_weight: float = 0.0,
) -> Callable[
  [state_lib.TrainState, dict[str, Any]], tuple[state_lib.TrainState, Measured]
]:
  """Returns the jitted update; it takes over (donates) the state.

  The batch holds, all split over the mesh: image uint8 (batch, height, width,
  3), tokens int32 (batch, length) or `PackedText`, bad int32 (batch,); with
  `loss.duplicates`, image_ids int32 (batch,), equal for equal images. Where
  loss, gradient or update are not finite everything stays as it was, but the
  update counts itself.

  Args:
    model: in training.
    tx: the optimizer.
    mesh: of the devices.
    loss: `config.loss`.
    optim: `config.optim`: what is frozen, and how averages move.
    micro_batches: parts of a device's pairs that the towers take at a time.
    seed: of dropout.
    captioning_weight: of a captioner's loss beside a contrastive one.
  """
  abstract = state_lib.abstract_state(model, tx, mesh, ema=optim.ema_decay > 0)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  frozen = freezing.Frozen.of(
    abstract.params, abstract.batch_stats, optim.frozen
  )
  moves = model.contrastive and not frozen.temperature
  bound = model.max_logit_scale if moves else None
  losses_and_gradients = _make_gradients(
    model,
    abstract,
    frozen,
    mesh,
    loss=loss,
    captioning_weight=captioning_weight,
    micro_batches=micro_batches,
    seed=seed,
  )

  def train_step(state, batch):
    found, gradients, batch_stats = losses_and_gradients(state, batch)
    norm = optax.tree.norm(gradients)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    trained = optax.apply_updates(frozen.select(state.params), updates)
    params = _cap_temperature(frozen.merge(state.params, trained), bound)
    candidate = dataclasses.replace(
      state, params=params, batch_stats=batch_stats, opt_state=opt_state
    )
    candidate = _average(candidate, state, optim.ema_decay)
    # One decision for the whole mesh: all three numbers are global.
    finite = jnp.isfinite(found.total) & jnp.isfinite(norm)
    finite &= jnp.isfinite(optax.tree.norm(updates))
    log_scale = state.params.get("log_scale")
    state = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old), candidate, state
    )
    state = dataclasses.replace(
      state, step=state.step + 1, skipped=state.skipped + ~finite
    )
    return state, Measured(
      loss=found.total,
      terms=found.terms,
      logit_scale=None if log_scale is None else jnp.exp(log_scale),
      gradient_norm=norm,
      skipped=state.skipped,
      bad_records=batch["bad"].sum(),
    )

  return jax.jit(
    train_step,
    donate_argnums=0,
    in_shardings=(shardings, sharding.batch_sharding(mesh)),
    out_shardings=(shardings, sharding.replicated(mesh)),
  )


def _make_gradients(
  model, abstract, frozen, mesh, *, loss, captioning_weight, micro_batches, seed
):
  """Returns a function of (state, batch): losses, gradients, statistics.

  Every device runs it on its own pairs; what they tell each other is written
  out. Left to the compiler, gradients would be summed in the towers' type, and
  activations gathered where parameters should be.
  """
  axes = sharding.BATCH_AXES
  specs = sharded.tree_specs(abstract.params, mesh)
  trained_specs = frozen.select_specs(abstract.params, specs)
  towers = gradients_lib.Towers(sharded.place(model, specs), specs, frozen)
  method = gradients_lib.direct
  if micro_batches > 1:
    method = functools.partial(
      gradients_lib.cached, micro_batches=micro_batches
    )

  def on_device(params, batch_stats, step, batch):
    # Varying from here on: gradients are not summed before `sum_gradients`.
    params = sharding.vary(params, specs)
    image, count = batch["image"], len(batch["image"])
    examples = jax.lax.axis_index(axes) * count + jnp.arange(count)
    part = gradients_lib.Part(image, batch["tokens"], examples)
    key = jax.random.fold_in(seed_key(seed), step)
    value, gradients, batch_stats = method(
      towers,
      _make_loss(loss, model.dtype, batch, micro_batches, captioning_weight),
      params,
      batch_stats,
      part,
      key,
    )
    return value, sharding.sum_gradients(gradients, trained_specs), batch_stats

  on_mesh = jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(specs, P(), P(), P(axes)),
    out_specs=(P(), trained_specs, P()),
  )
  return lambda state, batch: on_mesh(
    state.params, state.batch_stats, state.step, batch
  )


def _make_loss(settings, dtype, batch, micro_batches, captioning_weight):
  """Returns the losses on one device, of what the model makes of its pairs."""
  compare = _make_comparison(settings, dtype, batch, micro_batches)

  def of_output(output):
    if output.head_losses is None:
      return gradients_lib.Losses(compare(output), {})
    predicted = losses.batch_mean(output.head_losses, axes=sharding.BATCH_AXES)
    if output.image_embeds is None:
      return gradients_lib.Losses(predicted, {})
    terms = {"contrastive_loss": compare(output), "captioning_loss": predicted}
    total = terms["contrastive_loss"] + captioning_weight * predicted
    return gradients_lib.Losses(total, terms)

  return of_output


def _make_comparison(settings, dtype, batch, micro_batches):
  """Returns the contrastive loss, of embeddings in the towers' type.

  Products of bfloat16 are exact in the float32 that they are summed in.
  """
  loss = losses.local_loss(settings.kind)
  ids = {}
  if settings.duplicates != "ignore":
    ids = {
      "image_ids": batch["image_ids"],
      "text_ids": _text_ids(batch["tokens"], micro_batches),
    }

  def compare(output):
    return loss(
      output.image_embeds.astype(dtype),
      output.text_embeds.astype(dtype),
      output.logit_scale,
      output.logit_bias,
      axes=sharding.BATCH_AXES,
      method=settings.method,
      duplicates=settings.duplicates,
      **ids,
    )

  return compare


def _text_ids(tokens, micro_batches):
  """Returns int32 (pairs,), equal for equal captions of any device's."""
  # What packs captions packs those of a micro-batch by themselves.
  parts = jax.tree.map(
    lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), tokens
  )
  return jax.vmap(losses.text_ids)(parts).reshape(-1)


def _average(
  updated: state_lib.TrainState, state: state_lib.TrainState, decay: float
) -> state_lib.TrainState:
  """Returns `updated`, with the averages of `state` moved if it keeps any.

  They follow fast at first, so that the initial numbers soon weigh nothing.
  """
  if not state.ema:
    return updated
  done = (state.step - state.skipped).astype(jnp.float32)
  moves = 1 - jnp.minimum(decay, (1 + done) / (10 + done))
  averages = jax.tree.map(
    lambda old, new: old + moves.astype(old.dtype) * (new - old),
    state.ema,
    {"params": updated.params, "batch_stats": updated.batch_stats},
  )
  return dataclasses.replace(updated, ema=averages)


def _cap_temperature(params: Any, max_logit_scale: float | None) -> Any:
  """Keeps the logit scale at its bound or less (paper, section 2.5).

  The parameter itself, not its use in the model: above the bound its gradient
  would be zero, and it would never come back.
  """
  if max_logit_scale is None:
    return params
  log_scale = jnp.minimum(params["log_scale"], math.log(max_logit_scale))
  return {**params, "log_scale": log_scale}


def seed_key(seed: int) -> jax.Array:
  """Returns the key of a run's dropout; each step folds its number in."""
  # Parameters come from `seed` itself; one fold keeps the streams apart.
  return jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
