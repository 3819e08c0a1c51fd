"""Attention, by itself and as a layer."""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import errors
from clip_jax.models import by_platform

# What cuDNN's fused attention accepts: 16-bit types, and heads whose size is at
# most 128 and a multiple of 8.
_FUSED_DTYPES = (jnp.bfloat16, jnp.float16)
_FUSED_MAX_HEAD_DIM = 128


def is_fused(query: jax.Array, *, backend: str) -> bool:
  """Whether `attend` takes cuDNN's fused attention for such a query.

  JAX uses cuDNN's attention only if it is requested by name. On TPUs, JAX's own
  attention compiles to the same program as `attend`.

  Args:
    query: (batch, queries, heads, head_dim).
    backend: "cpu", "gpu" or "tpu".
  """
  head_dim = query.shape[-1]
  fits = head_dim % 8 == 0 and head_dim <= _FUSED_MAX_HEAD_DIM
  return backend == "gpu" and query.dtype in _FUSED_DTYPES and fits


def fused_attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  causal: bool,
  mask: jax.Array | None,
  implementation: Literal["cudnn", "xla"],
) -> jax.Array:
  """Returns the result of `attend`, by one of JAX's implementations.

  Args:
    query: (batch, queries, heads, head_dim).
    key: (batch, length, heads, head_dim).
    value: (batch, length, heads, head_dim).
    causal: as in `attend`.
    mask: as in `attend`.
    implementation: "cudnn" or "xla", passed to `jax.nn.dot_product_attention`.
  """
  return jax.nn.dot_product_attention(
    query,
    key,
    value,
    mask=_visible(mask, causal=False, shape=()),
    is_causal=causal,
    implementation=implementation,
  )


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  causal: bool = False,
  mask: jax.Array | None = None,
) -> jax.Array:
  """Scaled dot-product attention; the softmax runs in at least float32.

  Args:
    query: (batch, queries, heads, head_dim).
    key: (batch, length, heads, head_dim).
    value: (batch, length, heads, head_dim).
    causal: whether position i sees the positions up to i only.
    mask: bools, true for the positions that may be seen: (batch, length) where
      all queries see the same ones, or (batch, queries, length); None for all.

  Returns:
    (batch, queries, heads, head_dim).
  """
  # A single query is little work; cuDNN was not tested on its gradient.
  if query.shape[1] > 1 and is_fused(query, backend=jax.default_backend()):
    return fused_attend(
      query, key, value, causal=causal, mask=mask, implementation="cudnn"
    )
  wide = jnp.promote_types(query.dtype, jnp.float32)
  query = query * query.shape[-1] ** -0.5
  # Matrix products are fastest with the batch axes first.
  # (batch, heads, length, head_dim)
  query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
  scores = jnp.einsum(
    "bhqd,bhkd->bhqk", query, key, preferred_element_type=wide
  )  # (batch, heads, queries, length)
  visible = _visible(mask, causal=causal, shape=scores.shape[-2:])
  if visible is not None:
    scores = jnp.where(visible, scores, jnp.finfo(wide).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum("bhqk,bhkd->bhqd", weights, value).swapaxes(1, 2)


def _visible(
  mask: jax.Array | None, *, causal: bool, shape: tuple[int, ...]
) -> jax.Array | None:
  """Returns a mask that broadcasts to (batch, heads, *shape); None for all."""
  if mask is not None:
    mask = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
  if not causal:
    return mask
  earlier = jnp.tri(*shape, dtype=bool)
  return earlier if mask is None else earlier & mask


@jax.custom_vjp
def attend_single_query(
  query: jax.Array,
  memory: jax.Array,
  key: dict[str, jax.Array],
  value: dict[str, jax.Array],
  mask: jax.Array | None = None,
) -> jax.Array:
  """Attends with one query an example to keys and values projected here.

  Both projections are linear, so on CPUs they are applied where they are cheap:
  the key's kernel to the query instead of to the whole memory, and the value's
  kernel to the weighted mean of the memory. With 50 positions and 32 heads, as
  in RN50, this takes a 28th of the operations. Other platforms project the
  memory.

  Args:
    query: (batch, 1, heads, head_dim).
    memory: (batch, length, width).
    key: the projection to keys: "kernel" (width, heads, head_dim) and "bias"
      (heads, head_dim).
    value: the projection to values, of the same shapes.
    mask: as in `attend`.

  Returns:
    (batch, 1, heads, head_dim).
  """
  return by_platform.choose(
    *(query, memory, key, value, mask),
    cpu=_project_query,
    default=_project_memory,
  )


def _project_memory(query, memory, key, value, mask):
  """Projects the memory to keys and values, then attends."""
  key, value = (
    jnp.tensordot(memory, x["kernel"], 1) + x["bias"] for x in (key, value)
  )
  return attend(query, key, value, mask=mask)


def _project_query(query, memory, key, value, mask):
  """Projects the query to the memory's features, and the mean to values."""
  wide = jnp.promote_types(query.dtype, jnp.float32)
  query = query[:, 0] * query.shape[-1] ** -0.5  # (batch, heads, head_dim)
  projected = jnp.einsum("bhd,chd->bhc", query, key["kernel"])
  scores = jnp.einsum(
    "bhc,blc->bhl", projected, memory, preferred_element_type=wide
  )
  # The key's bias adds the same number to the logits of all positions, so it
  # changes the result by rounding only.
  scores += jnp.einsum("bhd,hd->bh", query, key["bias"])[..., None]
  if mask is not None:
    mask = mask if mask.ndim == 3 else mask[:, None]
    scores = jnp.where(mask, scores, jnp.finfo(wide).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(memory.dtype)
  mean = jnp.einsum("bhl,blc->bhc", weights, memory)
  x = jnp.einsum("bhc,chd->bhd", mean, value["kernel"]) + value["bias"]
  return x[:, None]


def _attend_single_query_forward(*args):
  *differentiable, mask = args
  # CPUs use neither the result nor the VJP, so neither is computed there.
  x, memory_vjp = jax.vjp(
    functools.partial(_project_memory, mask=mask), *differentiable
  )
  x = by_platform.choose(
    x, args, cpu=lambda _, args: _project_query(*args), default=lambda x, _: x
  )
  return x, (memory_vjp, args)


def _attend_single_query_backward(residuals, gradient):
  def by_query(residuals, gradient):
    _, (*args, mask) = residuals
    project_query = functools.partial(_project_query, mask=mask)
    return jax.vjp(project_query, *args)[1](gradient)

  def by_memory(residuals, gradient):
    memory_vjp, _ = residuals
    return memory_vjp(gradient)

  gradients = by_platform.choose(
    residuals, gradient, cpu=by_query, default=by_memory
  )
  return *gradients, None  # A mask has no gradient.


attend_single_query.defvjp(
  _attend_single_query_forward, _attend_single_query_backward
)


class MultiHeadAttention(nn.Module):
  """Multi-head attention with kernels of (width, heads, head_dim).

  Kernels are initialised as OpenAI's are: from a normal distribution with the
  standard deviation `in_std` for query, key and value, and `out_std` for the
  output. Biases start at zero.
  """

  heads: int
  in_std: float
  out_std: float
  out_dim: int | None = None
  causal: bool = False
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, query: jax.Array, memory: jax.Array, mask: jax.Array | None = None
  ) -> jax.Array:
    """Lets `query` attend to `memory`.

    Args:
      query: (batch, queries, width).
      memory: (batch, length, width).
      mask: bools (batch, length) or (batch, queries, length), true for the
        positions of `memory` that may be seen; None for all.

    Returns:
      (batch, queries, `out_dim` or else width).
    """
    width = query.shape[-1]
    if width % self.heads:
      raise errors.UserError(
        f"width={width} must be divisible by heads={self.heads}; CLIP's "
        "models have one head for every 64 features of the width."
      )

    def project(name, x):
      return nn.DenseGeneral(
        (self.heads, width // self.heads),
        kernel_init=nn.initializers.normal(self.in_std),
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name=name,
      )(x)  # (batch, length, heads, head_dim)

    is_single = query.shape[1] == 1 < memory.shape[1]
    query = project("query", query)
    if is_single and not self.causal and not self.is_initializing():
      params = {
        name: self.variables["params"][name] for name in ("key", "value")
      }
      params = jax.tree.map(lambda x: x.astype(self.dtype), params)
      memory = memory.astype(self.dtype)
      x = attend_single_query(query, memory, **params, mask=mask)
    else:
      key, value = project("key", memory), project("value", memory)
      x = attend(query, key, value, causal=self.causal, mask=mask)
    return nn.DenseGeneral(
      self.out_dim or width,
      axis=(-2, -1),
      kernel_init=nn.initializers.normal(self.out_std),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="out",
    )(x)
