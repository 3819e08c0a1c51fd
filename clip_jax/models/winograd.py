"""3 x 3 convolutions in half the multiplications, for training on CPUs.

Four neighbours in a column of outputs are F(4, 3) of S. Winograd (Arithmetic
Complexity of Computations, 1980), with the matrices of Lavin and Gray (2016,
arXiv:1509.09308, section 4.3): six products instead of twelve. Along a row the
kernel stays a convolution. Both axes at once, F(2 x 2, 3 x 3) or
F(4 x 4, 3 x 3), save more products, but XLA's CPU backend loses that in
transforming 4 or 2.25 values for each input instead of 1.5.

In float32 a sum differs by up to about 1e-5 of the largest from the exact one,
ten times as much as a plain convolution's.
"""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from clip_jax.models import kernel_gradients

Matrix = tuple[tuple[float, ...], ...]

ROWS = 4  # Of outputs, that are computed together.

# Lavin and Gray call these B^T, G and A^T.
_OF_INPUTS: Matrix = (
  (4, 0, -5, 0, 1, 0),
  (0, -4, -4, 1, 1, 0),
  (0, 4, -4, -1, 1, 0),
  (0, -2, -1, 2, 1, 0),
  (0, 2, -1, -2, 1, 0),
  (0, 4, 0, -5, 0, 1),
)
_OF_KERNELS: Matrix = (
  (1 / 4, 0, 0),
  (-1 / 6, -1 / 6, -1 / 6),
  (-1 / 6, 1 / 6, -1 / 6),
  (1 / 24, 1 / 12, 1 / 6),
  (1 / 24, -1 / 12, 1 / 6),
  (0, 0, 1),
)
_OF_PRODUCTS: Matrix = (
  (1, 1, 1, 1, 1, 0),
  (0, 1, -1, 2, -2, 0),
  (0, 1, 1, 4, 4, 0),
  (0, 1, -1, 8, -8, 1),
)

# Measured in blocks of RN50 (tools/bench/RESULTS.md, "ResNets"). With fewer
# channels the transforms of values outweigh the products that are saved, with
# fewer pixels those of kernels.
_LEAST_CHANNELS = 80
_LEAST_PIXELS = 2048


def pays(x: jax.Array, kernel: jax.Array) -> bool:
  """Whether the functions here are faster on a CPU than the plain ones.

  Args:
    x: (batch, h, w, channels).
    kernel: (size, size, channels, features), which moves by 1.
  """
  batch, height, width, _ = x.shape
  return (
    kernel.shape[:2] == (3, 3)
    and min(kernel.shape[2:]) >= _LEAST_CHANNELS
    and batch * height * width >= _LEAST_PIXELS
    # Of the rows at most a fifth is added.
    and 5 * ROWS * _groups(height) <= 6 * height
    # The matrices magnify the rounding of narrower types too much.
    and x.dtype in (jnp.float32, jnp.float64)
  )


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves with a kernel that moves by 1, padding by 1.

  Args:
    x: (batch, h, w, channels).
    kernel: (3, 3, channels, features).
  """
  height = x.shape[1]
  products = [
    jax.lax.conv_general_dilated(
      inputs,
      row[None],
      window_strides=(1, 1),
      padding=((0, 0), (1, 1)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    for inputs, row in zip(
      _transformed(x), _combine(_OF_KERNELS, list(kernel)), strict=True
    )
  ]
  # Rows of zeros between them, and a sum: a fifth faster than stacking.
  total = functools.reduce(
    operator.add,
    (
      _pad(rows[:, :, None], axis=2, before=i, after=ROWS - 1 - i)
      for i, rows in enumerate(_combine(_OF_PRODUCTS, products))
    ),
  )
  batch, groups, _, width, features = total.shape
  return total.reshape(batch, groups * ROWS, width, features)[:, :height]


def input_gradient(gradient: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns the gradient of what `convolve` takes from that of its output."""
  return convolve(gradient, kernel[::-1, ::-1].swapaxes(2, 3))


def kernel_gradient(x: jax.Array, gradient: jax.Array) -> jax.Array:
  """Returns the gradient of `convolve`'s kernel: its transforms, transposed.

  Args:
    x: (batch, h, w, channels), its input.
    gradient: (batch, h, w, features), of its output.
  """
  # The first and the last of its six rows are not the group's own.
  rows = _rows(gradient)[1:-1]
  of_products = _combine(_transposed(_OF_PRODUCTS), rows)
  of_rows = [
    kernel_gradients.of_row(inputs, product, size=3)
    for inputs, product in zip(_transformed(x), of_products, strict=True)
  ]
  return jnp.stack(_combine(_transposed(_OF_KERNELS), of_rows))


def _groups(height):
  return -(-height // ROWS)


def _transformed(x):
  """Returns six arrays of (batch, groups, w, channels)."""
  return _combine(_OF_INPUTS, _rows(x))


def _rows(x):
  """Returns the six rows that each group of four reads, zeros around them.

  Whoever takes the same rows takes them of one padded array. Without it, XLA
  computes what gave x once for each of them.
  """
  height, groups = x.shape[1], _groups(x.shape[1])
  padded = _pad(x, axis=1, before=1, after=ROWS * groups + 1 - height)
  last = ROWS * (groups - 1) + 1
  return [padded[:, i : i + last : ROWS] for i in range(len(_OF_INPUTS))]


def _combine(matrix: Matrix, terms: Sequence[jax.Array]) -> list[jax.Array]:
  """Returns the sums of `terms` that the rows of a matrix weight."""
  return [
    functools.reduce(
      operator.add,
      (w * term for w, term in zip(weights, terms, strict=True) if w),
    )
    for weights in matrix
  ]


def _transposed(matrix: Matrix) -> Matrix:
  return tuple(zip(*matrix, strict=True))


def _pad(x, *, axis, before=0, after=0):
  edges = [(0, 0, 0)] * x.ndim
  edges[axis] = (before, after, 0)
  return jax.lax.pad(x, jnp.zeros((), x.dtype), edges)
