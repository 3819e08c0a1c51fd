"""Commands of README and the pages on the demo's model run as they stand."""

import contextlib
import io
import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from clip_jax import cli
from clip_jax import config as config_lib
from clip_jax.train import loop

ROOT = pathlib.Path(__file__).parents[1]
MODELS = ("runs/demo", "runs/my index")
pytestmark = pytest.mark.slow


def _blocks(page, language):
  return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def _commands():
  for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
    for block in _blocks(page, "bash"):
      for line in block.replace("\\\n", " ").splitlines():
        words = line.split("clip-jax ")[-1]
        if words.startswith("app "):  # Which goes on until it is stopped.
          continue
        if line.startswith("clip-jax") and any(
          words.split(" ", 1)[1].lstrip('"').startswith(m) for m in MODELS
        ):
          yield pytest.param(words, id=f"{page.name}: {words}")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
  """A folder with what the pages take as given, and a small model."""
  room = tmp_path_factory.mktemp("room")
  config = config_lib.load(ROOT / "tests" / "configs" / "tiny_bow.py")
  loop.train(config, room / "runs" / "demo")
  (room / "results").mkdir()
  (room / "templates.txt").write_text("a photo of a {}.\nthe number {}.\n")
  with contextlib.chdir(room):
    scan = _blocks(ROOT / "README.md", "bash")[2].split('"')[1]
    subprocess.run([sys.executable, "-c", scan], check=True)
    data = ["--data", "builtin:two_digits/unseen"]
    cli.main(["embed", "runs/demo", *data, "--out", "runs/my index"])
  return room


@pytest.mark.parametrize("command", [*_commands()])
def test_a_command_runs(room, monkeypatch, command):
  monkeypatch.chdir(room)
  words, _, file = command.partition(" > ")
  words = shlex.split(words, comments=True)
  if words[0] == "embed":  # There is an index already.
    words[-1] += " again"
  said = io.StringIO()
  with contextlib.redirect_stdout(said):
    assert not cli.main(words)
  if "--json" in words:
    assert json.loads(said.getvalue())
  if file:
    pathlib.Path(file).write_text(said.getvalue())
  assert said.getvalue().strip()


def test_python_runs(room, monkeypatch, capsys):
  monkeypatch.chdir(room)
  for page in (ROOT / "README.md", ROOT / "docs" / "use.md"):
    known = {}
    for code in _blocks(page, "python"):
      # Of the loss, and of a model that takes a minute to draw.
      if "def softmax" not in code and "create_model" not in code:
        exec(code, known)
  assert "(1, " in capsys.readouterr().out
