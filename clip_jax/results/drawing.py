"""Draws figures with matplotlib, which the extra `report` brings."""

import io
import textwrap
import types
import warnings
from collections.abc import Sequence
from typing import Any

from clip_jax import errors, terminal, versions
from clip_jax.results.picture import PUBLISHED, Figure, Mark, Panel

# Told apart by people who see colours otherwise, too (Okabe and Ito).
_COLOURS = (
  "#0072b2",
  "#d55e00",
  "#009e73",
  "#cc79a7",
  "#e69f00",
  "#56b4e9",
  "#8c6d31",
  "#5b4b8a",
)
_GREYS = ("#8a949e", "#4d5761")  # Of what is published.
_STYLE = {
  "axes.edgecolor": "#66727f",
  "axes.grid": True,
  "axes.labelcolor": "#1d2733",
  "axes.spines.right": False,
  "axes.spines.top": False,
  "axes.titlelocation": "left",
  "axes.titlesize": 11,
  "font.family": ["DejaVu Sans"],
  "font.size": 10,
  "grid.color": "#e6eaef",
  "legend.frameon": False,
  "text.parse_math": False,  # A name may hold a "$".
  "xtick.color": "#66727f",
  "ytick.color": "#66727f",
}
_DPI = 110
_ROW_INCHES = 0.3  # Of a panel's category.
_MOST_IN_LEGEND = 24
_LONGEST = 60  # Characters of a name; a longer one leaves no room for a panel.
# Characters across a panel by itself, and across one beside others.
_ACROSS, _ACROSS_BESIDE = 80, 42
_MOST_LINES = 4  # Of a title.
_LINE_INCHES = 0.18
_LOGIT_TICKS = (1, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99)


def check() -> None:
  """Raises UserError where matplotlib is not installed."""
  _matplotlib()


def _matplotlib() -> types.ModuleType:
  try:
    import matplotlib
    import matplotlib.backends.backend_agg
    import matplotlib.figure
  except ImportError as error:
    raise errors.UserError(
      f"Pictures are drawn with matplotlib, which does not import ({error}); "
      f"install it: {versions.install('report')}"
    ) from error
  return matplotlib


def draw(figure: Figure) -> bytes:
  """Returns a figure as a PNG.

  Raises:
    UserError: matplotlib is not installed.
  """
  matplotlib = _matplotlib()
  columns = _columns(figure.panels)
  rows = [
    figure.panels[start : start + columns]
    for start in range(0, len(figure.panels), columns)
  ]
  width = _width(figure.panels, columns)
  heights = [_height(row, columns) for row in rows]
  with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
    # A name may have characters that the font has not: they are boxes then.
    warnings.filterwarnings("ignore", "Glyph")
    canvas = matplotlib.figure.Figure(
      figsize=(columns * width, sum(heights)), dpi=_DPI, layout="constrained"
    )
    matplotlib.backends.backend_agg.FigureCanvasAgg(canvas)
    most = [max(len(panel.categories) for panel in row) for row in rows]
    # Bars are as high in every row.
    ratios = [count + 0.2 for count in most]
    grid = canvas.subplots(
      len(rows), columns, squeeze=False, height_ratios=ratios
    )
    for row, beside, count in zip(rows, grid, most, strict=True):
      for panel, pair in zip(row, beside, strict=False):
        _draw_panel(pair, panel, rows=count, across=_across(columns))
    axes = grid.flatten()
    for unused in axes[len(figure.panels) :]:
      unused.set_visible(False)
    _draw_legend(canvas, axes, columns * width)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", metadata={"Software": None})
  return buffer.getvalue()


def _columns(panels: Sequence[Panel]) -> int:
  if any(panel.categories for panel in panels):
    return min(2, len(panels))
  return {1: 1, 2: 2, 4: 2}.get(len(panels), 3)


def _width(panels: Sequence[Panel], columns: int) -> float:
  """Returns the inches across of each panel."""
  if columns == 1:
    return 8.0
  return 5.6 if any(panel.categories for panel in panels) else 4.4


def _height(panels: Sequence[Panel], columns: int) -> float:
  """Returns the inches of panels beside each other."""
  categories = max(len(panel.categories) for panel in panels)
  lines = max(len(_lines(panel.title, _across(columns))) for panel in panels)
  more = _LINE_INCHES * max(0, lines - 2)
  if categories:
    return 1.4 + _ROW_INCHES * categories + more
  return (4.2 if columns == 1 else 3.8) + more


def _across(columns: int) -> int:
  """Returns how many characters of a title are beside each other."""
  return _ACROSS if columns == 1 else _ACROSS_BESIDE


def _draw_panel(axes: Any, panel: Panel, *, rows: int, across: int) -> None:
  """Draws a panel.

  Args:
    axes: to draw it on.
    panel: what to draw.
    rows: the most categories that a panel beside it has.
    across: the characters in a line of its title.
  """
  axes.set(xlabel=_short(panel.x_label), ylabel=_short(panel.y_label))
  axes.set_title("\n".join(_lines(panel.title, across)))
  axes.set_axisbelow(True)
  if panel.x_scale == "log2":
    axes.set_xscale("log", base=2)
    counts = sorted({x for mark in panel.marks for x in mark.x})
    axes.set_xticks(counts, [f"{x:g}" for x in counts])
    axes.minorticks_off()
  for scale, axis in ((panel.x_scale, "x"), (panel.y_scale, "y")):
    if scale == "logit":
      _set_logit(axes, axis)
  for mark in panel.marks:
    _draw_mark(axes, mark, is_across=bool(panel.categories))
  if panel.categories:
    names = ["\n".join(_lines(x, _LONGEST)[:2]) for x in panel.categories]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(rows - 0.4, -0.6)  # Bars are as high as those beside.
  if panel.x_limits:
    axes.set_xlim(*panel.x_limits)
  if panel.y_limits:
    axes.set_ylim(*panel.y_limits)


def _lines(text: str, across: int) -> list[str]:
  """Returns the lines of a title, none longer than `across` characters."""
  lines = []
  for line in text.split("\n")[:2]:
    limit = across * (_MOST_LINES - 1)
    lines += textwrap.wrap(terminal.printable(line, limit=limit), across)
  return lines[:_MOST_LINES] or [""]


def _short(text: str) -> str:
  return terminal.printable(text, limit=_LONGEST)


def _set_logit(axes: Any, axis: str) -> None:
  getattr(axes, f"set_{axis}scale")("logit")
  ticks = [tick / 100 for tick in _LOGIT_TICKS]
  words = [f"{tick}" for tick in _LOGIT_TICKS]
  getattr(axes, f"set_{axis}ticks")(ticks, words)
  getattr(axes, f"{axis}axis").minorticks_off()


def _colour(number: int) -> str:
  if number <= PUBLISHED:
    return _GREYS[(PUBLISHED - number) % len(_GREYS)]
  return _COLOURS[number % len(_COLOURS)]


def _draw_mark(axes: Any, mark: Mark, *, is_across: bool) -> None:
  colour, x, y = _colour(mark.colour), list(mark.x), list(mark.y)
  label = mark.label or None
  if mark.look == "bars":
    if is_across:
      axes.barh(y, x, height=0.7, color=colour, label=label)
      axes.xaxis.get_major_locator().set_params(integer=True)  # Counts.
    else:
      widths = [high - low for low, high in mark.ranges]
      axes.bar(x, y, widths, color=colour, edgecolor="white", label=label)
  elif mark.look in ("reference", "equal"):
    dashes = "--" if mark.look == "reference" else ":"
    axes.plot(x, y, dashes, color=colour, linewidth=1.5, label=label)
  elif mark.look == "points":
    if mark.ranges:
      lows, highs = zip(*mark.ranges, strict=True)
      axes.hlines(y, lows, highs, color=colour, linewidth=1.5)
    face = colour if mark.filled else "white"
    axes.scatter(
      x, y, s=42, facecolor=face, edgecolor=colour, label=label, zorder=3
    )
  else:
    few = "o" if len(x) <= 20 else None
    axes.plot(x, y, color=colour, marker=few, markersize=4, label=label)
    if mark.spread:
      low = [a - b for a, b in zip(y, mark.spread, strict=True)]
      high = [a + b for a, b in zip(y, mark.spread, strict=True)]
      axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
  for note, a, b in zip(mark.notes, x, y, strict=False):
    axes.annotate(note, (a, b), (4, 4), textcoords="offset points", fontsize=8)


def _draw_legend(canvas: Any, axes: Any, width: float) -> None:
  """Names each mark once, below all panels."""
  named: dict[str, Any] = {}
  for pair in axes:
    for handle, label in zip(*pair.get_legend_handles_labels(), strict=True):
      named.setdefault(_short(label), handle)
  if not named:
    return
  labels = list(named)[:_MOST_IN_LEGEND]
  longest = max(map(len, labels))
  canvas.legend(
    [named[label] for label in labels],
    labels,
    loc="outside lower left",
    ncols=max(1, min(len(labels), int(width * 11 / (longest + 5)))),
  )
