"""Optimizers: the paper's AdamW and others.

All of them share gradient clipping, decoupled weight decay and the schedule of
the learning rate; they differ in how the direction of an update is computed.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from clip_jax import config as config_lib
from clip_jax import errors, sharding
from clip_jax.models import freezing, paths
from clip_jax.train import learning_rates

# Adam's hyper-parameters by the kind of image tower (paper, Table 18).
ADAM = {
  "vit": {"beta2": 0.98, "epsilon": 1e-6},
  "resnet": {"beta2": 0.999, "epsilon": 1e-8},
}

WARMUP_STEPS = 2000  # Paper, Table 18.

# Weight decay applies to matrices, not to gains, biases and single vectors
# (paper, section 2.5). The names decide, not the shapes: the gains of stacked
# layers have two dimensions.
NO_DECAY = re.compile(
  r"(^|/)(\w*bias|scale|log_scale|class_embedding|registers|probe)$"
)

# Muon updates the matrices of the encoders' layers, Adam everything else. The
# input and output dimensions of a matrix, after the axis of the layers.
_MUON = {
  **{f"{name}/kernel": (1, (2, 3)) for name in paths.QUERY_KEY_VALUE},
  "attention/out/kernel": ((1, 2), 3),
  "mlp/fc_in/kernel": (1, 2),
  "mlp/fc_out/kernel": (1, 2),
}
# Adafactor factors dimensions of at least this size: the width of a head is 64
# or more, and no encoder has as many layers.
_FACTORED_FROM = 64
# Root mean square of an update, about that of Adam's, so that the same learning
# rate suits both (Liu et al. 2025, arXiv 2502.16982, section 2.2).
_MUON_RMS = 0.2


# How the learning rate goes on after the warm-up, as a part of its peak: of the
# updates since, of those from there to the end, and of `rsqrt_steps`.
SCHEDULES: dict[str, Callable[[jax.Array, int, int], jax.Array]] = {
  "cosine": lambda since, left, _: (
    (1 + jnp.cos(jnp.pi * jnp.clip(since / left, 0, 1))) / 2
  ),
  "linear": lambda since, left, _: 1 - jnp.clip(since / left, 0, 1),
  "constant": lambda since, *_: jnp.ones_like(since),
  # Zhai et al. 2022 (arXiv 2106.04560), with the cooldown.
  "rsqrt": lambda since, _, rsqrt_steps: jax.lax.rsqrt(
    1 + jnp.maximum(since, 0) / rsqrt_steps
  ),
}


def _rate(
  step: ArrayLike,
  optim: config_lib.Optim,
  *,
  warmup_steps: int,
  total_steps: int,
  dtype: jnp.dtype,
) -> jax.Array:
  step = jnp.asarray(step).astype(dtype)
  warmup = (step + 1) / max(warmup_steps, 1)
  decay = SCHEDULES[optim.schedule](
    step - warmup_steps, max(total_steps - warmup_steps, 1), optim.rsqrt_steps
  )
  rate = optim.peak_lr * jnp.minimum(warmup, decay)
  if optim.cooldown_steps:
    rate *= jnp.clip((total_steps - step) / optim.cooldown_steps, 0, 1)
  return rate


def decays(params: Any) -> Any:
  """Returns a tree of bools: whether weight decay applies to the parameter."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: not NO_DECAY.search(sharding.path_name(path)), params
  )


def make_schedule(
  optim: config_lib.Optim, *, precision: str, total_steps: int
) -> Callable[[ArrayLike], jax.Array]:
  """Returns the learning rate as a function of the number of updates done.

  It rises linearly to `optim.peak_lr` in `optim.warmup_steps` and then goes on
  as `optim.schedule` says; in the last `optim.cooldown_steps` it is multiplied
  by what falls linearly from 1 to 0.

  Args:
    optim: `config.optim`.
    precision: the run's precision; the rate is computed in at least float32.
    total_steps: the number of updates of the whole run.

  Raises:
    UserError: the warm-up, or it and the cooldown, are longer than the run.
  """
  warmup_steps = optim.warmup_steps
  if warmup_steps is None:
    warmup_steps = min(WARMUP_STEPS, total_steps // 10)
  if warmup_steps > total_steps:
    raise errors.UserError(
      f"optim.warmup_steps={warmup_steps} is more than the run's "
      f"{total_steps} steps; try {max(total_steps // 10, 1)}."
    )
  if optim.cooldown_steps > total_steps - warmup_steps:
    raise errors.UserError(
      f"optim.cooldown_steps={optim.cooldown_steps} after a warm-up of "
      f"{warmup_steps} is more than the run's {total_steps} steps; give at "
      f"most {total_steps - warmup_steps}."
    )
  return lambda step: _rate(
    step,
    optim,
    warmup_steps=warmup_steps,
    total_steps=total_steps,
    dtype=jnp.promote_types(precision, jnp.float32),
  )


def _adamw(optim, image_kind):
  beta2, epsilon = (
    ADAM[image_kind][name] if given is None else given
    for name, given in (("beta2", optim.beta2), ("epsilon", optim.epsilon))
  )
  return optax.scale_by_adam(b1=optim.beta1, b2=beta2, eps=epsilon)


def _lion(optim, image_kind):
  del image_kind
  # Chen et al. 2023, arXiv 2302.06675; their default for beta2 is 0.99.
  beta2 = 0.99 if optim.beta2 is None else optim.beta2
  return optax.scale_by_lion(b1=optim.beta1, b2=beta2)


def _adafactor(optim, image_kind):
  """Adafactor: factored second moments, updates clipped to an RMS of 1.

  Shazeer and Stern 2018, arXiv 1804.04235, sections 4 to 7; the momentum is in
  bfloat16, as in "Scaling vision transformers" (Zhai et al. 2022). The moments
  of an attention kernel, (layers, width, heads, head width), are factored over
  both widths, for each layer and head.
  """
  del image_kind
  return optax.chain(
    optax.scale_by_factored_rms(min_dim_size_to_factor=_FACTORED_FROM),
    optax.stateless(_clip_layers),
    optax.ema(optim.beta1, debias=False, accumulator_dtype=jnp.bfloat16),
  )


def _clip_layers(updates: Any, params: Any) -> Any:
  """Scales the arrays of each layer to a root mean square of at most 1."""
  del params

  def clip(path, x):
    stacked = paths.is_stacked(sharding.path_name(path))
    axes = tuple(range(int(stacked), x.ndim))
    mean = jnp.square(x).mean(axis=axes, keepdims=True)
    return x / jnp.maximum(1, jnp.sqrt(mean))

  return jax.tree_util.tree_map_with_path(clip, updates)


def _muon(optim, image_kind):
  """Newton-Schulz for matrices (Jordan et al. 2024), Adam for the rest."""

  def labels(params):
    return jax.tree.map(
      lambda numbers: "adam" if numbers is None else "muon",
      muon_dimensions(params),
      is_leaf=_is_dimensions,
    )

  turned = optax.chain(
    optax.contrib.scale_by_muon(
      beta=optim.beta1, weight_dimension_numbers=muon_dimensions
    ),
    optax.stateless(_to_adams_size),
  )
  return optax.partition(
    {"muon": turned, "adam": _adamw(optim, image_kind)}, labels
  )


def _is_dimensions(x: Any) -> bool:
  return x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)


def muon_dimensions(params: Any) -> Any:
  """Returns the dimensions of each array's matrices; None if it has none."""

  def dimensions(path, leaf):
    del leaf
    found = _MUON.get(paths.within_layer(sharding.path_name(path)) or "")
    return found and optax.contrib.MuonDimensionNumbers(*found)

  return jax.tree_util.tree_map_with_path(dimensions, params)


def _to_adams_size(updates: Any, params: Any) -> Any:
  """Scales matrices with singular values of 1 to the usual size of Adam's."""
  del params

  def scale(x, numbers):
    sides = [
      math.prod(x.shape[axis] for axis in np.atleast_1d(axes))
      for axes in (numbers.reduction_axis, numbers.output_axis)
    ]
    return x * (_MUON_RMS * math.sqrt(max(sides)))

  return jax.tree.map(scale, updates, muon_dimensions(updates))


DIRECTIONS: dict[str, Callable[..., optax.GradientTransformation]] = {
  "adafactor": _adafactor,
  "adamw": _adamw,
  "lion": _lion,
  "muon": _muon,
}


def make_optimizer(
  optim: config_lib.Optim,
  *,
  precision: str,
  total_steps: int,
  image_kind: str,
) -> optax.GradientTransformation:
  """Returns the optimizer of a run: by default AdamW as in the paper.

  Its `init` and `update` take all parameters of the model; gradients, updates
  and state are those of the trained parameters only.

  Args:
    optim: `config.optim`.
    precision: the run's precision, for the learning rate.
    total_steps: the number of updates of the whole run.
    image_kind: "vit" or "resnet"; decides beta2 and epsilon if the config does
      not.

  Raises:
    UserError: the name is unknown, the warm-up is longer than the run, or
      `layer_decay` is set and the image tower is a ResNet.
  """
  if optim.layer_decay != 1 and image_kind == "resnet":
    raise errors.UserError(
      f"optim.layer_decay={optim.layer_decay} is for the layers of "
      "Transformers; the image tower is a ResNet. Leave it at 1, or set "
      "optim.image_lr_factor for the whole tower."
    )
  if optim.name not in DIRECTIONS:
    raise errors.unknown("optimizer", optim.name, DIRECTIONS)
  clip = optax.clip_by_global_norm(optim.clip_norm)
  tx = optax.chain(
    clip if optim.clip_norm else optax.identity(),
    DIRECTIONS[optim.name](optim, image_kind),
    optax.add_decayed_weights(optim.weight_decay, mask=decays),
    optax.scale_by_learning_rate(
      make_schedule(optim, precision=precision, total_steps=total_steps)
    ),
  )
  return learning_rates.scale(freeze(tx, optim.frozen), optim)


def freeze(
  tx: optax.GradientTransformation, pattern: str
) -> optax.GradientTransformation:
  """Returns `tx` for the parameters that `pattern` does not freeze.

  Its `init` and `update` take all parameters; gradients, updates and state are
  those of the part that `freezing.select` returns.
  """
  if not pattern:
    return tx

  def update(updates, state, params=None):
    return tx.update(updates, state, freezing.select(params, pattern))

  return optax.GradientTransformation(
    lambda params: tx.init(freezing.select(params, pattern)), update
  )
