"""The tab that watches runs: curves of their metrics, and their reports."""

import dataclasses
import functools
import os
import pathlib
import threading
from collections.abc import Callable

from clip_jax import buckets, errors, json_lines, preprocess, regular_files
from clip_jax.app import bucket_runs
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.results import (
  collected,
  drawing,
  figures,
  gathering,
  picture,
  tables,
)
from clip_jax.train import metric_log

_MOST_RUNS = 200
_REPORT_BYTES = 20 * 2**20
# What is drawn of each logged step, with its unit.
_CURVES = {
  "loss": "loss",
  "learning_rate": "learning rate",
  "logit_scale": "logit scale",
  "gradient_norm": "norm of the gradient",
  "images_per_second": "images a second",
  "mfu": "share of the peak FLOPs",
}
# One at a time: matplotlib's settings belong to the process.
_DRAWING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Run:
  """A run as it stands.

  Attributes:
    name: of its directory.
    step: of the newest logged step; None before the first.
    latest: the newest value of each metric, by name.
    curves: title, note and PNG of each figure.
    results: of its evaluations; None without any.
    report: the PNG that the run drew at its end; None without it.
    missing: what is not shown, and why; "" if all is.
  """

  name: str
  step: int | None
  latest: dict[str, float]
  curves: list[tuple[str, str, bytes]]
  results: picture.Table | None
  report: bytes | None
  missing: str


def finder(directory: str) -> Callable[[], dict[str, pathlib.Path]]:
  """Returns a function that finds the runs at a path or an address."""
  if buckets.is_address(directory):
    return bucket_runs.BucketRuns(directory)
  return functools.partial(find, directory)


def find(directory: str | os.PathLike) -> dict[str, pathlib.Path]:
  """Returns the workdirs at a path, by name: itself, or those right below it.

  The newest metrics come first.

  Raises:
    UserError: there is no workdir.
  """
  errors.check_local("The directory of runs", directory)
  path = pathlib.Path(os.path.expanduser(directory)).resolve()
  if not path.is_dir():
    raise errors.UserError(f"{directory} is not a directory of runs.")
  if _is_run(path):
    return {path.name: path}
  below = [each for each in path.iterdir() if each.is_dir() and _is_run(each)]
  if not below:
    raise errors.UserError(
      f"{directory} is no workdir and holds none; give a workdir of `clip-jax "
      "train --workdir DIR`, or the directory that several lie in."
    )
  below.sort(key=lambda each: (stamp(each)[:1], each.name), reverse=True)
  return {each.name: each for each in below[:_MOST_RUNS]}


def _is_run(path: pathlib.Path) -> bool:
  return any(
    (path / name).is_file() for name in (metric_log.METRICS, workdir_lib.CONFIG)
  )


def stamp(workdir: pathlib.Path) -> tuple[float, ...]:
  """Returns numbers that change when the metrics or the report do."""
  found = []
  for name in (metric_log.METRICS, workdir_lib.REPORT):
    try:
      status = os.stat(workdir / name)
      found += [status.st_mtime, float(status.st_size)]
    except OSError:
      found += [0.0, 0.0]
  return tuple(found)


def look(workdir: pathlib.Path) -> Run:
  """Returns a run as it stands, with everything drawn."""
  values: dict[str, list[tuple[int, float]]] = {}
  step = None
  for _, entry in json_lines.read(workdir / metric_log.METRICS, {"step": int}):
    if entry is None:  # A line that is being written.
      continue
    step = entry["step"]
    for name, value in entry.items():
      if (number := collected.number(value)) is not None and name != "step":
        values.setdefault(name, []).append((step, number))
  curves, results, missing = _drawn(workdir, values)
  return Run(
    name=workdir.name,
    step=step,
    latest={name: points[-1][1] for name, points in values.items()},
    curves=curves,
    results=results,
    report=_report(workdir),
    missing=missing,
  )


def _drawn(workdir, values):
  """Returns the curves, the table of evaluations, and what is missing."""
  panels = [
    picture.Panel(
      words, "step", "", [picture.Mark("", *picture.columns(values[name]))]
    )
    for name, words in _CURVES.items()
    if len(values.get(name, ())) > 1
  ]
  note = "Of the training steps that were logged."
  found = [picture.assemble("training", "Training", note, panels)]
  results = None
  try:
    collection = gathering.read([workdir])
    found.append(figures.evaluations(collection))
    results = tables.results(collection)
  except errors.UserError:
    pass  # Nothing is logged yet.
  shown = [figure for figure in found if figure is not None]
  try:
    with _DRAWING:
      return [(f.title, f.note, drawing.draw(f)) for f in shown], results, ""
  except errors.UserError as error:  # Without matplotlib.
    return [], results, str(error)


def _report(workdir: pathlib.Path) -> bytes | None:
  """Returns the report's picture, if it is one."""
  try:
    data = regular_files.read_regular(
      workdir / workdir_lib.REPORT, limit=_REPORT_BYTES, within=str(workdir)
    )
    preprocess.check_header(
      data, limits=preprocess.Limits(formats=("PNG",), max_side=65_535)
    )
  except (errors.UserError, OSError):
    return None
  return data
