"""How much of its rows a text tower needs: the rest is padding that costs.

In a causal tower that is read at the end of the text, no token sees what comes
after; a bag of words and a masked BERT leave padding out by themselves. Shorter
rows then give the same features.
"""

import flax.linen as nn
import numpy as np

from clip_jax.models import bert, text

# Rows are cut to one of these, so that few programs are compiled.
LENGTHS = (16, 32, 64, 128, 256)


def needed_length(tower: nn.Module, tokens: np.ndarray) -> int:
  """Returns the shortest length that gives every row the same features.

  Args:
    tower: a text tower.
    tokens: ids (n, length).
  """
  length = tokens.shape[1]
  if isinstance(tower, bert.Bert):
    used = tokens != tower.pad_id
    # The last used position of each row; one that is all padding needs one.
    last = np.where(used.any(1), length - 1 - used[:, ::-1].argmax(1), 0)
  elif isinstance(tower, text.BagOfWords):
    last = text.end_positions(tokens)
  else:
    if not tower.causal or tower.pooling not in ("argmax", "eos"):
      return length
    last = (
      text.end_positions(tokens)
      if tower.pooling == "argmax"
      else text.first_positions(tokens, tower.eos_id)
    )
  return int(last.max(initial=0)) + 1


def shortened(tower: nn.Module, tokens: np.ndarray) -> np.ndarray:
  """Returns `tokens` (n, length) without columns that no row needs."""
  needed = needed_length(tower, tokens)
  wide_enough = (length for length in LENGTHS if length >= needed)
  return tokens[:, : next(wide_enough, tokens.shape[1])]
