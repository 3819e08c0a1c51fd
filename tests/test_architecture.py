"""ARCHITECTURE.md is true of the code beside it."""

import pathlib
import re

import pytest

import by_path

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
# Commands such as `python tools/floors.py` name a path, too.
PATHS = re.findall(
  r"`[^`\n]*?((?:clip_jax|configs|tests|tools)/[^`\s]*)`", TEXT
)
ROWS = [line for line in TEXT.splitlines() if line.startswith("|")]


def test_the_picture_is_what_the_imports_draw():
  floors = by_path.load("tools/floors.py")
  assert floors.with_picture(TEXT) == TEXT, "Run python tools/floors.py."


def test_every_path_is_there():
  assert len(PATHS) > 50
  assert [path for path in PATHS if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("row", ROWS)
def test_a_row_names_what_stands_in_its_files(row):
  files = [ROOT / path for path in re.findall(r"`([\w/]+\.py)`", row)]
  code = "\n".join(file.read_text("utf-8") for file in files)
  for name in re.findall(r"`(\w+)`", row):
    assert re.search(rf"\b{name}\b", code), f"{name} is in none of {files}"
