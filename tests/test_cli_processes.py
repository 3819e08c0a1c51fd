"""The command as a shell runs it, in a process of its own."""

import os
import pathlib
import subprocess
import sys

import pytest

from clip_jax import cli


def shell(command, **options):
  environment = os.environ | {
    "PYTHONPATH": str(pathlib.Path(cli.__file__).parents[2]),
    "CLIP_JAX": f"{sys.executable} -m clip_jax",
  }
  return subprocess.run(
    ["bash", "-c", command],
    capture_output=True,
    text=True,
    env=environment,
    check=False,
    **options,
  )


def test_the_module_is_the_command_and_passes_its_exit_code_on():
  done = shell("$CLIP_JAX eval nowhere --task zero_shot --data x:y --json")
  assert done.returncode == 1
  assert done.stdout == ""
  assert done.stderr.startswith("Error: Model 'nowhere' does not exist")
  assert len(done.stderr.splitlines()) == 1


# A command whose verb answers at once, in a process of its own.
QUICK = """
import os, sys
from clip_jax import cli, terminal
from clip_jax.cli import flags, verb, verbs
def models(arguments):
  os.write(1, b"native chatter" if arguments.json else b"")
  return verb.Answer([1], terminal.table(("a", "b"), [("c", "d")]))
verbs.VERBS["models"] = verb.Verb("a", flags.add_json, models)
cli.main(sys.argv[1:])
print("after")
"""


@pytest.fixture
def quick(tmp_path):
  (tmp_path / "quick.py").write_text(QUICK)
  return f"{sys.executable} {tmp_path / 'quick.py'} models"


def test_a_full_disk_behind_stdout_is_a_clear_error(quick):
  done = shell(f"{quick} > /dev/full")
  assert (done.returncode, done.stderr) == (
    1,
    "Error: No space left on device. Make room there, or write elsewhere.\n",
  )


def test_an_answer_is_not_lost_behind_a_closed_stdout(quick):
  done = shell(f"{quick} >&-")
  assert done.returncode == 1
  assert done.stderr.startswith("Error: stdout is closed, so that the answer")


def test_messages_may_have_nowhere_to_go(quick):
  done = shell(f"{quick} 2>&-")
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout.endswith("c  d\nafter\n")


def test_a_reader_that_goes_away_is_no_fuss(quick):
  # The reader is gone for certain when the process begins.
  done = shell(f"{{ sleep 0.2; {quick}; }} | true; echo ${{PIPESTATUS[0]}}")
  assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_gets_a_table_all_the_same(quick, encoding):
  done = shell(f"PYTHONIOENCODING={encoding} {quick}")
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout == "a  b\n-  -\nc  d\nafter\n"


def test_what_native_code_prints_does_not_mix_with_json(quick):
  done = shell(f"{quick} --json")
  assert (done.stdout, done.stderr) == ("[\n  1\n]\nafter\n", "native chatter")


def _runs(code):
  """Runs code in a Python of its own, which must not fail."""
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    check=False,
    cwd=pathlib.Path(cli.__file__).parents[2],
  )
  assert done.returncode == 0, done.stderr


def test_help_and_usage_errors_import_nothing_heavy():
  heavy = ("jax", "flax", "numpy", "grain", "PIL", "transformers")
  code = (
    "import sys; from clip_jax import cli\n"
    "try: cli.main(['models', '--jsn'])\n"
    "except SystemExit: pass\n"
    f"assert not set({heavy!r}) & set(sys.modules)"
  )
  _runs(code)


@pytest.mark.parametrize("action", ["inspect", "prepare", "curate"])
def test_looking_at_data_imports_no_jax(action, tmp_path):
  (tmp_path / "queries.txt").write_text("figures\n")
  more = {
    "inspect": [],
    "prepare": [str(tmp_path / "out")],
    "curate": [
      *(str(tmp_path / "out"), "--max-per-query", "2"),
      *("--queries", str(tmp_path / "queries.txt")),
    ],
  }
  arguments = ["data", action, "builtin:two_digits/unseen", *more[action]]
  code = (
    "import sys; from clip_jax import cli\n"
    f"cli.main({arguments!r})\n"
    "heavy = {'jax', 'flax', 'grain', 'scipy', 'optax', 'transformers'}\n"
    "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
  )
  _runs(code)
