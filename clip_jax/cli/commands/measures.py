"""Formats the measures of evaluations as tables."""

from collections.abc import Collection
from typing import Any

from clip_jax import terminal
from clip_jax.evals import calibration

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


def remarks(
  evals: dict[str, Any],
  *,
  before: dict[str, Any],
  frozen: str = "",
  own: Collection[str] = (),
  longer: str = "min_steps",
) -> list[str]:
  """Returns a sentence about each evaluation that fine-tuning did no good.

  Args:
    evals: measures by the evaluation's name.
    before: measures of the model that the run started from; {} without one.
    frozen: `config.optim.frozen` of the run.
    own: names of those on held-out training data; they should get better.
    longer: the field of the config that makes the run longer.
  """
  locked = "" if frozen else "of a ResNet locked norms (optim.frozen=/norm/), "
  said = []
  for name, result in evals.items():
    measure, after = _first(result)
    if measure and after < (earlier := _first(before.get(name, {}))[1]):
      said.append(
        f"{name}: {measure} fell from {100 * earlier:.2f} to {100 * after:.2f} "
        f"%. Another optim.peak_lr, {locked}or a mixture with the model before "
        "(--interpolate) may keep more."
      )
    elif measure and name in own and name in before and after == earlier < 1:
      said.append(
        f"{name}: {measure} is {100 * after:.2f} % as before. More steps "
        f"({longer}) or another optim.peak_lr may teach it more."
      )
  return ["", *said] if said else []


def _first(result: dict[str, Any]) -> tuple[str, float]:
  """Returns the name and value of what an evaluation is judged by."""
  if "text_to_image" in result:
    return "text to image, R@1", result["text_to_image"]["r@1"]
  return ("top-1", result["top1"]) if "top1" in result else ("", 0.0)


def to_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
  """Returns the measures of an evaluation as (name, value) texts."""
  rows = []
  for name, value in result.items():
    if value is None:
      continue
    if name.startswith("top1_interval"):
      low, high = value
      level = name.removeprefix("top1_interval_")
      rows.append(
        (f"top-1, {level} % interval", f"{100 * low:.1f} to {100 * high:.1f} %")
      )
    elif name in _FURTHER:
      rows += _FURTHER[name](result)
    elif name == "top1" and ("shots" in result or "corruptions" in result):
      continue  # Among the further ones.
    elif name == "top5" and result.get("classes", 6) <= 5:
      continue  # Says nothing; without votes always 100 %.
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
      rows += [] if _few(result) else _calibration(value)
    elif name == "search":
      rows += _search(value)
    elif name == "regularisation" and "shots" not in result:
      rows.append(("regularisation", f"{value:.3g}"))
    elif name == "repeated_texts" and value:
      way = result.get("duplicates", "hits")
      rows.append(("texts that repeat", f"{value}, counted as {way}"))
    elif name == "bad_records" and value:
      reasons = ", ".join(f"{n} {reason}" for reason, n in value.items())
      rows.append(("left out as bad", reasons))
  return rows


def left_out(result: dict[str, Any]) -> str:
  """Returns a line on what `to_rows` leaves out, or an empty text."""
  if "calibration" not in result or not _few(result):
    return ""
  least = calibration.LEAST_EXAMPLES
  return (
    f"\n\nThe calibration is left out: of fewer than {least} examples it is "
    "mostly chance (--json has it)."
  )


def _few(result: dict[str, Any]) -> bool:
  return result["examples"] < calibration.LEAST_EXAMPLES


def _calibration(found: dict[str, Any]) -> list[tuple[str, str]]:
  # Also of sigmoid models, whose own probabilities do not add up to 1.
  rows = [("calibration error (softmax)", f"{100 * found['ece']:.2f} %")]
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


def _shots(result: dict[str, Any]) -> list[tuple[str, str]]:
  """Returns the rows of a few-shot probe, and of zero-shot beside it."""
  rows = []
  if "zero_shot" in result:
    rows.append(("zero-shot, top-1", _percent(result["zero_shot"]["top1"])))
  for entry in result["shots"]:
    shots = "1 shot" if entry["k"] == 1 else f"{entry['k']} shots"
    deviation = f"± {100 * entry['std']:.2f}"
    rows.append((f"{shots}, top-1", f"{_percent(entry['mean'])} {deviation}"))
  if "label_efficiency" in result:
    text = result["label_efficiency"]["text"]
    rows.append(("shots that equal zero-shot", text))
  return rows


def _corruptions(result: dict[str, Any]) -> list[tuple[str, str]]:
  """Returns a row for each corruption, its severities side by side."""
  rows = [("clean, top-1", _percent(result["top1"]))]
  for name, mean in result["mean_by_corruption"].items():
    found = [x["top1"] for x in result["corruptions"] if x["name"] == name]
    each = " ".join(f"{100 * top1:.1f}" for top1 in found)
    rows.append((name.replace("_", " "), f"{_percent(mean)}: {each}"))
  low, high = result["corrupted_top1_interval_95"]
  interval = f"95 %: {100 * low:.1f} to {100 * high:.1f}"
  mean = f"{_percent(result['corrupted_top1'])} ({interval})"
  rows.append(("mean under corruption", mean))
  if result["relative"] is not None:
    rows.append(("relative to clean", _percent(result["relative"])))
  return rows


def _attributes(result: dict[str, Any]) -> list[tuple[str, str]]:
  """Returns a row for each group, and the largest gaps of each attribute."""
  rows = []
  if unused := result.get("keys_of_no_image"):
    rows.append(("keys of no image", f"{unused} of {result['keys']}"))
  for name, found in result["attributes"].items():
    attribute = terminal.printable(name, limit=40)
    for group, of_group in found["groups"].items():
      images = terminal.counted(of_group["examples"], "image")
      if "top1" in of_group:
        low, high = of_group["top1_interval_95"]
        interval = f"95 %: {100 * low:.1f} to {100 * high:.1f}"
        images = f"{_percent(of_group['top1'])} ({interval}), {images}"
      rows.append(
        (f"{attribute}: {terminal.printable(group, limit=40)}", images)
      )
    if without := found["without_group"]:
      said = f"{without} of {terminal.counted(result['examples'], 'image')}"
      rows.append((f"{attribute}, without group", said))
    if found["largest_gap"] is not None:
      rows.append((f"{attribute}, largest gap", _gap(found["largest_gap"])))
    for entry in found["labels"][:1]:
      label = terminal.printable(entry["label"], limit=40)
      said = f"{label}: {_gap(entry)}"
      rows.append((f"{attribute}, largest gap of a label", said))
  return rows


def _gap(found: dict[str, Any]) -> str:
  low, high = (terminal.printable(x, limit=40) for x in found["between"])
  return f"{_percent(found['gap'])} between {low} and {high}"


def _percent(fraction: float) -> str:
  return f"{100 * fraction:.2f} %"


def _folds(result: dict[str, Any]) -> list[tuple[str, str]]:
  """Returns a row for each fold."""
  rows = [("deviation over the folds", _percent(result["top1_std"]))]
  for number, fold in enumerate(result["folds"], 1):
    penalty = fold.get("regularisation")
    by = f", regularisation {penalty:.3g}" if penalty is not None else ""
    rows.append((f"fold {number}, top-1", f"{_percent(fold['top1'])}{by}"))
  return rows


_FURTHER = {
  "folds": _folds,
  "attributes": _attributes,
  "corruptions": _corruptions,
  "shots": _shots,
}
