"""The training step: the function that updates the state of a run.

The loop runs the step, the planner lowers it, the tests call it.
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
from clip_jax import cpu_compiler, errors, losses, sharding
from clip_jax.checkpoints import state as state_lib
from clip_jax.models import clip, freezing, resnet, sharded, variants
from clip_jax.train import gradients as gradients_lib


@flax.struct.dataclass
class Measured:
  """Scalars of one update, the same on every device.

  Attributes:
    loss: the loss of this batch before the update, in nats.
    terms: if the loss is a weighted sum, the losses in it by name; else empty.
    logit_scale: the factor of the cosine similarities; None if the model has
      none.
    gradient_norm: the global norm of the gradient before clipping.
    skipped: the number of updates skipped so far, including this one.
    bad_records: the number of damaged records that were replaced in this batch.
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
  """Raises UserError if batch norms would see a part of the batch at a time.

  Args:
    model: the model in training.
    name: the name of the model, for the message.
    micro_batches: the number of micro-batches in a batch.
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
      f"training, {len(free)} of them in {name!r}: their statistics are of "
      "the whole batch, of which a micro-batch is a part. Set micro_batches=1, "
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
  """Returns the jitted update of the state, whose old arrays are donated.

  The batch has these arrays, all split over the mesh: image uint8 (batch,
  height, width, 3), tokens int32 (batch, length) or `PackedText`, bad int32
  (batch,); with `loss.duplicates` also image_ids int32 (batch,), equal for
  equal images. If loss, gradient or update are not finite, the update is
  skipped: only the counters of the state change.

  Args:
    model: the model in training.
    tx: the optimizer.
    mesh: the mesh of devices.
    loss: `config.loss`.
    optim: `config.optim`, for the frozen parameters and the moving averages.
    micro_batches: into how many parts a device's pairs are split.
    seed: the seed of dropout.
    captioning_weight: the weight of a captioner's loss, added to the
      contrastive one.
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
    log_scale = state.params.get("log_scale")
    # All three numbers are global, so all devices decide alike.
    numbers = found.total, norm, optax.tree.norm(updates)
    state = _if_finite(numbers, candidate, state)
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
    compiler_options=cpu_compiler.options(mesh.devices.flat[0]),
  )


def _make_gradients(
  model, abstract, frozen, mesh, *, loss, captioning_weight, micro_batches, seed
):
  """Returns a function of (state, batch): losses, gradients, statistics.

  Every device runs it on its own pairs, with explicit collectives. If they were
  left to the compiler, gradients would be summed in the compute type, and
  activations would be gathered instead of parameters.
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
    # Marked as varying, so that gradients are not summed before
    # `sum_gradients`.
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
  """Returns a function from the model's output on one device to the losses."""
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
  """Returns the contrastive loss of embeddings in the compute type.

  Products of bfloat16 numbers are exact in float32, in which they are summed.
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
  """Returns int32 (pairs,), equal for equal captions on any devices."""
  # The captions of each micro-batch are packed by themselves.
  parts = jax.tree.map(
    lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), tokens
  )
  return jax.vmap(losses.text_ids)(parts).reshape(-1)


def _if_finite(numbers, candidate, state):
  """Returns `candidate` if all numbers are finite, else `state`; counts."""
  finite = functools.reduce(jnp.logical_and, map(jnp.isfinite, numbers))
  chosen = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old), candidate, state
  )
  return dataclasses.replace(
    chosen, step=chosen.step + 1, skipped=chosen.skipped + ~finite
  )


def _average(
  updated: state_lib.TrainState, state: state_lib.TrainState, decay: float
) -> state_lib.TrainState:
  """Returns `updated` with new moving averages, if the state has any.

  The decay is smaller in the first steps, so that the averages soon forget the
  initial parameters.
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
  """Clips the logit scale to its bound (paper, section 2.5).

  The parameter itself is clipped, not its use in the model: there the gradient
  above the bound would be zero, and the scale could not become smaller again.
  """
  if max_logit_scale is None:
    return params
  log_scale = jnp.minimum(params["log_scale"], math.log(max_logit_scale))
  return {**params, "log_scale": log_scale}


def seed_key(seed: int) -> jax.Array:
  """Returns the key of a run's dropout; each step folds in its number."""
  # Parameters are drawn with the key of `seed` itself; this is another one.
  return jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
