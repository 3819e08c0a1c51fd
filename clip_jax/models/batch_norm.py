"""Batch norm over the global batch, as torch computes it."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
  """Batch norm as torch computes it, over the whole global batch.

  Flax's own keeps a running average of the biased variance; torch's, which the
  published weights carry, averages the unbiased one. The variance takes two
  passes, in at least float32. A running average moves by 1 - `momentum`.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  scale_init: nn.initializers.Initializer = nn.initializers.ones
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    *,
    train: bool,
    locked_norms: tuple[str, ...] = (),
    axes: tuple[str, ...] = (),
  ) -> jax.Array:
    """Normalises (batch, h, w, channels) over all axes but the last.

    Args:
      x: of any floating type.
      train: by the batch's statistics, and the running ones move.
      locked_norms: those, by their paths in the model, that do not so.
      axes: of the mesh, that split the batch where each device runs a part.
    """
    channels = x.shape[-1]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    running_type = jnp.promote_types(self.param_dtype, jnp.float32)
    running_mean = self.variable(
      "batch_stats", "mean", jnp.zeros, (channels,), running_type
    )
    running_var = self.variable(
      "batch_stats", "var", jnp.ones, (channels,), running_type
    )
    scale = self.param("scale", self.scale_init, (channels,), self.param_dtype)
    bias = self.param(
      "bias", nn.initializers.zeros, (channels,), self.param_dtype
    )
    x = x.astype(wide)
    if train and "/".join(self.path) not in locked_norms:
      mean = _mean(x, axes)
      var = _mean(jnp.square(x - mean), axes)
      if not self.is_initializing():
        count = x.size // channels * jax.lax.psum(1, axes)
        self._average(running_mean, mean)
        self._average(running_var, var * (count / max(count - 1, 1)))
    else:
      mean, var = running_mean.value, running_var.value
    factor = jax.lax.rsqrt(var.astype(wide) + self.epsilon) * scale
    return ((x - mean) * factor + bias).astype(self.dtype)

  def _average(self, running, value):
    kept = self.momentum * running.value
    running.value = kept + (1 - self.momentum) * value.astype(kept.dtype)


def _mean(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """Means over all but the last axis, and over equal parts on other devices."""
  mean = x.mean(axis=(0, 1, 2))
  return jax.lax.pmean(mean, axes) if axes else mean
