"""Convolutions whose gradients compile well on CPUs, too.

XLA's convolutions run on a CPU at the rate of its matrix products, but for the
gradient of a kernel: it is a convolution by a kernel as large as the images,
after two transposing copies, at half that rate. On CPUs it is one matrix
product here. Other platforms get the program that JAX derives by itself.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models import by_platform

# PyTorch's default for convolutions, which OpenAI left in place.
_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Conv(nn.Module):
  """A square convolution without bias, padded by half its size."""

  features: int
  kernel_size: int
  stride: int = 1
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, h, w, channels) to (batch, h', w', features)."""
    size = self.kernel_size
    shape = (size, size, x.shape[-1], self.features)
    kernel = self.param("kernel", _kernel_init, shape, self.param_dtype)
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    if size == 1 and self.stride == 1:
      return multiply(x, kernel[0, 0])
    return convolve(x, kernel, self.stride)


@jax.custom_vjp
def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 1 x 1 convolution as the matrix product that it is.

  XLA's CPU backend takes a third longer for a block whose 1 x 1 convolutions
  are convolutions, forward and backward.

  Args:
    x: (batch, h, w, channels).
    kernel: (channels, features).
  """
  return x @ kernel


def _multiply_backward(kept, gradient):
  x, kernel = kept

  def derived(x, gradient):
    return _transpose(lambda kernel: x @ kernel, kernel, gradient)

  def product(x, gradient):
    return _contract(x, gradient)

  of_x = _transpose(lambda x: x @ kernel, x, gradient)
  return of_x, by_platform.choose(x, gradient, cpu=product, default=derived)


multiply.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _multiply_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Convolves, padding by half of the kernel's size.

  Args:
    x: (batch, h, w, channels).
    kernel: (size, size, channels, features).
    stride: of both axes.
  """
  return _convolve(x, kernel, stride)


def _convolve(x, kernel, stride):
  half = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(stride, stride),
    padding=((half, half), (half, half)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def _convolve_backward(stride, kept, gradient):
  x, kernel = kept

  def derived(x, gradient):
    return _transpose(
      lambda kernel: _convolve(x, kernel, stride), kernel, gradient
    )

  def product(x, gradient):
    return _kernel_gradient(x, gradient, size=kernel.shape[0])

  of_x = _transpose(lambda x: _convolve(x, kernel, stride), x, gradient)
  if stride > 1 or kernel.shape[0] % 2 == 0:
    return of_x, derived(x, gradient)
  return of_x, by_platform.choose(x, gradient, cpu=product, default=derived)


convolve.defvjp(
  lambda x, kernel, stride: (_convolve(x, kernel, stride), (x, kernel)),
  _convolve_backward,
)


def _kernel_gradient(x, gradient, *, size):
  """Returns the gradient of an odd kernel that moves by 1, as one product.

  Tap (i, j) sums x[h + i, w + j] * gradient[h, w] over all images. Beside each
  pixel of x stand those of the rows around it, beside each gradient those of
  the columns around it: every row meets every column, and nothing is computed
  twice.
  """
  channels, features, half = x.shape[-1], gradient.shape[-1], size // 2
  shifts = range(-half, half + 1)
  rows = _beside(x, shifts, axis=1)
  columns = _beside(gradient, [-shift for shift in shifts], axis=2)
  taps = _contract(rows, columns).reshape(size, channels, size, features)
  return taps.swapaxes(1, 2)


def _beside(x, shifts, *, axis):
  """Puts x, moved along an axis by each of `shifts`, side by side.

  Zeros follow where x ends. The parts are written one after the other:
  where they are concatenated, XLA computes all that leads to x for every
  number of the result, which takes ten times as long.
  """
  *rest, channels = x.shape
  length = x.shape[axis]
  wide = jnp.zeros_like(x, shape=(*rest, len(shifts) * channels))
  for i, shift in enumerate(shifts):
    if abs(shift) < length:
      part = jax.lax.slice_in_dim(
        x, max(shift, 0), length + min(shift, 0), axis=axis
      )
      start = [0] * x.ndim
      start[axis], start[-1] = max(-shift, 0), i * channels
      wide = jax.lax.dynamic_update_slice(wide, part, start)
  return wide


def _contract(x, y):
  """Sums the outer products of the last axes over all others."""
  # Two axes each, or XLA transposes the first by a copy.
  x, y = (z.reshape(-1, z.shape[-1]) for z in (x, y))
  return jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())))


def _transpose(function, like, gradient):
  """Returns the gradient of what a linear function takes."""
  return jax.linear_transpose(function, like)(gradient)[0]
