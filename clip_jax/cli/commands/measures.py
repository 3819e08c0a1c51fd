"""The measures of an evaluation in words."""

from typing import Any

from clip_jax import terminal

_FRACTIONS = {
  "top1": "top-1",
  "top5": "top-5",
  "mean_per_class": "mean per class",
  "map_11_point": "mean average precision, 11 points",
  "map_all_point": "mean average precision, all points",
  "validation_top1": "top-1 on the part to choose by",
}
_COUNTS = {
  "examples": "examples",
  "classes": "classes",
  "labels": "labels",
  "images": "images",
  "texts": "texts",
  "neighbours": "neighbours",
  "train_examples": "examples trained on",
}


def table(evals: dict[str, Any], *, before: dict[str, Any]) -> str:
  """Returns a run's evaluations as a table.

  Args:
    evals: measures by name.
    before: those of the model that the run began with; empty without one.
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
  """Returns the measures of an evaluation as pairs of words."""
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
    elif name == "roc_auc":
      rows.append(("area under the ROC curve", f"{value:.4f}"))
    elif name == "calibration":
      rows += _calibration(value)
    elif name == "search":
      rows += _search(value)
    elif name == "regularisation":
      rows.append(("regularisation", f"{value:.3g}"))
    elif name == "repeated_texts" and value:
      way = result.get("duplicates", "hits")
      rows.append(("texts that repeat", f"{value}, counted as {way}"))
    elif name == "bad_records" and value:
      reasons = ", ".join(f"{n} {reason}" for reason, n in value.items())
      rows.append(("left out as bad", reasons))
  return rows


def _calibration(found: dict[str, Any]) -> list[tuple[str, str]]:
  rows = [("calibration error", f"{100 * found['ece']:.2f} %")]
  if found["temperature"] is not None:
    before, after = (
      f"{100 * found[name]:.2f} %" for name in ("ece_held_out", "ece_after")
    )
    rows += [
      ("temperature, fitted on one half", f"{found['temperature']:.3g}"),
      ("calibration error of the other", f"{before}, with it {after}"),
    ]
  return rows


def _search(found: dict[str, Any]) -> list[tuple[str, str]]:
  chosen, known = found["chosen"], found["templates"]
  return [
    ("top-1 on the training data", f"{100 * found['train_top1']:.2f} %"),
    ("templates chosen", f"{len(chosen)} of {len(known)}"),
    *(("", terminal.escaped(template, limit=60)) for template in chosen),
  ]
