"""The limits that a model card states: measured ones and those of all CLIPs."""

from collections.abc import Sequence

from clip_jax.results import collected, tables

# Sets on which models of this kind are weak (paper, sections 3.1.5 and 6).
_WEAK = {
  "counting": ("clevr_counts",),
  "distance": ("kitti_distance",),
  "fine-grained classes": (
    "stanford_cars",
    "fgvc_aircraft",
    "flowers102",
    "birdsnap",
  ),
  "handwritten digits": ("mnist",),
  "satellite and medical images": ("eurosat", "resisc45", "patch_camelyon"),
}

# Radford et al. 2021, sections 6 and 7, in short.
GENERAL = (
  "It chooses among the labels that it is given, and says nothing of what none "
  "of them names. The words matter: other labels or templates give other "
  "results, so measure with those that you will use.",
  "Models of this kind are weak at counting, at distances, at classes that "
  "differ in details, and on images unlike those they were trained on; even "
  "the paper's best one reads 88 % of MNIST's handwritten digits.",
  "A zero-shot classifier is often worse than a classifier that was trained on "
  "the task, and a few examples a class may at first do worse than none.",
  "What the training pairs say of people and groups, the model repeats; images "
  "and texts from the web are not filtered of that by themselves. How a task's "
  "classes are named changes whom it harms (paper, section 7.1).",
)
INTENDED = (
  "For research on images and texts, and for tasks on which it was measured "
  "with the labels and images of that task. Before any other use, measure it "
  "there, in groups where people are concerned. Surveillance and recognising "
  "faces are not what it is for."
)


def measured(results: Sequence[collected.Result]) -> list[str]:
  """Returns a sentence for each limit that some results show."""
  sentences = []
  for words, sets in _WEAK.items():
    values = [
      f"{x.title} {tables.percent(value)} %"
      for x in results
      if x.task == "zero_shot" and x.set in sets
      for value in [x.fraction("top1")]
      if value is not None
    ]
    if values:
      sentences.append(f"Zero-shot, {words}: {', '.join(values)}.")
  for result in results:
    sentences += _sureness(result) + _confusions(result) + _corruptions(result)
  return sentences + _shifts(results)


def _sureness(result: collected.Result) -> list[str]:
  ece = collected.fraction(result.calibration.get("ece"))
  if ece is None:
    return []
  return [
    f"On {result.title} its confidence is off by {tables.percent(ece)} % on "
    "average (expected calibration error of the softmax)."
  ]


def _confusions(result: collected.Result) -> list[str]:
  pairs = [
    f"“{entry['true']}” for “{entry['predicted']}” ({entry['count']})"
    for entry in collected.entries(result.values.get("confusions"))
    if {"true", "predicted", "count"} <= entry.keys()
  ]
  if not pairs:
    return []
  listed = ", ".join(pairs[:3])
  return [f"On {result.title} it most often takes {listed}."]


def _corruptions(result: collected.Result) -> list[str]:
  worst = [
    (value, entry.get("name"), entry.get("severity"))
    for entry in collected.entries(result.values.get("corruptions"))
    if (value := collected.fraction(entry.get("top1"))) is not None
  ]
  if not worst:
    return []
  value, name, severity = min(worst, key=lambda found: found[0])
  return [
    f"On {result.title} its top-1 falls to {tables.percent(value)} % under "
    f"{name} of severity {severity}."
  ]


def _shifts(results: Sequence[collected.Result]) -> list[str]:
  on_imagenet = [
    x for x in results if x.task == "zero_shot" and x.compared == "imagenet"
  ]
  if not on_imagenet:
    return []
  clean = max(on_imagenet, key=lambda x: x.rank).fraction("top1")
  if clean is None:
    return []
  return [
    f"From ImageNet to {x.title} its zero-shot top-1 goes from "
    f"{tables.percent(clean)} to {tables.percent(value)} %."
    for x in results
    if x.task == "zero_shot"
    and (x.set or "").startswith(("imagenet_", "objectnet"))
    and (value := x.fraction("top1")) is not None
  ]
