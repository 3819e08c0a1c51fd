"""Tokens that are given to a text tower, and whether they are of it."""

from typing import Any

import flax.linen as nn
import jax
import numpy as np

from clip_jax import errors
from clip_jax.models import padding


def check_ids(tokens: np.ndarray, tower: nn.Module) -> None:
  """Raises UserError where a text tower does not know some of `tokens`."""
  for token in (tokens.min(), tokens.max()):
    if not 0 <= token < tower.vocab_size:
      raise errors.UserError(
        f"The tokens hold the id {token}, but the text tower knows those from "
        f"0 to {tower.vocab_size - 1} only: they are not of its tokenizer."
      )


def check_length(tokens: np.ndarray | jax.Array, tower: nn.Module) -> None:
  """Raises UserError unless tokens are (n, length) of a length that fits."""
  wanted = tower.context_length
  fits = len(tokens.shape) == 2 and (
    tokens.shape[1] == wanted
    or (tokens.shape[1] < wanted and padding.can_be_cut(tower))
  )
  if not fits:
    raise errors.UserError(
      f"Tokens must be of shape (n, {wanted}), as clip.tokenize gives them; "
      f"got {tuple(tokens.shape)}."
    )


def are_given(texts: Any) -> bool:
  """Whether these are integers in an array, of numpy, JAX or PyTorch."""
  kind = str(getattr(texts, "dtype", "")).rpartition(".")[2]
  return kind.startswith(("int", "uint"))
