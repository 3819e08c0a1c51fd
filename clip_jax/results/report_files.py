"""Writes the report: a PNG for each figure, and one page with all of them."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from clip_jax import errors, whole_files
from clip_jax.results import (
  collected,
  contact_sheets,
  drawing,
  figures,
  gathering,
  html_page,
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
  left_out: Sequence[collected.LeftOut]


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
  directory = pathlib.Path(os.path.expanduser(out))
  check_replaceable(directory)
  collection = gathering.read(places)
  found = {
    name: draw(collection) for name, (draw, _) in figures.FIGURES.items()
  }
  drawn = [(x, drawing.draw(x)) for x in found.values() if x is not None]
  sheets = contact_sheets.sheets(collection)
  drawn += sheets
  made = {name: make(collection) for name, (make, _) in tables.TABLES.items()}
  shown = [table for table in made.values() if table is not None]
  needs = {name: x[1] for name, x in (figures.FIGURES | tables.TABLES).items()}
  missing = {
    name: needs[name] for name, x in (found | made).items() if x is None
  }
  if not sheets:
    missing[contact_sheets.NAME] = contact_sheets.NEEDS
  text = html_page.render(
    collection, figures=drawn, tables=shown, missing=missing
  )
  directory.mkdir(parents=True, exist_ok=True)
  pictures = [directory / f"{figure.name}.png" for figure, _ in drawn]
  # The page first: it holds everything, and says that this is a report.
  whole_files.write(directory / PAGE, text.encode())
  for path, (_, png) in zip(pictures, drawn, strict=True):
    whole_files.write(path, png)
  for name in figures.FIGURES:  # None of an earlier report stays.
    if (path := directory / f"{name}.png") not in pictures:
      path.unlink(missing_ok=True)
  for path in directory.glob(f"{contact_sheets.NAME}*.png"):
    if path not in pictures:
      path.unlink()
  return Report(
    page=str(directory / PAGE),
    pictures=[str(path) for path in pictures],
    tables=[table.name for table in shown],
    models=collection.models,
    results=len(collection.results),
    missing=missing,
    left_out=collection.left_out,
  )


def check_replaceable(
  directory: pathlib.Path, *, what: str = "report", mark: str = html_page.MARK
) -> None:
  """Raises UserError where `directory` is not free and holds no such page.

  Args:
    directory: where the page is to be.
    what: the page is, for messages.
    mark: in its head, of this kind of pages alone.
  """
  errors.check_local(f"The {what}", directory)
  if directory.exists() and not directory.is_dir():
    raise errors.UserError(f"{directory} is a file; give a directory.")
  if not directory.exists() or all(map(_is_partial, directory.iterdir())):
    return
  path = directory / PAGE
  head = path.read_bytes()[:2000] if path.is_file() else b""
  if mark.encode() not in head:
    raise errors.UserError(
      f"{directory} holds other files than a {what}; give a new directory "
      "with --out."
    )


def _is_partial(path: pathlib.Path) -> bool:
  """Whether a file is what is left of a page whose writing was killed."""
  return path.name.startswith(f".{PAGE}.") and path.name.endswith(".partial")
