"""What README tells a user to type is understood."""

import pathlib
import re
import shlex

import pytest

from clip_jax import config as config_lib
from clip_jax.cli import parser

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def _blocks(language):
  return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def _commands():
  for block in _blocks("bash"):
    for line in block.replace("\\\n", " ").splitlines():
      if "…" in line or "clip-jax" not in line:
        continue
      words = shlex.split(line, comments=True)
      for word in words:
        # A command in quotes is sent to other machines.
        if word.startswith("--command=clip-jax"):
          words = shlex.split(word.removeprefix("--command="))
      yield words[words.index("clip-jax") + 1 :]


COMMANDS = list(_commands())


def test_there_are_commands():
  assert len(COMMANDS) >= 7


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_parses(command):
  arguments = parser.parse(command)
  if arguments.verb == "train":
    config_lib.load(ROOT / arguments.config, arguments.overrides)


@pytest.mark.parametrize("code", _blocks("python"))
def test_python_compiles(code):
  compile(code, "README.md", "exec")


@pytest.mark.parametrize("path", re.findall(r"\]\((tools/[^)]+)\)", README))
def test_a_picture_is_there(path):
  assert (ROOT / path).is_file()


def test_the_two_first_commands_are_one_line_each():
  install_and_train, install_and_test = _blocks("bash")[:2]
  assert install_and_train.strip() == (
    "pip install . && clip-jax train --config configs/demo.py "
    "--workdir runs/demo"
  )
  assert install_and_test.strip() == "pip install '.[test]' && pytest"
