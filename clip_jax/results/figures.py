"""From results to the figures of the paper: numbers only, nothing is drawn."""

from collections.abc import Callable, Sequence

from clip_jax import terminal
from clip_jax.evals import calibration, published
from clip_jax.results import (
  collected,
  group_figures,
  mistakes,
  picture,
  robustness_figures,
)
from clip_jax.results.picture import PUBLISHED, Figure, Mark, Panel

_CONTEXT = ("ViT-B-32", "ViT-L-14-336")  # Published beside each data set.
# What is shown of evaluations in training, in percent.
_MEASURES = {
  "top1": "top-1",
  "text_to_image/r@1": "text to image, R@1",
  "image_to_text/r@1": "image to text, R@1",
}


def loss(collection: collected.Collection) -> Figure | None:
  """Draws the loss of each run by step."""
  marks = [
    Mark(
      run.model, *picture.columns(run.losses), colour=_colour(collection, run)
    )
    for run in collection.runs
    if len(run.losses) > 1
  ]
  panel = Panel("", "step", "loss", marks)
  note = (
    "On the training pairs of the step. The loss of a guess by chance grows "
    "with the batch size."
  )
  return picture.assemble("loss", "Loss", note, [panel] if marks else [])


def evaluations(collection: collected.Collection) -> Figure | None:
  """Draws what was evaluated in training, by step."""
  panels = []
  for measure, words in _MEASURES.items():
    marks = [
      Mark(
        f"{run.model}, {terminal.printable(name)}",
        *picture.columns([(step, 100 * value) for step, value in values]),
        colour=number,
        look="line" if len(values) > 1 else "points",
      )
      for number, (run, name, values) in enumerate(
        (run, name, values)
        for run in collection.runs
        for (name, found), values in run.evaluations.items()
        if found == measure and len(values) > 1
      )
    ]
    if marks:
      panels.append(Panel(words, "step", "%", marks))
  note = "Of the evaluations that the configs name."
  return picture.assemble(
    "evaluations", "Evaluations during training", note, panels
  )


def accuracy(collection: collected.Collection) -> Figure | None:
  """Draws zero-shot against linear probe, per data set (paper, Figure 8)."""
  found = [
    result
    for result in collection.results
    if result.task in ("zero_shot", "linear_probe")
    and _main(result) is not None
  ]
  rows = list(dict.fromkeys(result.title for result in found))
  marks = []
  for model in collection.models:
    for task, words in (("zero_shot", "zero-shot"), ("linear_probe", "probe")):
      own = [x for x in found if (x.model, x.task) == (model, task)]
      if own:
        values = [100 * (_main(x) or 0) for x in own]
        marks.append(
          Mark(
            f"{model}, {words}",
            values,
            [rows.index(x.title) for x in own],
            "points",
            colour=collection.models.index(model),
            ranges=[_range(x) for x in own],
            filled=task == "zero_shot",
          )
        )
  panel = Panel(
    "",
    "accuracy, or the set's own measure (%)",
    "",
    [*_published_accuracy({x.title: x.compared for x in found}, rows), *marks],
    x_limits=(0, 102),  # A point at 100 is drawn whole.
    categories=rows,
  )
  note = (
    "Solid: zero-shot; rings: linear probe on the features of images; with "
    "95 % intervals. Grey: figures of the paper (Tables 10 and 11). Each set "
    "has its own measure: top-1 where the paper has no other."
  )
  if others := [
    x.title for x in found if x.compared and x.as_published is False
  ]:
    note += (
      " Not with the prompts of the suite, or a probe not on the features of "
      f"the image tower: {', '.join(dict.fromkeys(others))}."
    )
  return picture.assemble(
    "accuracy", "Zero-shot and linear probe", note, [panel] if rows else []
  )


def _main(result: collected.Result) -> float | None:
  """Returns the measure of a result that the paper takes for its set."""
  wanted = published.metric(result.set, "paper") if result.set else None
  for name in (wanted, "top1", "value"):
    if name and (value := result.fraction(name)) is not None:
      return value
  return None


def _range(result: collected.Result) -> tuple[float, float]:
  value = _main(result) or 0.0
  is_top1 = value == result.fraction("top1")
  low, high = (is_top1 and result.interval("top1")) or (value, value)
  return 100 * low, 100 * high


def _published_accuracy(
  sets: dict[str, str | None], rows: Sequence[str]
) -> list[Mark]:
  marks = []
  for task in ("zero_shot", "linear_probe"):
    for model in _CONTEXT:
      values = {
        title: published.figures(task, "paper", key).get(model)
        for title, key in sets.items()
        if key is not None
      }
      there = {title: x for title, x in values.items() if x is not None}
      if there:
        words = "zero-shot" if task == "zero_shot" else "probe"
        marks.append(
          Mark(
            f"OpenAI {model}, {words}",
            [100 * x for x in there.values()],
            [rows.index(title) for title in there],
            "points",
            colour=PUBLISHED - _CONTEXT.index(model),
            filled=task == "zero_shot",
          )
        )
  return marks


def few_shot(collection: collected.Collection) -> Figure | None:
  """Draws accuracy by examples a class, beside zero-shot (paper, Figure 6)."""
  panels = {}
  for result in collection.of_task("few_shot"):
    points = {}
    for entry in collected.entries(result.values.get("shots")):
      k, mean = (
        collected.number(entry.get("k")),
        collected.fraction(entry.get("mean")),
      )
      if k is not None and k > 0 and mean is not None:
        points[k] = (mean, collected.fraction(entry.get("std")) or 0.0)
    if not points:
      continue
    colour = collection.models.index(result.model)
    counts = sorted(points)
    marks = panels.setdefault(result.title, [])
    marks.append(
      Mark(
        f"{result.model}, few-shot",
        counts,
        [100 * points[k][0] for k in counts],
        colour=colour,
        spread=[100 * points[k][1] for k in counts],
      )
    )
    zero = collected.top1(result.values.get("zero_shot"))
    if zero is not None:
      ends = [counts[0], counts[-1]]
      label = f"{result.model}, zero-shot"
      marks.append(Mark(label, ends, [100 * zero] * 2, "reference", colour))
  note = (
    "Linear probe on so many examples of each class: mean and standard "
    "deviation over seeds."
  )
  drawn = [
    Panel(title, "examples a class", "top-1 (%)", marks, x_scale="log2")
    for title, marks in panels.items()
  ]
  return picture.assemble("few_shot", "Few-shot", note, drawn)


_Draw = Callable[[collected.Collection], Figure | None]
# Each figure, with what it is drawn from.
FIGURES: dict[str, tuple[_Draw, str]] = {
  "loss": (loss, "a workdir of `clip-jax train` with two logged steps"),
  "evaluations": (
    evaluations,
    "a workdir whose config has evals and eval_every_steps",
  ),
  "accuracy": (accuracy, "results of --task zero_shot or linear_probe"),
  "shifts": (
    robustness_figures.shifts,
    "zero-shot results on ImageNet and on a shift of it, of the same model",
  ),
  "corruptions": (
    robustness_figures.corruptions,
    "results of --task robustness",
  ),
  "few_shot": (few_shot, "results of --task few_shot"),
  "groups": (group_figures.groups, "results of --task groups"),
  "reliability": (
    mistakes.reliability,
    f"zero-shot results of {calibration.LEAST_EXAMPLES} examples or more",
  ),
  "confusions": (
    mistakes.confusions,
    "zero-shot results with errors (`confusions`)",
  ),
}


def _colour(collection: collected.Collection, run: collected.Run) -> int:
  return collection.models.index(run.model)
