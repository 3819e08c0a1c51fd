"""Finds what runs and evaluations have left in directories.

A workdir of `clip-jax train` has its metrics; `clip-jax eval … --json` prints a
result, which people keep in a file. What is in a file is not trusted: a value
that is not what its name says is left out.
"""

import collections
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from clip_jax import config as config_lib
from clip_jax import errors, json_lines, json_text
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.data.sources import views
from clip_jax.evals import metrics, published
from clip_jax.results import (
  addresses,
  apart,
  collected,
  comparable,
  contact_sheets,
)
from clip_jax.train import metric_log, run_data

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
# How a result was measured; of few-shot ones `shots` says it, too.
_SETTINGS = (
  "prompts_hash",
  "protocol",
  "features",
  "neighbours",
  "duplicates",
  "groups",
  "train_data",
  "folds_from",
)
# Tasks of an evaluation in training whose top-1 is a share of its images.
_COUNTED = ("auto", "zero_shot")
# What says which model a result is of.
_ABOUT = ("model", "fingerprint", "step")
_EVALUATION = re.compile(r"eval/(.+)/([^/]+)$")
_RECALL = re.compile(r"eval/(.+)/((?:text_to_image|image_to_text)/.+)$")


class _Read(NamedTuple):
  """A result as it was read: the full name of its model, values and file."""

  key: str
  values: dict[str, Any]
  file: str = ""


@dataclasses.dataclass
class _Found:
  """What the directories hold, by the full name of each model."""

  runs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  results: list[_Read] = dataclasses.field(default_factory=list)
  left_out: list[collected.LeftOut] = dataclasses.field(default_factory=list)


def read(places: Iterable[str | os.PathLike]) -> collected.Collection:
  """Returns the results that runs and evaluations left in directories.

  Args:
    places: workdirs, directories of results with all below them, or files.

  Raises:
    UserError: a place is not there, or nothing was found in any.
  """
  return latest(read_all(places))


def latest(collection: collected.Collection) -> collected.Collection:
  """Returns the results of the latest step of each model, task and data.

  Of several of one step the one with the published prompts counts, else the
  last. The others are left out, and so are earlier ones of other settings.
  Those that are called the same are told apart.
  """
  kept: dict[tuple[str, str, str], collected.Result] = {}
  for result in collection.results:
    same = (result.model, result.task, result.data)
    if same not in kept or result.rank >= kept[same].rank:
      kept[same] = result
  left_out = [
    collected.LeftOut(x.file, why)
    for x in collection.results
    if (why := _why_not(x, kept[x.model, x.task, x.data]))
  ]
  return dataclasses.replace(
    collection,
    results=apart.name_apart(kept.values()),
    left_out=[*collection.left_out, *left_out],
  )


def _why_not(other: collected.Result, kept: collected.Result) -> str:
  """Returns why a result is left out; "" where it is not, or needs no mention.

  Not mentioned are evaluations in training, which are drawn by step, copies,
  and those of earlier steps with the same settings.
  """
  if not other.file or other.values == kept.values:
    return ""
  its, taken = _settings(other), _settings(kept)
  differ = [x for x in its if x in taken and its[x] != taken[x]]
  steps = (other.step, kept.step)
  if not differ and None not in steps and other.step != kept.step:
    return ""
  told = kept.file or "the run's metrics"
  how = f", which differs in {', '.join(differ)}" if differ else ""
  return f"{kept.task} of {kept.model} on {kept.data} is told from {told}{how}"


def _settings(result: collected.Result) -> dict[str, Any]:
  """Returns how a result was measured, as far as it says so."""
  found = {x: result.values[x] for x in _SETTINGS if x in result.values}
  if shots := collected.entries(result.values.get("shots")):
    found["shots"] = [entry.get("k") for entry in shots]
  return found


def read_all(places: Iterable[str | os.PathLike]) -> collected.Collection:
  """Returns what `read` does, but with the results of all steps."""
  found, named = _Found(), list(places)
  for place in named:
    errors.check_local("The directory", place)
    path = pathlib.Path(os.path.expanduser(place))
    if not path.exists():
      raise errors.UserError(
        f"{place} is not there; give workdirs of `clip-jax train`, or "
        "directories with what `clip-jax eval … --json` printed."
      )
    _read_place(path.resolve(), found)
  if not found.runs and not found.results:
    listed = ", ".join(map(str, named))
    why = "".join(f"\n{x.path}: {x.why}" for x in found.left_out[:5])
    raise errors.UserError(
      f"There is no result in {listed}. Keep one with `clip-jax eval MODEL … "
      f"--json > DIR/NAME.json`, or give a workdir of `clip-jax train`.{why}"
    )
  return _collect(found)


def _collect(found: _Found) -> collected.Collection:
  keys = [*found.runs, *(read.key for read in found.results)]
  names = addresses.distinct(keys)
  data = addresses.shown_apart(_address(x.values) for x in found.results)
  return collected.Collection(
    models=list(dict.fromkeys(names[key] for key in keys)),
    runs=[
      collected.Run(model=names[key], **run) for key, run in found.runs.items()
    ],
    results=[
      _result(names[read.key], read, data[_address(read.values)])
      for read in found.results
    ],
    left_out=found.left_out,
  )


def _read_place(path: pathlib.Path, found: _Found) -> None:
  if path.is_file():
    found.results += _read_file(path, path.parent, found)
    return
  for count, file in enumerate(_walk(path)):
    if count == _MOST_FILES:
      why = f"more than {_MOST_FILES} files; the rest was not read"
      found.left_out.append(collected.LeftOut(addresses.last(str(path)), why))
      return
    if file.name == metric_log.METRICS:
      if any((run := _read_run(file)).values()):
        found.runs[str(file.parent)] = run
        # Before other results, which have more in them.
        own = _evaluations(file.parent, found)
        found.results[:0] = [_Read(str(file.parent), x) for x in own]
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
      is_config = name == workdir_lib.CONFIG and metric_log.METRICS in names
      if name == metric_log.METRICS or (
        name.endswith(".json") and not is_config
      ):
        yield pathlib.Path(directory) / name


def _read_run(path: pathlib.Path) -> dict[str, Any]:
  """Returns a run's losses and evaluations; a later line of a step counts."""
  losses: dict[int, float] = {}
  evaluations = collections.defaultdict(dict)
  for _, entry in json_lines.read(path, {"step": int}):
    if entry is None:
      continue
    step = entry["step"]
    if (loss := collected.number(entry.get("loss"))) is not None:
      losses[step] = loss
    for name, value in entry.items():
      match = _RECALL.match(name) or _EVALUATION.match(name)
      if match and (value := collected.number(value)) is not None:
        evaluations[match[1], match[2]][step] = value
  return {
    "losses": sorted(losses.items()),
    "evaluations": {
      key: sorted(values.items()) for key, values in evaluations.items()
    },
    "examples": contact_sheets.read(path.parent),
  }


def _read_file(
  path: pathlib.Path, place: pathlib.Path, found: _Found
) -> list[_Read]:
  """Returns the results in a file with their models; tells where it has none.

  A result that names no model is of `place`.
  """
  name = str(path.relative_to(place.parent))
  try:
    values = json_text.read(path, kind=(dict, list), max_bytes=_MAX_BYTES)
  except (errors.UserError, OSError) as error:
    why = str(error).replace(str(path), path.name)
    found.left_out.append(collected.LeftOut(name, why))
    return []
  if isinstance(values, dict) and "interpolate" in values:
    why = "results between two models (--interpolate) are not drawn"
    found.left_out.append(collected.LeftOut(name, why))
    return []
  results = []
  for part in map(_flat, _parts(values) or [{}]):
    if collected.has_measure(part):
      results.append(part)
      continue
    texts = _texts(part)
    why = "holds no result of `clip-jax eval … --json`"
    if named := [x for x in collected.MEASURES if x in part]:
      why = f"no measure is a number from 0 to 1: {', '.join(named)}"
    if {"set", "status"} <= texts.keys():  # Of a suite, which tells why.
      why = f"{texts['set']} was not measured: {texts['status']}"
    found.left_out.append(collected.LeftOut(name, why))
  home = _flat(values) if isinstance(values, dict) else {}
  about = {name: home[name] for name in _ABOUT if name in home}
  named = [x if "model" in x else about | x for x in results]
  return [_Read(_texts(x).get("model", str(place)), x, name) for x in named]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a suite's result as `eval` gives one of a single task."""
  flat = dict(values)
  measures, model, protocol = map(values.get, ("measures", "model", "protocol"))
  if isinstance(measures, dict):
    flat = measures | flat
  if isinstance(model, dict):
    flat |= {"model": model.get("path")}
    flat |= {name: model.get(name) for name in _ABOUT[1:]}
  if isinstance(protocol, dict):
    flat["protocol"] = protocol.get("text")
  return flat


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
  return {
    key: value
    for key, value in values.items()
    if isinstance(value, str) and value
  }


def _parts(values: Any) -> list[dict[str, Any]]:
  """Returns the results of a JSON value: one, or those of a list or a suite."""
  if isinstance(values, list):
    return [dict(entry) for entry in collected.entries(values)]
  if "task" in values or "metric" in values:
    return [values]
  for name in ("results", "sets", "evals"):
    inner = values.get(name)
    if isinstance(inner, dict):
      inner = list(inner.values())
    if inner := collected.entries(inner):
      return [dict(entry) for entry in inner]
  return [values]


def _address(values: dict[str, Any]) -> str:
  """Returns the data that a result is of: a name or an address."""
  texts = _texts(values)
  # A suite's name of a set says more than the address of its files.
  return texts.get("set", texts.get("data", ""))


def _result(model: str, read: _Read, data: str) -> collected.Result:
  values = read.values
  texts = _texts(values)
  recall = "text_to_image" in values or "image_to_text" in values
  task = texts.get("task", "retrieval" if recall else "zero_shot")
  step = values.get("step")
  key = published.find_set(_address(values))
  return collected.Result(
    model=model,
    origin=read.key,
    task=addresses.shown(task, limit=40),
    data=data or "unnamed data",
    set=key,
    step=step if type(step) is int else None,
    values=values,
    file=read.file,
    differs=comparable.difference(key, values),
    as_published=comparable.as_published(key, task, values),
  )


def _evaluations(workdir: pathlib.Path, found: _Found) -> list[dict[str, Any]]:
  """Returns the last evaluations of a run, as `clip-jax eval` gives them.

  Task and data are of the run's config, the model is the workdir.
  """
  try:
    config = workdir_lib.load_config(workdir)
  except (errors.UserError, OSError) as error:
    why = str(error).replace(str(workdir), workdir.name)
    found.left_out.append(
      collected.LeftOut(f"{workdir.name}/{workdir_lib.CONFIG}", why)
    )
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
    about = {"data": _data_of(config.data, entry, name), "step": last}
    about["model"] = str(workdir)
    task = entry.get("task", "auto")
    # Few-shot accuracies are means of several draws.
    interval = _interval(tree) if task in _COUNTED else None
    if interval:
      about["top1_interval_95"] = interval
    results.append(tree | about | ({} if task == "auto" else {"task": task}))
  return results


def _data_of(data: config_lib.Data, entry: Mapping[str, Any], name: str) -> str:
  """Returns the address of an evaluation's data.

  Held-out training data goes by its own address, as people give it to
  `clip-jax eval`: without the default share.
  """
  shown = str(entry.get("data", name))
  if shown != config_lib.HELD_OUT:
    return shown
  try:
    address = run_data.address(data, shown)
    return address.removesuffix(f"&held_out={views.HELD_OUT}")
  except errors.UserError:  # Such as a scheme of a later version.
    return shown


def _interval(measures: Mapping[str, Any]) -> list[float] | None:
  """Returns the 95 % interval of top-1, which metrics do not hold."""
  top1 = collected.fraction(measures.get("top1"))
  examples = collected.number(measures.get("examples"))
  if top1 is None or not examples or examples < 1:
    return None
  count = round(examples)
  return list(metrics.clopper_pearson(round(top1 * count), count))
