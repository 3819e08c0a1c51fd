"""Convolutions whose gradients compile well on CPUs, too.

XLA's convolutions run on a CPU at the rate of its matrix products, but for the
gradient of a kernel: it is a convolution by a kernel as large as the images,
after two transposing copies, at half that rate. On CPUs it is a few matrix
products here. Other platforms get the program that JAX derives by itself.
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
  are convolutions, forward and backward. For a dense layer the gradient of the
  kernel needs no transposing copy.

  Args:
    x: (..., channels).
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
  """Returns the gradient of an odd kernel that moves by 1, as products.

  Tap (i, j) sums x[h + i, w + j] * gradient[h, w] over all images. Beside each
  gradient stand those of the columns around it, so that one product gives the
  taps of a row: products of single taps run at half the rate. A single product
  of all taps is no faster, for x must be copied beside itself, too.
  """
  channels, features, half = x.shape[-1], gradient.shape[-1], size // 2
  shifts = range(-half, half + 1)
  beside = jnp.concatenate(
    [_moved(gradient, -shift, axis=2) for shift in shifts], axis=-1
  )
  taps = [_contract(_moved(x, shift, axis=1), beside) for shift in shifts]
  return jnp.stack(taps).reshape(size, channels, size, features).swapaxes(1, 2)


def _moved(x, shift, *, axis):
  """Moves x against an axis, and zeros in from behind."""
  edges = [(0, 0, 0)] * x.ndim
  edges[axis] = (-shift, shift, 0)
  return jax.lax.pad(x, jnp.zeros((), x.dtype), edges)


def _contract(x, y):
  """Sums the outer products of the last axes over all others."""
  # Two axes each, or XLA transposes the first by a copy.
  x, y = (z.reshape(-1, z.shape[-1]) for z in (x, y))
  return jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())))


def _transpose(function, like, gradient):
  """Returns the gradient of what a linear function takes."""
  return jax.linear_transpose(function, like)(gradient)[0]
