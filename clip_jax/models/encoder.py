"""The encoder: a stack of Transformer layers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from clip_jax import errors
from clip_jax.models import attention as attention_lib
from clip_jax.models import layers, paths

_LAYER = "layer"  # Parameters that lie in the stack anyway.
# What is saved for the backward pass; it computes everything else again.
REMAT_POLICIES = {
  "none": jax.checkpoint_policies.save_anything_except_these_names(_LAYER),
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_saveable,
  "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


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
    dtypes = layers.dtypes_of(self)
    if self.causal and at is not None:
      mask = jnp.arange(x.shape[1]) <= at[..., None]  # (batch, reads, length)

    def read(x):
      return x if at is None else jnp.take_along_axis(x, at[..., None], axis=1)

    # As in OpenAI's `CLIP.initialize_parameters` for the text tower: the two
    # outputs that are added to the residual stream shrink with the depth.
    out_std = width**-0.5 * (2 * self.depth) ** -0.5
    ln_1 = layers.layer_norm(self.norm_epsilon, name="ln_1", dtypes=dtypes)
    ln_2 = layers.layer_norm(self.norm_epsilon, name="ln_2", dtypes=dtypes)
    attention = attention_lib.MultiHeadAttention(
      heads=self.heads,
      in_std=width**-0.5,
      out_std=out_std,
      causal=self.causal and at is None,
      name="attention",
      **dtypes,
    )
    mlp = layers.Mlp(
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
  `REMAT_POLICIES`. `gather` gathers the parameters of one block from the parts
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
  gather: Callable[[Any], Any] | None = None
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
        None for all positions.
      last_mask: bools (batch, reads, length), true for what the positions `at`
        see in the last block, in the place of `mask`.
    """
    policy = layers.lookup("remat policy", self.remat, REMAT_POLICIES)
    unroll = self.unroll if self.scan else self.depth
    if not 1 <= unroll <= self.depth:
      raise errors.UserError(
        f"unroll must be between 1 and the depth {self.depth}, got {unroll}."
      )
    # In a loop XLA cannot merge the recomputation with the first pass.
    keep = {"policy": policy, "prevent_cse": unroll == self.depth}
    make_block = EncoderBlock
    if self.gather is not None:
      make_block = nn.map_variables(
        make_block, "params", trans_in_fn=self.gather
      )
    fields = {
      "depth": self.depth,
      "heads": self.heads,
      "mlp_dim": self.mlp_dim or 4 * x.shape[-1],
      "activation": self.activation,
      "causal": self.causal,
      "norm_epsilon": self.norm_epsilon,
      "post_norm": self.post_norm,
      **layers.dtypes_of(self),
    }
    watched = self.is_mutable_collection("intermediates")
    stack = self.variables.get("params", {}).get(paths.BLOCKS)
    if at is not None and stack is not None and not watched:
      block = make_block(**fields, parent=None)

      @functools.partial(jax.checkpoint, **keep)
      def run(i, part, x, mask, at=None) -> Any:
        params = _read_layer(jax.lax.stop_gradient(stack), i, part)
        # Flax passes the inputs in this order.
        return block.apply({"params": params}, x, mask, at)

      last = self.depth - 1
      x, _ = jax.lax.scan(
        lambda x, layer: (run(*layer, x, mask), None),
        x,
        (jnp.arange(last), jax.tree.map(lambda p: p[:last], stack)),
        unroll=min(unroll, last) or 1,
      )
      part = jax.tree.map(lambda p: p[last], stack)
      return run(last, part, x, mask if last_mask is None else last_mask, at)
    if last_mask is not None and at is not None:
      mask = _masks(self.depth, x, mask, at, last_mask)
    if self.remat != "none":
      make_block = nn.remat(make_block, **keep)
    block = make_block(**fields, name=paths.BLOCKS)
    stacked = nn.scan(
      lambda block, x, mask: (block(x, mask), None),
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True},
      in_axes=nn.broadcast if last_mask is None else 0,  # pyright: ignore
      length=self.depth,
      unroll=unroll,
    )
    x, _ = stacked(block, x, mask)
    return x if at is None else jnp.take_along_axis(x, at[..., None], axis=1)


@jax.custom_vjp
def _read_layer(stack, i, part):
  """Returns the parameters of block `i`; the gradient goes to `part`.

  `part` is that block's slice of the stack, and nobody reads it: a loop over
  slices would copy the parameters, and an index into the stack would have a
  gradient of the size of the whole stack in every block.
  """
  del part
  read = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
  return jax.tree.map(lambda p: read(p, i), stack)


def _read_layer_forward(stack, i, part):
  # By `_read_layer` itself, so that a gradient of the gradient is not lost.
  return checkpoint_name(_read_layer(stack, i, part), _LAYER), None


_read_layer.defvjp(
  _read_layer_forward, lambda _, gradient: (None, None, gradient)
)


_FIELDS = {x.name for x in dataclasses.fields(Encoder)} - {"parent", "name"}


def of_tower(tower: nn.Module, **fields: Any) -> Encoder:
  """Returns the encoder of a tower, whose fields of the same names it has.

  Args:
    tower: the module that the encoder is a part of.
    **fields: of the encoder, where they are not the tower's.
  """
  same = _FIELDS & {x.name for x in dataclasses.fields(tower)}
  own = {name: getattr(tower, name) for name in same}
  return Encoder(**{**own, **fields})


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
