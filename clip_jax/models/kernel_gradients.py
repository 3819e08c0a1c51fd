"""Gradients of convolutions' kernels as matrix products, as CPUs like them."""

import jax
import jax.numpy as jnp


def of_odd_kernel(x: jax.Array, gradient: jax.Array, *, size: int) -> jax.Array:
  """Returns the gradient of an odd kernel that moves by 1, as products.

  Tap (i, j) sums x[h + i, w + j] * gradient[h, w] over all images.

  Args:
    x: (batch, h, w, channels), the convolution's input.
    gradient: (batch, h, w, features), of its output.
    size: rows and columns of the kernel.

  Returns:
    (size, size, channels, features).
  """
  rows = [
    of_row(moved(x, shift, axis=1), gradient, size=size)
    for shift in _shifts(size)
  ]
  return jnp.stack(rows)


def of_row(x: jax.Array, gradient: jax.Array, *, size: int) -> jax.Array:
  """Returns the gradient of a kernel of one row, (size, channels, features).

  Beside each gradient stand those of the columns around it, so that one product
  gives all taps: products of single taps run at half the rate. A single product
  for all rows is no faster, for x must be copied beside itself, too.
  """
  channels, features = x.shape[-1], gradient.shape[-1]
  beside = jnp.concatenate(
    [moved(gradient, -shift, axis=2) for shift in _shifts(size)], axis=-1
  )
  taps = contract(x, beside).reshape(channels, size, features)
  return taps.swapaxes(0, 1)


def contract(x: jax.Array, y: jax.Array) -> jax.Array:
  """Sums the outer products of the last axes over all others."""
  # Two axes each, or XLA transposes the first by a copy.
  x, y = (z.reshape(-1, z.shape[-1]) for z in (x, y))
  return jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())))


def moved(x: jax.Array, shift: int, *, axis: int) -> jax.Array:
  """Moves x against an axis, and zeros in from behind."""
  edges = [(0, 0, 0)] * x.ndim
  edges[axis] = (-shift, shift, 0)
  return jax.lax.pad(x, jnp.zeros((), x.dtype), edges)


def _shifts(size):
  return range(-(size // 2), size // 2 + 1)
