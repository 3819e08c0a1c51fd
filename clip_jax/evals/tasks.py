"""Evaluations by name: what `clip-jax eval` and the training loop call."""

import collections
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_jax import errors, names
from clip_jax.data import account, sources
from clip_jax.data import record as record_lib
from clip_jax.evals import (
  embedding_model,
  label_files,
  prompts,
  retrieval,
  zero_shot,
)
from clip_jax.evals import reading as reading_lib

TASKS: dict[str, Callable[..., dict[str, Any]]] = {
  "retrieval": retrieval.evaluate,
  "zero_shot": zero_shot.evaluate,
}

# Checks data, labels and templates of a task before a record is read.
_CHECKS: dict[str, Callable[..., Any]] = {
  "retrieval": retrieval.around_captions,
  "zero_shot": zero_shot.check,
}


def check_task(task: str) -> None:
  """Raises UserError unless `task` is one of `TASKS`."""
  if task not in TASKS:
    raise errors.unknown("task", task, TASKS)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One task on opened data, with the words of its labels and templates.

  Attributes:
    task: one of `TASKS`.
    data: the DATA address.
    source: what it opened to.
    labels: None takes the data's own.
    templates: None takes the data's own.
    options: further keyword arguments of the task.
  """

  task: str
  data: str
  source: sources.Source
  labels: prompts.Labels | None
  templates: Sequence[str] | None
  options: dict[str, Any] = dataclasses.field(default_factory=dict)

  def class_prompts(self) -> prompts.Prompts:
    """Returns the prompts of the data's classes, of zero-shot classification.

    Raises:
      UserError: labels and data do not go together.
    """
    return zero_shot.make_prompts(
      self.source, labels=self.labels, templates=self.templates
    )

  def measure(
    self,
    model: embedding_model.EmbeddingModel,
    *,
    reading: reading_lib.Reading = reading_lib.DEFAULT,
  ) -> dict[str, Any]:
    """Returns the measures of a model, as the function `evaluate` does.

    Args:
      model: to measure.
      reading: how the data are read.
    """
    bad: collections.Counter[str] = collections.Counter()
    with reading.watched(self.source, model.preprocess, bad) as batches:
      measured = TASKS[self.task](
        self.source,
        model=model,
        batches=batches,
        labels=self.labels,
        templates=self.templates,
        **self.options,
      )
    about = {"task": self.task, "data": self.data}
    return {**about, **measured, "bad_records": dict(bad)}


def open_evaluation(
  task: str,
  data: str,
  *,
  labels: str = "",
  templates: str = "",
  duplicates: str | None = None,
  subtract_prior: bool = False,
  open_source: Callable[[str], sources.Source] = sources.open_source,
) -> Evaluation:
  """Returns the evaluation of `task` on `data`; reads no record.

  Args:
    task: one of `TASKS`.
    data: a DATA address.
    labels: as `label_files.read_labels` reads them; empty takes the data's own.
    templates: one template, or a file; empty takes the data's own.
    duplicates: of retrieval: one of `names.RETRIEVAL_DUPLICATES`.
    subtract_prior: of zero_shot: see `likelihood.scores`.
    open_source: from an address to its source.

  Raises:
    UserError: task or data are unknown, or do not go together.
  """
  check_task(task)
  options: dict[str, Any] = {}
  if duplicates is not None:
    options["duplicates"] = duplicates
    if task != "retrieval":
      raise errors.UserError(
        f"duplicates={duplicates!r} is about captions of retrieval; {task} has "
        "none."
      )
    errors.check_known("duplicates", duplicates, names.RETRIEVAL_DUPLICATES)
  if subtract_prior:
    options["subtract_prior"] = True
    if task != "zero_shot":
      raise errors.UserError(
        f"A prior is subtracted from the scores of classes, by zero_shot; "
        f"{task} has none."
      )
  evaluation = Evaluation(
    task=task,
    data=data,
    source=open_source(data),
    labels=label_files.read_labels(labels) if labels else None,
    templates=label_files.read_templates(templates) if templates else None,
    options=options,
  )
  _CHECKS[task](
    evaluation.source, labels=evaluation.labels, templates=evaluation.templates
  )
  return evaluation


@dataclasses.dataclass(frozen=True)
class Classifier:
  """The classes of some data and their embeddings by a model.

  Attributes:
    source: the data.
    names: the names of the classes.
    embeddings: unit embeddings, (classes, embed).
    warnings: what was told of the data.
  """

  source: record_lib.Source
  names: tuple[str, ...]
  embeddings: np.ndarray
  warnings: list[str]


def open_classifier(
  data: str,
  embed_texts: prompts.EmbedTexts,
  *,
  labels: str = "",
  templates: str = "",
) -> Classifier:
  """Returns the zero-shot classifier for data.

  Args:
    data: a DATA address.
    embed_texts: returns unit embeddings of texts.
    labels: as `label_files.read_labels` reads them; empty takes the data's own.
    templates: one template, or a file; empty takes the data's own.

  Raises:
    UserError: the data cannot be opened, or labels and data do not go together.
  """
  opened = open_evaluation(
    "zero_shot", data, labels=labels, templates=templates
  )
  resolved = opened.class_prompts()
  warnings = account.tell(opened.source, data)
  embeddings = prompts.class_embeddings(resolved, embed_texts)
  return Classifier(opened.source, resolved.names, embeddings, warnings)


def evaluate(
  task: str,
  data: str,
  model: embedding_model.EmbeddingModel,
  *,
  labels: str = "",
  templates: str = "",
  duplicates: str | None = None,
  subtract_prior: bool = False,
  reading: reading_lib.Reading = reading_lib.DEFAULT,
) -> dict[str, Any]:
  """Returns the measures of one task on one data set.

  `warnings` among them holds what is to be said of the data (account.py);
  `seconds` are those of reading, embedding and measuring.

  Args:
    task: one of `TASKS`.
    data: a DATA address.
    model: to measure.
    labels: as `label_files.read_labels` reads them; empty takes the data's own.
    templates: one template, or a file; empty takes the data's own.
    duplicates: of retrieval: one of `names.RETRIEVAL_DUPLICATES`.
    subtract_prior: of zero_shot: see `likelihood.scores`.
    reading: how the data are read.

  Raises:
    UserError: task or data are unknown, or do not go together.
  """
  evaluation = open_evaluation(
    task,
    data,
    labels=labels,
    templates=templates,
    duplicates=duplicates,
    subtract_prior=subtract_prior,
  )
  return run(evaluation, model, reading=reading)


def run(
  evaluation: Evaluation,
  model: embedding_model.EmbeddingModel,
  *,
  reading: reading_lib.Reading = reading_lib.DEFAULT,
) -> dict[str, Any]:
  """Returns the result of `evaluate`, of an evaluation that is open."""
  warnings = account.tell(evaluation.source, evaluation.data)
  started = time.perf_counter()
  measured = evaluation.measure(model, reading=reading)
  seconds = time.perf_counter() - started
  read = len(evaluation.source) - sum(measured["bad_records"].values())
  timed = {"seconds": seconds, "images_per_second": read / seconds}
  return {**measured, **timed, "warnings": warnings}
