"""The state of a run and the one function that advances it.

The loop jits the step, a planner lowers it, the tests call it.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from clip_jax import errors, losses, sharding
from clip_jax.models import clip, variants
from clip_jax.train import freezing


@flax.struct.dataclass
class TrainState:
  """Everything that an update changes.

  Attributes:
    step: finished updates, the skipped ones included; also the position in
      the data.
    params: of the model, in their storage type.
    batch_stats: running statistics of batch norms; empty without any.
    opt_state: of the optimizer.
    skipped: updates whose loss or gradient was not finite.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any
  skipped: jax.Array

  @property
  def variables(self) -> dict[str, Any]:
    """The model's collections, as `model.apply` takes them."""
    return {"params": self.params, "batch_stats": self.batch_stats}


@flax.struct.dataclass
class Measured:
  """Scalars of one update, the same on every device.

  Attributes:
    loss: of this batch, before the update, in nats.
    logit_scale: that multiplied the cosines.
    gradient_norm: global norm before clipping.
    skipped: updates skipped so far, this one included.
    bad_records: damaged records that this batch met and replaced.
  """

  loss: jax.Array
  logit_scale: jax.Array
  gradient_norm: jax.Array
  skipped: jax.Array
  bad_records: jax.Array


def make_model(config: ml_collections.ConfigDict) -> clip.CLIP:
  """Returns the model of a run in its precision.

  Raises:
    UserError: unknown model or field; float64 without JAX's 64-bit mode; a
      sigmoid loss for a model without logit bias.
  """
  if config.precision == "float64" and not jax.config.jax_enable_x64:
    raise errors.UserError(
      "precision='float64' needs 64-bit mode; set JAX_ENABLE_X64=1."
    )
  dtype = jnp.dtype(config.precision)
  model = variants.create_model(
    variants.spec(config.model, config.model_overrides.to_dict()),
    dtype=dtype,
    param_dtype=jnp.promote_types(dtype, jnp.float32),
  )
  if config.loss.kind in losses.BIASED_KINDS and model.init_logit_bias is None:
    raise errors.UserError(
      f"loss.kind={config.loss.kind!r} needs a model with a logit bias, which "
      f"{config.model!r} has not; add --config.model_overrides."
      "init_logit_bias=-10 (its logit scale then starts at 10)."
    )
  return model


def init_variables(model: clip.CLIP, seed: int | jax.Array) -> dict[str, Any]:
  """Returns the new collections of `model`."""
  size = model.image.image_size
  images = jnp.zeros((1, size, size, 3), jnp.uint8)
  tokens = jnp.zeros((1, model.text.context_length), jnp.int32)
  return model.init(jax.random.key(seed), images, tokens)


def _initialise(
  model: clip.CLIP, tx: optax.GradientTransformation, seed: jax.Array
) -> TrainState:
  variables = init_variables(model, seed)
  params = variables["params"]
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables.get("batch_stats", {}),
    opt_state=tx.init(params),
    skipped=jnp.zeros((), jnp.int32),
  )


def abstract_state(
  model: clip.CLIP, tx: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """Returns shapes, types and shardings of a state, without any array."""
  shapes = jax.eval_shape(lambda: _initialise(model, tx, 0))
  shardings = sharding.tree_shardings(shapes, mesh)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )


def init_state(
  model: clip.CLIP,
  tx: optax.GradientTransformation,
  mesh: Mesh,
  *,
  seed: int,
) -> TrainState:
  """Returns a new state, born sharded: no device ever holds it whole."""
  abstract = abstract_state(model, tx, mesh)
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  # The seed is an argument, so that every seed shares one compilation.
  initialise = jax.jit(
    lambda seed: _initialise(model, tx, seed), out_shardings=shardings
  )
  return initialise(jnp.uint32(seed))


def make_train_step(
  config: ml_collections.ConfigDict,
  model: clip.CLIP,
  tx: optax.GradientTransformation,
  mesh: Mesh,
) -> Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, Measured]]:
  """Returns the jitted update; it takes over (donates) the state.

  The batch holds, all split over the mesh: image uint8 (batch, height, width,
  3), tokens int32 (batch, length), bad int32 (batch,). An update whose loss or
  gradient is not finite leaves everything as it was but counts itself.
  """
  contrastive_loss = losses.KINDS[config.loss.kind]
  frozen = config.optim.frozen
  abstract = abstract_state(model, tx, mesh)
  locked = freezing.locked_towers(abstract.params, frozen)
  locked_norms = freezing.locked_norms(
    abstract.params, abstract.batch_stats, frozen
  )
  bound = model.max_logit_scale
  if not freezing.is_trained(abstract.params, "log_scale", frozen):
    bound = None
  shardings = jax.tree.map(lambda x: x.sharding, abstract)
  trained_shardings = sharding.tree_shardings(
    jax.eval_shape(lambda x: freezing.select(x, frozen), abstract.params), mesh
  )

  def loss_function(trained, params, state, batch):
    output, updated = model.apply(
      {
        "params": freezing.merge(params, trained, frozen),
        "batch_stats": state.batch_stats,
      },
      batch["image"],
      batch["tokens"],
      train=True,
      locked=locked,
      locked_norms=locked_norms,
      mutable=["batch_stats"],
      rngs={"dropout": jax.random.fold_in(seed_key(config.seed), state.step)},
    )
    loss = contrastive_loss(
      output.image_embeds,
      output.text_embeds,
      output.logit_scale,
      output.logit_bias,
      method=config.loss.method,
      mesh=mesh,
      axes=sharding.BATCH_AXES,
    )
    return loss, (output.logit_scale, updated.get("batch_stats", {}))

  def train_step(state, batch):
    # Devices of `fsdp` keep a part each; they compute with the whole, on rows
    # of their own. Left alone, the compiler gathers activations instead.
    whole = jax.lax.with_sharding_constraint(
      state.params, sharding.replicated(mesh)
    )
    (loss, (logit_scale, batch_stats)), gradients = jax.value_and_grad(
      loss_function, has_aux=True
    )(freezing.select(whole, frozen), whole, state, batch)
    gradients = jax.lax.with_sharding_constraint(gradients, trained_shardings)
    norm = optax.tree.norm(gradients)
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    trained = optax.apply_updates(
      freezing.select(state.params, frozen), updates
    )
    params = freezing.merge(state.params, trained, frozen)
    candidate = state.replace(
      params=_cap_temperature(params, bound),
      batch_stats=batch_stats,
      opt_state=opt_state,
    )
    # One decision for the whole mesh: both numbers are global.
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    state = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old), candidate, state
    )
    state = state.replace(step=state.step + 1, skipped=state.skipped + ~finite)
    return state, Measured(
      loss=loss,
      logit_scale=logit_scale,
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
