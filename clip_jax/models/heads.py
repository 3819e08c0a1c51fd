"""Heads, which predict captions from the image tower's features.

A head is a linen module whose parameters lie under `paths.HEAD`, beside those
of the image tower. A model's description does not include it: it belongs to
training, and to models whose objective gives no shared embedding space.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import numpy as np

from clip_jax import errors
from clip_jax.models import captioner, layers, text_shares, word_predictor


class Head(Protocol):
  """The loss of captions in training, and the scores of texts for an image.

  The score of a text is a weighted sum of the log-probabilities of units: the
  words of the text, or the whole text as one unit.
  """

  def __call__(self, features: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns the loss of each caption, (batch,), in nats."""
    ...

  def log_probabilities(
    self, features: jax.Array, units: jax.Array
  ) -> jax.Array:
    """Returns the log-probability of each unit for each image."""
    ...

  def units(self, tokens: np.ndarray) -> tuple[np.ndarray, text_shares.Shares]:
    """Returns units of texts (texts, length), and their weights."""
    ...


def _word_predictor(text, *, depth, **common):
  del depth  # A word predictor always has one layer.
  return word_predictor.WordPredictor(vocab_size=text["vocab_size"], **common)


def _captioner(text, *, depth, **common):
  """Returns a captioner that shares the sizes of the text tower."""
  if depth is None and "depth" not in text:
    raise errors.UserError(
      "By default a captioner has as many layers as the text tower, but a text "
      f"tower of the kind {text['kind']!r} has no layers; give their number, "
      "such as --config.objective.depth=2."
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
  """Returns the number of heads: the largest that divides `width`.

  A head has at least the usual width.
  """
  most = max(1, width // _HEAD_WIDTH)
  return next(n for n in range(most, 0, -1) if width % n == 0)


# Fields that a captioner copies from a text tower that is a Transformer.
_SHARED = ("mlp_dim", "activation", "norm_epsilon", "scan", "remat")
_HEAD_WIDTH = 64  # The width of an attention head in all of the paper's models.

# Functions that make an objective's head from the text tower's description.
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
    depth: number of layers of a captioner; None for that of the text tower.
    end_id: the id of the token that ends a text.
    first: the position of the first token after start-of-text.
    dtypes: the types of computation and of the stored parameters.
  """
  make_head = layers.lookup("objective", kind, HEADS)
  return make_head(text, depth=depth, end_id=end_id, first=first, **dtypes)
