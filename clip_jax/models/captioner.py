"""Captioning: predicts a caption word by word from its image.

The first baseline of the paper's section 2.3, as its appendix A.2 describes the
LM RN50: the image's features become four prefix tokens of a causal Transformer.
Beside a contrastive loss it is the decoder of CoCa (Yu et al. 2022, arXiv
2205.01917) and of SigLIP 2 (arXiv 2502.14786), reading those four tokens
instead of all patches.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from clip_jax.models import encoder, layers, text, text_shares

PREFIX = 4  # Tokens that stand for the image (paper, appendix A.2).
# Logits that are computed at a time; in float32 these take 128 MiB.
_MOST_LOGITS = 2**25


class Captioner(nn.Module):
  """A causal Transformer that continues an image's prefix with its caption.

  It predicts the tokens of a caption up to and including the first `end_id`.
  The tokens before the position `first`, such as start-of-text, are the same in
  every caption and are not predicted. Inputs and outputs share one table of
  embeddings. Fields that `encoder.Encoder` also has mean the same as there.
  """

  vocab_size: int
  context_length: int
  width: int
  depth: int
  heads: int
  end_id: int
  first: int = 1
  mlp_dim: int | None = None
  activation: str = "quick_gelu"
  norm_epsilon: float = 1e-5
  scan: bool = True
  remat: str = "dots_no_batch"
  gather: Callable[[Any], Any] | None = None
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  # How many units `log_probabilities` should be given at a time.
  UNITS_AT_ONCE = 16

  def setup(self) -> None:
    """Makes the token table, the positions, the prefix and the Transformer."""
    dtypes = layers.dtypes_of(self)
    self.table = self.param(
      "token_embedding",
      nn.initializers.normal(layers.EMBEDDING_STD),
      (self.vocab_size, self.width),
      self.param_dtype,
    )
    # The last token of a caption is predicted and never read.
    self.positions = self.param(
      "position_embedding",
      nn.initializers.normal(0.01),
      (PREFIX + self.context_length - 1, self.width),
      self.param_dtype,
    )
    self.prefix = nn.Dense(PREFIX * self.width, **dtypes)
    self.encoder = encoder.of_tower(self, causal=True)
    self.ln_final = nn.LayerNorm(
      epsilon=self.norm_epsilon, use_fast_variance=False, **dtypes
    )

  def __call__(self, features: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the loss of each caption, (batch,), in nats.

    It is the mean of -log p(token | image, earlier tokens) over the predicted
    tokens, in at least float32, so that every caption has the same weight.

    Args:
      features: of the images, (batch, width of the image tower).
      tokens: of their captions, (batch, length).
    """
    counted = self._counted(tokens)
    total = self._negative_log_likelihood(features, tokens, counted)
    return total / jnp.maximum(counted.sum(axis=1), 1)

  def log_probabilities(
    self, features: jax.Array, units: jax.Array
  ) -> jax.Array:
    """Returns log p(text | image), including the text's end, (batch, units).

    Args:
      features: of the images, (batch, width of the image tower).
      units: tokens of texts, (units, length).
    """
    images, texts = len(features), len(units)
    tokens = jnp.tile(units, (images, 1))  # (batch * units, length)
    total = self._negative_log_likelihood(
      jnp.repeat(features, texts, axis=0), tokens, self._counted(tokens)
    )
    return -total.reshape(images, texts)

  def units(self, tokens: np.ndarray) -> tuple[np.ndarray, text_shares.Shares]:
    """Returns texts without the padding that all of them have, and weights.

    Args:
      tokens: of the texts, (texts, length).

    Returns:
      Tokens (texts, used length), and one as the weight of each.
    """
    longest = int(text.first_positions(tokens, self.end_id).max(initial=0)) + 1
    each = np.arange(len(tokens))
    ones = np.ones(len(tokens))
    return tokens[:, :longest], text_shares.Shares(each, each, ones)

  def _counted(self, tokens):
    """Returns bools (batch, length): the tokens that are predicted."""
    position = jnp.arange(tokens.shape[1])
    end = text.first_positions(tokens, self.end_id)[:, None]
    return (position >= self.first) & (position <= end)

  def _negative_log_likelihood(self, features, tokens, counted):
    """Returns the sum over the counted tokens of each row, (batch,)."""
    b, length = tokens.shape
    text.check_length(tokens, self.context_length)
    prefix = self.prefix(features.astype(self.dtype))
    prefix = prefix.reshape(b, PREFIX, self.width)
    read = layers.take_rows(self.table, tokens[:, :-1]).astype(self.dtype)
    x = jnp.concatenate([prefix, read], axis=1)
    x = x + self.positions[: x.shape[1]].astype(x.dtype)
    # The prefix's last place predicts the first token.
    x = self.ln_final(self.encoder(x)[:, PREFIX - 1 :])  # (b, length, width)
    losses = token_losses(
      x.reshape(b * length, self.width),
      self.table,
      tokens.reshape(-1),
      keep=self.remat == "none",
    ).reshape(b, length)
    return jnp.where(counted, losses, 0).sum(axis=1)


def token_losses(
  x: jax.Array,
  table: jax.Array,
  targets: jax.Array,
  *,
  most_logits: int = _MOST_LOGITS,
  keep: bool = False,
) -> jax.Array:
  """Returns -log softmax(x @ table.T)[target], (n,), in at least float32.

  If there are more than `most_logits` logits, they are computed in parts, and
  computed again in the backward pass. The gradient of the table is summed over
  the parts in at least float32.

  Args:
    x: (n, width).
    table: (vocabulary, width).
    targets: int32 (n,).
    most_logits: the number of logits that may be in memory at a time.
    keep: whether to keep the logits of a part for the backward pass.
  """
  wide = jnp.promote_types(x.dtype, jnp.float32)
  table = table.astype(wide)

  def of_part(part):
    x, targets = part
    logits = jnp.einsum(
      "nw,vw->nv", x, table.astype(x.dtype), preferred_element_type=wide
    )
    own = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - own

  count, vocabulary = len(x), len(table)
  rows = max(1, most_logits // vocabulary)
  if count <= rows:
    return of_part((x, targets))
  parts = -(-count // rows)
  rows = -(-count // parts)
  x, targets = (
    jnp.pad(y, [(0, parts * rows - count)] + [(0, 0)] * (y.ndim - 1)).reshape(
      parts, rows, *y.shape[1:]
    )
    for y in (x, targets)
  )
  of_part = of_part if keep else jax.checkpoint(of_part)
  return lax.map(of_part, (x, targets)).reshape(-1)[:count]
