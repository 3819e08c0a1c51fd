"""The results of the suite as files: one JSON a set, and CLIP_benchmark's CSV.

A file's `key` is the digest of all that the measure depends on; a set whose
key has not changed is not measured again.
"""

import csv
import hashlib
import io
import json
import logging
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from clip_jax import errors, json_text, regular_files, whole_files
from clip_jax.evals.suite import data_sets

_LOGGER = logging.getLogger(__name__)

FORMAT = 1  # Of the files; a change measures everything anew.
MEASURED, DAMAGED, MISSING = "measured", "damaged", "missing"
WRONG, NO_METRIC = "wrong", "no_metric"
# CLIP_benchmark's, in the order of its own file (`clip_benchmark build`).
_COLUMNS = (
  "acc1",
  "acc5",
  "mean_per_class_recall",
  "dataset",
  "model",
  "pretrained",
  "task",
  "mean_average_precision",
  "image_retrieval_recall@5",
  "text_retrieval_recall@5",
  "model_fullname",
)
_TASKS = {
  "zero_shot": "zeroshot_classification",
  "retrieval": "zeroshot_retrieval",
}


def digest(content: Any) -> str:
  """Returns SHA-256 of what JSON can hold."""
  text = json.dumps(content, sort_keys=True, ensure_ascii=True)
  return hashlib.sha256(text.encode()).hexdigest()


def path_of(out: pathlib.Path, name: str) -> pathlib.Path:
  """Returns the file of the set called `name`."""
  return out / f"{name}.json"


def write(out: pathlib.Path, result: Mapping[str, Any]) -> None:
  """Writes one set's result, as a whole or not at all."""
  sealed = json_text.seal(dict(result))
  text = json.dumps(sealed, indent=2, ensure_ascii=True) + "\n"
  _replace(path_of(out, result["set"]), text)


def read(
  out: pathlib.Path, name: str, *, key: str, files_hash: str
) -> dict[str, Any] | None:
  """Returns the finished result of a set, if it is of the same inputs.

  A file that is damaged, or was changed by hand, counts as none.

  Args:
    out: the directory of results.
    name: of the set.
    key: of the result.
    files_hash: of the set's files.
  """
  found = _read(out, name)
  finished = found.get("key") == key and found.get("set") == name
  same = found.get("files_hash") == files_hash
  known = found.get("values") or found.get("status") == NO_METRIC
  return found if finished and same and known else None


def _read(out: pathlib.Path, name: str) -> dict[str, Any]:
  try:
    return json_text.unseal(
      json_text.parse(
        regular_files.read_regular(
          path_of(out, name), limit=json_text.MAX_BYTES
        )
      )
    )
  except (OSError, ValueError):
    return {}


def check_out(
  out: pathlib.Path, names: Iterable[str], *, model: str, fingerprint: str
) -> None:
  """Checks that results can be written, and that none of another model is lost.

  Args:
    out: the directory of results.
    names: of the sets that will be measured.
    model: where it lies; its results of other weights, as of a run's earlier
      step, may be replaced.
    fingerprint: of the model.

  Raises:
    UserError: results of another model would be replaced, or `out` cannot be
      written to.
  """
  for name in names:
    other = _read(out, name).get("model")
    if not isinstance(other, Mapping):
      continue
    if other.get("fingerprint") != fingerprint and other.get("path") != model:
      raise errors.UserError(
        f"{path_of(out, name)} is of {other.get('path')}, and would be "
        f"replaced by that of {model}. Give each model a directory of its own "
        "by --out, or remove that file."
      )
  check_place(out)


def check_csv(path: pathlib.Path) -> None:
  """Raises UserError where no file can be written at `path`; makes nothing."""
  if path.is_dir():
    raise errors.UserError(
      f"Cannot write {path}: it is a directory. Choose another place."
    )
  check_place(path.parent)


def check_place(directory: pathlib.Path) -> None:
  """Raises UserError where no file can be made in a directory, yet to be made.

  Nothing is made.
  """
  place = directory.absolute()
  while not os.path.lexists(place) and place != place.parent:
    place = place.parent
  if not os.path.isdir(place):
    reason = f"{place} is no directory"
  elif not os.access(place, os.W_OK):
    reason = f"{place} is not writable"
  else:
    return
  raise errors.UserError(
    f"Cannot write to {directory}: {reason}. Choose another place."
  )


def not_measured(
  about: Mapping[str, Any], status: str, error: Exception, out: pathlib.Path
) -> dict[str, Any]:
  """Returns the result of a set that has no measure, and warns of it.

  Args:
    about: the set.
    status: `WRONG` or `DAMAGED`.
    error: why.
    out: the directory of results.
  """
  problem, path = str(error), path_of(out, about["set"])
  if path.exists():  # A report would draw it.
    problem += f" {path} has a result of before."
  _LOGGER.warning("%s: %s", about["set"], problem)
  return {**about, "status": status, "problem": problem}


def write_csv(
  path: str, results: Iterable[Mapping[str, Any]], *, model: str, weights: str
) -> None:
  """Writes measured sets as CLIP_benchmark does (`clip_benchmark build`).

  Args:
    path: of the file.
    results: of sets; those without a measure are left out.
    model: the architecture.
    weights: where the weights come from.
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(_COLUMNS)
  for result in results:
    if result["status"] in (MEASURED, DAMAGED) and result.get("measures"):
      entry = data_sets.entries()[result["set"]]
      row = {
        **_figures(result["measures"]),
        "dataset": entry.clip_benchmark or entry.name,
        "model": model,
        "pretrained": weights,
        "task": _TASKS[entry.task],
        "model_fullname": f"{model} {weights}",
      }
      writer.writerow([row.get(column, "") for column in _COLUMNS])
  _replace(pathlib.Path(os.path.expanduser(path)), text.getvalue())


def _figures(measures: Mapping[str, Any]) -> dict[str, float]:
  """Returns the columns of numbers; an image is retrieved by a text."""
  names = {
    "acc1": "top1",
    "acc5": "top5",
    "mean_per_class_recall": "mean_per_class",
    "mean_average_precision": "map_all_point",
  }
  found = {
    column: measures[name] for column, name in names.items() if name in measures
  }
  for column, way in zip(("image", "text"), data_sets.WAYS, strict=True):
    if way in measures:
      found[f"{column}_retrieval_recall@5"] = measures[way]["r@5"]
  return found


def _replace(path: pathlib.Path, text: str) -> None:
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A path may hold bytes that are no UTF-8.
    whole_files.write(path, text.encode("utf-8", "backslashreplace"))
  except OSError as error:
    raise errors.UserError(
      f"Cannot write {path}: {error.strerror}. Choose another place."
    ) from error
