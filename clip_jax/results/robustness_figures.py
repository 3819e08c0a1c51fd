"""Figures of accuracy where images are not as usual."""

import collections
import math

from clip_jax import terminal
from clip_jax.evals import published
from clip_jax.results import collected, picture
from clip_jax.results.picture import PUBLISHED, Figure, Mark, Panel

_SHIFTS = (
  "imagenet_v2",
  "imagenet_r",
  "imagenet_sketch",
  "imagenet_a",
  "objectnet",
)


def shifts(collection: collected.Collection) -> Figure | None:
  """Draws accuracy under a shift against that on ImageNet (paper, Fig. 13)."""
  on = collections.defaultdict(dict)
  for key, models in collection.of_sets("zero_shot").items():
    for model, result in models.items():
      value = result.fraction("top1")
      if value is not None and 0 < value < 1:
        on[key][model] = value
  panels = []
  for shift in _SHIFTS:
    both = [m for m in on[shift] if m in on["imagenet"]]
    if not both:
      continue
    others = published.figures("zero_shot", "open_clip", shift)
    standard = published.figures("zero_shot", "open_clip", "imagenet")
    marks = [
      Mark(
        "published, zero-shot (open_clip)",
        [standard[m] for m in others],
        list(others.values()),
        "points",
        colour=PUBLISHED,
      )
    ]
    marks += [
      Mark(
        model,
        [on["imagenet"][model]],
        [on[shift][model]],
        "points",
        colour=collection.models.index(model),
      )
      for model in both
    ]
    values = [x for mark in marks for x in (*mark.x, *mark.y)]
    low, high = 0.7 * min(values), 1 - 0.7 * (1 - max(values))
    panels.append(
      Panel(
        published.title(shift),
        "ImageNet top-1 (%)",
        f"{published.title(shift)} top-1 (%)",
        [*_lines(shift, low, high), *marks],
        x_scale="logit",
        y_scale="logit",
        x_limits=(low, high),
        y_limits=(low, high),
      )
    )
  note = (
    "On logit axes. Dashed: what models trained on ImageNet reach, a line that "
    "was fitted to the models of Taori et al. (2020); it is drawn where it is "
    "against all 1,000 classes. What lies above it is effective robustness. "
    "Dotted: equal accuracy."
  )
  return picture.assemble(
    "shifts", "Robustness to natural shifts", note, panels
  )


def _lines(shift: str, low: float, high: float) -> list[Mark]:
  """Returns the line of equal accuracy and the baseline."""
  logits = [math.log(x / (1 - x)) for x in (low, high)]
  steps = [logits[0] + i * (logits[1] - logits[0]) / 20 for i in range(21)]
  x = [1 / (1 + math.exp(-step)) for step in steps]
  marks = [Mark("equal", x, x, "equal", colour=PUBLISHED)]
  y = [published.expected(shift, value) for value in x]
  if None not in y:
    line = [value for value in y if value is not None]
    marks.append(
      Mark("trained on ImageNet", x, line, "reference", colour=PUBLISHED)
    )
  return marks


def corruptions(collection: collected.Collection) -> Figure | None:
  """Draws accuracy by severity of each corruption, from the clean images."""
  panels = []
  for result in collection.of_task("robustness"):
    curves = collections.defaultdict(dict)
    for entry in collected.entries(result.values.get("corruptions")):
      severity = collected.number(entry.get("severity"))
      value = collected.fraction(entry.get("top1"))
      if severity is not None and value is not None:
        name = terminal.printable(str(entry.get("name", "?")).replace("_", " "))
        curves[name][severity] = 100 * value
    clean = collected.top1(result.values.get("clean"))
    marks = []
    for number, (name, curve) in enumerate(curves.items()):
      points = {**({} if clean is None else {0.0: 100 * clean}), **curve}
      x, y = picture.columns(sorted(points.items()))
      marks.append(Mark(name, x, y, colour=number))
    if marks:
      title = f"{result.model} on {result.title}"
      panels.append(Panel(title, "severity (0: clean)", "top-1 (%)", marks))
  note = "Images are corrupted before preprocessing; the prompts are the same."
  return picture.assemble(
    "corruptions", "Robustness to corruptions", note, panels
  )
