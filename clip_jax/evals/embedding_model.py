"""What evaluations and reports need of a model."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

from clip_jax import preprocess as preprocess_lib
from clip_jax.evals import prompts as prompts_lib


class EmbeddingModel(Protocol):
  """A model that embeds images and texts in one space."""

  @property
  def preprocess(self) -> preprocess_lib.Preprocess:
    """How an image becomes an array."""
    ...

  @property
  def logit_scale(self) -> float | None:
    """The factor of cosines for a softmax; None measures no calibration."""
    ...

  def embed_images(self, images: np.ndarray, /) -> np.ndarray:
    """Returns unit embeddings (n, embed) of uint8 (n, size, size, 3)."""
    ...

  def embed_texts(self, texts: list[str], /) -> np.ndarray:
    """Returns unit embeddings (n, embed) of n texts."""
    ...

  def embed_classes(self, prompts: prompts_lib.Prompts, /) -> np.ndarray:
    """Returns one unit vector (embed,) a class, (classes, embed)."""
    ...


@dataclasses.dataclass(frozen=True)
class Functions:
  """An `EmbeddingModel` that is made of its functions.

  Attributes:
    embed_images: of preprocessed images.
    embed_texts: of texts.
    preprocess: how an image becomes an array.
    logit_scale: as in `EmbeddingModel`.
    class_embeddings: called with prompts and `embed_texts`; it may keep what
      it returns (text_weights.py).
  """

  embed_images: Callable[[np.ndarray], np.ndarray]
  embed_texts: prompts_lib.EmbedTexts
  preprocess: preprocess_lib.Preprocess
  logit_scale: float | None = None
  class_embeddings: Callable[
    [prompts_lib.Prompts, prompts_lib.EmbedTexts], np.ndarray
  ] = prompts_lib.class_embeddings

  def embed_classes(self, prompts: prompts_lib.Prompts, /) -> np.ndarray:
    """Returns one unit vector (embed,) a class, (classes, embed)."""
    return self.class_embeddings(prompts, self.embed_texts)
