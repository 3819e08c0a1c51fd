"""Formats the measures of evaluations as tables."""

from typing import Any

from clip_jax import terminal

_FRACTIONS = {
  "top1": "top-1",
  "top5": "top-5",
  "mean_per_class": "mean per class",
  "validation_top1": "top-1 on the part to choose by",
}
_COUNTS = {
  "examples": "examples",
  "classes": "classes",
  "images": "images",
  "texts": "texts",
  "neighbours": "neighbours",
  "train_examples": "examples trained on",
}


def table(evals: dict[str, Any], *, before: dict[str, Any]) -> str:
  """Returns a run's evaluations as a table.

  Args:
    evals: measures by the evaluation's name.
    before: measures of the model that the run started from; {} without one.
  """
  rows = []
  for name, result in evals.items():
    earlier = dict(to_rows(before.get(name, {})))
    for measure, value in to_rows(result):
      begun = (earlier.get(measure, "-"),) if before else ()
      rows.append((name, measure, *begun, value))
  values = ("before", "after") if before else ("value",)
  return terminal.table(("evaluation", "measure", *values), rows)


def to_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
  """Returns the measures of an evaluation as (name, value) texts."""
  rows = []
  for name, value in result.items():
    if name.startswith("top1_interval"):
      low, high = value
      level = name.removeprefix("top1_interval_")
      rows.append(
        (f"top-1, {level} % interval", f"{100 * low:.1f} to {100 * high:.1f} %")
      )
    elif name in _FRACTIONS:
      rows.append((_FRACTIONS[name], f"{100 * value:.2f} %"))
    elif name in ("text_to_image", "image_to_text"):
      way = name.replace("_", " ")
      rows += [
        (f"{way}, {key.upper()}", f"{100 * part:.2f} %")
        for key, part in value.items()
        if key.startswith("r@")
      ]
      rows.append((f"{way}, median rank", f"{value['median_rank']:g}"))
    elif name in _COUNTS:
      rows.append((_COUNTS[name], str(value)))
    elif name == "regularisation":
      rows.append(("regularisation", f"{value:.3g}"))
    elif name == "repeated_texts" and value:
      way = result.get("duplicates", "hits")
      rows.append(("texts that repeat", f"{value}, counted as {way}"))
    elif name == "bad_records" and value:
      reasons = ", ".join(f"{n} {reason}" for reason, n in value.items())
      rows.append(("left out as bad", reasons))
  return rows
