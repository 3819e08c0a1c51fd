"""Zero-shot classification: an image goes to the class of the nearest text."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.evals import embedding_model, metrics
from clip_jax.evals import prompts as prompts_lib


class Accuracy:
  """The places of the true classes, gathered batch by batch."""

  def __init__(self, classes: int):
    self._classes = classes
    self._ranks = [np.zeros(0, np.int64)]
    self._labels = [np.zeros(0, np.int64)]

  def update(self, scores: np.ndarray, labels: np.ndarray) -> None:
    """Adds a batch of `scores` (n, classes) with their true `labels` (n,)."""
    self._ranks.append(metrics.ranks(scores, labels))
    self._labels.append(labels)

  def result(self) -> dict[str, Any]:
    """Returns the fractions; mean_per_class is over the classes present."""
    rank, labels = map(np.concatenate, (self._ranks, self._labels))
    examples = len(labels)
    if not examples:
      raise errors.UserError("There is no example to classify.")
    right = int(np.sum(rank < 1))
    return {
      "top1": right / examples,
      "top5": int(np.sum(rank < 5)) / examples,
      "mean_per_class": metrics.mean_per_class(rank < 1, labels, self._classes),
      "mean_top1_top5": metrics.mean_top1_top5(rank),
      "examples": examples,
      "classes": self._classes,
      "top1_interval_95": list(metrics.clopper_pearson(right, examples)),
    }


def accuracy(
  batches: Iterable[tuple[np.ndarray, np.ndarray]], classes: np.ndarray
) -> dict[str, Any]:
  """Returns the measures of batches of (unit image embeddings, labels).

  Args:
    batches: pairs of (n, embed) and (n,); one batch is held at a time.
    classes: the classes' unit embeddings, (classes, embed).

  Raises:
    UserError: a label is missing (-1) or no class, or there is no example.
  """
  counts = Accuracy(len(classes))
  classes = np.asarray(classes, np.float32)
  for embeds, labels in batches:
    labels = np.asarray(labels)
    _check_labels(labels, len(classes))
    embeds = prompts_lib.normalize(np.asarray(embeds, np.float32), what="image")
    counts.update(embeds @ classes.T, labels)
  return counts.result()


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
