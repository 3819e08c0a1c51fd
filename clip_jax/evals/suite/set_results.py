"""What the file of a data set's result holds."""

import dataclasses
import logging
from typing import Any

from clip_jax.data import account
from clip_jax.evals import metrics, retrieval
from clip_jax.evals.suite import classes as classes_lib
from clip_jax.evals.suite import data_sets, result_files, set_sources
from clip_jax.evals.suite import prepared as prepared_lib
from clip_jax.evals.suite import subject as subject_lib

_LOGGER = logging.getLogger(__name__)


def about(entry: data_sets.Entry, root: str) -> dict[str, Any]:
  """Returns what every result of a set says, measured or not."""
  return {
    "format": result_files.FORMAT,
    "set": entry.name,
    "title": entry.title,
    "group": entry.group,
    "task": entry.task,
    "metric": entry.metric,
    "expected_examples": entry.examples,
    "get": entry.how_to_get(root),
  }


def of_measures(
  entry: data_sets.Entry,
  prepared: prepared_lib.PreparedSet,
  measured: dict[str, Any],
  subject: subject_lib.Subject,
) -> dict[str, Any]:
  """Returns the content of a measured set's file, but its name and times."""
  opened, evaluation = prepared.opened, prepared.evaluation
  bad = measured.pop("bad_records")
  kept = account.of(opened.source)
  examples = measured["images" if entry.task == "retrieval" else "examples"]
  own = set_sources.remarks(entry, opened, examples=examples, bad=bad)
  warnings = [*own, *account.tell(opened.source, measured["data"])]
  for sentence in own:
    _LOGGER.warning("%s", sentence)
  # Bad images do not make it another set than the published one.
  count = examples if opened.count is None else opened.count
  values = _values(entry, measured, examples)
  for metric, value in values.items():
    figure = data_sets.figure(
      entry, metric, architecture=subject.architecture, examples=count
    )
    value["published"] = None if figure is None else dataclasses.asdict(figure)
  status = result_files.MEASURED if values else result_files.NO_METRIC
  if values and (kept.damages or kept.lost or classes_lib.only_damage(bad)):
    status = result_files.DAMAGED
  found = {
    "status": status,
    "data": opened.found.address,
    "layout": opened.found.layout,
    "values": values,
    "examples": examples,
    "classes": entry.classes,
    "bad_records": bad,
    "warnings": warnings,
    "measures": {
      name: value
      for name, value in measured.items()
      if name not in ("task", "data", "protocol")
    },
    "protocol": {
      "metric": entry.metric,
      "templates": len(evaluation.templates or ()),
      "test_images": opened.count,
      "classes_hash": result_files.digest(
        list(opened.source.class_names or ())
      ),
      "note": entry.note,
      "text": measured.get("protocol", ""),
    },
    "prompts_hash": prepared.prompts_hash,
    "data_hash": opened.source.fingerprint,
    "published": dict(entry.published),
    "model": {
      "path": subject.path,
      "fingerprint": subject.fingerprint,
      "step": subject.step,
      "architecture": subject.architecture,
    },
  }
  if status == result_files.NO_METRIC:
    found["problem"] = (
      f"The metric {entry.metric} is not available for these data, which give "
      f"{', '.join(sorted(set(measured) & set(data_sets.METRICS.values())))}."
    )
  return found


def _values(
  entry: data_sets.Entry, measured: dict[str, Any], examples: int
) -> dict[str, dict[str, Any]]:
  """Returns the metrics of a set with intervals.

  Shares of examples have a Clopper-Pearson interval; other metrics, and means
  over splits, are no shares, and have none.
  """
  values: dict[str, dict[str, Any]] = {}
  if entry.task == "retrieval":
    counts = (measured["texts"], measured["images"])
    for way, count in zip(data_sets.WAYS, counts, strict=True):
      for k in retrieval.CUTOFFS:
        share = measured[way][f"r@{k}"]
        values[f"{way}_r@{k}"] = _share(share, count)
  elif (key := data_sets.METRICS[entry.metric]) in measured:
    value = measured[key]
    values[entry.metric] = (
      _share(value, examples)
      if entry.metric == "accuracy" and "folds" not in measured
      else {"value": value, "interval_95": None}
    )
  return values


def _share(value: float, count: int) -> dict[str, Any]:
  interval = metrics.clopper_pearson(round(value * count), count)
  return {"value": value, "interval_95": list(interval)}
