"""The content of pictures and tables, before anything is drawn."""

import dataclasses
from collections.abc import Sequence

# More panels than this are no picture any more; the first ones are shown.
MOST_PANELS = 12
# The colour of what others have published.
PUBLISHED = -1


@dataclasses.dataclass(frozen=True)
class Mark:
  """Points of one kind.

  Attributes:
    label: in the legend; empty for none there.
    x: across.
    y: up; of a panel with categories, their numbers from the top.
    look: "line", "points", "bars", "reference" (a dashed line) or "equal" (a
      dotted one).
    colour: the number of a colour, the same for the same model; `PUBLISHED`.
    spread: how far each `y` reaches down and up.
    ranges: from where to where each `x` reaches.
    notes: words beside each point.
    filled: whether points are solid; others are rings.
  """

  label: str
  x: Sequence[float]
  y: Sequence[float]
  look: str = "line"
  colour: int = 0
  spread: Sequence[float] = ()
  ranges: Sequence[tuple[float, float]] = ()
  notes: Sequence[str] = ()
  filled: bool = True


@dataclasses.dataclass(frozen=True)
class Panel:
  """One pair of axes.

  Attributes:
    title: above it.
    x_label: with the unit.
    y_label: with the unit.
    marks: drawn in this order.
    x_scale: "linear", "log2" or "logit" (of fractions, shown in percent).
    y_scale: "linear" or "logit".
    x_limits: from where to where; None fits the marks.
    y_limits: likewise.
    categories: names in the place of numbers on the vertical axis, from the
      top.
  """

  title: str
  x_label: str
  y_label: str
  marks: Sequence[Mark]
  x_scale: str = "linear"
  y_scale: str = "linear"
  x_limits: tuple[float, float] | None = None
  y_limits: tuple[float, float] | None = None
  categories: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Figure:
  """A picture of one or several panels.

  Attributes:
    name: of its file.
    title: its heading.
    note: what is shown, by which protocol, and where figures are from.
    panels: drawn beside each other.
  """

  name: str
  title: str
  note: str
  panels: Sequence[Panel]


@dataclasses.dataclass(frozen=True)
class Table:
  """A table: the first column names the row.

  Attributes:
    name: tells it apart.
    title: its heading.
    note: as of `Figure`.
    header: of each column.
    rows: of texts.
    published_columns: the last ones, of what others have published.
    published_rows: likewise.
  """

  name: str
  title: str
  note: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  published_columns: int = 0
  published_rows: int = 0


def assemble(
  name: str, title: str, note: str, panels: Sequence[Panel]
) -> Figure | None:
  """Returns the figure of some panels; None where there is none."""
  if not panels:
    return None
  if len(panels) > MOST_PANELS:
    note += f" The first {MOST_PANELS} of {len(panels)} are shown."
  return Figure(name, title, note, panels[:MOST_PANELS])


def columns(
  points: Sequence[tuple[float, float]],
) -> tuple[list[float], list[float]]:
  """Returns the first and the second numbers of some pairs."""
  return [x for x, _ in points], [y for _, y in points]
