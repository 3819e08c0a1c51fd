"""Zero-shot classification: an image goes to the class of the nearest text."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from scipy import special

from clip_jax import errors
from clip_jax.evals import confusions as confusions_lib
from clip_jax.evals import embedding_model
from clip_jax.evals import prompts as prompts_lib

# Of every interval that is shown; the paper's Table 10 has 99.5 % instead.
CONFIDENCE = 0.95


class Accuracy:
  """Counts of right guesses, gathered batch by batch."""

  def __init__(self, classes: int):
    self.examples = np.zeros(classes, np.int64)  # Of each true class.
    self.top1 = np.zeros(classes, np.int64)
    self.top5 = np.zeros(classes, np.int64)

  def update(self, scores: np.ndarray, labels: np.ndarray) -> None:
    """Adds a batch of `scores` (n, classes) with their true `labels` (n,)."""
    rank = ranks(scores, labels)
    np.add.at(self.examples, labels, 1)
    np.add.at(self.top1, labels, rank < 1)
    np.add.at(self.top5, labels, rank < 5)

  def result(self) -> dict[str, Any]:
    """Returns the fractions; mean_per_class is over the classes present."""
    examples = int(self.examples.sum())
    if not examples:
      raise errors.UserError("There is no example to classify.")
    right = int(self.top1.sum())
    present = self.examples > 0
    return {
      "top1": right / examples,
      "top5": int(self.top5.sum()) / examples,
      "mean_per_class": float(
        np.mean(self.top1[present] / self.examples[present])
      ),
      "examples": examples,
      "classes": len(self.examples),
      "top1_interval_95": list(interval(right, examples)),
    }


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns how many classes come before the true one; ties go by index."""
  own = np.take_along_axis(scores, labels[:, None], axis=1)  # (n, 1)
  before = np.arange(scores.shape[1]) < labels[:, None]  # (n, classes)
  return np.sum((scores > own) | ((scores == own) & before), axis=1)


def interval(
  right: int, examples: int, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
  """Returns the Clopper-Pearson interval of an accuracy (paper, Table 10)."""
  tail = (1 - confidence) / 2
  wrong = examples - right
  low = special.betaincinv(right, wrong + 1, tail) if right else 0.0
  high = special.betaincinv(right + 1, wrong, 1 - tail) if wrong else 1.0
  return float(low), float(high)


def accuracy(
  batches: Iterable[tuple[np.ndarray, np.ndarray]],
  classes: np.ndarray,
  *,
  names: Sequence[str] | None = None,
) -> dict[str, Any]:
  """Returns the measures of batches of (unit image embeddings, labels).

  Args:
    batches: pairs of (n, embed) and (n,); one batch is held at a time.
    classes: the classes' unit embeddings, (classes, embed).
    names: of the classes; adds `confusions` (confusions.py).

  Raises:
    UserError: a label is missing (-1) or no class, or there is no example.
  """
  counts = Accuracy(len(classes))
  confusions = confusions_lib.Confusions(names or ())
  classes = np.asarray(classes, np.float32)
  for embeds, labels in batches:
    labels = np.asarray(labels)
    _check_labels(labels, len(classes))
    embeds = prompts_lib.normalize(np.asarray(embeds, np.float32), what="image")
    scores = embeds @ classes.T
    counts.update(scores, labels)
    if names is not None:
      confusions.update(scores, labels)
  told = {} if names is None else {"confusions": confusions.result()}
  return {**counts.result(), **told}


def _check_labels(labels: np.ndarray, classes: int) -> None:
  if np.any(labels < 0):
    raise errors.UserError(
      "The data has examples without a label; zero-shot classification needs "
      "labelled data such as builtin:digits/test or a folder of class folders."
    )
  if np.any(labels >= classes):
    raise errors.UserError(
      f"The data has label {labels.max()}, but only {classes} labels are "
      "named; name one for every class of the data, in its order."
    )


def evaluate(
  source: Any,
  *,
  model: embedding_model.EmbeddingModel,
  batches: Iterable[dict[str, Any]],
  labels: prompts_lib.Labels | None = None,
  templates: Sequence[str] | None = None,
) -> dict[str, Any]:
  """Returns top1, top5 and mean_per_class of `source`, with their counts.

  Args:
    source: the data; `class_names` and `templates` are its defaults.
    model: to measure.
    batches: the data's images and labels.
    labels: as in `make_prompts`.
    templates: None takes the data's own, else "a photo of a {}.".

  Raises:
    UserError: labels and data do not go together.
  """
  resolved = make_prompts(source, labels=labels, templates=templates)
  classes = prompts_lib.class_embeddings(resolved, model.embed_texts)
  return accuracy(
    ((model.embed_images(batch["image"]), batch["label"]) for batch in batches),
    classes,
    names=resolved.names,
  )


def make_prompts(
  source: Any,
  *,
  labels: prompts_lib.Labels | None = None,
  templates: Sequence[str] | None = None,
) -> prompts_lib.Prompts:
  """Returns the prompts of the classes of `source`; reads no record.

  Args:
    source: the data; `class_names` and `templates` are its defaults.
    labels: the names of the data's classes, in any order, or other names in
      the order of the data's label numbers.
    templates: None takes the data's own, else "a photo of a {}.".

  Raises:
    UserError: labels and data do not go together.
  """
  if labels is None:
    labels = source.class_names
  if labels is None:
    raise errors.UserError(
      "The data names no classes; give the labels in the order of the data's "
      "label numbers."
    )
  named = source.class_names
  if named is not None and len(named) != len(labels):
    raise errors.UserError(
      f"{len(labels)} labels are given, but the data has {len(named)} classes "
      f"({', '.join(named[:5])}, …); name one for each, in this order."
    )
  own = False
  if named is not None:
    labels = prompts_lib.in_order(labels, named)
    own = prompts_lib.label_names(labels) == list(named)
  return prompts_lib.resolve(
    labels, templates or source.templates, may_repeat=own
  )


def check(
  source: Any,
  *,
  labels: prompts_lib.Labels | None = None,
  templates: Sequence[str] | None = None,
) -> None:
  """Raises what `make_prompts` raises; warns of what may be a mistake.

  Those are labels that go by position, and names of several classes.
  """
  names = make_prompts(source, labels=labels, templates=templates).names
  if source.class_names is None:
    return
  if twice := prompts_lib.repeated(names):
    logging.warning(
      "The data give more than one class the name %s: their images count as "
      "right for the first of them only. Give all classes names that differ "
      "with --labels.",
      " and ".join(map(repr, twice[:5])),
    )
  for name, own in zip(names, source.class_names, strict=True):
    if name != own:
      logging.warning(
        "The labels are not named as the classes of the data and are taken in "
        "the order of its label numbers: %r stands for class %r.",
        name,
        own,
      )
      return
