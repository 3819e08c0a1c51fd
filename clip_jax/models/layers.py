"""Layers that the towers share: embedding, MLP, pooling."""

from collections.abc import Callable, Mapping
from typing import Protocol, TypedDict, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import errors
from clip_jax.models import attention as attention_lib
from clip_jax.models import convolution


def quick_gelu(x: jax.Array) -> jax.Array:
  """Approximates GELU by a sigmoid, as OpenAI's models do."""
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "quick_gelu": quick_gelu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}

_Value = TypeVar("_Value")


class Dtypes(TypedDict):
  """The types in which a module computes and stores its parameters."""

  dtype: jnp.dtype
  param_dtype: jnp.dtype


class HasDtypes(Protocol):
  """A module with a compute type and a storage type."""

  dtype: jnp.dtype
  param_dtype: jnp.dtype


def dtypes_of(module: HasDtypes) -> Dtypes:
  """Returns the types of a module, as keyword arguments of its parts."""
  return {"dtype": module.dtype, "param_dtype": module.param_dtype}


def lookup(what: str, name: str, known: Mapping[str, _Value]) -> _Value:
  """Returns `known[name]`, or raises an error that lists the known names."""
  if name not in known:
    raise errors.unknown(what, name, known)
  return known[name]


def check_images(shape: tuple[int, ...], size: int) -> None:
  """Raises UserError unless `shape` is (batch, size, size, 3)."""
  if shape[1:] != (size, size, 3):
    raise errors.UserError(
      f"Images must be (batch, {size}, {size}, 3); got {shape}."
    )


def layer_norm(epsilon: float, *, name: str, dtypes: Dtypes) -> nn.LayerNorm:
  """Returns a layer norm with the two-pass variance, in at least float32."""
  return nn.LayerNorm(
    epsilon=epsilon, use_fast_variance=False, name=name, **dtypes
  )


@jax.custom_vjp
def take_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
  """Returns `table[ids]`; its gradient is summed in at least float32.

  Every id adds a term to the gradient of its row. In bfloat16 a sum of some
  hundred such terms does not change when another is added, and some rows, such
  as that of the start of text, occur in every caption.

  Args:
    table: (rows, width).
    ids: int32 (...), at least 0.

  Returns:
    (..., width), of the table's type, which is the gradient's type too; NaN for
    ids beyond the last row.
  """
  return jnp.take(table, ids, axis=0)


def _take_rows_forward(table, ids):
  # The backward pass needs only the type and the length of the table.
  return take_rows(table, ids), (
    jnp.zeros((table.shape[0], 0), table.dtype),
    ids,
  )


def _take_rows_backward(kept, gradient):
  like, ids = kept
  wide = jnp.promote_types(like.dtype, jnp.float32)
  total = jnp.zeros((like.shape[0], gradient.shape[-1]), wide)
  return total.at[ids].add(gradient.astype(wide)).astype(like.dtype), None


take_rows.defvjp(_take_rows_forward, _take_rows_backward)


# Standard deviation of new embeddings: CLIP's, and BERT's `initializer_range`.
EMBEDDING_STD = 0.02


class Embed(nn.Module):
  """A table of embeddings, one for each token of the vocabulary."""

  rows: int
  features: int
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, ids: jax.Array) -> jax.Array:
    """Maps ids (...) to (..., features)."""
    table = self.param(
      "embedding",
      nn.initializers.normal(EMBEDDING_STD),
      (self.rows, self.features),
      self.param_dtype,
    )
    return take_rows(table, ids).astype(self.dtype)


class Mlp(nn.Module):
  """Two dense layers with an activation between them."""

  mlp_dim: int
  activation: str
  in_std: float
  out_std: float
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (..., width) to the same shape."""

    def dense(name, features, std):
      return nn.Dense(
        features,
        kernel_init=nn.initializers.normal(std),
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        dot_general=lambda x, kernel, *_, **__: convolution.multiply(x, kernel),
        name=name,
      )

    width = x.shape[-1]
    x = dense("fc_in", self.mlp_dim, self.in_std)(x)
    x = lookup("activation", self.activation, ACTIVATIONS)(x)
    return dense("fc_out", width, self.out_std)(x)


class MapHead(nn.Module):
  """Pools by a learned query that attends to all tokens, followed by an MLP.

  This is the multi-head attention pooling of Zhai et al., "Scaling vision
  transformers".
  """

  heads: int
  mlp_dim: int | None = None
  activation: str = "quick_gelu"
  norm_epsilon: float = 1e-5
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, each: bool = False) -> jax.Array:
    """Maps (batch, length, width) to (batch, width).

    With `each`, the query sees one position at a time: (batch, length, width).
    """
    b, length, width = x.shape
    dtypes = dtypes_of(self)
    std = width**-0.5
    probe = self.param(
      "probe", nn.initializers.normal(std), (1, 1, width), self.param_dtype
    )
    queries = length if each else 1
    probe = jnp.broadcast_to(probe.astype(self.dtype), (b, queries, width))
    x = attention_lib.MultiHeadAttention(
      heads=self.heads, in_std=std, out_std=std, name="attention", **dtypes
    )(probe, x, itself(x) if each else None)  # (batch, queries, width)
    y = layer_norm(self.norm_epsilon, name="ln", dtypes=dtypes)(x)
    x = x + Mlp(
      mlp_dim=self.mlp_dim or 4 * width,
      activation=self.activation,
      in_std=(2 * width) ** -0.5,
      out_std=std,
      name="mlp",
      **dtypes,
    )(y)
    return x if each else x[:, 0]


def itself(x: jax.Array) -> jax.Array:
  """Returns a mask by which each position of (batch, length, …) sees itself."""
  b, length = x.shape[:2]
  return jnp.broadcast_to(jnp.eye(length, dtype=bool), (b, length, length))


def drop_patches(
  key: jax.Array, x: jax.Array, *, rate: float, examples: jax.Array
) -> jax.Array:
  """Keeps a random subset of each example's patches (FLIP, Li et al. 2023).

  Args:
    key: a random key, the same for the whole batch.
    x: (batch, patches, width).
    rate: the fraction to drop; at least 1 patch is kept, and the number of kept
      patches is static.
    examples: (batch,), each row's number in the global batch. The choice of a
      row's patches depends on this number and the key only.

  Returns:
    (batch, kept, width), the kept patches of each example in their order.
  """
  patches = x.shape[1]
  kept = max(1, round(patches * (1.0 - rate)))
  keys = jax.vmap(lambda example: jax.random.fold_in(key, example))(examples)
  noise = jax.vmap(lambda key: jax.random.uniform(key, (patches,)))(keys)
  order = jnp.argsort(noise, axis=-1)
  chosen = jnp.sort(order[:, :kept], axis=-1)  # (batch, kept)
  return jnp.take_along_axis(x, chosen[:, :, None], axis=1)
