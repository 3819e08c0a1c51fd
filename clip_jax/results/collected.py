"""What a report is made of: runs and results of evaluations, found in files.

The files may contain anything, so a result's values are read by the functions
here: they return None where a value is of another type or out of range.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.evals import calibration, published


@dataclasses.dataclass(frozen=True)
class Result:
  """One evaluation of one model.

  Attributes:
    model: its short name, the same for all its results.
    origin: the model's path or address in full; where the result names none,
      the path of the result.
    task: such as "zero_shot".
    data: the DATA address without directories, or the name of the set.
    set: the key of `published.table()`; None where the set is not in it.
    step: updates that the model was trained for; None if unknown.
    values: the JSON object, whose values may be anything.
    file: that it was in; empty for an evaluation among a run's metrics.
    differs: in what the data are not those of the set that figures are of, such
      as "70,000 images, not 10,000"; empty where they are.
    as_published: whether it was measured with the prompts or features that
      published figures are of; None where it does not say.
    apart: what tells it from other results of the same name.
  """

  model: str
  origin: str
  task: str
  data: str
  set: str | None
  step: int | None
  values: Mapping[str, Any]
  file: str = ""
  differs: str = ""
  as_published: bool | None = None
  apart: Sequence[str] = ()

  @property
  def compared(self) -> str | None:
    """The key of the set whose published figures stand beside; or None."""
    return None if self.differs else self.set

  @property
  def name(self) -> str:
    """The usual name of the data."""
    return self.data if self.set is None else published.title(self.set)

  @property
  def title(self) -> str:
    """The name of the data, with what makes it another one in brackets."""
    more = "; ".join(filter(None, (self.differs, *self.apart)))
    return f"{self.name} ({more})" if more else self.name

  @property
  def rank(self) -> tuple[int, bool]:
    """Of several on the same data the greatest counts: later, as published."""
    return self.step or 0, bool(self.as_published)

  def number(self, name: str) -> float | None:
    """Returns a value if it is a number that can be drawn."""
    return number(self.values.get(name))

  def fraction(self, name: str) -> float | None:
    """Returns a value if it is a number from 0 to 1.

    A suite's result has a single measure: its `metric` is the name, its `value`
    the number.

    Of five classes or fewer the right one is always among the first five, which
    says nothing.
    """
    if name in _OF_FIVE and (self.number("classes") or 6) <= 5:
      return None
    value = self.values.get(name)
    metric = self.values.get("metric")
    if value is None and metric and metric in (name, _SUITE_NAMES.get(name)):
      value = self.values.get("value")
    return fraction(value)

  @property
  def calibration(self) -> Mapping[str, Any]:
    """Measures of calibration; {} if unknown, or if examples are too few."""
    examples, found = self.number("examples"), self.values.get("calibration")
    few = examples is not None and examples < calibration.LEAST_EXAMPLES
    return {} if few or not isinstance(found, dict) else found

  def interval(self, name: str) -> tuple[float, float] | None:
    """Returns the 95 % interval of a measure, in fractions, if there is one.

    Args:
      name: of the measure, such as "top1" or "text_to_image/r@1".
    """
    found = self.values.get(f"{name}_interval_95") or self._suite_interval(name)
    if found is None:
      found = self.values.get("interval_95")
      if isinstance(found, dict):  # Intervals by the names of measures.
        found = found.get(name)
      elif self.fraction(name) != fraction(self.values.get("value")):
        return None  # The interval of another measure.
    return interval(found)

  def _suite_interval(self, name: str) -> Any:
    """Returns the interval of one of the further measures of a suite's result.

    They stand in `values`, by name.
    """
    values = self.values.get("values")
    if not isinstance(values, dict):
      return None
    entry = values.get(_SUITE_NAMES.get(name, name.replace("/", "_")))
    return entry.get("interval_95") if isinstance(entry, dict) else None


# Axes of matplotlib end before the largest floats do.
_LARGEST = 1e300
_OF_FIVE = ("top5", "mean_top1_top5")
# What suites call a measure, where it is another name than ours.
_SUITE_NAMES = {"top1": "accuracy"}


@dataclasses.dataclass(frozen=True)
class Run:
  """The metrics of a workdir, by step.

  Attributes:
    model: the short name, the same as in its results.
    losses: (step, loss) in order.
    evaluations: (step, value) in order, by (evaluation, measure).
    examples: its contact sheet as a PNG; None where it has none.
  """

  model: str
  losses: Sequence[tuple[int, float]]
  evaluations: Mapping[tuple[str, str], Sequence[tuple[int, float]]]
  examples: bytes | None = None


@dataclasses.dataclass(frozen=True)
class LeftOut:
  """A file or result that is not told of, and why."""

  path: str
  why: str


@dataclasses.dataclass(frozen=True)
class Collection:
  """Everything that was found, in a fixed order.

  Attributes:
    models: the short names, in the order in which they were given.
    runs: workdirs with metrics.
    results: evaluations; of `gathering.read`, the latest of each model, task
      and data.
    left_out: files that contain no result, and results in whose place another
      of the same model, task and data is told.
  """

  models: Sequence[str]
  runs: Sequence[Run]
  results: Sequence[Result]
  left_out: Sequence[LeftOut]

  def of_sets(self, task: str) -> dict[str, dict[str, Result]]:
    """Returns the results of a task that compare with published figures.

    They are by set and model, the one of the greatest `rank` of each.
    """
    found: dict[str, dict[str, Result]] = {}
    for result in self.of_task(task):
      if result.compared is not None:
        models = found.setdefault(result.compared, {})
        other = models.get(result.model)
        if other is None or result.rank >= other.rank:
          models[result.model] = result
    return found

  def of_task(self, task: str) -> list[Result]:
    """Returns the results of a task."""
    return [result for result in self.results if result.task == task]


def number(value: Any) -> float | None:
  """Returns `value` if it is a number that can be drawn, else None."""
  if isinstance(value, int | float) and not isinstance(value, bool):
    return float(value) if abs(value) <= _LARGEST else None
  return None


def fraction(value: Any) -> float | None:
  """Returns `value` if it is a number from 0 to 1, else None."""
  found = number(value)
  return found if found is not None and 0 <= found <= 1 else None


def interval(value: Any) -> tuple[float, float] | None:
  """Returns `value` if it is two fractions, the lower first; else None."""
  if isinstance(value, list) and len(value) == 2:
    low, high = map(fraction, value)
    if low is not None and high is not None and low <= high:
      return low, high
  return None


def top1(value: Any) -> float | None:
  """Returns a fraction, or the `top1` of an object of measures; else None."""
  return fraction(value.get("top1") if isinstance(value, dict) else value)


# What a result has at least one of: fractions, and what holds them.
MEASURES = (
  *("top1", "top5", "mean_per_class", "mean_top1_top5", "map_11_point"),
  *("roc_auc", "value", "text_to_image", "image_to_text", "shots"),
  *("corruptions", "attributes", "calibration"),
)
# The fractions in these.
_INNER = frozenset(["top1", "mean", "rate", "ece", "r@1", "r@5", "r@10"])


def has_measure(values: Mapping[str, Any]) -> bool:
  """Whether one of `MEASURES` is a number from 0 to 1, or holds one."""
  waiting = [values[name] for name in MEASURES if name in values]
  while waiting:
    value = waiting.pop()
    if isinstance(value, dict):
      waiting += [
        x
        for name, x in value.items()
        if isinstance(x, dict | list) or name in _INNER
      ]
    elif isinstance(value, list):
      waiting += [x for x in value if isinstance(x, dict)]
    elif fraction(value) is not None:
      return True
  return False


def entries(value: Any) -> list[Mapping[str, Any]]:
  """Returns the objects in `value`; an empty list where it is not a list."""
  if not isinstance(value, list):
    return []
  return [entry for entry in value if isinstance(entry, dict)]
