"""Runs the evaluations and the report of a run with its current model."""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from clip_jax import report, shared_batches, terminal
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.checkpoints import state as state_lib
from clip_jax.evals import embedding_model, reading
from clip_jax.evals import metrics as eval_metrics
from clip_jax.train import metric_log, preemption
from clip_jax.train import run as run_lib

_LOGGER = logging.getLogger(__name__)


class _Stopped(Exception):
  """Raised where an evaluation ends early because the run was told to stop."""


class Evaluator:
  """Evaluates the model of a run, unless the run is told to stop.

  It polls before every batch whether to stop. The processes share each batch
  (shared_batches.py) and poll equally often, so all of them stop at the same
  batch.
  """

  def __init__(self, run: run_lib.Run, stop: preemption.Preemption):
    self._run = run
    self._stop = stop
    self._cuts = tokenizer_lib.Cuts()

  def measure(self, state: state_lib.TrainState) -> dict[str, Any] | None:
    """Returns {name: measures} of `config.evals`; None if told to stop."""
    results = {}
    try:
      for name, evaluation in self._run.evaluations.items():
        with _progress(name) as progress:
          results[name] = evaluation.measure(
            self._model(state), reading=self._reading(progress)
          )
    except _Stopped:
      return None
    self._cuts.tell(self._run.tokenizer.context_length)
    return results

  def write_report(
    self,
    state: state_lib.TrainState,
    evaluated: dict[str, Any],
    path: pathlib.Path,
    *,
    before: dict[str, Any],
  ) -> str | None:
    """Writes the run's report to `path` and returns `path`.

    Returns None if the config asks for no report, or if told to stop.

    Args:
      state: the state at the end of the run.
      evaluated: the measures of that state, by name.
      path: the file to write.
      before: the measures of the model with which the run began, if any.
    """
    run = self._run
    if run.report is None:
      return None
    clip = run.as_clip(state)
    try:
      with _progress("report", "Drawing") as progress:
        rows = report.find_rows(
          run.report,
          model=self._model(state),
          logit_scale=clip.logit_scale,
          logit_bias=clip.logit_bias,
          probabilities=clip.probabilities,
          reading=self._reading(progress),
        )
    except _Stopped:
      return None
    changes = list(_changes(before, evaluated, shown=run.report_data))
    title = f"{run.name} on {run.report_data}"
    if changes:
      began = " and ".join(map(os.path.basename, run.began_with))
      title = f"{path.parent.name}, fine-tuned from {began}"
    if jax.process_index() == 0:
      picture = report.draw(
        rows,
        title=title,
        headlines=[] if changes else _headlines(evaluated),
        changes=changes,
        losses=report.read_losses(path.with_name(metric_log.METRICS)),
      )
      report.save(picture, path)
    return str(path)

  def _model(
    self, state: state_lib.TrainState
  ) -> embedding_model.EmbeddingModel:
    ready = self._run.as_clip(state)
    return embedding_model.Functions(
      score_texts=self._scorer(ready),
      embed_images=self._interruptible(ready.embed_images),
      embed_texts=self._interruptible(
        functools.partial(ready.embed_texts, cuts=self._cuts)
      ),
      preprocess=ready.needed_preprocess(),
    )

  def _reading(self, progress: reading.Progress | None) -> reading.Reading:
    """Returns how data are read; several processes share the batches."""
    return reading.Reading(
      threads=self._run.program.config.data.threads,
      progress=progress,
      open_batches=shared_batches.opener(self._run.encoder),
    )

  def _scorer(self, ready: Any) -> embedding_model.ScoreTexts | None:
    """Returns the scorer of a model that predicts captions; None for others."""
    if ready.score_texts is None:
      return None

    def score(texts: list[str]) -> embedding_model.Likelihoods:
      scores = ready.scores_of(texts, cuts=self._cuts)
      of_images = self._interruptible(scores.of_images)
      return dataclasses.replace(scores, of_images=of_images)

    return score

  def _interruptible(
    self, embed: Callable[[Any], np.ndarray]
  ) -> Callable[[Any], np.ndarray]:
    def embed_unless_told(inputs: Any) -> np.ndarray:
      if self._stop.poll():
        raise _Stopped
      return embed(inputs)

    return embed_unless_told


def _headlines(evaluated: dict[str, Any]) -> list[report.Headline]:
  return [
    report.Headline(
      f"{name}, top-1",
      f"{100 * share.value:.1f} %",
      f"95 %: {100 * share.low:.1f} to {100 * share.high:.1f}",
    )
    for name, result in evaluated.items()
    if (share := _shares(result).get("top-1"))
  ]


def _share(value: float, examples: int) -> report.Share:
  low, high = eval_metrics.clopper_pearson(round(value * examples), examples)
  return report.Share(value, low, high, examples)


def _shares(result: dict[str, Any]) -> dict[str, report.Share]:
  """Returns by name the fractions that an evaluation is judged by."""
  if result["task"] == "zero_shot" and "top1" in result:
    return {"top-1": _share(result["top1"], result["examples"])}
  return {
    f"{way.replace('_', ' ')}, R@1": _share(result[way]["r@1"], result[asked])
    for way, asked in (("text_to_image", "texts"), ("image_to_text", "images"))
    if way in result
  }


def _changes(
  before: dict[str, Any], evaluated: dict[str, Any], *, shown: str
) -> Iterator[report.Change]:
  """Yields what changed of each evaluation, and of the classes of one.

  Args:
    before: measures of the model with which the run began, by evaluation.
    evaluated: measures at the end.
    shown: address of the data that the report shows: its classes are listed.
  """
  first = sorted(evaluated, key=lambda name: evaluated[name]["data"] != shown)
  for name in first:
    result = evaluated[name]
    began = _shares(before[name]) if name in before else {}
    for measure, share in _shares(result).items():
      if measure in began:
        full = f"{name}: {measure}"
        yield report.Change(full, began[measure], share, main=True)
    if not began or result["data"] != shown:
      continue
    earlier = {x["name"]: x for x in before[name].get("per_class", [])}
    for entry in result.get("per_class", []):
      if was := earlier.get(entry["name"]):
        yield report.Change(
          entry["name"], before=_of_class(was), after=_of_class(entry)
        )


def _of_class(entry: dict[str, Any]) -> report.Share:
  return _share(entry["right"] / entry["examples"], entry["examples"])


@contextlib.contextmanager
def _progress(
  name: str, does: str = "Evaluating"
) -> Iterator[Callable[[int, int], None] | None]:
  """Shows the progress of `name` on the first process."""
  if jax.process_index():
    yield None
    return
  _LOGGER.info("%s %s ...", does, name)
  with terminal.Progress(name) as progress:
    yield progress
