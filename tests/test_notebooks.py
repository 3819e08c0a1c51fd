"""The notebooks run from top to bottom, offline, and show what they promise."""

import json
import os
import pathlib
import re

import pytest
from PIL import Image

from clip_jax import config as config_lib
from clip_jax.train import loop

NOTEBOOKS = pathlib.Path(__file__).parents[1] / "tools" / "colab"
CONFIG = pathlib.Path(__file__).parent / "configs" / "tiny_bow.py"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
# Few, but more than the demo warms up.
SHORT = ["steps=60"]
# What each prints at its end, with so many pictures.
ENDS = {
  "convert": (r"largest difference of text embeddings: \d", 0),
  "finetune": (r"'yours': \[(\d\.\d+, ){4}\d\.\d+\]", 2),
  "search": (r"1000 vectors searched", 2),
  "train": (r"unseen: zero-shot top-1 \d", 2),
  "zero_shot": (r"'all four': \d", 4),
}


def _source(cell):
  return "".join(cell["source"])


def test_each_notebook_is_told_of_here():
  assert set(NAMES) == set(ENDS)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_stripped_and_cells_are_python(name):
  notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text("utf-8"))
  cells = notebook["cells"]
  assert cells[0]["cell_type"] == "markdown"
  code = [cell for cell in cells if cell["cell_type"] == "code"]
  for cell in code:
    assert (cell["outputs"], cell["execution_count"]) == ([], None)
    compile(_source(cell), f"{name}.ipynb", "exec")
  # All of them install in the same way.
  first = json.loads((NOTEBOOKS / "train.ipynb").read_text("utf-8"))["cells"]
  assert _source(code[0]) == _source(
    next(cell for cell in first if cell["cell_type"] == "code")
  )


@pytest.mark.notebooks
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
  lines = [f"DEMO += {SHORT}", f"CHANGES += {SHORT}"]
  printed = _execute(name, tmp_path, monkeypatch, lines)
  if name == "train":
    assert "8 devices" in printed


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  """A model that is trained in a few seconds."""
  workdir = tmp_path_factory.mktemp("small") / "run"
  loop.train(config_lib.load(CONFIG), workdir)
  return workdir


@pytest.mark.slow
@pytest.mark.parametrize("name", ["search", "zero_shot"])
def test_a_notebook_runs_with_a_model_of_ones_own(
  name, small, tmp_path, monkeypatch
):
  _execute(name, tmp_path, monkeypatch, [f"MODEL = {str(small)!r}"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "csv"])
def test_own_pictures_are_of_any_format(kind, small, tmp_path, monkeypatch):
  """JPEGs, one of them damaged, in folders or with captions of their own."""
  rows = ["image,caption"]
  for name in ("cat", "dog"):
    (tmp_path / "mine" / name).mkdir(parents=True)
    for i in range(10):
      path = tmp_path / "mine" / name / f"{i}.jpg"
      Image.new("RGB", (30, 20), (9 * i, 90, 200)).save(path)
      rows.append(f"mine/{name}/{i}.jpg,a {name}")
  path.write_bytes(path.read_bytes()[:200])
  (tmp_path / "mine.csv").write_text("\n".join(rows))
  _execute(
    "finetune",
    tmp_path,
    monkeypatch,
    [
      f"MODEL = {str(small)!r}",
      f"PICTURES = {dict(folder='mine', csv='mine.csv')[kind]!r}",
      'CHANGES = ["steps=2", "min_steps=2", "batch_size=8"]',
    ],
  )


def _execute(name, room, monkeypatch, lines):
  """Runs a notebook, looks at what it shows, and returns what it prints.

  Args:
    name: of the notebook.
    room: where it writes.
    monkeypatch: of the test.
    lines: what stands after the parameters that these lines name.
  """
  nbclient = pytest.importorskip("nbclient")
  nbformat = pytest.importorskip("nbformat")
  pytest.importorskip("ipykernel")
  notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
  for cell in notebook.cells:
    if "parameters" in cell.metadata.get("tags", ()):
      for line in lines:
        if f"{line.split()[0]} = " in cell.source:
          cell.source += f"\n{line}"
  # A cell looks for the checkout in the folders above.
  folder = NOTEBOOKS.parents[1]
  notebook.cells.insert(
    0,
    nbformat.v4.new_code_cell(
      f"import os, pathlib\nos.chdir({str(folder)!r})\n"
    ),
  )
  setup = next(c for c in notebook.cells[1:] if c.cell_type == "code")
  setup.source += f"\nos.chdir({str(room)!r})\n"
  if name != "train":
    monkeypatch.setenv("XLA_FLAGS", os.environ["CLIP_JAX_TEST_XLA_FLAGS"])
  nbclient.NotebookClient(
    notebook, timeout=300, kernel_name="python3"
  ).execute()
  outputs = [
    output
    for cell in notebook.cells
    if cell.cell_type == "code"
    for output in cell.outputs
  ]
  printed = "".join(o.text for o in outputs if o.output_type == "stream")
  pictures = [o for o in outputs if "image/png" in o.get("data", {})]
  ending, count = ENDS[name]
  assert re.search(ending, printed), printed
  assert len(pictures) >= count
  return printed
