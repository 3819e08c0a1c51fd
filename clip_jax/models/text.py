"""Text towers: the Transformer and the bag of words."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax import errors
from clip_jax.models import encoder, layers, paths
from clip_jax.packing import packed_text

TEXT_POOLINGS = ("argmax", "eos", "last", "map")


def end_positions(tokens: Any) -> Any:
  """Returns positions (batch,) of end-of-text in tokens (batch, length).

  That is the first position of the largest id, as in OpenAI's release:
  end-of-text is the last entry of the vocabulary. Takes arrays of JAX or of
  numpy and returns an array of the same library.
  """
  return tokens.argmax(axis=-1)


def first_positions(tokens: Any, token: int) -> Any:
  """Returns the first positions (batch,) of `token` in tokens (batch, length).

  The position is 0 if a row does not have the token, as in transformers'
  CLIPTextModel. Takes arrays of JAX or of numpy, as `end_positions` does.
  """
  return (tokens == token).argmax(axis=-1)


def word_positions(end: jax.Array, length: int, *, first: int = 1) -> jax.Array:
  """Returns bools (batch, length), true at the tokens of a caption's words.

  An empty caption is represented by its end-of-text token.

  Args:
    end: positions (batch,) of the end-of-text token.
    length: the length of the rows.
    first: the position of the first token after start-of-text.
  """
  position = jnp.arange(length)
  end = end[:, None]
  word = (position >= first) & (position < end)
  return jnp.where(end > first, word, position == end)


def check_length(
  tokens: jax.Array | packed_text.PackedText, context_length: int
) -> None:
  """Raises UserError unless `tokens` are (batch, at most context_length)."""
  if isinstance(tokens, packed_text.PackedText):
    raise packed_text.refusal()
  if tokens.ndim != 2 or tokens.shape[1] > context_length:
    raise errors.UserError(
      f"Tokens must be (batch, length) with a length of at most "
      f"{context_length}, the model's context_length; got {tokens.shape}."
    )


def _arrangement(tokens):
  """Returns token ids, their positions and the attention mask.

  The positions are None if they are 0, 1, 2, …; the mask is None for no mask.
  """
  if isinstance(tokens, packed_text.PackedText):
    mask = packed_text.visible(tokens.segments)
    return tokens.tokens, tokens.positions, mask
  return tokens, None, None


class TextTransformer(nn.Module):
  """A pre-norm Transformer over tokens, pooled to one vector.

  The defaults are those of CLIP: a causal Transformer whose output is read at
  the end-of-text token (paper, section 2.4). `pooling` reads the first position
  of the largest id ("argmax"), the first `eos_id` ("eos"), the last position
  ("last"), or a learned query over all positions ("map"). There is no padding
  mask: a tower that is not causal, or that pools the last position or all
  positions, sees padding and takes rows of length `context_length` only.
  """

  context_length: int
  vocab_size: int
  width: int
  depth: int
  heads: int
  mlp_dim: int | None = None
  activation: str = "quick_gelu"
  norm_epsilon: float = 1e-5
  causal: bool = True
  pooling: str = "argmax"
  eos_id: int | None = None
  scan: bool = True
  unroll: int = 1
  remat: str = "dots_no_batch"
  gather: Callable[[Any], Any] | None = None
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, tokens: jax.Array | packed_text.PackedText, *, train: bool = False
  ) -> jax.Array:
    """Maps tokens (batch, length) to features (batch, width).

    In a causal tower that is read at the end of text no token sees a later one:
    rows shorter than `context_length` give the same features in less time, as
    long as they contain the end-of-text tokens. Packed captions give the same
    features, (captions, width); their rows may be longer than the context.

    Raises:
      UserError: tokens of a wrong shape, fields that contradict each other, or
        packed text for a tower that sees padding.
    """
    self._check(tokens)
    ids, positioned, mask = _arrangement(tokens)
    dtypes = layers.dtypes_of(self)
    x = layers.Embed(
      self.vocab_size, self.width, name="token_embedding", **dtypes
    )(ids)  # (batch, length, width)
    positions = self.param(
      "position_embedding",
      nn.initializers.normal(0.01),
      (self.context_length, self.width),
      self.param_dtype,
    )
    rows = positions[: ids.shape[1]]
    if positioned is not None:
      rows = layers.take_rows(positions, positioned)
    x = x + rows.astype(x.dtype)
    at = None
    if self.pooling != "map" and mask is None:
      at = self._read_position(tokens)[:, None]
    x = encoder.of_tower(self, name=paths.ENCODER)(x, mask, at)
    norm = layers.layer_norm(self.norm_epsilon, name="ln_final", dtypes=dtypes)
    if self.pooling == "map":
      return layers.MapHead(
        heads=self.heads,
        mlp_dim=self.mlp_dim,
        activation=self.activation,
        norm_epsilon=self.norm_epsilon,
        name="map_head",
        **dtypes,
      )(norm(x))
    # The norm works on each token by itself: pool first, then normalise only
    # the tokens that are used.
    return norm(x[:, 0] if at is not None else self._read(x, tokens))

  def _read(self, x, tokens):
    """Returns the features (captions, width) at the positions that are read."""
    if isinstance(tokens, packed_text.PackedText):
      return packed_text.read(x, tokens.ends)
    at = self._read_position(tokens)[:, None, None]
    return jnp.take_along_axis(x, at, axis=1)[:, 0]

  def _read_position(self, tokens):
    """Returns the position of each row that is read, (batch,)."""
    if self.pooling == "argmax":
      return end_positions(tokens)
    if self.eos_id is not None:
      return first_positions(tokens, self.eos_id)
    return jnp.full(tokens.shape[:1], tokens.shape[1] - 1)

  @property
  def sees_padding(self) -> bool:
    """Whether the padding after the end of a text changes its features."""
    return not self.causal or self.pooling in ("last", "map")

  def _check(self, tokens):
    layers.lookup("pooling", self.pooling, dict.fromkeys(TEXT_POOLINGS))
    if (self.pooling == "eos") != (self.eos_id is not None):
      raise errors.UserError(
        "pooling='eos' needs an eos_id, and no other pooling takes one; got "
        f"pooling={self.pooling!r} with eos_id={self.eos_id}."
      )
    if isinstance(tokens, packed_text.PackedText):
      if self.sees_padding:
        raise packed_text.refusal()
      packed_text.check(tokens)
      return
    check_length(tokens, self.context_length)
    if self.sees_padding and tokens.shape[1] != self.context_length:
      raise errors.UserError(
        f"This text tower sees padding (causal={self.causal}, pooling="
        f"{self.pooling!r}): tokens must be (batch, {self.context_length}), "
        f"padded to the whole context; got {tokens.shape}."
      )


class BagOfWords(nn.Module):
  """The mean embedding of a caption's tokens (paper, section 2.3).

  A caption's tokens lie strictly between the first token, start-of-text, and
  the first end-of-text: "!" counts although it has the same id as padding. An
  empty caption gets the end-of-text embedding instead, because a mean of no
  tokens has no direction.
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
    check_length(tokens, self.context_length)
    x = layers.Embed(
      self.vocab_size,
      self.width,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
      name="token_embedding",
    )(tokens)  # (batch, length, width)
    counted = word_positions(end_positions(tokens), tokens.shape[1])
    wide = jnp.promote_types(x.dtype, jnp.float32)
    counted = counted.astype(wide)
    total = jnp.einsum("bld,bl->bd", x.astype(wide), counted)
    return (total / counted.sum(axis=1, keepdims=True)).astype(x.dtype)
