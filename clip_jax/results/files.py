"""Finds what runs and evaluations have left in directories.

A workdir of `clip-jax train` has its metrics; `clip-jax eval … --json` prints a
result, which people keep in a file. What is in a file is not trusted: a value
that is not what its name says is left out.
"""

import collections
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from clip_jax import errors, json_lines, json_text
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.results import addresses, published
from clip_jax.train import metrics

# Larger ones are no result; a result of ours has some kilobytes.
_MAX_BYTES = 2**24
_MOST_FILES = 10_000
# Of a workdir: nothing in them is a result.
_PASSED_OVER = {
  workdir_lib.DIRECTORY,
  workdir_lib.QUARANTINE,
  workdir_lib.TOKENIZER,
  "compiled",
}
# What a result has at least one of.
_MEASURES = (
  "top1",
  "value",
  "text_to_image",
  "image_to_text",
  "shots",
  "corruptions",
  "calibration",
)
_EVALUATION = re.compile(r"eval/(.+)/([^/]+)$")
_RECALL = re.compile(r"eval/(.+)/((?:text_to_image|image_to_text)/.+)$")


@dataclasses.dataclass(frozen=True)
class Result:
  """One evaluation of one model.

  Attributes:
    model: its short name, the same for all its results.
    origin: its path or address in full, or where the result was found if that
      names no model.
    task: such as "zero_shot".
    data: the DATA address without directories, or the name of the set.
    set: the key of `published.table()`, or None.
    step: updates that the model was trained for; None where nothing says it.
    values: the JSON object, whose values may be anything.
  """

  model: str
  origin: str
  task: str
  data: str
  set: str | None
  step: int | None
  values: Mapping[str, Any]

  @property
  def title(self) -> str:
    """What the data is called."""
    return self.data if self.set is None else published.title(self.set)

  def number(self, name: str) -> float | None:
    """Returns a value if it is a finite number."""
    return number(self.values.get(name))

  def fraction(self, name: str) -> float | None:
    """Returns a value if it is a number from 0 to 1.

    A result of a suite has one measure, `value`, whose name is `metric`.
    """
    value = self.values.get(name)
    if value is None and self.values.get("metric") in (name, _OTHER.get(name)):
      value = self.values.get("value")
    return fraction(value)

  def interval(self, name: str) -> tuple[float, float] | None:
    """Returns the 95 % interval of a measure, in fractions, if there is one."""
    found = self.values.get(f"{name}_interval_95")
    if found is None and self.fraction(name) == fraction(
      self.values.get("value")
    ):
      found = self.values.get("interval_95")
    if isinstance(found, list) and len(found) == 2:
      low, high = map(fraction, found)
      if low is not None and high is not None and low <= high:
        return low, high
    return None


# What a suite calls a measure.
_OTHER = {"top1": "accuracy"}


@dataclasses.dataclass(frozen=True)
class Run:
  """What a workdir's metrics say, by step.

  Attributes:
    model: the short name, as of its results.
    losses: steps and losses.
    evaluations: steps and values, by evaluation and measure.
  """

  model: str
  losses: Sequence[tuple[int, float]]
  evaluations: Mapping[tuple[str, str], Sequence[tuple[int, float]]]


@dataclasses.dataclass(frozen=True)
class LeftOut:
  """A file that is no result, and why."""

  path: str
  why: str


@dataclasses.dataclass(frozen=True)
class Collection:
  """All that was found, in a fixed order, and what was not taken.

  Attributes:
    models: the short names, in the order in which they were given.
    runs: workdirs with metrics.
    results: of evaluations; the latest of each model, task and data.
    left_out: files that hold no result.
  """

  models: Sequence[str]
  runs: Sequence[Run]
  results: Sequence[Result]
  left_out: Sequence[LeftOut]

  def of_task(self, task: str) -> list[Result]:
    """Returns the results of a task."""
    return [result for result in self.results if result.task == task]


def number(value: Any) -> float | None:
  """Returns `value` if it is a finite number, else None."""
  if isinstance(value, int | float) and not isinstance(value, bool):
    return float(value) if math.isfinite(value) else None
  return None


def fraction(value: Any) -> float | None:
  """Returns `value` if it is a number from 0 to 1, else None."""
  found = number(value)
  return found if found is not None and 0 <= found <= 1 else None


def entries(value: Any) -> list[Mapping[str, Any]]:
  """Returns the objects of a list; nothing where it is none."""
  if not isinstance(value, list):
    return []
  return [entry for entry in value if isinstance(entry, dict)]


@dataclasses.dataclass
class _Found:
  """What the directories hold, by the full name of each model."""

  runs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  results: list[tuple[str, dict[str, Any]]] = dataclasses.field(
    default_factory=list
  )
  left_out: list[LeftOut] = dataclasses.field(default_factory=list)


def read(places: Iterable[str | os.PathLike]) -> Collection:
  """Returns what runs and evaluations have left in some directories.

  Args:
    places: workdirs, directories of results with all below them, or files.

  Raises:
    UserError: a place is not there, or nothing was found in any.
  """
  found, paths = _Found(), [pathlib.Path(place) for place in places]
  for path in paths:
    errors.check_local("The directory", path)
    if not path.exists():
      raise errors.UserError(
        f"{path} is not there; give workdirs of `clip-jax train`, or "
        "directories with what `clip-jax eval … --json` printed."
      )
    _read_place(path.expanduser().resolve(), found)
  if not found.runs and not found.results:
    listed = ", ".join(map(str, paths))
    why = "".join(f"\n{x.path}: {x.why}" for x in found.left_out[:5])
    raise errors.UserError(
      f"There is no result in {listed}. Keep one with `clip-jax eval MODEL … "
      f"--json > DIR/NAME.json`, or give a workdir of `clip-jax train`.{why}"
    )
  return _collect(found)


def _collect(found: _Found) -> Collection:
  keys = [*found.runs, *(key for key, _ in found.results)]
  names = addresses.distinct(keys)
  latest: dict[tuple[str, str, str], Result] = {}
  for key, values in found.results:
    result = _result(names[key], key, values)
    same = (result.model, result.task, result.data)
    if same not in latest or (result.step or 0) >= (latest[same].step or 0):
      latest[same] = result
  return Collection(
    models=list(dict.fromkeys(names[key] for key in keys)),
    runs=[Run(model=names[key], **run) for key, run in found.runs.items()],
    results=list(latest.values()),
    left_out=found.left_out,
  )


def _read_place(path: pathlib.Path, found: _Found) -> None:
  if path.is_file():
    found.results += _read_file(path, path.parent, found)
    return
  for count, file in enumerate(_walk(path)):
    if count == _MOST_FILES:
      why = f"more than {_MOST_FILES} files; the rest was not read"
      found.left_out.append(LeftOut(addresses.last(str(path)), why))
      return
    if file.name == metrics.METRICS:
      if any((run := _read_run(file)).values()):
        found.runs[str(file.parent)] = run
        # Before other results, which have more in them.
        own = _evaluations(file.parent, found)
        found.results[:0] = [(str(file.parent), values) for values in own]
    else:
      found.results += _read_file(file, path, found)


def _walk(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields metrics and JSON files below a directory, in order of names."""
  for directory, below, names in os.walk(path):
    below[:] = sorted(
      name
      for name in below
      if name not in _PASSED_OVER and not name.startswith(".")
    )
    for name in sorted(names):
      is_config = name == workdir_lib.CONFIG and metrics.METRICS in names
      if name == metrics.METRICS or (name.endswith(".json") and not is_config):
        yield pathlib.Path(directory) / name


def _read_run(path: pathlib.Path) -> dict[str, Any]:
  """Returns a run's losses and evaluations; a later line of a step counts."""
  losses: dict[int, float] = {}
  evaluations = collections.defaultdict(dict)
  for _, entry in json_lines.read(path, {"step": int}):
    if entry is None:
      continue
    step = entry["step"]
    if (loss := number(entry.get("loss"))) is not None:
      losses[step] = loss
    for name, value in entry.items():
      match = _RECALL.match(name) or _EVALUATION.match(name)
      if match and (value := number(value)) is not None:
        evaluations[match[1], match[2]][step] = value
  return {
    "losses": sorted(losses.items()),
    "evaluations": {
      key: sorted(values.items()) for key, values in evaluations.items()
    },
  }


def _read_file(
  path: pathlib.Path, place: pathlib.Path, found: _Found
) -> list[tuple[str, dict[str, Any]]]:
  """Returns the results in a file with their models; tells where it has none.

  A result that names no model is of `place`.
  """
  name = str(path.relative_to(place.parent))
  try:
    values = json_text.read(path, kind=(dict, list), max_bytes=_MAX_BYTES)
  except (errors.UserError, OSError) as error:
    why = str(error).replace(str(path), path.name)
    found.left_out.append(LeftOut(name, why))
    return []
  if isinstance(values, dict) and "interpolate" in values:
    why = "results between two models (--interpolate) are not drawn"
    found.left_out.append(LeftOut(name, why))
    return []
  results = [x for x in _parts(values) if any(y in x for y in _MEASURES)]
  if not results:
    why = "holds no result of `clip-jax eval … --json`"
    found.left_out.append(LeftOut(name, why))
  model = values.get("model") if isinstance(values, dict) else None
  home = {"model": model} if isinstance(model, str) else {"model": str(place)}
  return [(str((home | _texts(result))["model"]), result) for result in results]


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
  return {
    key: value
    for key, value in values.items()
    if isinstance(value, str) and value
  }


def _parts(values: Any) -> list[dict[str, Any]]:
  """Returns the results of a JSON value: one, or those of a list or a suite."""
  if isinstance(values, list):
    return [dict(entry) for entry in entries(values)]
  if "task" in values or "metric" in values:
    return [values]
  for name in ("results", "sets", "evals"):
    inner = values.get(name)
    if isinstance(inner, dict):
      inner = list(inner.values())
    if inner := entries(inner):
      return [dict(entry) for entry in inner]
  return [values]


def _result(model: str, origin: str, values: dict[str, Any]) -> Result:
  texts = _texts(values)
  recall = "text_to_image" in values or "image_to_text" in values
  task = texts.get("task", "retrieval" if recall else "zero_shot")
  address = texts.get("data", texts.get("set", ""))
  step = values.get("step")
  found = published.find_set(texts.get("set", "")) if "set" in texts else None
  return Result(
    model=model,
    origin=origin,
    task=addresses.shown(task, limit=40),
    data=addresses.shown(address) or "unnamed data",
    set=found or published.find_set(address),
    step=step if type(step) is int else None,
    values=values,
  )


def _evaluations(workdir: pathlib.Path, found: _Found) -> list[dict[str, Any]]:
  """Returns the last evaluations of a run, as `clip-jax eval` gives them.

  Task and data are of the run's config.
  """
  try:
    config = workdir_lib.load_config(workdir)
  except (errors.UserError, OSError) as error:
    why = str(error).replace(str(workdir), workdir.name)
    found.left_out.append(LeftOut(f"{workdir.name}/{workdir_lib.CONFIG}", why))
    return []
  lines = found.runs[str(workdir)]["evaluations"]
  results = []
  for name, entry in config.evals.items():
    measures = {m: v[-1] for (n, m), v in lines.items() if n == name}
    if not measures:
      continue
    last = max(step for step, _ in measures.values())
    tree: dict[str, Any] = {}
    for measure, (step, value) in measures.items():
      if step == last:
        *ways, leaf = measure.split("/")
        node = tree
        for way in ways:
          node = node.setdefault(way, {})
        node[leaf] = value
    about = {"data": str(entry.get("data", name)), "step": last}
    task = entry.get("task", "auto")
    results.append(tree | about | ({} if task == "auto" else {"task": task}))
  return results
