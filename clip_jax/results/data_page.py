"""Draws what a source holds: histograms, a contact sheet and one page."""

import io
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from clip_jax import errors, preprocess, terminal, whole_files
from clip_jax.data.statistics import examine, summary
from clip_jax.report import canvas
from clip_jax.results import drawing, html_page, report_files
from clip_jax.results.picture import Figure, Mark, Panel, Table

SHEET, NUMBERS = "contact_sheet.png", "stats.json"
SAMPLES = 60
# Says that the page is of data, and no report of an evaluation.
MARK = '<meta name="generator" content="clip_jax data">'
_COLUMNS, _TILE, _GAP = 10, 110, 6
_MOST_BARS = 15
_SHOWN = 200  # Characters of a caption.
_GUESSED = " Languages are guesses: a few words say little of theirs."
_LENGTHS = ("characters", "words", "tokens")


def check(out: str) -> None:
  """Raises UserError where nothing can be drawn to `out`."""
  drawing.check()
  errors.check_local("The page", out)
  directory = pathlib.Path(os.path.expanduser(out))
  report_files.check_replaceable(directory, what="page of data", mark=MARK)


def write(
  out: str,
  found: Mapping[str, Any],
  samples: Sequence[summary.Sample],
  *,
  address: str,
) -> str:
  """Writes page, pictures and numbers; returns the path of the page.

  Args:
    out: a directory; a page of ours that is there is replaced.
    found: of `summary.summarize`.
    samples: for the contact sheet.
    address: of the data.

  Raises:
    UserError: matplotlib is missing, or `out` holds something else.
  """
  check(out)
  directory = pathlib.Path(os.path.expanduser(out))
  figures = [(x, drawing.draw(x)) for x in _figures(found)]
  sheet = contact_sheet(samples)
  parts: list[str] = []
  for figure, png in figures:
    parts += html_page.picture(figure.name, figure.title, figure.note, png)
  if samples:
    parts += html_page.picture(
      "contact_sheet",
      "Some of the images",
      f"{len(samples)} different images, drawn by their digests.",
      sheet,
    )
  parts += map(html_page.as_table, _tables(found, samples))
  title = f"Data: {terminal.printable(address, limit=_SHOWN)}"
  directory.mkdir(parents=True, exist_ok=True)
  numbers = json.dumps({"data": address, **found}, indent=2) + "\n"
  # The page first: it says that what is here may be replaced.
  files = {
    report_files.PAGE: html_page.document(title, parts, mark=MARK).encode(),
    **{f"{figure.name}.png": png for figure, png in figures},
    SHEET: sheet,
    NUMBERS: numbers.encode(),
  }
  for name, data in files.items():
    whole_files.write(directory / name, data)
  return str(directory / report_files.PAGE)


def contact_sheet(samples: Sequence[summary.Sample]) -> bytes:
  """Returns the images in rows, each within a square, as a PNG."""
  rows = max(1, math.ceil(len(samples) / _COLUMNS))
  step = _TILE + _GAP
  size = (_COLUMNS * step + _GAP, rows * step + _GAP)
  sheet = Image.new("RGB", size, "white")
  for i, sample in enumerate(samples):
    row, column = divmod(i, _COLUMNS)
    place = (_GAP + column * step, _GAP + row * step)
    try:
      image = preprocess.decode(sample.image)
    except preprocess.ImageError:  # Only its header was read before.
      continue
    sheet.paste(canvas.enlarge(image, _TILE), place)
  buffer = io.BytesIO()
  sheet.save(buffer, "PNG")
  return buffer.getvalue()


def _figures(found: Mapping[str, Any]) -> list[Figure]:
  captions, images = found["captions"], found["images"]
  lengths = [
    _lengths(name, captions[name]["histogram"])
    for name in _LENGTHS
    if captions["number"]
  ]
  kinds = [
    _bars("script", "captions", captions["scripts"]),
    _bars("language", "captions", captions["languages"] or {}),
    _bars("format", "images", images["formats"]),
    _bars("mode", "images", images["modes"]),
    _bars("bad record", "records", found["bad"]),
  ]
  sides = [
    _ranges("shortest side", "pixels", images["shortest_side"]),
    _ranges("width over height", "", images["aspect"]),
    _ranges("encoded size", "bytes", images["bytes"]),
  ]
  spoken = "languages, " if captions["languages"] else ""
  figures = [
    (
      *("captions", "Lengths of captions"),
      "The last bar has all that is longer. Tokens are those of CLIP, with "
      f"begin and end; {terminal.percent(captions['cut_share'])} of the "
      f"captions have more than {examine.CONTEXT} and are cut.",
      lengths,
    ),
    (
      *("images", "Sizes of images"),
      "Turned upright, before any resize; the last bar has all that is larger.",
      sides if found["good"] else [],
    ),
    (
      *("kinds", f"Scripts, {spoken}formats and bad records"),
      "A caption's script is that of most of its letters, by Unicode's blocks."
      f"{_GUESSED if spoken else ''}",
      [panel for panel in kinds if panel.categories],
    ),
  ]
  return [
    Figure(name, title, note, panels)
    for name, title, note, panels in figures
    if panels
  ]


def _lengths(name: str, histogram: Mapping[str, Any]) -> Panel:
  low = histogram["from"]
  step = low[1] - low[0]
  bars = [(a, a + step) for a in low]
  return Panel(
    f"{name.capitalize()} of a caption",
    name,
    "captions",
    [
      Mark(
        "",
        [(a + b) / 2 for a, b in bars],
        histogram["counts"],
        look="bars",
        ranges=bars,
      )
    ],
  )


def _bars(name: str, unit: str, counts: Mapping[str, int]) -> Panel:
  """Returns a bar for each name; the rare ones of many share the last."""
  shown = dict(list(counts.items())[:_MOST_BARS])
  if rest := sum(counts.values()) - sum(shown.values()):
    shown["all others"] = rest
  return Panel(
    f"By {name}",
    unit,
    "",
    [Mark("", list(shown.values()), list(range(len(shown))), look="bars")],
    categories=list(shown),
  )


def _ranges(name: str, unit: str, numbers: Mapping[str, Any]) -> Panel:
  """Returns a bar for each range, from the first to the last that has any."""
  histogram = numbers["histogram"]
  low, counts = histogram["from"], histogram["counts"]
  filled = [i for i, count in enumerate(counts) if count]
  kept = range(filled[0], filled[-1] + 1) if filled else range(0)
  names = [_range(low, i, unit) for i in kept]
  numbers_of = [counts[i] for i in kept]
  title = f"{name.capitalize()}{f' ({unit})' if unit else ''}"
  mark = Mark("", numbers_of, list(range(len(names))), look="bars")
  return Panel(title, "images", "", [mark], categories=names)


def _range(low: Sequence[float], i: int, unit: str) -> str:
  def said(number: float) -> str:
    if unit == "bytes":
      return terminal.size(number).replace(".00", "")
    return f"{number:.0f}" if number >= 8 else f"{number:.3g}"

  if i + 1 == len(low):
    return f"{said(low[i])} and more"
  return f"{said(low[i])} to {said(low[i + 1])}"


def _tables(
  found: Mapping[str, Any], samples: Sequence[summary.Sample]
) -> list[Table]:
  captions, images = found["captions"], found["images"]
  measured = {
    "captions of an image": captions["per_record"],
    **{f"{name} of a caption": captions[name] for name in _LENGTHS},
    "width": images["width"],
    "height": images["height"],
    "shortest side": images["shortest_side"],
    "width over height": images["aspect"],
    "bytes of an image": images["bytes"],
  }
  heads = [
    "",
    "least",
    *(f"{p} %" for p in summary.PERCENTILES),
    "most",
    "mean",
  ]
  numbers = [
    [
      name,
      *map(_said, [n["min"], *n["percentiles"].values(), n["max"], n["mean"]]),
    ]
    for name, n in measured.items()
    if n["percentiles"]
  ]
  tables = [
    Table(
      "numbers",
      f"{found['records']} records, {found['good']} good",
      f"{captions['number']} captions, {captions['repeated']} of which repeat "
      f"another; {images['repeated']} images repeat another, byte by byte. "
      "Percentiles are values of the data.",
      heads,
      numbers,
    )
  ]
  for kind, name, title in (
    (captions, "caption", "Captions that are there most often"),
    (images, "key", "Images that are there most often"),
  ):
    rows = [[_text(top[name]), str(top["count"])] for top in kind["top"]]
    if rows:
      note = "The first of the same bytes is named." if name == "key" else ""
      tables.append(Table(f"top_{name}", title, note, [name, "times"], rows))
  rows = [
    [_text(s.key), f"{s.width}x{s.height}", _text(" | ".join(s.texts))]
    for s in samples
  ]
  if rows:
    note = "In the order of the contact sheet, row by row."
    heads = ["key", "size", "captions"]
    tables.append(Table("samples", "The images shown", note, heads, rows))
  return tables


def _text(text: str) -> str:
  return terminal.printable(text, limit=_SHOWN)


def _said(number: float) -> str:
  return f"{number:g}" if isinstance(number, float) else str(number)
