"""Figures of errors: how sure they were, and what was taken for what."""

from collections.abc import Iterable

from clip_jax import terminal
from clip_jax.results import collected, picture
from clip_jax.results.picture import PUBLISHED, Figure, Mark, Panel

_MOST_PAIRS = 20


def reliability(collection: collected.Collection) -> Figure | None:
  """Draws how often a confidence is right."""
  panels = []
  for result in collection.results:
    bins = []
    for entry in collected.entries(result.calibration.get("reliability")):
      names = ("low", "high", "accuracy", "confidence")
      low, high, right, sure = (collected.fraction(entry.get(x)) for x in names)
      count = collected.number(entry.get("count"))
      if None not in (low, high, right, sure, count) and count:
        bins.append((low, high, right, sure, count))
    if not bins:
      continue
    ends = [(100 * low, 100 * high) for low, high, *_ in bins]
    total = sum(count for *_, count in bins)
    words = f"{result.model} on {result.title}"
    if (ece := collected.fraction(result.calibration.get("ece"))) is not None:
      words += f"\nECE {100 * ece:.1f} %"
    marks = [
      Mark(
        "right",
        _middles(ends),
        [100 * b[2] for b in bins],
        "bars",
        ranges=ends,
      ),
      Mark(
        "share of all examples",
        _middles(ends),
        [100 * b[4] / total for b in bins],
        colour=PUBLISHED,
      ),
      Mark("equal", [0, 100], [0, 100], "equal", colour=PUBLISHED),
    ]
    panels.append(
      Panel(
        words,
        "confidence (%)",
        "share (%)",
        marks,
        x_limits=(0, 100),
        y_limits=(0, 104),  # A point at 100 is a whole one.
      )
    )
  note = (
    "Bars: of the examples with such a confidence, how many are right. On the "
    "dotted line a model is as often right as it says. ECE is the mean "
    "distance from it."
  )
  return picture.assemble("reliability", "Reliability", note, panels)


def _middles(ends: Iterable[tuple[float, float]]) -> list[float]:
  return [(low + high) / 2 for low, high in ends]


def confusions(collection: collected.Collection) -> Figure | None:
  """Draws which classes are taken for which others most often."""
  panels = []
  for result in collection.results:
    pairs = []
    for entry in collected.entries(result.values.get("confusions")):
      count = collected.number(entry.get("count"))
      words = [
        terminal.printable(str(entry.get(key, "?")), limit=28)
        for key in ("true", "predicted")
      ]
      if count is not None and count > 0:
        pairs.append((" → ".join(words), count))
    if pairs:
      pairs = pairs[:_MOST_PAIRS]
      mark = Mark(
        "",
        [count for _, count in pairs],
        list(range(len(pairs))),
        "bars",
        collection.models.index(result.model),
      )
      panels.append(
        Panel(
          f"{result.model} on {result.title}",
          "images",
          "",
          [mark],
          categories=[words for words, _ in pairs],
        )
      )
  note = "The true class, and what the model says: the most frequent errors."
  return picture.assemble("confusions", "Confusions", note, panels)
