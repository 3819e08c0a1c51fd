"""What README and the pages tell a user to type is understood."""

import pathlib
import re
import shlex

import pytest

from clip_jax import config as config_lib
from clip_jax.cli import parser

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {"README.md": README} | {
  f"docs/{path.name}": path.read_text()
  for path in sorted((ROOT / "docs").glob("*.md"))
}


def _blocks(language, text=README):
  return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def _commands(text):
  for block in _blocks("bash", text):
    for line in block.replace("\\\n", " ").splitlines():
      if "…" in line or "clip-jax" not in line or "[" in line:
        continue
      words = shlex.split(line.split(" > ")[0], comments=True)
      for word in words:
        # A command in quotes is sent to other machines.
        if word.startswith("--command=clip-jax"):
          words = shlex.split(word.removeprefix("--command="))
      if "clip-jax" in words:
        yield words[words.index("clip-jax") + 1 :]


COMMANDS = [
  pytest.param(command, id=f"{page}: {' '.join(command)}")
  for page, text in PAGES.items()
  for command in _commands(text)
]


def test_there_are_commands():
  assert len(COMMANDS) >= 40


def test_readme_names_the_flag_that_allows_larger_images():
  assert "`--max-pixels`" in README
  assert "250 million pixels of a JPEG" in (ROOT / "docs/train.md").read_text()


def test_readme_is_a_front_door():
  assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses(command):
  arguments = parser.parse(command)
  # A page may use a config that its reader has written.
  if arguments.verb == "train" and (ROOT / arguments.config).exists():
    config_lib.load(ROOT / arguments.config, arguments.overrides)


@pytest.mark.parametrize("page", PAGES)
def test_python_compiles(page):
  for code in _blocks("python", PAGES[page]):
    compile(code, page, "exec")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_are_there(page):
  for path in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", PAGES[page]):
    assert (ROOT / page).parent.joinpath(path).exists(), path


def test_the_two_first_commands_are_one_line_each():
  install_and_train, install_and_test = _blocks("bash")[:2]
  assert install_and_train.strip() == (
    "pip install . && clip-jax train --config configs/demo.py "
    "--workdir runs/demo"
  )
  assert install_and_test.strip() == "pip install '.[test]' && pytest"


def test_the_source_distribution_holds_what_the_commands_need():
  lines = (ROOT / "MANIFEST.in").read_text().splitlines()
  held = {line.split()[1] for line in lines if line.startswith("graft ")}
  named = set(re.findall(r"\b(configs|docs|tests|tools)/", README))
  assert named and named <= held
