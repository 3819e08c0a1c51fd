"""Measures a model on the data sets of the suite, one after the other."""

import collections
import dataclasses
import functools
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from clip_jax import errors, hosts
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.data import account
from clip_jax.evals import (
  embedding_model,
  folds,
  metrics,
  reading,
  retrieval,
  tasks,
)
from clip_jax.evals import prompts as prompts_lib
from clip_jax.evals.suite import (
  agreement,
  data_sets,
  layouts,
  result_files,
  set_sources,
)
from clip_jax.evals.suite import classes as classes_lib

_LOGGER = logging.getLogger(__name__)

# Around every caption (paper, section 3.3.1: "a photo of").
RETRIEVAL_TEMPLATE = "a photo of {}"
# Published figures count another image's equal caption as a miss.
_DUPLICATES = "misses"


@dataclasses.dataclass(frozen=True)
class Subject:
  """The model that is measured.

  Attributes:
    model: embeds images and texts.
    fingerprint: the digest of all that its embeddings depend on.
    path: where it comes from.
    step: number of updates it was trained for, if anything says it.
    architecture: which of OpenAI's models it is built like; empty for none.
    cuts: counts the texts that `model` has cut.
  """

  model: embedding_model.EmbeddingModel
  fingerprint: str
  path: str
  step: int | None = None
  architecture: str = ""
  cuts: tokenizer_lib.Cuts = dataclasses.field(
    default_factory=tokenizer_lib.Cuts
  )


@dataclasses.dataclass(frozen=True)
class _Prepared:
  """A data set that is there, opened for its evaluation.

  Attributes:
    opened: the data.
    evaluation: that the protocol wants.
    key: the digest of all that its measures depend on.
  """

  opened: set_sources.Opened
  evaluation: tasks.Evaluation
  key: str

  @property
  def in_words(self) -> str:
    """The DATA address of its test images, and their number."""
    count = len(self.opened.source)
    return f"{self.opened.found.address} with {count:,} records"


def run(
  entries: Sequence[data_sets.Entry],
  root: str,
  subject: Subject,
  *,
  out: pathlib.Path,
  how: reading.Reading = reading.DEFAULT,
  max_pixels: int | None = None,
  progress: Callable[[str, int, int], None] | None = None,
) -> Iterator[dict[str, Any]]:
  """Yields the result of each data set; writes those that are there to `out`.

  `status` of a result says how it went: "measured"; "damaged", with the measure
  of what could be read, if anything could; "wrong", where it is not what the
  table says, or cannot be opened; "no_metric"; "missing". A set that `out`
  holds already, with all that it depends on unchanged, is not measured again.
  Several processes measure each set together (agreement.py); the first one
  reads and writes `out`.

  Args:
    entries: of `data_sets.choose`.
    root: the directory of the data sets.
    subject: the model.
    out: the directory of the results.
    how: how the data are read; its own progress is not told.
    max_pixels: of the largest image that is read.
    progress: called with the set's name, records done and their total.

  Raises:
    UserError: `root` is no directory, `out` cannot be written to or holds
      results of another model, the model gives no numbers, or the processes
      have different models.
  """
  place = layouts.check_root(root)
  hosts.check_same({"model": subject.fingerprint})
  agreement.on_first(
    lambda: result_files.check_out(
      out,
      [entry.name for entry in entries],
      model=subject.path,
      fingerprint=subject.fingerprint,
    )
  )
  for entry in entries:
    about = _about(entry, root)
    try:
      prepared = agreement.prepare(
        functools.partial(_prepare, entry, place, subject, max_pixels)
      )
    except errors.UserError as error:
      yield result_files.not_measured(about, result_files.WRONG, error, out)
      continue
    if prepared is None:
      yield {**about, "status": result_files.MISSING}
      continue
    files_hash = functools.cache(prepared.opened.found.files_hash)
    kept = agreement.read_kept(
      out, entry.name, key=prepared.key, files_hash=files_hash
    )
    if kept is not None:
      yield {**kept, "kept": True}
      continue
    started, texts_cut = time.perf_counter(), subject.cuts.cut
    try:
      measured = _measure(
        prepared,
        subject.model,
        dataclasses.replace(how, progress=_named(progress, entry.name)),
      )
    except errors.UserError as error:
      _check_finite(subject)
      found = prepared.opened.found
      about |= {"data": found.address, "layout": found.layout}
      yield result_files.not_measured(about, result_files.DAMAGED, error, out)
      continue
    seconds = time.perf_counter() - started
    sources = prepared.opened.parts or [prepared.opened.source]
    read = sum(map(len, sources)) - sum(measured["bad_records"].values())
    result = {
      **about,
      **_result(entry, prepared, measured, subject),
      "texts_cut": subject.cuts.cut - texts_cut,
      "seconds": seconds,
      "images_per_second": read / seconds,
      "key": prepared.key,
    }
    agreement.write(out, result, files_hash=files_hash)
    yield {**result, "kept": False}


def _prepare(
  entry: data_sets.Entry,
  place: pathlib.Path,
  subject: Subject,
  max_pixels: int | None,
) -> _Prepared | None:
  """Opens a set on this process; returns None where it is not there.

  Raises:
    UserError: it is not what the table says.
  """
  found = layouts.find(entry, place)
  if found is None:
    return None
  opened = set_sources.open_found(entry, found)
  evaluation = _evaluation(entry, opened)
  key = _key(entry, opened, evaluation, subject, max_pixels)
  return _Prepared(opened, evaluation, key)


def _measure(
  prepared: _Prepared,
  model: embedding_model.EmbeddingModel,
  how: reading.Reading,
) -> dict[str, Any]:
  """Returns the measures of a set, of several splits their mean."""
  parts = prepared.opened.parts
  if not parts:
    return prepared.evaluation.measure(model, reading=how)
  total, done, found = sum(map(len, parts)), 0, []
  bad: collections.Counter[str] = collections.Counter()
  for part in parts:
    of_part = dataclasses.replace(prepared.evaluation, source=part)
    found.append(of_part.measure(model, reading=how.part(done, total)))
    bad.update(found[-1].pop("bad_records"))
    done += len(part)
  first = found[0]
  return {
    "task": first["task"],
    "data": first["data"],
    **folds.mean(found),
    "examples": sum(each["examples"] for each in found),
    "classes": first["classes"],
    "folds": found,
    "prompts_hash": first["prompts_hash"],
    "protocol": f"mean over {len(found)} published splits; {first['protocol']}",
    "bad_records": dict(bad),
  }


def _about(entry: data_sets.Entry, root: str) -> dict[str, Any]:
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


def _check_finite(subject: Subject) -> None:
  """Raises UserError where it is the model that no set can be measured with."""
  model = subject.model
  if embedding_model.scorer(model) is not None:
    return
  size = model.preprocess.image_size
  for name, embeddings in (
    ("images", model.embed_images(np.zeros((1, size, size, 3), np.uint8))),
    ("texts", model.embed_texts(["a photo"])),
  ):
    if not np.all(np.isfinite(embeddings)):
      raise errors.UserError(
        f"The embeddings that {subject.path} gives of {name} are not finite, "
        "so nothing can be measured with it. A training that has diverged, or "
        "weights outside the range of their type, are like that."
      )


def _named(
  progress: Callable[[str, int, int], None] | None, name: str
) -> Callable[[int, int], None] | None:
  if progress is None:
    return None
  return lambda done, total: progress(name, done, total)


def _evaluation(
  entry: data_sets.Entry, opened: set_sources.Opened
) -> tasks.Evaluation:
  """Returns the evaluation that the protocol of `entry` wants."""
  labels, templates, options = None, (RETRIEVAL_TEMPLATE,), {}
  if entry.task == "retrieval":
    options["duplicates"] = _DUPLICATES
  else:
    classes = data_sets.classes(entry)
    labels = [list(several) for several in classes.synonyms]
    templates = classes.templates
  return tasks.Evaluation(
    task=entry.task,
    data=opened.found.address,
    source=opened.source,
    labels=labels,
    templates=templates,
    options=options,
  )


def _prompts_hash(evaluation: tasks.Evaluation) -> str:
  if evaluation.labels is None:
    return result_files.digest(list(evaluation.templates or ()))
  return prompts_lib.resolve(
    evaluation.labels, evaluation.templates, may_repeat=True
  ).digest


def _key(
  entry: data_sets.Entry,
  opened: set_sources.Opened,
  evaluation: tasks.Evaluation,
  subject: Subject,
  max_pixels: int | None,
) -> str:
  return result_files.digest(
    {
      "format": result_files.FORMAT,
      "model": subject.fingerprint,
      "data": opened.source.fingerprint,
      **(
        {"parts": [x.fingerprint for x in opened.parts]} if opened.parts else {}
      ),
      "prompts": _prompts_hash(evaluation),
      "protocol": [entry.task, entry.metric, evaluation.options],
      "published": dict(entry.published),
      "architecture": subject.architecture,
      "max_pixels": max_pixels,
    }
  )


def _result(
  entry: data_sets.Entry,
  prepared: _Prepared,
  measured: dict[str, Any],
  subject: Subject,
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
    "prompts_hash": _prompts_hash(evaluation),
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
