"""What shells make of the scripts: each is asked where it is installed."""

import json
import re
import shutil
import subprocess

import pytest

from clip_jax import cli

BASH = """
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_clip_jax 2> /dev/null  # compopt works during completion alone.
printf "%s\\n" "${COMPREPLY[@]}"
"""
# What zsh would offer, printed instead.
ZSH_BEFORE = """
_describe() { local name=$argv[-1]; print -l -- ${(P)name%%:*} }
compadd() { print -l -- $argv }
_files() { }
compdef() { }
compset() { [[ "$*" == "-P 1 *=" ]] && PREFIX=${PREFIX#*=} }
"""
ZSH = """
words=("$@"); CURRENT=$#; PREFIX=$words[-1]
_clip_jax
"""


def offered(shell, path, words):
  """Returns what `shell` offers for the last word, with the script read.

  Of `--flag=value` that is the value.
  """
  if shell == "bash":  # It parts words at the sign.
    words = [x for w in words for x in re.split("(=)", w) if x]
  command = {
    "bash": [shell, "-c", f"source {path}\n{BASH}", "bash", *words],
    "zsh": [shell, "-f", "-c", f"{ZSH_BEFORE}source {path}{ZSH}", "", *words],
    "fish": [
      *(shell, "--no-config", "-c"),
      f"source {path}; complete -C {' '.join(words)!r}",
    ],
  }[shell]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  lines = [line.split("\t")[0].rstrip("=") for line in done.stdout.splitlines()]
  found = {line.rpartition("=")[2] for line in lines}
  begun = words[-1].rpartition("=")[2]
  return {word for word in found if word.startswith(begun)} - {""}


@pytest.mark.parametrize(
  "shell",
  [
    pytest.param(
      shell,
      marks=pytest.mark.skipif(
        shutil.which(shell) is None, reason=f"{shell} is not installed"
      ),
    )
    for shell in ("bash", "zsh", "fish")
  ],
)
def test_a_shell_completes_verbs_actions_flags_fields_and_values(
  shell, capsys, tmp_path
):
  cli.main(["completion", shell])
  path = tmp_path / "script"
  path.write_text(capsys.readouterr().out)
  for words, some in (
    (["cla"], {"classify"}),
    (["data", "pre"], {"prepare"}),
    (["data", "prepare", "--dro"], {"--drop-bad"}),
    (["convert", "a", "--heads", "1,1", "--act"], {"--activation"}),
    (["convert", "a", "--activation", "q"], {"quick_gelu"}),
    (["train", "--config.optim.pe"], {"--config.optim.peak_lr"}),
    (["convert", "a", "--activation=q"], {"quick_gelu"}),
    (["completion", "ba"], {"bash"}),
    (["models", "--config.optim.pe"], set()),
    (["classify", "cla"], set()),  # Not a verb here.
  ):
    assert offered(shell, path, ["clip-jax", *words]) == some, words


def test_the_script_comes_as_json_too(capsys):
  cli.main(["completion", "bash", "--json"])
  answer = json.loads(capsys.readouterr().out)
  assert answer["shell"] == "bash" and "_clip_jax" in answer["script"]
