"""Bag-of-words prediction: predicts the set of a caption's words.

The baseline of the paper's section 2.3, after Joulin et al. 2016 ("Learning
visual features from large weakly supervised data"), in its multi-class form.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.models import text, text_shares


class WordPredictor(nn.Module):
  """A linear classifier of images whose classes are the tokens of captions.

  The words of a caption are its distinct tokens between the start and the first
  `end_id`; the only word of an empty caption is its end token.
  """

  vocab_size: int
  end_id: int
  first: int = 1
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32

  # How many units `log_probabilities` should be given at a time; None for all.
  UNITS_AT_ONCE = None

  def __call__(self, features: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the loss of each caption, (batch,), in nats.

    It is the cross-entropy against the uniform distribution over the caption's
    words, in at least float32.

    Args:
      features: of the images, (batch, width).
      tokens: of their captions, (batch, length).
    """
    logits = self._logits(features)  # (batch, vocab_size)
    of_tokens = jnp.take_along_axis(logits, tokens, axis=1)  # (batch, length)
    weights = self._weights(tokens).astype(logits.dtype)
    mean = jnp.einsum("bl,bl->b", of_tokens, weights)
    return jax.nn.logsumexp(logits, axis=1) - mean

  def log_probabilities(
    self, features: jax.Array, units: jax.Array
  ) -> jax.Array:
    """Returns log p(word | image), (batch, units).

    Args:
      features: of the images, (batch, width).
      units: ids of words, (units,).
    """
    return jax.nn.log_softmax(self._logits(features), axis=1)[:, units]

  def units(self, tokens: np.ndarray) -> tuple[np.ndarray, text_shares.Shares]:
    """Returns the words of texts, and their weights in the texts' scores.

    The score of a text is the mean log-probability of its words: a sum would
    favour texts of few words.

    Args:
      tokens: of the texts, (texts, length).

    Returns:
      Ids (units,), and their weights.
    """
    shares = np.asarray(self._weights(jnp.asarray(tokens)), np.float64)
    rows, columns = np.nonzero(shares)
    words, places = np.unique(tokens[rows, columns], return_inverse=True)
    return words, text_shares.Shares(places, rows, shares[rows, columns])

  @nn.compact
  def _logits(self, features):
    wide = jnp.promote_types(self.dtype, jnp.float32)
    width = features.shape[-1]
    kernel = self.param(
      "kernel",
      nn.initializers.normal(width**-0.5),
      (width, self.vocab_size),
      self.param_dtype,
    )
    bias = self.param(
      "bias", nn.initializers.zeros, (self.vocab_size,), self.param_dtype
    )
    logits = jnp.einsum(
      "bw,wv->bv",
      features.astype(self.dtype),
      kernel.astype(self.dtype),
      preferred_element_type=wide,
    )
    return logits + bias.astype(wide)

  def _weights(self, tokens):
    """Returns weights (batch, length): one over the number of distinct words.

    Only the first place of each word has this weight; other places have 0.
    """
    end = text.first_positions(tokens, self.end_id)
    counted = text.word_positions(end, tokens.shape[1], first=self.first)
    same = tokens[:, :, None] == tokens[:, None, :]  # (batch, length, length)
    before = jnp.tri(tokens.shape[1], k=-1, dtype=bool)
    seen = (same & before & counted[:, None, :]).any(axis=2)
    distinct = counted & ~seen  # (batch, length)
    return distinct / jnp.maximum(distinct.sum(axis=1, keepdims=True), 1)
