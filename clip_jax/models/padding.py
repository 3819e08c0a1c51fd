"""Finds how many leading tokens of its rows a text tower needs.

In a causal tower whose output is read at the end of the text, no token sees the
padding after it; a bag of words and a masked BERT ignore padding. For these
towers shorter rows give the same features at a lower cost.
"""

import flax.linen as nn
import numpy as np

from clip_jax.models import bert, text

# Rows are cut to one of a few lengths, so that few programs are compiled.
LENGTHS = (16, 32, 64, 128, 256)


def can_be_cut(tower: nn.Module) -> bool:
  """Whether shorter rows give the same features."""
  return not getattr(tower, "sees_padding", False)


def can_be_packed(tower: nn.Module) -> bool:
  """Whether several captions may share a row: see `packing.packed_text`."""
  return isinstance(tower, text.TextTransformer) and not tower.sees_padding


def needed_lengths(tower: nn.Module, tokens: np.ndarray) -> np.ndarray:
  """Returns the number of leading tokens of each row that the tower needs (n,).

  A row that is cut to this length has the same features.

  Args:
    tower: a text tower.
    tokens: ids (n, length).
  """
  length = tokens.shape[1]
  if not can_be_cut(tower):
    return np.full(len(tokens), length)
  if isinstance(tower, bert.Bert):
    used = tokens != tower.pad_id
    # Up to the last position that is not padding; at least one token.
    last = np.where(used.any(1), length - 1 - used[:, ::-1].argmax(1), 0)
  elif isinstance(tower, text.BagOfWords) or tower.pooling == "argmax":
    last = text.end_positions(tokens)
  else:
    last = text.first_positions(tokens, tower.eos_id)
  return last + 1


def needed_length(tower: nn.Module, tokens: np.ndarray) -> int:
  """Returns the smallest length at which no row's features change."""
  return int(needed_lengths(tower, tokens).max(initial=1))


def shortened(tower: nn.Module, tokens: np.ndarray) -> np.ndarray:
  """Returns `tokens` (n, length) without the columns that no row needs."""
  needed = needed_length(tower, tokens)
  length = next(n for n in buckets(tokens.shape[1]) if n >= needed)
  return tokens[:, :length]


def buckets(longest: int) -> tuple[int, ...]:
  """Returns the lengths to which rows of `longest` tokens may be cut."""
  return (*(n for n in LENGTHS if n < longest), longest)
