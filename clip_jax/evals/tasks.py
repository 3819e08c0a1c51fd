"""Evaluations by name: what `clip-jax eval` and the training loop call."""

import collections
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from clip_jax import errors
from clip_jax import preprocess as preprocess_lib
from clip_jax.data import pipeline, sources
from clip_jax.evals import prompts, retrieval, zero_shot

TASKS: dict[str, Callable[..., dict[str, Any]]] = {
  "retrieval": retrieval.evaluate,
  "zero_shot": zero_shot.evaluate,
}

# What a task says of data, labels and templates before it reads a record.
_CHECKS: dict[str, Callable[..., Any]] = {
  "retrieval": retrieval.around_captions,
  "zero_shot": zero_shot.make_prompts,
}


def check_task(task: str) -> None:
  """Raises UserError unless `task` is one of `TASKS`."""
  if task not in TASKS:
    raise errors.unknown("task", task, TASKS)


def check(
  task: str, data: str, *, labels: str = "", templates: str = ""
) -> None:
  """Raises UserError where `evaluate` would, as far as no record tells."""
  check_task(task)
  _CHECKS[task](sources.open_source(data), **_read_words(labels, templates))


def _read_words(labels: str, templates: str) -> dict[str, Any]:
  return {
    "labels": prompts.read_labels(labels) if labels else None,
    "templates": prompts.read_templates(templates) if templates else None,
  }


def evaluate(
  task: str,
  data: str,
  *,
  embed_images: Callable,
  embed_texts: prompts.EmbedTexts,
  preprocess: preprocess_lib.Preprocess,
  labels: str = "",
  templates: str = "",
  batch_size: int = 256,
  threads: int = 4,
  progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
  """Returns the measures of one task on one data set.

  Args:
    task: one of `TASKS`.
    data: a DATA address.
    embed_images: uint8 (n, size, size, 3) to unit (n, embed).
    embed_texts: n texts to unit (n, embed).
    preprocess: how an image becomes an array.
    labels: comma-separated, or a file; empty takes the data's own.
    templates: one template, or a file; empty takes the data's own.
    batch_size: images embedded at once.
    threads: threads that read and decode.
    progress: called with the examples done and their total.

  Raises:
    UserError: task or data are unknown, or do not go together.
  """
  check_task(task)
  source = sources.open_source(data)
  bad: collections.Counter[str] = collections.Counter()
  with pipeline.eval_batches(
    source, batch_size=batch_size, preprocess=preprocess, threads=threads
  ) as batches:
    measured = TASKS[task](
      source,
      embed_images=embed_images,
      embed_texts=embed_texts,
      batches=watch(batches, bad, total=len(source), progress=progress),
      **_read_words(labels, templates),
    )
  return {"task": task, "data": data, **measured, "bad_records": dict(bad)}


def watch(
  batches: Iterable[dict[str, Any]],
  bad: collections.Counter[str],
  *,
  total: int,
  progress: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, Any]]:
  """Yields `batches`, counting their bad records by reason in `bad`.

  Args:
    batches: of `pipeline.eval_batches`.
    bad: a counter, changed in place.
    total: number of records, good and bad.
    progress: called with the records done and their total.

  Raises:
    UserError: in the end, where every record was bad.
  """
  done = 0
  for batch in batches:
    for problem in batch["problems"]:
      bad[problem.reason] += 1
    yield batch
    done += len(batch["image"]) + len(batch["problems"])
    if progress is not None:
      progress(done, total)
  if done and bad.total() == done:
    reasons = ", ".join(f"{n} {reason}" for reason, n in bad.most_common())
    raise errors.UserError(
      f"All {done} records are bad ({reasons}); `clip-jax data inspect` says "
      "what is wrong with which."
    )
