"""What the softmax keeps of a tile, in one kernel that writes no logits.

Written in Pallas, for TPU and GPU. No accelerator was here to time it on, so it
is off unless asked for (`local_loss(..., kernel="on")`): it is proved equal to
the same lines in `softmax` in Pallas' interpreter, and compiled for TPU v5e
ahead of time, no more. It takes the softmax's forward tiles in which every
logit counts: those of other devices' texts, without duplicates or padding.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

# "interpret" runs on any device, slowly.
MODES = ("off", "on", "interpret")

# What one run of the kernel takes: 256 x 512 logits in float32 are 0.5 MB, and
# as many embeddings of 1024 dimensions 1.5 MB, of a TPU core's 128 MB (v5e).
BLOCK_ROWS = 256
BLOCK_COLUMNS = 512


def tile_statistics(
  images: jax.Array,
  texts: jax.Array,
  image_own: jax.Array,
  text_own: jax.Array,
  scale: jax.Array,
  *,
  interpret: bool = False,
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
  """Returns (largest, others) of rows and of columns, as `softmax.Totals` has.

  Differences are scale * (cosine - own cosine); `largest` is at least 0 and
  `others` the sum of exp(difference - largest) over the tile.

  Args:
    images: (rows, embed).
    texts: (columns, embed).
    image_own: (rows,), the cosine of each image and its own text.
    text_own: (columns,).
    scale: scalar.
    interpret: runs on any device, slowly.
  """
  (rows, embed), columns = images.shape, len(texts)
  # Whole blocks only.
  height, width = math.gcd(rows, BLOCK_ROWS), math.gcd(columns, BLOCK_COLUMNS)
  down, across = rows // height, columns // width
  kind = image_own.dtype
  varying = getattr(jax.typeof(images), "manual_axis_type", None)

  def array(*shape):
    return jax.ShapeDtypeStruct(shape, kind, manual_axis_type=varying)

  by_row = pl.BlockSpec((1, height, 1), lambda i, j: (j, i, 0))
  by_column = pl.BlockSpec((1, 1, width), lambda i, j: (i, 0, j))
  results = pl.pallas_call(
    _block_statistics,
    grid=(down, across),
    in_specs=[
      pl.BlockSpec((height, embed), lambda i, j: (i, 0)),
      pl.BlockSpec((width, embed), lambda i, j: (j, 0)),
      pl.BlockSpec((height, 1), lambda i, j: (i, 0)),
      pl.BlockSpec((1, width), lambda i, j: (0, j)),
      pl.BlockSpec((1, 1), lambda i, j: (0, 0)),
    ],
    # Every block has places of its own, so that blocks may run in any order.
    out_specs=[by_row, by_row, by_column, by_column],
    out_shape=[array(across, rows, 1)] * 2 + [array(down, 1, columns)] * 2,
    interpret=interpret,
  )(images, texts, image_own[:, None], text_own[None], scale.reshape(1, 1))
  row_largest, row_others, column_largest, column_others = results
  return (
    _merge_blocks(row_largest[:, :, 0], row_others[:, :, 0]),
    _merge_blocks(column_largest[:, 0], column_others[:, 0]),
  )


def _merge_blocks(
  largest: jax.Array, others: jax.Array
) -> tuple[jax.Array, jax.Array]:
  whole = largest.max(axis=0)
  return whole, (others * jnp.exp(largest - whole)).sum(axis=0)


def _block_statistics(
  images,
  texts,
  image_own,
  text_own,
  scale,
  row_largest,
  row_others,
  column_largest,
  column_others,
):
  """One block: 2-D arrays throughout, as the hardware has them."""
  # Products of bfloat16 are exact as they are; the TPU refuses more.
  exact = images.dtype == jnp.bfloat16
  cosines = jax.lax.dot_general(
    images[...],
    texts[...],
    (((1,), (1,)), ((), ())),
    precision=None if exact else jax.lax.Precision.HIGHEST,
    preferred_element_type=image_own.dtype,
  )
  sides = (
    (image_own, 1, row_largest, row_others),
    (text_own, 0, column_largest, column_others),
  )
  for own, axis, largest, others in sides:
    differences = scale[0, 0] * (cosines - own[...])
    top = jnp.maximum(differences.max(axis=axis, keepdims=True), 0)
    largest[0] = top
    others[0] = jnp.exp(differences - top).sum(axis=axis, keepdims=True)
