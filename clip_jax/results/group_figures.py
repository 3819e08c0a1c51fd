"""The figure of evaluations by group: accuracy and labels of each group."""

from collections.abc import Mapping
from typing import Any

from clip_jax import terminal
from clip_jax.results import collected, picture
from clip_jax.results.picture import Figure, Mark, Panel

_MOST_GROUPS = 24


def groups(collection: collected.Collection) -> Figure | None:
  """Draws accuracy by group, and the label whose rates differ most."""
  panels = []
  for result in collection.of_task("groups"):
    for attribute, entry in _objects(result.values.get("attributes")).items():
      members = _objects(entry.get("groups"))
      about = f"{result.model} on {result.title}\n{_words(attribute)}"
      colour = collection.models.index(result.model)
      accuracies = {
        name: (group.get("top1"), group.get("top1_interval_95"))
        for name, group in members.items()
      }
      found = [(accuracies, f"{about}: top-1")]
      for label in collected.entries(entry.get("labels"))[:1]:
        name = str(label.get("label"))
        rates = {
          group: (rate.get("rate"), rate.get("interval_95"))
          for group, each in members.items()
          if (rate := _objects(each.get("rates")).get(name)) is not None
        }
        found.append((rates, f"{about}: called {_words(name)}"))
      for rates, title in found:
        if panel := _panel(rates, title, members, colour):
          panels.append(panel)
  note = (
    "Zero-shot classification of the images of each group, with 95 % "
    "intervals: how many are right, where the data have labels, and how many "
    "get the label whose rates differ most between groups. The number of "
    "images is in brackets."
  )
  return picture.assemble("groups", "Groups", note, panels)


def _panel(
  rates: Mapping[str, tuple[Any, Any]],
  title: str,
  members: Mapping[str, Mapping[str, Any]],
  colour: int,
) -> Panel | None:
  """Returns the panel of each group's rate; None where no group has one."""
  rows = []
  for name, (value, interval) in rates.items():
    if (rate := collected.fraction(value)) is None:
      continue
    low, high = collected.interval(interval) or (rate, rate)
    count = collected.number(members[name].get("examples"))
    words = _words(name) + ("" if count is None else f" ({count:,.0f})")
    rows.append((words, 100 * rate, (100 * low, 100 * high)))
  if not rows:
    return None
  if len(rows) > _MOST_GROUPS:
    title += f" (the first {_MOST_GROUPS} of {len(rows)} groups)"
    rows = rows[:_MOST_GROUPS]
  names, values, ranges = zip(*rows, strict=True)
  mark = Mark(
    "", values, list(range(len(rows))), "points", colour, ranges=ranges
  )
  return Panel(
    title, "images (%)", "", [mark], x_limits=(0, 102), categories=names
  )


def _objects(value: Any) -> dict[str, Mapping[str, Any]]:
  """Returns the objects in an object, by name."""
  if not isinstance(value, dict):
    return {}
  return {name: x for name, x in value.items() if isinstance(x, dict)}


def _words(text: str) -> str:
  return terminal.printable(text, limit=28)
