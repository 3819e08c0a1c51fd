"""The interface of a model to evaluations and reports."""

import dataclasses
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, Protocol

import numpy as np

from clip_jax import errors
from clip_jax import preprocess as preprocess_lib
from clip_jax.evals import prompts as prompts_lib
from clip_jax.models import text_shares


@dataclasses.dataclass(frozen=True, eq=False)
class Likelihoods:
  """How a model that predicts captions scores some texts.

  A text's score is a weighted sum of log-probabilities of units: of the words
  that it has, or of the whole text.

  Attributes:
    of_images: from uint8 (n, size, size, 3) to log-probabilities (n, units).
    weights: of the units in the texts' scores.
  """

  of_images: Callable[[np.ndarray], np.ndarray]
  weights: text_shares.Shares


# From texts to how they are scored.
ScoreTexts = Callable[[list[str]], Likelihoods]


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


def scorer(model: EmbeddingModel) -> ScoreTexts | None:
  """Returns the scorer of a model that has its own; None where it embeds."""
  return getattr(model, "score_texts", None)


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
    score_texts: how a model that predicts captions scores texts; its
      embeddings are not used.
  """

  embed_images: Callable[[np.ndarray], np.ndarray]
  embed_texts: prompts_lib.EmbedTexts
  preprocess: preprocess_lib.Preprocess
  logit_scale: float | None = None
  score_texts: ScoreTexts | None = None
  class_embeddings: Callable[
    [prompts_lib.Prompts, prompts_lib.EmbedTexts], np.ndarray
  ] = prompts_lib.class_embeddings

  def embed_classes(self, prompts: prompts_lib.Prompts, /) -> np.ndarray:
    """Returns one unit vector (embed,) a class, (classes, embed)."""
    return self.class_embeddings(prompts, self.embed_texts)


def check_finite(**numbers: Any) -> None:
  """Raises UserError if a model's scale or bias, by name, is not finite."""
  for name, value in numbers.items():
    if isinstance(value, Real) and not math.isfinite(value):
      raise errors.UserError(
        f"The model's logit {name} is {value}; its parameters are damaged or "
        "its training diverged. Use an earlier checkpoint."
      )
