"""The model that the suite measures."""

import dataclasses

import numpy as np

from clip_jax import errors
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.evals import embedding_model


@dataclasses.dataclass(frozen=True)
class Subject:
  """The model that is measured.

  Attributes:
    model: embeds images and texts.
    fingerprint: the digest of all that its embeddings depend on.
    path: where it comes from.
    step: number of updates it was trained for, if anything says it.
    architecture: which of OpenAI's models it is built like; empty for none.
    cuts: counts the texts that `model` has cut.
  """

  model: embedding_model.EmbeddingModel
  fingerprint: str
  path: str
  step: int | None = None
  architecture: str = ""
  cuts: tokenizer_lib.Cuts = dataclasses.field(
    default_factory=tokenizer_lib.Cuts
  )

  def check_finite(self) -> None:
    """Raises UserError if no set can be measured with the model."""
    model = self.model
    if embedding_model.scorer(model) is not None:
      return
    size = model.preprocess.image_size
    for name, embeddings in (
      ("images", model.embed_images(np.zeros((1, size, size, 3), np.uint8))),
      ("texts", model.embed_texts(["a photo"])),
    ):
      if not np.all(np.isfinite(embeddings)):
        raise errors.UserError(
          f"The embeddings that {self.path} gives of {name} are not finite, "
          "so nothing can be measured with it. A training that has diverged, "
          "or weights outside the range of their type, are like that."
        )
