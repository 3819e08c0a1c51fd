"""What predicts captions from the image tower's features, by objective.

A head is a linen module whose parameters lie under `paths.HEAD`, beside those
of the image tower. It is no part of a model's description: it belongs to the
training, and to the models whose objective ends in no shared embedding.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np
from scipy import sparse

from clip_jax import errors
from clip_jax.models import captioner, layers, word_predictor


class Head(Protocol):
  """A loss in training, and in use the score of a text for an image.

  The score of a text is a weighted sum of log-probabilities of units: of the
  words that it has, or of the whole text.
  """

  def __call__(self, features: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the loss of each caption, (batch,), in nats."""
    ...

  def log_probabilities(
    self, features: jax.Array, units: jax.Array
  ) -> jax.Array:
    """Returns the log-probability of each unit for each image."""
    ...

  def units(self, tokens: np.ndarray) -> tuple[np.ndarray, sparse.csr_array]:
    """Returns what texts (texts, length) need, and weights (units, texts)."""
    ...


def _word_predictor(text, *, depth, **common):
  del depth  # It is one layer.
  return word_predictor.WordPredictor(vocab_size=text["vocab_size"], **common)


def _captioner(text, *, depth, **common):
  """Returns a Transformer like the text tower, or of its width at least."""
  if depth is None and "depth" not in text:
    raise errors.UserError(
      f"A captioner has as many layers as the text tower, and {text['kind']!r} "
      "has none: give their number, such as --config.objective.depth=2."
    )
  like_the_tower = {
    field: text[field]
    for field in _SHARED
    if field in text and text["kind"] == "transformer"
  }
  return captioner.Captioner(
    vocab_size=text["vocab_size"],
    context_length=text["context_length"],
    width=text["width"],
    depth=depth or text["depth"],
    heads=text.get("heads") or _heads(text["width"]),
    **like_the_tower,
    **common,
  )


def _heads(width: int) -> int:
  """Returns the most heads of at least the usual width that divide `width`."""
  most = max(1, width // _HEAD_WIDTH)
  return next(n for n in range(most, 0, -1) if width % n == 0)


# What a captioner takes of a text tower that is a Transformer like it.
_SHARED = ("mlp_dim", "activation", "norm_epsilon", "scan", "remat")
_HEAD_WIDTH = 64  # Of attention, in all of the paper's models.

# From the description of the text tower to the head of an objective.
HEADS: dict[str, Callable[..., nn.Module]] = {
  "bow": _word_predictor,
  "lm": _captioner,
}


def make(
  kind: str,
  text: Mapping[str, Any],
  *,
  depth: int | None = None,
  end_id: int,
  first: int,
  dtypes: layers.Dtypes,
) -> nn.Module:
  """Returns the head of an objective.

  Args:
    kind: one of `HEADS`.
    text: the description of the text tower: its vocabulary and its sizes.
    depth: layers of a captioner; None for as many as the text tower has.
    end_id: of the token that ends a text.
    first: position of a text's first own token.
    dtypes: in which it computes, and stores its parameters.
  """
  make_head = layers.lookup("objective", kind, HEADS)
  return make_head(text, depth=depth, end_id=end_id, first=first, **dtypes)
