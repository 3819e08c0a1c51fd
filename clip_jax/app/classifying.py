"""The tab that says which label fits a picture."""

import dataclasses

import numpy as np

from clip_jax import errors
from clip_jax.app import answering, limits
from clip_jax.evals import probabilities, prompts


@dataclasses.dataclass(frozen=True, eq=False)
class Classified:
  """The probabilities of labels.

  Attributes:
    names: of the labels, the most probable first.
    probabilities: float32 (labels,), in this order.
    kind: "softmax", which adds up to one, or "sigmoid", each by itself.
    prompts: number of texts that were compared with the picture.
    cut: number of those that the model did not read to their end.
  """

  names: tuple[str, ...]
  probabilities: np.ndarray
  kind: str
  prompts: int
  cut: int


def classify(
  engine: answering.Engine,
  picture: answering.Picture,
  labels: object,
  templates: object,
) -> Classified:
  """Returns the probability of each label for a picture.

  Args:
    engine: the model.
    picture: to classify.
    labels: what was typed: one a line, or separated by commas.
    templates: what was typed: one a line, each with {} for the label.

  Raises:
    UserError: labels or templates are missing, wrong or too many.
  """
  names = limits.listed(labels, "labels", most=limits.LABELS)
  fills = limits.lines(templates, "templates", most=limits.TEMPLATES)
  if len(names) * len(fills) > limits.PROMPTS:
    raise errors.UserError(
      f"{len(names)} labels in {len(fills)} templates are "
      f"{len(names) * len(fills):,} texts; write at most {limits.PROMPTS:,}."
    )
  asked = prompts.resolve(names, fills)
  clip = engine.clip
  classes = prompts.class_embeddings(asked, engine.embed_texts)
  embeds = engine.embed_pixels(picture.pixels[None])
  embeds = prompts.normalize(embeds, what="image")
  found = probabilities.of(
    embeds @ classes.T,
    kind=probabilities.check(clip.probabilities, logit_bias=clip.logit_bias),
    logit_scale=clip.logit_scale,
    logit_bias=clip.logit_bias,
  )[0]
  order = np.argsort(-found, kind="stable")
  texts = [text for several in asked.texts for text in several]
  return Classified(
    names=tuple(asked.names[i] for i in order),
    probabilities=found[order],
    kind=clip.probabilities,
    prompts=len(texts),
    cut=engine.count_cut(texts),
  )
