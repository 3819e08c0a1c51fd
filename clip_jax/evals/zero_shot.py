"""Zero-shot classification: an image goes to the class of the nearest text."""

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from clip_jax import errors, terminal
from clip_jax.evals import (
  calibration,
  class_names,
  embedding_model,
  likelihood,
  metrics,
  multi_label,
)
from clip_jax.evals import confusions as confusions_lib
from clip_jax.evals import prompts as prompts_lib

_LOGGER = logging.getLogger(__name__)

_SCORES_PER_BLOCK = 1 << 24  # 64 MiB of float32.
_SHOWN = 3  # Pairs of a label and a class.
_LAST = np.iinfo(np.int64).max  # Behind any number of classes.


class Accuracy:
  """The places of the true classes, gathered batch by batch."""

  def __init__(self, classes: int):
    self._classes = classes
    self._ranks = [np.zeros(0, np.int64)]
    self._labels = [np.zeros(0, np.int64)]

  def update(
    self,
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    absent: np.ndarray | None = None,
  ) -> None:
    """Adds a batch of scores.

    Args:
      scores: (n, classes).
      labels: the true class of each, (n,).
      absent: classes that are never among the nearest, as their scores say
        nothing, (n, classes); None where there are none.
    """
    ranks = metrics.ranks(scores, labels)
    if absent is not None:
      ranks[np.take_along_axis(absent, labels[:, None], axis=1)[:, 0]] = _LAST
    self._ranks.append(ranks)
    self._labels.append(labels)

  def result(self) -> dict[str, Any]:
    """Returns the fractions; mean_per_class is over the classes present."""
    rank, labels = map(np.concatenate, (self._ranks, self._labels))
    examples = len(labels)
    if not examples:
      raise _no_example()
    found = {"top1": int(np.sum(rank < 1)), "top5": int(np.sum(rank < 5))}
    intervals = {
      name: list(metrics.clopper_pearson(right, examples))
      for name, right in found.items()
    }
    return {
      **{name: right / examples for name, right in found.items()},
      "mean_per_class": metrics.mean_per_class(rank < 1, labels, self._classes),
      "mean_top1_top5": metrics.mean_top1_top5(rank),
      "examples": examples,
      "classes": self._classes,
      "top1_interval_95": intervals["top1"],
      "interval_95": intervals,
    }


def accuracy(
  batches: Iterable[tuple[np.ndarray, np.ndarray]],
  classes: np.ndarray,
  *,
  logit_scale: float | None = None,
  names: Sequence[str] | None = None,
) -> dict[str, Any]:
  """Returns the measures of batches of (unit image embeddings, labels).

  Of two classes `roc_auc` is one of them, where the data have examples of both;
  a larger score speaks for the second class.

  Args:
    batches: pairs of (n, embed) and (n,).
    classes: the classes' unit embeddings, (classes, embed).
    logit_scale: of the model; adds `calibration` (calibration.py).
    names: of the classes; adds `confusions` and `per_class` (confusions.py).

  Raises:
    UserError: a label is missing (-1) or no class, or there is no example.
  """
  classes = np.asarray(classes, np.float32)
  kept: list[tuple[np.ndarray, np.ndarray]] = []
  for embeds, labels in batches:
    labels = np.asarray(labels)
    _check_labels(labels, len(classes))
    kept.append((_units(embeds), labels))
  if not sum(len(labels) for _, labels in kept):
    raise _no_example()
  embeds, labels = map(np.concatenate, zip(*kept, strict=True))
  counts = Accuracy(len(classes))
  confusions = confusions_lib.Confusions(names or ())
  step = max(1, _SCORES_PER_BLOCK // len(classes))
  for start in range(0, len(labels), step):
    rows = slice(start, start + step)
    scores = embeds[rows] @ classes.T
    counts.update(scores, labels[rows])
    if names is not None:
      confusions.update(scores, labels[rows])
  result = counts.result()
  if names is not None:
    result["confusions"] = confusions.result()
    result["per_class"] = confusions.per_class()
  if len(classes) == 2 and 0 < labels.sum() < len(labels):
    margins = np.diff((embeds @ classes.T).astype(np.float64), axis=1)
    result["roc_auc"] = metrics.roc_auc(margins[:, 0], labels == 1)
  if logit_scale is not None:
    result["calibration"] = calibration.measure(
      embeds, labels, classes, logit_scale=logit_scale
    )
  return result


def guess(embeds: np.ndarray, classes: np.ndarray) -> np.ndarray:
  """Returns the number of the most similar class of each image, (n,).

  Args:
    embeds: embeddings of images, (n, embed).
    classes: the classes' unit embeddings, (classes, embed).
  """
  return (_units(embeds) @ np.asarray(classes, np.float32).T).argmax(axis=1)


def _units(embeds: np.ndarray) -> np.ndarray:
  return prompts_lib.normalize(np.asarray(embeds, np.float32), what="image")


def of_scores(
  scored: Iterable[tuple[np.ndarray, np.ndarray]], classes: int
) -> dict[str, Any]:
  """Returns the measures of batches of (scores, labels).

  Args:
    scored: pairs of (n, classes) and (n,); one batch is held at a time.
    classes: how many there are.

  Raises:
    UserError: a label is missing (-1) or no class, or there is no example.
  """
  counts = Accuracy(classes)
  for scores, labels in scored:
    labels = np.asarray(labels)
    _check_labels(labels, classes)
    counts.update(scores, labels)
  return counts.result()


def _no_example() -> errors.UserError:
  return errors.UserError("There is no example to classify.")


def _check_labels(labels: np.ndarray, classes: int) -> None:
  if np.any(labels < 0):
    raise errors.UserError(
      "The data has examples without a label; zero-shot classification needs "
      "labelled data such as builtin:digits/test or a folder of class folders."
    )
  if np.any(labels >= classes):
    raise multi_label.unnamed(labels.max(), classes)


@dataclasses.dataclass(frozen=True)
class Examples:
  """Embedded images with their classes.

  Attributes:
    embeds: unit embeddings, float32 (n, embed).
    labels: the class of each, (n,); or which classes it is of, as
      `multi_label.marks` has them, (n, classes).
  """

  embeds: np.ndarray
  labels: np.ndarray

  @property
  def several(self) -> bool:
    """Whether an image may be of any number of classes."""
    return self.labels.ndim == 2


def embed(
  model: embedding_model.EmbeddingModel,
  batches: Iterable[dict[str, Any]],
  *,
  classes: int,
) -> Examples:
  """Returns the embedded images of `batches`, whose labels are checked.

  Args:
    model: that embeds them.
    batches: the data's images and labels.
    classes: number of classes.

  Raises:
    UserError: a label is missing or no class, some records have one label and
      others a list, or there is no example.
  """
  embeds, labels = [], []
  for batch in batches:
    if not len(batch["image"]):
      continue
    if multi_label.has_several(batch):
      labels.append(multi_label.marks(batch, classes))
    else:
      labels.append(np.asarray(batch["label"]))
      _check_labels(labels[-1], classes)
    if labels[-1].ndim != labels[0].ndim:
      raise multi_label.mixed()
    embeds.append(_units(model.embed_images(batch["image"])))
  if not embeds:
    raise _no_example()
  return Examples(np.concatenate(embeds), np.concatenate(labels))


def evaluate(
  source: Any,
  *,
  model: embedding_model.EmbeddingModel,
  batches: Iterable[dict[str, Any]],
  labels: prompts_lib.Labels | None = None,
  templates: Sequence[str] | None = None,
  subtract_prior: bool = False,
) -> dict[str, Any]:
  """Returns the measures of `source`, with their counts.

  Data whose records have `labels` give mean average precisions
  (multi_label.py), others accuracies.
  `prompts_hash` is the digest of all classes' names and prompts, `protocol` a
  sentence: both belong to the numbers, which depend on them.

  Args:
    source: the data; `class_names` and `templates` are its defaults.
    model: to measure.
    batches: the data's images and labels.
    labels: as in `make_prompts`.
    templates: None takes the data's own, else "a photo of a {}.".
    subtract_prior: of a model that predicts captions, see `likelihood.scores`.

  Raises:
    UserError: labels and data do not go together, or a prior is to be
      subtracted from cosines.
  """
  resolved = make_prompts(source, labels=labels, templates=templates)
  score_texts = embedding_model.scorer(model)
  if subtract_prior and score_texts is None:
    raise errors.UserError(
      "A prior is subtracted from the scores of models that predict captions "
      "(objective.kind='bow' or 'lm'); this one compares embeddings. Leave "
      "--subtract-prior out."
    )
  if score_texts is not None:
    scored = likelihood.scores(
      batches, score_texts, resolved, subtract_prior=subtract_prior
    )
    less = ", less its mean over all images" if subtract_prior else ""
    return {
      **of_scores(scored, len(resolved.names)),
      "prompts_hash": resolved.digest,
      "protocol": f"zero-shot: classes by the likelihood of their prompts{less}"
      ", as the model predicts captions; ties go by class number",
    }
  classes = model.embed_classes(resolved)
  read = embed(model, batches, classes=len(classes))
  if read.several:
    measured = multi_label.precision(read.embeds, read.labels, classes)
  else:
    measured = accuracy(
      [(read.embeds, read.labels)],
      classes,
      logit_scale=model.logit_scale,
      names=resolved.names,
    )
  count = sum(map(len, resolved.texts))
  return {
    **measured,
    "prompts_hash": resolved.digest,
    "protocol": f"zero-shot: {terminal.counted(count, 'prompt')} of "
    f"{terminal.counted(len(resolved.names), 'class', 'classes')}, those of a "
    "class averaged as unit embeddings; scores are cosines, ties go by class "
    "number",
  }


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
  named = source.class_names
  if labels is None:
    labels = named
  if labels is None:
    raise errors.UserError(
      "The data names no classes. Captions are measured by --task retrieval, "
      "or evals.NAME.task=retrieval in a config; where the data have label "
      "numbers, give --labels in their order, or without captions "
      "?classes=FILE in the address, a file with a name a line."
    )
  own = False
  if named is not None:
    by_name = class_names.in_order(labels, named)
    if by_name is None and len(named) != len(labels):
      raise errors.UserError(
        f"{terminal.counted(len(labels), 'label is', 'labels are')} given, but "
        f"the data has {terminal.counted(len(named), 'class', 'classes')} ("
        f"{', '.join(named[:5])}, …); name one for each, in this order, or as "
        "they are called here, in any order."
      )
    labels = labels if by_name is None else by_name
    own = prompts_lib.label_names(labels) == list(named)
  if not prompts_lib.takes_templates(labels):
    templates = None
  elif templates is None:
    templates = source.templates
  return prompts_lib.resolve(labels, templates, may_repeat=own)


def check(
  source: Any,
  *,
  labels: prompts_lib.Labels | None = None,
  templates: Sequence[str] | None = None,
) -> None:
  """Raises what `make_prompts` raises; warns of what may be a mistake.

  Those are labels that go by position, names of several classes, classes that
  are called by WordNet ids, and templates beside full prompts.
  """
  prompts = make_prompts(source, labels=labels, templates=templates)
  if alike := prompts_lib.look_alikes(prompts):
    _LOGGER.warning(
      "There is more than one class of the name %s, but for capitals and "
      "spaces, which most models cannot tell apart: their images count as "
      "right for the first of them only. Give all classes names that differ "
      "with --labels.",
      " and ".join(map(repr, alike[:5])),
    )
  is_full = labels is not None and not prompts_lib.takes_templates(labels)
  if is_full and templates is not None:
    _LOGGER.warning(
      "The labels are full prompts, which the templates do not change."
    )
  named = source.class_names
  if named is None:
    return
  if labels is None:
    if names := class_names.of_wordnet(named):
      _LOGGER.warning(
        "The classes are called by WordNet ids, which a model reads as text; "
        "in ImageNet %r is %r. Names for them are given by --labels FILE, such "
        "as Keras' imagenet_class_index.json.",
        *(named[0], names[named[0]][0]),
      )
  elif class_names.in_order(labels, named) is None:
    pairs = list(zip(prompts.names, named, strict=True))
    _LOGGER.warning(
      "The labels are not named as the classes of the data and are taken in "
      "the order of its label numbers: %s%s.",
      ", ".join(
        f"{name!r} stands for class {own!r}" for name, own in pairs[:_SHOWN]
      ),
      ", …" if len(pairs) > _SHOWN else "",
    )
