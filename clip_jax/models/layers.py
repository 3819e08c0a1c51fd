"""The parts that towers are made of: attention, MLP, encoder stack, pooling."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import errors


def quick_gelu(x: jax.Array) -> jax.Array:
  """OpenAI's models use this approximation of GELU by a sigmoid."""
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "quick_gelu": quick_gelu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}

# What the backward pass finds saved; all the rest it computes again.
REMAT_POLICIES = {
  "none": jax.checkpoint_policies.everything_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_saveable,
  "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def lookup(what: str, name: str, known: dict):
  """Returns `known[name]`, or raises an error that lists the known names."""
  if name not in known:
    raise errors.unknown(what, name, known)
  return known[name]


def layer_norm(epsilon: float, *, name: str | None, dtype, param_dtype):
  """A layer norm with the exact, two-pass variance in at least float32."""
  return nn.LayerNorm(
    epsilon=epsilon,
    use_fast_variance=False,
    dtype=dtype,
    param_dtype=param_dtype,
    name=name,
  )


# Of cuDNN's fused attention: 16-bit types, heads of at most 128 in eights.
_FUSED_DTYPES = (jnp.bfloat16, jnp.float16)
_FUSED_MAX_HEAD_DIM = 128


def is_fused(query: jax.Array, *, backend: str) -> bool:
  """Whether `attend` takes cuDNN's fused attention for such a query.

  JAX takes it only where it is asked for by name. On TPUs its attention
  compiles to the very program of `attend`.

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
  implementation: str,
) -> jax.Array:
  """Attends as `attend` does, by an implementation of JAX's.

  Args:
    query: (batch, queries, heads, head_dim).
    key: (batch, length, heads, head_dim).
    value: (batch, length, heads, head_dim).
    causal: as in `attend`.
    mask: as in `attend`.
    implementation: "cudnn" or "xla", of `jax.nn.dot_product_attention`.
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
    mask: bools, the positions that may be seen: (batch, length), by all
      queries alike, or (batch, queries, length); None for all.

  Returns:
    (batch, queries, heads, head_dim).
  """
  if is_fused(query, backend=jax.default_backend()):
    return fused_attend(
      query, key, value, causal=causal, mask=mask, implementation="cudnn"
    )
  wide = jnp.promote_types(query.dtype, jnp.float32)
  query = query * query.shape[-1] ** -0.5
  # Batch axes first, as matrix products run fastest: (batch, heads, length, d).
  query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
  scores = jnp.einsum(
    "bhqd,bhkd->bhqk", query, key, preferred_element_type=wide
  )  # (batch, heads, queries, length)
  visible = _visible(mask, causal=causal, shape=scores.shape[-2:])
  if visible is not None:
    scores = jnp.where(visible, scores, jnp.finfo(wide).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum("bhqk,bhkd->bhqd", weights, value).swapaxes(1, 2)


def _visible(mask, *, causal, shape):
  """Returns what queries see, to broadcast over (batch, heads, *shape)."""
  if mask is not None:
    mask = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None]
  if not causal:
    return mask
  earlier = jnp.tri(*shape, dtype=bool)
  return earlier if mask is None else earlier & mask


class MultiHeadAttention(nn.Module):
  """Multi-head attention with kernels of (width, heads, head_dim).

  Kernels start as OpenAI's do: normal, `in_std` for query, key and value and
  `out_std` for the output; biases start at zero.
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
    """Lets `query` (batch, queries, width) attend to `memory`.

    Args:
      query: (batch, queries, width).
      memory: (batch, length, width).
      mask: bools (batch, length) or (batch, queries, length), the memory that
        may be seen; None for all.
    """
    width = query.shape[-1]
    if width % self.heads:
      raise errors.UserError(
        f"width={width} must divide by heads={self.heads}; "
        f"CLIP has one head for 64 of the width."
      )

    def project(name, x):
      return nn.DenseGeneral(
        (self.heads, width // self.heads),
        kernel_init=nn.initializers.normal(self.in_std),
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name=name,
      )(x)  # (batch, length, heads, head_dim)

    x = attend(
      project("query", query),
      project("key", memory),
      project("value", memory),
      causal=self.causal,
      mask=mask,
    )
    return nn.DenseGeneral(
      self.out_dim or width,
      axis=(-2, -1),
      kernel_init=nn.initializers.normal(self.out_std),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="out",
    )(x)


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
        name=name,
      )

    width = x.shape[-1]
    x = dense("fc_in", self.mlp_dim, self.in_std)(x)
    x = lookup("activation", self.activation, ACTIVATIONS)(x)
    return dense("fc_out", width, self.out_std)(x)


class EncoderBlock(nn.Module):
  """A Transformer layer: norms before its two parts, or after their sums."""

  depth: int
  heads: int
  mlp_dim: int
  activation: str
  causal: bool
  norm_epsilon: float
  post_norm: bool
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Maps (batch, length, width) to the same shape."""
    width = x.shape[-1]
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    # As `CLIP.initialize_parameters` of OpenAI's release does for text; both
    # outputs that add to the residual stream shrink with the depth.
    out_std = width**-0.5 * (2 * self.depth) ** -0.5
    ln_1 = layer_norm(self.norm_epsilon, name="ln_1", **dtypes)
    ln_2 = layer_norm(self.norm_epsilon, name="ln_2", **dtypes)
    attention = MultiHeadAttention(
      heads=self.heads,
      in_std=width**-0.5,
      out_std=out_std,
      causal=self.causal,
      name="attention",
      **dtypes,
    )
    mlp = Mlp(
      mlp_dim=self.mlp_dim,
      activation=self.activation,
      in_std=(2 * width) ** -0.5,
      out_std=out_std,
      name="mlp",
      **dtypes,
    )
    if self.post_norm:
      x = ln_1(x + attention(x, x, mask))
      return ln_2(x + mlp(x))
    y = ln_1(x)
    x = x + attention(y, y, mask)
    return x + mlp(ln_2(x))


class Encoder(nn.Module):
  """A stack of `depth` blocks whose parameters lie on a leading axis.

  `scan` runs one compiled block in a loop; without it the same parameters feed
  `depth` copies of the block, which compiles slower. `remat` names what the
  backward pass keeps: see `REMAT_POLICIES`. `whole` takes the parts of a
  block's parameters that a device holds and returns the parameters, block by
  block; None where it holds them all.
  """

  depth: int
  heads: int
  mlp_dim: int | None = None
  activation: str = "quick_gelu"
  causal: bool = False
  norm_epsilon: float = 1e-5
  post_norm: bool = False
  scan: bool = True
  remat: str = "dots_no_batch"
  whole: Callable[[Any], Any] | None = None
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Maps (batch, length, width) to the same shape.

    Args:
      x: (batch, length, width).
      mask: bools (batch, length) or (batch, length, length), the positions that
        may be seen; None for all.
    """
    policy = lookup("remat policy", self.remat, REMAT_POLICIES)
    make_block = EncoderBlock
    if self.whole is not None:
      make_block = nn.map_variables(
        make_block, "params", trans_in_fn=self.whole
      )
    if self.remat != "none":
      # The loop already keeps the two computations apart.
      make_block = nn.remat(
        make_block, policy=policy, prevent_cse=not self.scan
      )
    block = make_block(
      depth=self.depth,
      heads=self.heads,
      mlp_dim=self.mlp_dim or 4 * x.shape[-1],
      activation=self.activation,
      causal=self.causal,
      norm_epsilon=self.norm_epsilon,
      post_norm=self.post_norm,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="blocks",
    )
    layers = nn.scan(
      lambda block, x, mask: (block(x, mask), None),
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast,
      length=self.depth,
      unroll=1 if self.scan else self.depth,
    )
    x, _ = layers(block, x, mask)
    return x


class MapHead(nn.Module):
  """Pools by a learned query that attends to all tokens, then an MLP.

  Multi-head attention pooling of Zhai et al., "Scaling vision transformers".
  """

  heads: int
  mlp_dim: int | None = None
  activation: str = "quick_gelu"
  norm_epsilon: float = 1e-5
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, length, width) to (batch, width)."""
    b, _, width = x.shape
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    std = width**-0.5
    probe = self.param(
      "probe", nn.initializers.normal(std), (1, 1, width), self.param_dtype
    )
    probe = jnp.broadcast_to(probe.astype(self.dtype), (b, 1, width))
    x = MultiHeadAttention(
      heads=self.heads, in_std=std, out_std=std, name="attention", **dtypes
    )(probe, x)  # (batch, 1, width)
    y = layer_norm(self.norm_epsilon, name="ln", **dtypes)(x)
    x = x + Mlp(
      mlp_dim=self.mlp_dim or 4 * width,
      activation=self.activation,
      in_std=(2 * width) ** -0.5,
      out_std=std,
      name="mlp",
      **dtypes,
    )(y)
    return x[:, 0]


def drop_patches(
  key: jax.Array, x: jax.Array, *, rate: float, examples: jax.Array
) -> jax.Array:
  """Keeps a random subset of each example's patches (FLIP, Li et al. 2023).

  Args:
    key: a random key, the same for the whole batch.
    x: (batch, patches, width).
    rate: the fraction to drop; the number that stays is static and at least 1.
    examples: (batch,), each row's number in the global batch. What it keeps
      depends on this alone, not on the rows beside it.

  Returns:
    (batch, kept, width), each example's patches in their order.
  """
  patches = x.shape[1]
  kept = max(1, round(patches * (1.0 - rate)))
  keys = jax.vmap(lambda example: jax.random.fold_in(key, example))(examples)
  noise = jax.vmap(lambda key: jax.random.uniform(key, (patches,)))(keys)
  order = jnp.argsort(noise, axis=-1)
  chosen = jnp.sort(order[:, :kept], axis=-1)  # (batch, kept)
  return jnp.take_along_axis(x, chosen[:, :, None], axis=1)
