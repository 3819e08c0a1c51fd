"""Batch norm over the global batch, as torch computes it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models import by_platform


class BatchNorm(nn.Module):
  """Batch norm as torch computes it, over the whole global batch.

  Flax's batch norm keeps a running average of the biased variance. PyTorch's,
  whose statistics published weights contain, averages the unbiased variance.
  The variance is computed in two passes, in at least float32. In each step a
  running average moves by the fraction 1 - `momentum`.
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
      train: whether to normalise by the batch's statistics and to update the
        running averages.
      locked_norms: paths in the model of the batch norms that use their running
        averages even in training.
      axes: the mesh axes that split the batch, if each device runs a part of
        it.
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
    if train and "/".join(self.path) not in locked_norms:
      y, mean, var = normalise(x, scale, bias, self.epsilon, axes)
      if not self.is_initializing():
        count = x.size // channels * jax.lax.psum(1, axes)
        self._average(running_mean, mean)
        self._average(running_var, var * (count / max(count - 1, 1)))
      return y.astype(self.dtype)
    mean, var = running_mean.value, running_var.value
    factor = _factor(var.astype(wide), scale, self.epsilon)
    return ((x.astype(wide) - mean) * factor + bias).astype(self.dtype)

  def _average(self, running, value):
    kept = self.momentum * running.value
    value = jax.lax.stop_gradient(value)
    running.value = kept + (1 - self.momentum) * value.astype(kept.dtype)


def _normalise_and_tell(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  epsilon: float,
  axes: tuple[str, ...],
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normalises (batch, h, w, channels) by the batch's mean and variance.

  The gradient that JAX derives reads the activations ten times, and on a CPU
  this takes most of the time; the gradient for CPUs is written by hand and
  reads them five times. Other platforms use the derived gradient.

  Returns:
    The normalised activations, in at least float32, and the mean and the
    variance, through which no gradient flows.
  """
  y, (mean, var, _) = _normalise(x, scale, bias, epsilon, axes)
  return y, mean, var


normalise = jax.custom_vjp(_normalise_and_tell, nondiff_argnums=(3, 4))


def _normalise(x, scale, bias, epsilon, axes):
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  mean = _mean(x, axes)
  centred = x - mean
  var = _mean(jnp.square(centred), axes)
  y = (x - mean) * _factor(var, scale, epsilon) + bias
  return y, (mean, var, centred)


def _factor(var, scale, epsilon):
  return jax.lax.rsqrt(var + epsilon) * scale


def _normalise_forward(x, scale, bias, epsilon, axes):
  y, derived, (mean, var, centred) = jax.vjp(
    lambda x, scale, bias: _normalise(x, scale, bias, epsilon, axes),
    x,
    scale,
    bias,
    has_aux=True,
  )
  # The derived gradient keeps `centred`, too; it is the same array.
  return (y, mean, var), (derived, centred, var, scale)


def _normalise_backward(epsilon, axes, kept, gradients):
  def derive(kept, gradient):
    return kept[0](gradient)

  def written_out(kept, gradient):
    derived, centred, var, scale = kept
    types = [x.dtype for x in jax.eval_shape(derived, gradient)]
    inverse = jax.lax.rsqrt(var + epsilon)
    of_bias = gradient.sum(axis=(0, 1, 2))
    along = (gradient * centred).sum(axis=(0, 1, 2))
    count = gradient.size // gradient.shape[-1]
    if axes:
      mean, along_mean = jax.lax.pmean((of_bias, along), axes)
    else:
      mean, along_mean = of_bias, along
    slope = along_mean * inverse**2 / count
    of_x = (gradient - mean / count - centred * slope) * (inverse * scale)
    gradients = of_x, along * inverse, of_bias
    return tuple(x.astype(t) for x, t in zip(gradients, types, strict=True))

  return by_platform.choose(kept, gradients[0], cpu=written_out, default=derive)


normalise.defvjp(_normalise_forward, _normalise_backward)


def _mean(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """Returns the mean over all axes but the last, and over the mesh `axes`."""
  mean = x.mean(axis=(0, 1, 2))
  return jax.lax.pmean(mean, axes) if axes else mean
