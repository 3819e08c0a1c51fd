"""A search for the templates that tell the classes of some data apart best.

The templates are chosen on one split and measured on another: an accuracy on
the examples that they were chosen by would say too much.
"""

import collections
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.data import account
from clip_jax.data.sources import overlap, splits
from clip_jax.evals import class_names, embedding_model, tasks, zero_shot
from clip_jax.evals import prompts as prompts_lib
from clip_jax.evals import reading as reading_lib

_LOGGER = logging.getLogger(__name__)

_SCORES_PER_BLOCK = 1 << 24  # 64 MiB of float32.
_BOTH = (
  "would be both to choose templates by and to measure them on; give other "
  "data to choose by."
)


@dataclasses.dataclass(frozen=True)
class Choice:
  """The templates that a search took.

  Attributes:
    chosen: their numbers, in the order in which they were taken.
    top1: accuracy with all of them together.
    single: accuracy of each template by itself, (templates,).
  """

  chosen: tuple[int, ...]
  top1: float
  single: tuple[float, ...]


def choose(embeds: np.ndarray, labels: np.ndarray, sums: np.ndarray) -> Choice:
  """Returns the subset of templates that a greedy search finds.

  It begins with the best one and adds, as long as one makes the accuracy
  larger, the one that makes it largest; of equals the first.

  Args:
    embeds: unit embeddings of images, (n, embed).
    labels: the class of each, (n,).
    sums: of each template, the sum of each class's unit embeddings, (templates,
      classes, embed).
  """
  single = tuple(_top1(embeds, labels, one) for one in sums)
  best = int(np.argmax(single))
  chosen, top1, total = [best], single[best], sums[best]
  while len(chosen) < len(sums):
    rest = [k for k in range(len(sums)) if k not in chosen]
    found = [_top1(embeds, labels, total + sums[k]) for k in rest]
    best = int(np.argmax(found))
    if found[best] <= top1:
      break
    chosen.append(rest[best])
    top1, total = found[best], total + sums[rest[best]]
    _LOGGER.info("%d templates: top-1 %.2f %%", len(chosen), 100 * top1)
  return Choice(tuple(chosen), top1, single)


def _top1(embeds: np.ndarray, labels: np.ndarray, sums: np.ndarray) -> float:
  classes = prompts_lib.normalize(sums, what="class").astype(np.float32)
  step = max(1, _SCORES_PER_BLOCK // len(classes))
  right = 0
  for start in range(0, len(labels), step):
    rows = slice(start, start + step)
    guesses = (embeds[rows] @ classes.T).argmax(axis=1)
    right += int(np.sum(guesses == labels[rows]))
  return right / len(labels)


def evaluate(
  data: str,
  model: embedding_model.EmbeddingModel,
  *,
  templates: str,
  train_data: str = "",
  labels: str = "",
  reading: reading_lib.Reading = reading_lib.DEFAULT,
) -> dict[str, Any]:
  """Returns zero-shot measures with the templates that a search chooses.

  `search` among them has `train_data`, `train_examples`, `bad_records` of these
  data, `train_top1` with the templates in `chosen`, and in `templates` each
  with its own `train_top1`.

  Args:
    data: a DATA address without its split; with `train_data` the test data.
    model: to measure.
    templates: to choose from: a file, or one template.
    train_data: a DATA address; empty takes the other split of `data`.
    labels: as in `tasks.evaluate`.
    reading: how the data are read.

  Raises:
    UserError: data, labels and templates do not go together.
  """
  if not train_data:
    train_data, data = splits.train_and_test(data)
  if train_data == data:
    raise errors.UserError(f"{data} {_BOTH}")
  train, test = (
    tasks.open_evaluation(
      "zero_shot", address, labels=labels, templates=templates
    )
    for address in (train_data, data)
  )
  _check(train, test)
  account.tell(train.source, train_data)
  bad: collections.Counter[str] = collections.Counter()
  examples = _embed(train, model, bad, reading)
  names = test.templates or ()
  found = choose(examples.embeds, examples.labels, _sums(train, model))
  chosen = [names[k] for k in found.chosen]
  measured = tasks.run(
    dataclasses.replace(test, templates=chosen), model, reading=reading
  )
  search = {
    "train_data": train_data,
    "train_examples": len(examples.labels),
    "bad_records": dict(bad),
    "train_top1": found.top1,
    "chosen": chosen,
    "templates": [
      {"template": name, "train_top1": top1}
      for name, top1 in zip(names, found.single, strict=True)
    ],
  }
  return {**measured, "search": search}


def _embed(
  train: tasks.Evaluation,
  model: embedding_model.EmbeddingModel,
  bad: collections.Counter[str],
  reading: reading_lib.Reading,
) -> zero_shot.Examples:
  """Returns the examples to choose templates by; counts the bad records."""
  with reading.watched(train.source, model.preprocess, bad) as batches:
    examples = zero_shot.embed(
      model,
      batches,
      classes=len(train.source.class_names or train.labels or ()),
    )
  if examples.several:
    raise errors.UserError(
      f"{train.data} has several labels an image; templates are chosen by the "
      "accuracy, which needs one."
    )
  return examples


def _sums(
  train: tasks.Evaluation, model: embedding_model.EmbeddingModel
) -> np.ndarray:
  """Returns `sums` of `choose`, the classes in the order of the data."""
  parts: Sequence[np.ndarray] = [
    prompts_lib.class_sums(
      zero_shot.make_prompts(
        train.source, labels=train.labels, templates=[template]
      ),
      model.embed_texts,
    )
    for template in train.templates or ()
  ]
  return np.stack(parts)


def _check(train: tasks.Evaluation, test: tasks.Evaluation) -> None:
  labels = train.labels
  if labels is not None and not prompts_lib.takes_templates(labels):
    raise errors.UserError(
      "The labels are full prompts, which no template changes; a search for "
      "templates needs the names of the classes."
    )
  classes = [each.source.class_names or () for each in (train, test)]
  addresses = (train.data, test.data)
  splits.check_same_classes(classes, addresses)
  by_number = (
    labels is not None and class_names.in_order(labels, classes[1]) is None
  )
  if by_number and tuple(classes[0]) != tuple(classes[1]):
    raise errors.UserError(
      f"{addresses[0]} and {addresses[1]} number their classes differently, so "
      "that labels in the order of the numbers mean other classes in each; "
      "call the labels as the classes are called."
    )
  overlap.check_apart((train.source, test.source), addresses, hint=_BOTH)
