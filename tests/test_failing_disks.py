"""A file that cannot be read or written is named, and nothing is lost."""

import contextlib
import os
import resource

import pytest

import model_kinds
from clip_jax import whole_files
from clip_jax.cli import run
from clip_jax.data.sources import array_record

BYTES = 8192
DIGITS = "builtin:digits/test"


@contextlib.contextmanager
def _files_of_at_most(size):
  """Limits files as a full disk does; Python ignores the signal that comes."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return model_kinds.workdir(tmp_path_factory.mktemp("models") / "workdir")


COMMANDS = {
  "convert": ["convert", "{workdir}", "{out}", "--to=clip-jax"],
  "embed": ["embed", "{workdir}", f"--data={DIGITS}", "--out={out}"],
  "data prepare": ["data", "prepare", DIGITS, "{out}"],
}


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_verb_names_what_it_could_not_write(tmp_path, workdir, verb, capsys):
  out = tmp_path / "out"
  command = [x.format(workdir=workdir, out=out) for x in COMMANDS[verb]]
  with _files_of_at_most(BYTES):
    assert run(command) == 1
  error = capsys.readouterr().err
  assert "Error: File too large: " in error and "Traceback" not in error
  assert f"{tmp_path}{os.sep}" in error.splitlines()[-1]
  assert "`ulimit -f`" in error
  assert not out.is_file() and not (out / "meta.json").exists()
  assert run(command) == 0


def test_what_is_kept_on_a_full_disk_is_told_and_gone_on_with(tmp_path, capsys):
  command = ["data", "prepare", DIGITS, str(tmp_path / "out"), "--drop-bad"]
  with _files_of_at_most(4 * BYTES):
    assert run(command) == 1
  kept = tmp_path / ".out.partial"
  said = (
    f"The same command goes on from what was found, which is kept in '{kept}'."
  )
  assert said in capsys.readouterr().err
  assert [x.name for x in kept.glob("found/*/*")] == ["begun-0"]
  assert run(command) == 0
  assert run([*command[:3], str(tmp_path / "whole"), "--drop-bad"]) == 0
  out, whole = (
    {x.name: x.read_bytes() for x in (tmp_path / name).iterdir()}
    for name in ("out", "whole")
  )
  assert out == whole and not kept.exists()


def test_a_library_s_failed_write_is_an_error_of_the_system(tmp_path):
  path = str(tmp_path / "a.array_record")
  with _files_of_at_most(BYTES):
    writer = array_record.Writer(path)
    with pytest.raises(OSError, match="File too large") as raised:
      for _ in range(2):
        writer.write(bytes(range(256)) * BYTES)
      writer.close()
  assert raised.value.filename == path


@pytest.mark.parametrize("scheme", ["csv", "wds"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, scheme, capsys):
  path = tmp_path / "a"
  path.symlink_to("/proc/self/mem")  # Of a damaged disk: it opens, no more.
  assert run(["data", "inspect", f"{scheme}:{path}"]) == 1
  assert f"Input/output error: {path}" in capsys.readouterr().err


def test_a_name_that_an_error_has_stays(tmp_path):
  missing = tmp_path / "missing"
  with pytest.raises(FileNotFoundError) as raised, whole_files.named("other"):
    missing.read_bytes()
  assert raised.value.filename == str(missing)
