"""Zero-shot classification of images that may be of several classes."""

from typing import Any

import numpy as np

from clip_jax import errors, terminal
from clip_jax.evals import metrics


def has_several(batch: dict[str, Any]) -> bool:
  """Whether the records of a batch of the data have `labels`."""
  return any(labels is not None for labels in batch.get("labels", ()))


def marks(batch: dict[str, Any], classes: int) -> np.ndarray:
  """Returns the classes of each image, int8 (n, classes).

  1 stands for a class that it is of, -1 for one that is ignored, 0 for others.

  Args:
    batch: of `pipeline.eval_batches`.
    classes: number of classes.

  Raises:
    UserError: a record has no labels, or one that is no class.
  """
  found = np.zeros((len(batch["labels"]), classes), np.int8)
  pairs = zip(batch["labels"], batch["ignored"], strict=True)
  for row, (labels, ignored) in zip(found, pairs, strict=True):
    if labels is None:
      raise mixed()
    if (largest := max((*labels, *ignored), default=0)) >= classes:
      raise unnamed(largest, classes)
    row[list(ignored)] = -1
    row[list(labels)] = 1
  return found


def unnamed(label: int, classes: int) -> errors.UserError:
  """Returns the error for a label beyond the classes that are named."""
  return errors.UserError(
    f"The data has label {label}, but only "
    f"{terminal.counted(classes, 'label is', 'labels are')} named; name one "
    "for every class of the data, in its order."
  )


def mixed() -> errors.UserError:
  """Returns the error for data of both kinds."""
  return errors.UserError(
    "Some examples of the data have one label and others a list of labels; "
    "evaluate them apart."
  )


def precision(
  embeds: np.ndarray, marked: np.ndarray, classes: np.ndarray
) -> dict[str, Any]:
  """Returns the mean average precisions of images.

  An image's score for a class is their cosine (paper, VOC 2007).

  Args:
    embeds: their unit embeddings, (n, embed).
    marked: which classes they are of, as `marks` has it, (n, classes).
    classes: the classes' unit embeddings, (classes, embed).

  Raises:
    UserError: no image is of any class.
  """
  scores = np.asarray(embeds, np.float32) @ np.asarray(classes, np.float32).T
  targets, ignored = marked == 1, marked == -1
  return {
    "map_11_point": metrics.map_11_point(scores, targets, ignored),
    "map_all_point": metrics.map_all_point(scores, targets, ignored),
    "examples": len(embeds),
    "classes": len(classes),
    "labels": int(targets.sum()),
    "ignored": int(ignored.sum()),
  }
