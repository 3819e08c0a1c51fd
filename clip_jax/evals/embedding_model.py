"""What evaluations and reports need of a model."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

from clip_jax import preprocess as preprocess_lib
from clip_jax.evals import prompts


class EmbeddingModel(Protocol):
  """A model that embeds images and texts in one space."""

  @property
  def preprocess(self) -> preprocess_lib.Preprocess:
    """How an image becomes an array."""
    ...

  def embed_images(self, images: np.ndarray, /) -> np.ndarray:
    """Returns unit embeddings (n, embed) of uint8 (n, size, size, 3)."""
    ...

  def embed_texts(self, texts: list[str], /) -> np.ndarray:
    """Returns unit embeddings (n, embed) of n texts."""
    ...


@dataclasses.dataclass(frozen=True)
class Functions:
  """An `EmbeddingModel` that is made of its functions."""

  embed_images: Callable[[np.ndarray], np.ndarray]
  embed_texts: prompts.EmbedTexts
  preprocess: preprocess_lib.Preprocess
