"""What both losses share: their arguments, products and own pairs."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from clip_jax.losses import layout as layout_lib
from clip_jax.losses import sweep

# Padding belongs to no pair.
FILLS = {"index": -1}


@dataclasses.dataclass(frozen=True)
class Options:
  """What a loss is compiled for.

  Attributes:
    layout: the walk over the logits.
    duplicates: what equal ids mean, a name in `targets.DUPLICATES`.
    kernel: a name in `kernel.MODES`.
  """

  layout: layout_lib.Layout
  duplicates: str = "ignore"
  kernel: str = "off"


def at_least_float32(x: jax.Array) -> jnp.dtype:
  """Returns the type of everything that is not a matrix product's operand."""
  return jnp.promote_types(x.dtype, jnp.float32)


def product(
  subscripts: str, left: jax.Array, right: jax.Array, dtype: jnp.dtype
) -> jax.Array:
  """Returns an einsum of operands of `dtype`, summed in at least float32."""
  return jnp.einsum(
    subscripts,
    left.astype(dtype),
    right.astype(dtype),
    precision=lax.Precision.HIGHEST,
    preferred_element_type=jnp.promote_types(dtype, jnp.float32),
  )


def own_cosines(images: jax.Array, texts: jax.Array) -> jax.Array:
  """Returns the cosine of each pair (pairs,), without the matrix around it.

  `jnp.diagonal` of split logits would move all of them.
  """
  kind = at_least_float32(images)
  return (images.astype(kind) * texts.astype(kind)).sum(axis=-1)


def index(images: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """Returns the position of each pair in the global batch, int32 (pairs,)."""
  # Like the images, so that inside a `shard_map` it varies with them.
  position = lax.full_like(images, 0, jnp.int32, shape=(len(images),))
  if axes:
    position += lax.axis_index(axes).astype(jnp.int32) * len(images)
  return position + jnp.arange(len(images), dtype=jnp.int32)


def whole_batch(images: jax.Array, axes: tuple[str, ...]) -> int:
  """Returns the number of pairs on all devices."""
  return len(images) * math.prod(lax.axis_size(axis) for axis in axes)


def total(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """Sums `x` over everything it has and over the mesh `axes`."""
  return lax.psum(x.sum(), axes) if axes else x.sum()


def is_padded(count: int, layout: layout_lib.Layout) -> bool:
  """Returns whether equal parts of `count` pairs need padding."""
  return bool(count % layout.row_tiles or count % layout.chunks)


def column_parts(
  texts: jax.Array, marks: dict[str, jax.Array], layout: layout_lib.Layout
) -> dict[str, Any]:
  """Returns the columns as `sweep.sweep` takes them, "texts" and both marks.

  Texts are cut into chunks, and the marks of each chunk's columns gathered.
  """
  marks = {
    name: sweep.gather(x, layout.gather_axes, axis=1)
    for name, x in sweep.split(marks, layout.chunks, FILLS).items()
  }
  home = {}
  if not is_padded(len(texts), layout):
    home["index"] = marks.pop("index")
  chunks = sweep.split(texts, layout.chunks)
  return {"texts": chunks, "marks": marks, "home_marks": home}


def gathered_devices(layout: layout_lib.Layout) -> int:
  """Returns the number of devices whose texts are seen together."""
  return math.prod(lax.axis_size(axis) for axis in layout.gather_axes)


def zeros(like: jax.Array, kind: Any, *shape: int) -> jax.Array:
  """Returns zeros that vary over the mesh as `like` does."""
  return lax.full_like(like, 0, kind, shape=shape)
