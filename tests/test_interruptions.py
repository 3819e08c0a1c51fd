"""Ctrl-C in the middle of a verb that writes: one line, and no half a file."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

import model_kinds
from clip_jax import cli, whole_files

ROOT = pathlib.Path(__file__).parents[1]
# CLIP_JAX_STARTS=20 takes a minute.
STARTS = int(os.environ.get("CLIP_JAX_STARTS", "5"))
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
  assert "index does not exist" in fails("search", tmp_path / "index", "two")
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
    while (line := process.stderr.readline()) != "here\n":
      assert line  # What a slow machine says about its progress.
    assert any(tmp_path.iterdir())  # What is not complete yet.
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
  assert (process.returncode, out, err) == (130, "", "Interrupted.\n")
  assert time.monotonic() - started < 20
  assert not any(tmp_path.iterdir())


# Ctrl-C comes in a callback of the garbage collector, where Python drops what
# is raised; JAX has such a callback. Then the command waits for something.
_IN_A_CALLBACK = """
import gc, signal, sys, threading, time
from clip_jax import cli
from clip_jax.cli.commands import models

def wait(arguments):
  gc.disable()
  gc.callbacks.append(
    lambda phase, _: phase == "stop" and signal.raise_signal(signal.SIGINT)
  )
  gc.collect()
  gc.callbacks.clear()
  threading.Event().wait(60)

models.models = wait
cli.main(["models"])
"""


def _ended(program, *words):
  started = time.monotonic()
  done = subprocess.run(
    [sys.executable, "-c", program, *words],
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert time.monotonic() - started < 30
  return done


def test_a_ctrl_c_that_python_drops_ends_the_command_all_the_same():
  done = _ended(_IN_A_CALLBACK)
  assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


# A native module of JAX loads the last one, and makes another error of ours.
@pytest.mark.parametrize(
  "module", ["clip_jax.cli.verbs", "jax", "numpy._core.overrides"]
)
def test_ctrl_c_while_the_command_loads_is_one_line(module):
  program = f"""
import importlib.abc, runpy, signal, sys

class Finder(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path, target=None):
    if name == {module!r}:
      signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder())
sys.argv = "clip-jax classify model image --labels a,b".split()
runpy.run_module("clip_jax", run_name="__main__", alter_sys=True)
"""
  done = _ended(program)
  assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


def test_ctrl_c_while_the_arguments_are_parsed_is_one_line(monkeypatch, fails):
  from clip_jax.cli import parser

  monkeypatch.setattr(
    parser, "make_parser", lambda: signal.raise_signal(signal.SIGINT)
  )
  assert fails("models", code=130) == "Interrupted.\n"


_COMPILES = """
import atexit, os, runpy, signal, sys, threading
atexit.register(print, "The devices are freed.")
import jax, jax.numpy as jnp
from clip_jax import interrupts
from clip_jax.cli import verbs
def call(arguments):
  def long(x):
    for _ in range(3000):
      x = jnp.sin(x) @ x
    return x
  lowered = jax.jit(long).lower(jnp.eye(3))
  threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
  with interrupts.raised():
    lowered.compile()
  raise AssertionError("It took less than half a second.")
object.__setattr__(verbs.VERBS["models"], "run", call)
sys.argv = ["clip-jax", "models"]
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("clip_jax", run_name="__main__")
"""


def test_ctrl_c_while_jax_compiles_frees_nothing_that_it_reads():
  """A crash after it came in half of the runs that were interrupted so."""
  ended = subprocess.run(
    [sys.executable, "-c", _COMPILES], capture_output=True, text=True, cwd=ROOT
  )
  assert (ended.returncode, ended.stderr) == (130, "Interrupted.\n")
  assert not ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["data prepare", "train"])
def test_one_ctrl_c_ends_a_starting_command_whenever_it_comes(tmp_path, verb):
  rng = random.Random(0)
  words = {
    "data prepare": f"builtin:digits/test {tmp_path / 'out'}",
    "train": f"--config configs/demo.py --workdir {tmp_path / 'run'}",
  }[verb]
  for _ in range(STARTS):
    with subprocess.Popen(
      [sys.executable, "-m", "clip_jax", *verb.split(), *words.split()],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
    ) as process:
      # Python itself takes some hundredths of a second, with its traceback.
      time.sleep(rng.uniform(0.3, 3))
      if process.poll() is None:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        # While Python ends, after the answer, the signal itself ends it.
        assert process.returncode in (130, -signal.SIGINT), err
        assert "Traceback" not in err and "ignored" not in err
