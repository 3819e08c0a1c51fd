"""The optimizer of the paper: AdamW, warm-up, cosine decay, clipping."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from clip_jax import errors, sharding

# Adam's numbers by the kind of image tower (paper, Table 18).
ADAM = {
  "vit": {"beta2": 0.98, "epsilon": 1e-6},
  "resnet": {"beta2": 0.999, "epsilon": 1e-8},
}

# Weight decay is for matrices, not for gains, biases and single vectors
# (paper, section 2.5). Shapes cannot tell: a scanned stack's gains have two
# dimensions.
NO_DECAY = re.compile(
  r"(^|/)(\w*bias|scale|log_scale|class_embedding|registers|probe)$"
)


def schedule(
  step: jax.Array, *, peak_lr: float, warmup_steps: int, total_steps: int
) -> jax.Array:
  """Returns the learning rate of update number `step`, counted from 0.

  Linear warm-up to `peak_lr` in `warmup_steps`, then half a cosine towards 0
  at `total_steps` (paper, section 2.5).
  """
  step = jnp.asarray(step).astype(jnp.float32)
  warmup = (step + 1) / max(warmup_steps, 1)
  progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
  cosine = (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1))) / 2
  return peak_lr * jnp.minimum(warmup, cosine)


def decays(params: Any) -> Any:
  """Returns a tree of bools: whether weight decay acts on the parameter."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: not NO_DECAY.search(sharding.path_name(path)), params
  )


def make_schedule(config: ml_collections.ConfigDict, total_steps: int):
  """Returns the learning rate as a function of the number of updates done.

  Raises:
    UserError: the warm-up is longer than the run.
  """
  warmup_steps = config.optim.warmup_steps
  if warmup_steps > total_steps:
    raise errors.UserError(
      f"optim.warmup_steps={warmup_steps} is more than the run's "
      f"{total_steps} steps; try {max(total_steps // 10, 1)}."
    )
  return lambda step: schedule(
    step,
    peak_lr=config.optim.peak_lr,
    warmup_steps=warmup_steps,
    total_steps=total_steps,
  )


def make_optimizer(
  config: ml_collections.ConfigDict, *, total_steps: int, image_kind: str
) -> optax.GradientTransformation:
  """Returns AdamW as in the paper.

  Args:
    config: a whole run's; reads `optim`.
    total_steps: updates of the whole run.
    image_kind: "vit" or "resnet"; sets beta2 and epsilon where the config
      leaves them open.
  """
  optim = config.optim
  beta2, epsilon = (
    ADAM[image_kind][name] if optim[name] is None else optim[name]
    for name in ("beta2", "epsilon")
  )
  clip = optax.clip_by_global_norm(optim.clip_norm)
  return optax.chain(
    clip if optim.clip_norm else optax.identity(),
    optax.scale_by_adam(b1=optim.beta1, b2=beta2, eps=epsilon),
    optax.add_decayed_weights(optim.weight_decay, mask=decays),
    optax.scale_by_learning_rate(make_schedule(config, total_steps)),
  )
