"""Layers that the towers share: embedding, MLP, encoder, pooling."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypedDict, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import errors
from clip_jax.models import attention as attention_lib
from clip_jax.models import convolution, paths


def quick_gelu(x: jax.Array) -> jax.Array:
  """Approximates GELU by a sigmoid, as OpenAI's models do."""
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "quick_gelu": quick_gelu,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}

# What is saved for the backward pass; it computes everything else again.
REMAT_POLICIES = {
  "none": jax.checkpoint_policies.everything_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_saveable,
  "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
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


class EncoderBlock(nn.Module):
  """A Transformer layer, with norms before its parts or after the additions."""

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
  def __call__(
    self,
    x: jax.Array,
    mask: jax.Array | None = None,
    at: jax.Array | None = None,
  ) -> jax.Array:
    """Maps (batch, length, width) to the same shape.

    With positions `at` (batch, reads) only the outputs at these positions are
    computed, (batch, reads, width); a causal block then takes no mask.
    """
    width = x.shape[-1]
    dtypes = dtypes_of(self)
    if self.causal and at is not None:
      mask = jnp.arange(x.shape[1]) <= at[..., None]  # (batch, reads, length)

    def read(x):
      return x if at is None else jnp.take_along_axis(x, at[..., None], axis=1)

    # As in OpenAI's `CLIP.initialize_parameters` for the text tower: the two
    # outputs that are added to the residual stream shrink with the depth.
    out_std = width**-0.5 * (2 * self.depth) ** -0.5
    ln_1 = layer_norm(self.norm_epsilon, name="ln_1", dtypes=dtypes)
    ln_2 = layer_norm(self.norm_epsilon, name="ln_2", dtypes=dtypes)
    attention = attention_lib.MultiHeadAttention(
      heads=self.heads,
      in_std=width**-0.5,
      out_std=out_std,
      causal=self.causal and at is None,
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
      x = ln_1(read(x) + attention(read(x), x, mask))
      return ln_2(x + mlp(x))
    y = ln_1(x)
    x = read(x) + attention(read(y), y, mask)
    return x + mlp(ln_2(x))


class Encoder(nn.Module):
  """A stack of `depth` blocks whose parameters are stacked along a first axis.

  `scan` runs one compiled block in a loop, or `unroll` of them per iteration;
  without it the same parameters are used by `depth` copies of the block, which
  takes longer to compile. `remat` names what is kept for the backward pass: see
  `REMAT_POLICIES`. `whole` gathers the parameters of one block from the parts
  that the devices hold; None if every device holds all of them.
  """

  depth: int
  heads: int
  mlp_dim: int | None = None
  activation: str = "quick_gelu"
  causal: bool = False
  norm_epsilon: float = 1e-5
  post_norm: bool = False
  scan: bool = True
  unroll: int = 1
  remat: str = "dots_no_batch"
  whole: Callable[[Any], Any] | None = None
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    mask: jax.Array | None = None,
    at: jax.Array | None = None,
    last_mask: jax.Array | None = None,
  ) -> jax.Array:
    """Maps (batch, length, width) to the same shape.

    Args:
      x: (batch, length, width).
      mask: bools (batch, length) or (batch, length, length), true for the
        positions that may be seen; None for all.
      at: positions (batch, reads). Only the outputs at these positions are
        returned, (batch, reads, width), and the last block computes no others.
        The gradients of the parameters are right, but take longer than those of
        the whole output. None for all positions.
      last_mask: bools (batch, reads, length), true for what the positions `at`
        see in the last block, in the place of `mask`.
    """
    policy = lookup("remat policy", self.remat, REMAT_POLICIES)
    unroll = self.unroll if self.scan else self.depth
    if not 1 <= unroll <= self.depth:
      raise errors.UserError(
        f"unroll must be between 1 and the depth {self.depth}, got {unroll}."
      )
    make_block = EncoderBlock
    if self.whole is not None:
      make_block = nn.map_variables(
        make_block, "params", trans_in_fn=self.whole
      )
    if self.remat != "none":
      # In a loop XLA cannot merge the recomputation with the first pass.
      make_block = nn.remat(
        make_block, policy=policy, prevent_cse=unroll == self.depth
      )
    make_block = functools.partial(
      make_block,
      depth=self.depth,
      heads=self.heads,
      mlp_dim=self.mlp_dim or 4 * x.shape[-1],
      activation=self.activation,
      causal=self.causal,
      norm_epsilon=self.norm_epsilon,
      post_norm=self.post_norm,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    watched = self.is_mutable_collection("intermediates")
    stack = self.variables.get("params", {}).get(paths.BLOCKS)
    if at is not None and stack is not None and not watched:
      block = make_block(parent=None)

      # Flax passes them in this order.
      def run(i, x, mask=mask, at=None) -> Any:
        # A loop over slices of the stack would copy the parameters of all
        # blocks but the last.
        layer = functools.partial(
          jax.lax.dynamic_index_in_dim, index=i, keepdims=False
        )
        params = jax.tree.map(layer, stack)
        return block.apply({"params": params}, x, mask, at)

      last = self.depth - 1
      x = jax.lax.fori_loop(0, last, run, x, unroll=min(unroll, last) or 1)
      return run(last, x, mask if last_mask is None else last_mask, at)
    if last_mask is not None and at is not None:
      mask = _masks(self.depth, x, mask, at, last_mask)
    block = make_block(name=paths.BLOCKS)
    layers = nn.scan(
      lambda block, x, mask: (block(x, mask), None),
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast if last_mask is None else 0,  # pyright: ignore
      length=self.depth,
      unroll=unroll,
    )
    x, _ = layers(block, x, mask)
    return x if at is None else jnp.take_along_axis(x, at[..., None], axis=1)


def _masks(depth, x, mask, at, last_mask):
  """Returns the mask of each block, bools (depth, batch, length, length).

  They are `mask`, and in the last block `last_mask` at the positions `at`.
  """
  b, length = x.shape[:2]
  if mask is None:
    mask = jnp.ones((b, length), bool)
  if mask.ndim == 2:
    mask = mask[:, None]
  mask = jnp.broadcast_to(mask, (b, length, length))
  last = mask.at[jnp.arange(b)[:, None], at].set(last_mask)
  return jnp.stack([mask] * (depth - 1) + [last])


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
