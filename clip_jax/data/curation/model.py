"""The interface of a model to curation."""

from typing import Protocol

import numpy as np

from clip_jax import preprocess as preprocess_lib


class Model(Protocol):
  """A model that embeds images and texts in one space; `Clip` is one."""

  @property
  def fingerprint(self) -> str:
    """A digest of everything that the embeddings depend on."""
    ...

  def needed_preprocess(self) -> preprocess_lib.Preprocess:
    """Returns the preprocessing of images."""
    ...

  def embed_images(self, images: np.ndarray, /) -> np.ndarray:
    """Returns unit embeddings (n, embed) of uint8 (n, size, size, 3)."""
    ...

  def embed_texts(self, texts: list[str], /) -> np.ndarray:
    """Returns unit embeddings (n, embed) of n texts."""
    ...
