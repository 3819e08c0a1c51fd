"""A page about a source of data: histograms, tables and a contact sheet."""

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
# Distinguishes a page of data from a report of evaluations.
MARK = '<meta name="generator" content="clip_jax data">'
_COLUMNS, _TILE, _GAP = 10, 110, 6
_MOST_BARS = 15
_MOST_CHARACTERS = 200  # Of a caption, a key or an address.
_GUESSED = " Languages are guesses, and often wrong for a few words."
_LENGTHS = ("characters", "words", "tokens")


def check(out: str) -> None:
  """Raises UserError if `write` could not write a page to `out`."""
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
    out: a directory; a page that was written there before is replaced.
    found: as `summary.summarize` returns it.
    samples: for the contact sheet.
    address: of the data.

  Raises:
    UserError: matplotlib is missing, or `out` contains something else.
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
      f"{len(samples)} different images, chosen by their digests.",
      sheet,
    )
  parts += map(html_page.as_table, _tables(found, samples))
  title = f"Data: {terminal.printable(address, limit=_MOST_CHARACTERS)}"
  directory.mkdir(parents=True, exist_ok=True)
  numbers = json.dumps({"data": address, **found}, indent=2) + "\n"
  # The page is written first: by its mark a later call may replace the rest.
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
  """Returns a PNG of the images in rows, each within a square."""
  rows = max(1, math.ceil(len(samples) / _COLUMNS))
  step = _TILE + _GAP
  size = (_COLUMNS * step + _GAP, rows * step + _GAP)
  sheet = Image.new("RGB", size, "white")
  for i, sample in enumerate(samples):
    row, column = divmod(i, _COLUMNS)
    place = (_GAP + column * step, _GAP + row * step)
    try:
      image = preprocess.decode(sample.image)
    except preprocess.ImageError:  # Until now only headers were read.
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
  has_languages = bool(captions["languages"])
  figures = [
    Figure(
      "captions",
      "Lengths of captions",
      "The last bar has all that is longer. Tokens are those of CLIP, with "
      f"begin and end; {terminal.percent(captions['cut_share'])} of the "
      f"captions have more than {examine.CONTEXT} and are cut.",
      lengths,
    ),
    Figure(
      "images",
      "Sizes of images",
      "Turned upright, before any resize; the last bar has all that is larger.",
      sides if found["good"] else [],
    ),
    Figure(
      "kinds",
      f"Scripts, {'languages, ' if has_languages else ''}formats and bad "
      "records",
      "A caption's script is that of most of its letters, by Unicode's blocks."
      f"{_GUESSED if has_languages else ''}",
      [panel for panel in kinds if panel.categories],
    ),
  ]
  return [figure for figure in figures if figure.panels]


def _lengths(name: str, histogram: Mapping[str, Any]) -> Panel:
  starts = histogram["from"]
  step = starts[1] - starts[0]
  ranges = [(start, start + step) for start in starts]
  centers = [start + step / 2 for start in starts]
  mark = Mark("", centers, histogram["counts"], look="bars", ranges=ranges)
  title = f"{name.capitalize()} of a caption"
  return Panel(title, name, "captions", [mark])


def _bars(name: str, unit: str, counts: Mapping[str, int]) -> Panel:
  """Returns a bar for each of the first names, and one for all others."""
  shown = dict(list(counts.items())[:_MOST_BARS])
  if rest := sum(counts.values()) - sum(shown.values()):
    shown["all others"] = rest
  return _categories(f"By {name}", unit, list(shown), list(shown.values()))


def _ranges(name: str, unit: str, numbers: Mapping[str, Any]) -> Panel:
  """Returns a bar for each range, from the first to the last with any count."""
  histogram = numbers["histogram"]
  starts, counts = histogram["from"], histogram["counts"]
  filled = [i for i, count in enumerate(counts) if count]
  shown = range(filled[0], filled[-1] + 1) if filled else range(0)
  title = f"{name.capitalize()}{f' ({unit})' if unit else ''}"
  names = [_range(starts, i, unit) for i in shown]
  return _categories(title, "images", names, [counts[i] for i in shown])


def _categories(
  title: str, unit: str, names: list[str], counts: list[int]
) -> Panel:
  """Returns a horizontal bar for each count, with the category's name."""
  mark = Mark("", counts, list(range(len(counts))), look="bars")
  return Panel(title, unit, "", [mark], categories=names)


def _range(starts: Sequence[float], i: int, unit: str) -> str:
  """Returns a range in words; the last one has no end."""

  def words(number: float) -> str:
    if unit == "bytes":
      return terminal.size(number).replace(".00", "")
    return f"{number:.0f}" if number >= 8 else f"{number:.3g}"

  if i + 1 == len(starts):
    return f"{words(starts[i])} and more"
  return f"{words(starts[i])} to {words(starts[i + 1])}"


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
  percentiles = [f"{p} %" for p in summary.PERCENTILES]
  numbers = [
    [
      name,
      *(
        _number(x)
        for x in (n["min"], *n["percentiles"].values(), n["max"], n["mean"])
      ),
    ]
    for name, n in measured.items()
    if n["percentiles"]
  ]
  repeated = images["repeated"]
  tables = [
    Table(
      "numbers",
      f"{terminal.counted(found['records'], 'record')}, {found['good']} good",
      f"{terminal.counted(captions['number'], 'caption')}, "
      f"{captions['repeated']} of which repeat another; "
      f"{terminal.counted(repeated, 'image repeats', 'images repeat')} "
      "another, byte by byte. "
      "Percentiles are values of the data.",
      ["", "least", *percentiles, "most", "mean"],
      numbers,
    )
  ]
  for found_most, name, title, note in (
    (captions["top"], "caption", "The most frequent captions", ""),
    (
      images["top"],
      "key",
      "The most frequent images",
      "Of images with the same bytes, the key of the first is shown.",
    ),
  ):
    rows = [[_text(entry[name]), str(entry["count"])] for entry in found_most]
    if rows:
      tables.append(Table(f"top_{name}", title, note, [name, "times"], rows))
  rows = [
    [_text(s.key), f"{s.width}x{s.height}", _text(" | ".join(s.texts))]
    for s in samples
  ]
  if rows:
    note = "In the order of the contact sheet, row by row."
    header = ["key", "size", "captions"]
    tables.append(Table("samples", "The images shown", note, header, rows))
  return tables


def _text(text: str) -> str:
  return terminal.printable(text, limit=_MOST_CHARACTERS)


def _number(number: float) -> str:
  return f"{number:g}" if isinstance(number, float) else str(number)
