"""Text towers: the causal Transformer and the bag of words."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import errors
from clip_jax.models import layers


def end_positions(tokens: jax.Array) -> jax.Array:
  """Positions (batch,) of the end-of-text token in tokens (batch, length).

  That is the first largest id, as in OpenAI's release: end-of-text is the last
  entry of the vocabulary.
  """
  return tokens.argmax(axis=-1)


def _check_length(tokens, context_length):
  if tokens.ndim != 2 or tokens.shape[1] > context_length:
    raise errors.UserError(
      f"Tokens must be (batch, length) with a length of at most "
      f"{context_length}, the model's context_length; got {tokens.shape}."
    )


class TextTransformer(nn.Module):
  """GPT-2's Transformer, read at the end-of-text token (paper, section 2.4)."""

  context_length: int
  vocab_size: int
  width: int
  depth: int
  heads: int
  mlp_dim: int | None = None
  activation: str = "quick_gelu"
  norm_epsilon: float = 1e-5
  scan: bool = True
  remat: str = "dots_no_batch"
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps tokens (batch, length) to features (batch, width).

    A length below `context_length` gives the same features, faster, as long as
    it holds the end-of-text tokens: no token sees a later one.
    """
    del train
    _check_length(tokens, self.context_length)
    dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
    x = nn.Embed(
      self.vocab_size,
      self.width,
      embedding_init=nn.initializers.normal(0.02),
      name="token_embedding",
      **dtypes,
    )(tokens)  # (batch, length, width)
    positions = self.param(
      "position_embedding",
      nn.initializers.normal(0.01),
      (self.context_length, self.width),
      self.param_dtype,
    )
    x = x + positions[: tokens.shape[1]].astype(x.dtype)
    x = layers.Encoder(
      depth=self.depth,
      heads=self.heads,
      mlp_dim=self.mlp_dim,
      activation=self.activation,
      causal=True,
      norm_epsilon=self.norm_epsilon,
      scan=self.scan,
      remat=self.remat,
      name="encoder",
      **dtypes,
    )(x)
    # The norm works token by token: pool first and skip the unused ones.
    x = jnp.take_along_axis(x, end_positions(tokens)[:, None, None], axis=1)
    x = layers.layer_norm(self.norm_epsilon, name="ln_final", **dtypes)(x)
    return x[:, 0]


class BagOfWords(nn.Module):
  """The mean embedding of a caption's tokens (paper, section 2.3).

  A caption's tokens lie strictly between the first token, start-of-text, and
  the first end-of-text: "!" counts although it shares its id with padding. An
  empty caption has the end-of-text embedding instead, for a mean over nothing
  has no direction.
  """

  context_length: int
  vocab_size: int
  width: int
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps tokens (batch, length) to features (batch, width)."""
    del train
    _check_length(tokens, self.context_length)
    x = nn.Embed(
      self.vocab_size,
      self.width,
      embedding_init=nn.initializers.normal(0.02),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="token_embedding",
    )(tokens)  # (batch, length, width)
    position = jnp.arange(tokens.shape[1])
    end = end_positions(tokens)[:, None]
    word = (position > 0) & (position < end)
    counted = jnp.where(end > 1, word, position == end)  # (batch, length)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    counted = counted.astype(wide)
    total = jnp.einsum("bld,bl->bd", x.astype(wide), counted)
    return (total / counted.sum(axis=1, keepdims=True)).astype(x.dtype)
