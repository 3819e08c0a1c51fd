"""How a command ends: exit codes, what it prints, and where."""

import dataclasses
import io
import json
import logging
import os
import pathlib
import warnings

import jax
import numpy as np
import pytest

from clip_jax import cli, errors, terminal
from clip_jax.cli import verb, verbs


def stub(monkeypatch, action):
  def models(arguments):
    del arguments
    return action()

  stubbed = dataclasses.replace(verbs.VERBS["models"], run=models)
  monkeypatch.setitem(verbs.VERBS, "models", stubbed)


def raiser(error):
  def action():
    raise error

  return action


@pytest.mark.parametrize(
  "error, code",
  [
    (errors.UserError("No."), 1),
    (KeyError("x"), 1),
    (KeyboardInterrupt(), 130),
  ],
)
def test_one_of_several_processes_does_not_wait_for_the_others_when_it_fails(
  monkeypatch, error, code
):
  stub(monkeypatch, raiser(error))
  left = []

  def leave(code):
    left.append(code)
    raise SystemExit

  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(os, "_exit", leave)
  with pytest.raises(SystemExit):
    cli.main(["models"])
  assert left == [code]


@pytest.mark.parametrize(
  "error, code, message",
  [
    (errors.UserError("what to do"), 1, "Error: what to do\n"),
    (errors.UserError("bad \x1b[31mname"), 1, "Error: bad name\n"),
    (
      OSError(28, "No space left", "file"),
      1,
      "Error: No space left: file. Make room there, or write elsewhere.\n",
    ),
    (
      OSError(28, "No space left"),
      1,
      "Error: No space left. Make room there, or write elsewhere.\n",
    ),
    (TimeoutError(), 1, "Error: TimeoutError\n"),
    (KeyboardInterrupt(), 130, "Interrupted.\n"),
    (SystemExit(143), 143, ""),
    (RuntimeError("RESOURCE_EXHAUSTED: 9 GB"), 1, "smaller batch"),
    (MemoryError("Unable: 9 GB"), 1, "not suffice (Unable: 9 GB). Take a smal"),
  ],
)
def test_each_kind_of_failure_has_its_exit_code(
  monkeypatch, fails, error, code, message
):
  stub(monkeypatch, raiser(error))
  said = fails("models", "--json", code=code)
  assert message in said
  assert len(said.splitlines()) == bool(message)


def test_a_fault_of_our_own_keeps_its_traceback(monkeypatch):
  stub(monkeypatch, raiser(RuntimeError("ours")))
  with pytest.raises(RuntimeError, match="ours"):
    cli.main(["models"])


def test_a_working_directory_that_is_gone_is_told(monkeypatch, tmp_path, fails):
  gone = tmp_path / "gone"
  gone.mkdir()
  monkeypatch.chdir(gone)
  gone.rmdir()
  said = fails("train", "--config", "mine.py", "--workdir", "run")
  assert said.startswith("Error: The working directory is gone; change into")


@pytest.mark.parametrize("words", [["--version"], ["--version", "--json"]])
def test_versions_that_cannot_be_written_are_a_clear_error(
  monkeypatch, capsys, words
):
  stream = io.StringIO()
  stream.flush = raiser(OSError(28, "No space left on device"))
  monkeypatch.setattr("sys.stdout", stream)
  assert cli.run(words) == 1
  assert capsys.readouterr().err.startswith("Error: No space left on device.")


def test_json_is_alone_on_stdout_and_strict(monkeypatch, capsys):
  def noisy():
    print("a library's chatter")
    payload = {
      "array": [np.float32(0.5), np.int64(3), float("nan"), np.inf],
      "path": pathlib.Path("p"),
      "text": "\x1b\u202e é",
      "none": None,
      b"caf\xe9".decode(errors="surrogateescape"): 1,
    }
    return verb.Answer(payload, "text")

  stub(monkeypatch, noisy)
  cli.main(["models", "--json"])
  captured = capsys.readouterr()
  assert json.loads(captured.out) == {
    "array": [0.5, 3, None, None],
    "path": "p",
    "text": "\x1b\u202e é",
    "none": None,
    "caf\\xe9": 1,
  }
  assert captured.out.isascii() and "\x1b" not in captured.out
  assert captured.err == "a library's chatter\n"


@pytest.mark.parametrize("json_too", [True, False])
def test_an_answer_with_a_problem_says_it_on_stderr(
  monkeypatch, capsys, json_too
):
  problem = "x\x1b[31m has no good record: 2 empty."
  answer = verb.Answer({"good": 0}, "good: 0", problem=problem)
  stub(monkeypatch, lambda: answer)
  with pytest.raises(SystemExit, match=r"^1$"):
    cli.main(["models", *["--json"] * json_too])
  captured = capsys.readouterr()
  assert captured.err == "Error: x has no good record: 2 empty.\n"
  shown = json.loads(captured.out) if json_too else captured.out
  assert shown == ({"good": 0} if json_too else "good: 0\n")


@pytest.mark.parametrize("action", ["inspect", "stats"])
def test_data_without_a_good_record_are_told_beside_the_json(
  tmp_path, capsys, action
):
  (tmp_path / "cat").mkdir()
  (tmp_path / "cat" / "1.png").write_bytes(b"no image")
  address = f"folder:{tmp_path}"
  with pytest.raises(SystemExit, match=r"^1$"):
    cli.main(["data", action, address, "--json"])
  captured = capsys.readouterr()
  last = captured.err.splitlines()[-1]
  assert last.startswith(f"Error: {address} has no good record: 1 ")
  assert json.loads(captured.out)["good"] == 0


def test_on_a_terminal_a_log_line_replaces_the_bar(monkeypatch, capsys):
  def log():
    logging.getLogger("clip_jax").info("step 1")
    return verb.Answer(None, "done")

  stub(monkeypatch, log)
  monkeypatch.setattr(terminal, "is_one", lambda stream: True)
  cli.main(["models"])
  assert capsys.readouterr().err == f"{terminal.CLEAR}step 1\n"


def test_logs_go_to_stderr_and_libraries_are_kept_quiet(monkeypatch, capsys):
  def log():
    logging.getLogger("clip_jax").info("step 1")
    logging.getLogger("clip_jax.data").info("data")
    logging.getLogger("absl").warning("absl noise")
    logging.getLogger("absl").error("absl error")
    logging.getLogger("jax._src").info("jax noise")
    logging.getLogger("jax._src").warning("jax warning")
    warnings.warn("noise", DeprecationWarning, stacklevel=1)
    return verb.Answer(None, "done")

  stub(monkeypatch, log)
  root = logging.getLogger()
  before = root.level, list(root.handlers)
  # Who has set up handlers of their own sees no more of libraries than before.
  assert root.level == logging.WARNING
  cli.main(["models"])
  captured = capsys.readouterr()
  assert captured.out == "done\n"
  assert captured.err.splitlines() == [
    "step 1",
    "data",
    "absl error",
    "jax warning",
  ]
  assert (root.level, root.handlers) == before
