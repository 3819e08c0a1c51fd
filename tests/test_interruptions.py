"""Ctrl-C in the middle of a verb that writes: one line, and no half a file."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import model_kinds
from clip_jax import cli, whole_files

_SLOW = pytest.mark.slow
_LONG = ("report", "card", "card, over", "curate")
# Each verb writes to `out`, which may be a file or a directory.
VERBS = {
  "convert": "convert {model} {out} --to clip-jax",
  "convert, over": "convert {model} {out} --to clip-jax --overwrite",
  "convert, a file": "convert {model} {out} --to openai",
  "prepare": "data prepare builtin:digits/test {out}",
  "curate": "data curate builtin:digits/test {out} --queries {queries} "
  "--max-per-query 3",
  "card": "card {model} --out {out}",
  "card, over": "card {model} --out {out}",
  "report": "report {results} --out {out}",
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
  """What the verbs read: a model, queries and results."""
  directory = tmp_path_factory.mktemp("given")
  model = model_kinds.clip_directory(directory / "model")
  (directory / "queries").write_text("two\nphoto\n")
  result = {"model": "m", "task": "zero_shot", "data": "d", "top1": 0.5}
  (directory / "results").mkdir()
  (directory / "results" / "a.json").write_text(json.dumps(result))
  names = ("queries", "results")
  return {"model": model, **{name: directory / name for name in names}}


def _files(directory):
  """The content of all files below a directory, hidden ones too."""
  return {
    path.relative_to(directory): path.read_bytes()
    for path in directory.rglob("*")
    # A hidden directory is what `data curate` goes on from.
    if path.is_file() and ".out.partial" not in path.parts
  }


def _words(verb, given, out):
  return VERBS[verb].format(**given, out=out).split()


# A scan of a directory that is cut short is closed by the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
  "verb",
  [pytest.param(verb, marks=_SLOW if verb in _LONG else ()) for verb in VERBS],
)
def test_ctrl_c_leaves_everything_as_it_was(
  tmp_path, given, monkeypatch, fails, capsys, verb
):
  out = tmp_path / "out"
  if "over" in verb:
    cli.main(_words(verb, given, out))
    capsys.readouterr()
  before = _files(tmp_path)

  def interrupt(function):
    def call(source, target, *rest, **named):
      if str(target).startswith(str(tmp_path)):
        raise KeyboardInterrupt  # All is written, and nothing is in place.
      return function(source, target, *rest, **named)

    return call

  with monkeypatch.context() as patch:
    for name in ("replace", "rename", "link"):
      patch.setattr(os, name, interrupt(getattr(os, name)))
    said = fails(*_words(verb, given, out), code=130)
  assert said.splitlines()[-1] == "Interrupted."
  assert _files(tmp_path) == before
  cli.main(_words(verb, given, out))  # Nothing of it stands in the way.
  assert _files(tmp_path)


@pytest.mark.slow
def test_ctrl_c_leaves_no_half_of_an_index(tmp_path, given, fails, monkeypatch):
  words = ("embed", given["model"], "--data", "builtin:digits/test")
  words += ("--out", tmp_path / "index")
  with monkeypatch.context() as patch:
    from clip_jax.search import builder

    patch.setattr(builder, "_sync", lambda file: signal.raise_signal(2))
    said = fails(*words, code=130)
  assert said.splitlines()[-1] == "Interrupted."
  assert "no index" in fails("search", tmp_path / "index", "two").lower()
  cli.main([str(word) for word in words])
  cli.main(["search", str(tmp_path / "index"), "two"])


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / ("x" * 240)
  whole_files.write(path, b"first")
  monkeypatch.setattr(os, "fsync", lambda _: signal.raise_signal(2))
  with pytest.raises(KeyboardInterrupt):
    whole_files.write(path, b"second")
  assert path.read_bytes() == b"first"
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_real_ctrl_c_ends_a_command_with_one_line(tmp_path, given):
  words = _words("convert", given, tmp_path / "out")
  # It is slow where it compares, so that the signal comes in the middle.
  program = (
    "import sys, time\n"
    "from clip_jax import cli\n"
    "from clip_jax.convert import sameness\n"
    "sameness.same_bits = lambda *_: print('here', file=sys.stderr, flush=True)"
    " or time.sleep(60)\n"
    "cli.main(sys.argv[1:])"
  )
  with subprocess.Popen(
    [sys.executable, "-c", program, *words],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    assert process.stderr.readline() == "here\n"
    assert any(tmp_path.iterdir())  # What is not complete yet.
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
  assert (process.returncode, out, err) == (130, "", "Interrupted.\n")
  assert time.monotonic() - started < 20
  assert not any(tmp_path.iterdir())
