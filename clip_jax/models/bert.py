"""The BERT encoder as a text tower (Devlin et al. 2019)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import errors
from clip_jax.models import clip, encoder, layers, paths, text

# A mean over tokens divides by at least this, as in sentence-transformers.
MIN_COUNT = 1e-9


def _mean(x: jax.Array, mask: jax.Array) -> jax.Array:
  wide = jnp.promote_types(x.dtype, jnp.float32)
  counted = mask.astype(wide)
  total = jnp.einsum("bld,bl->bd", x.astype(wide), counted)
  count = jnp.maximum(counted.sum(axis=1, keepdims=True), MIN_COUNT)
  return (total / count).astype(x.dtype)


POOLINGS = ("mean", "cls", "pooler")


class Bert(nn.Module):
  """BERT's bidirectional, post-norm encoder, pooled to one vector.

  Tokens equal to `pad_id` are masked at every position and are left out of the
  mean. All tokens have token type 0. `pooling` is the mean of the tokens
  ("mean"), the first token ("cls"), or the first token after a dense layer with
  tanh ("pooler"). `normalize` divides the result by its Euclidean norm, as the
  last module of some sentence encoders does.
  """

  context_length: int
  vocab_size: int
  width: int
  depth: int
  heads: int
  mlp_dim: int | None = None
  activation: str = "gelu"
  norm_epsilon: float = 1e-12
  positions: int = 512
  token_types: int = 2
  pad_id: int = 0
  pooling: str = "mean"
  normalize: bool = False
  scan: bool = True
  unroll: int = 1
  remat: str = "dots_no_batch"
  gather: Callable[[Any], Any] | None = None
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps tokens (batch, length) to features (batch, width).

    The features do not depend on the length, as long as it is at most
    `context_length` and holds all tokens of every row.

    Raises:
      UserError: tokens of a wrong shape, or fields that contradict each other.
    """
    del train
    self._check(tokens)
    dtypes = layers.dtypes_of(self)
    mask = tokens != self.pad_id  # (batch, length)
    of_all = self.pooling == "mean"
    at = None if of_all else jnp.zeros((len(tokens), 1), int)
    x = encoder.of_tower(self, post_norm=True, name=paths.ENCODER)(
      self._embed(tokens), mask, at
    )
    x = _mean(x, mask) if of_all else x[:, 0]
    if self.pooling == "pooler":
      x = jnp.tanh(nn.Dense(self.width, name="pooler", **dtypes)(x))
    if self.normalize:
      x = clip.unit_length(x).astype(x.dtype)
    return x

  def _embed(self, tokens):
    """Returns token, position and type embeddings, summed and normalised."""
    dtypes = layers.dtypes_of(self)
    normal = nn.initializers.normal(layers.EMBEDDING_STD)
    x = layers.Embed(
      self.vocab_size, self.width, name="token_embedding", **dtypes
    )(tokens)
    positions, types = (
      self.param(name, normal, (rows, self.width), self.param_dtype)
      for name, rows in (
        ("position_embedding", self.positions),
        ("token_type_embedding", self.token_types),
      )
    )
    x = x + types[0].astype(x.dtype)
    x = x + positions[: tokens.shape[1]].astype(x.dtype)
    return layers.layer_norm(self.norm_epsilon, name="ln_embed", dtypes=dtypes)(
      x
    )

  def _check(self, tokens):
    text.check_length(tokens, self.context_length)
    layers.lookup("pooling", self.pooling, dict.fromkeys(POOLINGS))
    if self.context_length > self.positions:
      raise errors.UserError(
        f"context_length={self.context_length} is more than the "
        f"{self.positions} positions that this BERT has; try "
        f"context_length={self.positions}."
      )
