"""Zero-shot accuracy on corrupted images, beside that on the clean ones."""

import collections
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.evals import (
  corruptions,
  embedding_model,
  metrics,
  multi_label,
  tasks,
  zero_shot,
)
from clip_jax.evals import reading as reading_lib

TASK = "robustness"
RESAMPLES = 1000
_RESAMPLES_AT_ONCE = 50
_BOUNDS = (0.025, 0.975)  # Of an interval of 95 %.


def evaluate(
  data: str,
  model: embedding_model.EmbeddingModel,
  *,
  labels: str = "",
  templates: str = "",
  seed: int = 0,
  reading: reading_lib.Reading = reading_lib.DEFAULT,
) -> dict[str, Any]:
  """Returns the accuracy under each corruption at each severity.

  `clean` holds the measures of zero-shot, `corruptions` a list of {name,
  severity, top1, relative, …} and `corrupted_top1` the mean of their top1;
  `relative` is an accuracy over that on the clean images. Intervals are of
  95 %: `top1_interval_95` by Clopper and Pearson, the others by a bootstrap
  over the examples, in which all corruptions have the same examples.

  Args:
    data: a DATA address.
    model: to measure.
    labels: comma-separated, or a file; empty takes the data's own.
    templates: one template, or a file; empty takes the data's own.
    seed: of noise, of the direction of a shift and of the bootstrap.
    reading: how the data are read.

  Raises:
    UserError: labels and data do not go together, or all records are bad.
  """
  classifier = tasks.open_classifier(
    data, model.embed_texts, labels=labels, templates=templates
  )
  source, classes = classifier.source, classifier.embeddings
  kinds = [
    (name, severity)
    for name in corruptions.CORRUPTIONS
    for severity in corruptions.SEVERITIES
  ]
  total = len(source) * (1 + len(kinds))
  all_right, clean, bad = [], {}, collections.Counter()
  for number, kind in enumerate([None, *kinds]):
    changed = (
      source
      if kind is None
      else corruptions.Corrupted(
        source, *kind, seed=seed, limits=model.preprocess.limits
      )
    )
    measured, right = _measure(
      changed,
      model,
      classes,
      bad,
      reading.part(number * len(source), total),
    )
    clean = clean or measured
    all_right.append(right)
  # An image counts where it can be read in all forms.
  table = np.stack(all_right)  # (1 + kinds, records); -1 where it cannot.
  table = table[:, np.all(table >= 0, axis=0)].astype(bool)
  if not table.shape[1]:
    raise errors.UserError(
      f"No image of {data} can be read in all of its corrupted forms."
    )
  return {
    "task": TASK,
    "data": data,
    "top1": clean["top1"],
    "clean": clean,
    **summary(table, kinds, seed=seed),
    "examples": table.shape[1],
    "classes": len(classes),
    "seed": seed,
    "resamples": RESAMPLES,
    "bad_records": dict(bad),
    "warnings": classifier.warnings,
  }


def _measure(source, model, classes, bad, reading):
  """Returns zero-shot's measures, and of each record whether it is right.

  That is 1 or 0, and -1 for a record that is bad. `bad` counts the bad ones.
  """
  right = np.full(len(source), -1, np.int8)
  found = collections.Counter()

  def embedded(batches):
    for batch in batches:
      if multi_label.has_several(batch):
        raise errors.UserError(
          "The data have several labels an image; robustness is measured by "
          "the accuracy, which needs one."
        )
      embeds, labels = model.embed_images(batch["image"]), batch["label"]
      yield embeds, labels
      right[batch["record"]] = zero_shot.guess(embeds, classes) == labels

  with reading.watched(source, model.preprocess, found) as batches:
    measured = zero_shot.accuracy(embedded(batches), classes)
  bad |= found
  return measured, right


def summary(
  right: np.ndarray, kinds: list[tuple[str, int]], *, seed: int
) -> dict[str, Any]:
  """Returns accuracies, means and intervals of a table of right guesses.

  Args:
    right: bool (1 + kinds, examples); the first row is of the clean images.
    kinds: name and severity of each further row.
    seed: of the bootstrap.
  """
  accuracies = right.mean(axis=1)
  resampled = bootstrap(right, seed=seed)  # (resamples, 1 + kinds)
  clean, means = accuracies[0], resampled[:, 1:].mean(axis=1)
  entries = []
  for row, (name, severity) in enumerate(kinds, 1):
    hits = int(right[row].sum())
    entries.append(
      {
        "name": name,
        "severity": severity,
        "top1": float(accuracies[row]),
        "top1_interval_95": list(metrics.clopper_pearson(hits, right.shape[1])),
        "bootstrap_interval_95": _interval(resampled[:, row]),
        "relative": _over(accuracies[row], clean),
      }
    )
  corrupted = float(accuracies[1:].mean())
  return {
    "corruptions": entries,
    "mean_by_corruption": {
      name: float(np.mean([x["top1"] for x in entries if x["name"] == name]))
      for name in dict(kinds)
    },
    "corrupted_top1": corrupted,
    "corrupted_top1_interval_95": _interval(means),
    "relative": _over(corrupted, clean),
    "relative_interval_95": _interval(
      means[resampled[:, 0] > 0] / resampled[resampled[:, 0] > 0, 0]
    ),
  }


def _over(accuracy: float, clean: float) -> float | None:
  return float(accuracy / clean) if clean else None


def _interval(values: np.ndarray) -> list[float] | None:
  return np.quantile(values, _BOUNDS).tolist() if len(values) else None


def bootstrap(
  right: np.ndarray, *, seed: int, resamples: int = RESAMPLES
) -> np.ndarray:
  """Returns accuracies (resamples, rows) of examples drawn with replacement.

  Args:
    right: bool (rows, examples); the same examples are drawn for all rows.
    seed: of the draws.
    resamples: number of draws.
  """
  rng = np.random.default_rng(seed)
  examples = right.shape[1]
  values = right.T.astype(np.float32)
  parts = []
  for start in range(0, resamples, _RESAMPLES_AT_ONCE):
    some = min(_RESAMPLES_AT_ONCE, resamples - start)
    drawn = rng.integers(examples, size=(some, examples))
    times = np.stack([np.bincount(row, minlength=examples) for row in drawn])
    parts.append(times.astype(np.float32) @ values / examples)
  return np.concatenate(parts)
