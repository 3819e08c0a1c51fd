"""The model of a run, as its config describes it."""

from typing import Any

import jax
import jax.numpy as jnp

from clip_jax import config as config_lib
from clip_jax import errors, losses
from clip_jax.models import clip, variants


def describe(config: config_lib.Config) -> dict[str, Any]:
  """Returns the description of a run's model (`variants.spec`).

  The loss of the run decides between the probabilities "softmax" and "sigmoid".

  Raises:
    UserError: the model or a field of its overrides is unknown.
  """
  overrides = {"probabilities": config.loss.kind, **config.model_overrides}
  return variants.spec(config.model, overrides)


def make(config: config_lib.Config) -> clip.CLIP:
  """Returns the model of a run in its precision.

  Raises:
    UserError: unknown model or field; float64 without JAX's 64-bit mode; a
      sigmoid loss for a model without logit bias.
  """
  if config.precision == "float64" and not jax.config.values["jax_enable_x64"]:
    raise errors.UserError(
      "precision='float64' needs 64-bit mode; set JAX_ENABLE_X64=1."
    )
  dtype = jnp.dtype(config.precision)
  model = variants.create_model(
    config.model,
    overrides=config.model_overrides,
    dtype=dtype,
    param_dtype=jnp.promote_types(dtype, jnp.float32),
  )
  if config.loss.kind in losses.BIASED_KINDS and model.init_logit_bias is None:
    raise errors.UserError(
      f"loss.kind={config.loss.kind!r} needs a model with a logit bias, but "
      f"{config.model!r} has none; add --config.model_overrides."
      "init_logit_bias=-10 (its logit scale then starts at 10)."
    )
  return model
