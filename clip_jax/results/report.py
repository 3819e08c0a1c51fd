"""Writes the report: a PNG for each figure, and one page with all of them."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from clip_jax import errors
from clip_jax.results import (
  drawing,
  examples,
  figures,
  files,
  page,
  records,
  tables,
)

PAGE = "index.html"


@dataclasses.dataclass(frozen=True)
class Report:
  """What a report has and what it lacks.

  Attributes:
    page: path of the HTML page.
    pictures: paths of the PNG files.
    tables: names of the page's tables.
    models: short names.
    results: how many were read.
    missing: figures and tables that are not on the page, and what each needs.
    left_out: files that hold no result, and why.
  """

  page: str
  pictures: Sequence[str]
  tables: Sequence[str]
  models: Sequence[str]
  results: int
  missing: Mapping[str, str]
  left_out: Sequence[records.LeftOut]


def write(
  places: Iterable[str | os.PathLike], out: str | os.PathLike
) -> Report:
  """Draws what runs and evaluations have left in `places`.

  Args:
    places: workdirs of `clip-jax train`, directories of results, or files.
    out: a directory; a report that is there is replaced.

  Raises:
    UserError: there is no result, matplotlib is missing, or `out` holds a page
      of another kind.
  """
  drawing.check()
  directory = pathlib.Path(out).expanduser()
  check_replaceable(directory)
  collection = files.read(places)
  found = {
    name: draw(collection) for name, (draw, _) in figures.FIGURES.items()
  }
  drawn = [(x, drawing.draw(x)) for x in found.values() if x is not None]
  sheets = examples.sheets(collection)
  drawn += sheets
  made = {name: make(collection) for name, (make, _) in tables.TABLES.items()}
  shown = [table for table in made.values() if table is not None]
  needs = {name: x[1] for name, x in (figures.FIGURES | tables.TABLES).items()}
  missing = {
    name: needs[name] for name, x in (found | made).items() if x is None
  }
  if not sheets:
    missing[examples.NAME] = examples.NEEDS
  directory.mkdir(parents=True, exist_ok=True)
  for name in figures.FIGURES:  # None of an earlier report stays.
    (directory / f"{name}.png").unlink(missing_ok=True)
  for path in directory.glob(f"{examples.NAME}*.png"):
    path.unlink()
  pictures = [directory / f"{figure.name}.png" for figure, _ in drawn]
  for path, (_, png) in zip(pictures, drawn, strict=True):
    path.write_bytes(png)
  text = page.render(collection, figures=drawn, tables=shown, missing=missing)
  partial = directory / f"{PAGE}.partial"
  partial.write_text(text, "utf-8")
  partial.replace(directory / PAGE)
  return Report(
    page=str(directory / PAGE),
    pictures=[str(path) for path in pictures],
    tables=[table.name for table in shown],
    models=collection.models,
    results=len(collection.results),
    missing=missing,
    left_out=collection.left_out,
  )


def check_replaceable(directory: pathlib.Path) -> None:
  """Raises UserError where `directory` is not free and holds no report."""
  errors.check_local("The report", directory)
  if directory.exists() and not directory.is_dir():
    raise errors.UserError(f"{directory} is a file; give a directory.")
  if not directory.exists() or not any(directory.iterdir()):
    return
  path = directory / PAGE
  head = path.read_bytes()[:2000] if path.is_file() else b""
  if page.MARK.encode() not in head:
    raise errors.UserError(
      f"{directory} holds other files than a report; give a new directory "
      "with --out."
    )
