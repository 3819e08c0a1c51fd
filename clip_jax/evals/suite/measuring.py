"""Measures a model on the data sets of the suite, one after the other."""

import collections
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from clip_jax import errors, hosts
from clip_jax.evals import embedding_model, folds, reading
from clip_jax.evals.suite import (
  agreement,
  data_sets,
  layouts,
  prepared,
  result_files,
  set_results,
)
from clip_jax.evals.suite import subject as subject_lib


def run(
  entries: Sequence[data_sets.Entry],
  root: str,
  subject: subject_lib.Subject,
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
    about = set_results.about(entry, root)
    try:
      found = agreement.prepare(
        functools.partial(prepared.prepare, entry, place, subject, max_pixels)
      )
    except errors.UserError as error:
      yield result_files.not_measured(about, result_files.WRONG, error, out)
      continue
    if found is None:
      yield {**about, "status": result_files.MISSING}
      continue
    of_set = dataclasses.replace(how, progress=_named(progress, entry.name))
    yield _result(entry, found, about, subject, out=out, how=of_set)


def _result(
  entry: data_sets.Entry,
  found: prepared.PreparedSet,
  about: Mapping[str, Any],
  subject: subject_lib.Subject,
  *,
  out: pathlib.Path,
  how: reading.Reading,
) -> dict[str, Any]:
  """Returns the result of a set that is there: the kept one, or measures it."""
  files_hash = functools.cache(found.opened.found.files_hash)
  kept = agreement.read_kept(
    out, entry.name, key=found.key, files_hash=files_hash
  )
  if kept is not None:
    return {**kept, "kept": True}
  started, texts_cut = time.perf_counter(), subject.cuts.cut
  try:
    measured = _measure(found, subject.model, how)
  except errors.UserError as error:
    subject.check_finite()
    place = found.opened.found
    about = {**about, "data": place.address, "layout": place.layout}
    return result_files.not_measured(about, result_files.DAMAGED, error, out)
  seconds = time.perf_counter() - started
  sources = found.opened.parts or [found.opened.source]
  read = sum(map(len, sources)) - sum(measured["bad_records"].values())
  result = {
    **about,
    **set_results.of_measures(entry, found, measured, subject),
    "texts_cut": subject.cuts.cut - texts_cut,
    "seconds": seconds,
    "images_per_second": read / seconds,
    "key": found.key,
  }
  agreement.write(out, result, files_hash=files_hash)
  return {**result, "kept": False}


def _measure(
  of_set: prepared.PreparedSet,
  model: embedding_model.EmbeddingModel,
  how: reading.Reading,
) -> dict[str, Any]:
  """Returns the measures of a set, of several splits their mean."""
  parts = of_set.opened.parts
  if not parts:
    return of_set.evaluation.measure(model, reading=how)
  total, done, found = sum(map(len, parts)), 0, []
  bad: collections.Counter[str] = collections.Counter()
  for part in parts:
    of_part = dataclasses.replace(of_set.evaluation, source=part)
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


def _named(
  progress: Callable[[str, int, int], None] | None, name: str
) -> Callable[[int, int], None] | None:
  if progress is None:
    return None
  return lambda done, total: progress(name, done, total)
