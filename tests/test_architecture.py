"""ARCHITECTURE.md is true of the code beside it."""

import ast
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


def _takes_a_config(function):
  """Whether a parameter is a whole config, by its annotation or its name."""
  arguments = function.args
  given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
  return any(
    re.search(r"\b(config_lib|schema)\.Config\b", ast.unparse(x.annotation))
    if x.annotation
    else x.arg == "config"
    for x in given
  )


def test_a_config_travels_to_twelve_functions_at_most():
  # Others take the part that they use, such as `config.loss`.
  found = set()
  for path in (ROOT / "clip_jax").rglob("*.py"):
    module = path.relative_to(ROOT / "clip_jax").with_suffix("").as_posix()
    # `config/` is the config itself; a "config" of `convert/` is a file's.
    if module.startswith(("config/", "convert/")):
      continue
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
      if isinstance(node, ast.FunctionDef) and _takes_a_config(node):
        found.add(f"{module}.{node.name}")
  assert found == {
    # Defines the model, the program or the run: most fields are read.
    "checkpoints/run_model.make",
    "train/program.make_program",
    "train/run.make_run",
    "plan/jobs.make_job",
    # Returns a config with fields filled in or replaced.
    "train/origins.settle",
    "doctor/learning.prepare",
    "plan/suggest.suggest",
    # Writes the config, or compares it with the one that is written.
    "checkpoints/saving.save",
    "train/claim.check_config",
    "train/claim.claim",
    # What a verb calls.
    "doctor/examination.of_config",
    "train/loop.train",
  }


def test_functions_have_at_most_eighty_lines():
  """Their docstrings not counted; `train` is read from top to bottom."""
  found = {}
  for path in (ROOT / "clip_jax").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
      if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        lines = node.end_lineno - node.lineno + 1
        if ast.get_docstring(node) is not None:
          lines -= node.body[0].end_lineno - node.body[0].lineno + 1
        if lines > 80:
          found[f"{path.parent.name}/{path.name}", node.name] = lines
  assert found.keys() == {("train/loop.py", "train")}
  assert max(found.values()) <= 120
