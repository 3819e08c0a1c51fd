import logging
import os
import stat
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from clip_jax import programs


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """Our folder, in place of JAX's own."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.reset_cache()
  yield tmp_path / "cache" / "clip_jax" / "programs"
  jax.config.update("jax_compilation_cache_dir", before)
  compilation_cache.reset_cache()


def lowered(number=2.0):
  return jax.jit(lambda x: jnp.sin(x) * number).lower(np.ones(3, np.float32))


def compiled(number=2.0):
  program = programs.compile(
    lowered(number), devices=jax.devices()[:1], what="a sine"
  )
  want = np.sin(np.ones(3)) * number
  np.testing.assert_allclose(program(np.ones(3, np.float32)), want, rtol=1e-6)


@pytest.fixture
def loads(monkeypatch):
  """Counts what is read from the folder."""
  counted = []
  real = programs.serialize_executable.deserialize_and_load

  def load(*arguments, **named):
    counted.append(1)
    return real(*arguments, **named)

  monkeypatch.setattr(
    programs.serialize_executable, "deserialize_and_load", load
  )
  return counted


def test_a_program_is_kept_and_used_again(folder, loads):
  compiled()
  assert not loads
  (file,) = folder.iterdir()
  assert stat.S_IMODE(folder.stat().st_mode) == 0o700
  compiled()
  assert len(loads) == 1
  compiled(3.0)
  assert len(loads) == 1 and len(list(folder.iterdir())) == 2
  assert file in folder.iterdir()


@pytest.mark.parametrize("where", [0, 40, -1, None, "cut", "empty"])
def test_a_damaged_file_is_compiled_anew_and_replaced(folder, loads, where):
  compiled()
  (file,) = folder.iterdir()
  good = file.read_bytes()
  bad = bytearray(good)
  if isinstance(where, int):
    bad[where] ^= 1
  file.write_bytes({"cut": good[:99], "empty": b"", None: b"x"}.get(where, bad))
  compiled()
  assert not loads
  compiled()
  assert len(loads) == 1


@pytest.mark.parametrize("kind", ["file", "shared", "full"])
def test_a_folder_that_cannot_be_used_is_no_error(folder, kind, monkeypatch):
  if kind == "file":
    folder.parent.parent.mkdir()
    folder.parent.write_text("no folder")
  elif kind == "shared":  # Others could put programs there, which would run.
    folder.mkdir(parents=True)
    folder.chmod(0o777)
  else:

    def replace(*_):
      raise OSError(28, "No space left on device")

    monkeypatch.setattr(programs.os, "replace", replace)
  compiled()
  compiled()
  assert not folder.is_dir() or not list(folder.iterdir())


@pytest.mark.parametrize(
  "setting", ["machine", "flags", "options", "precision", "switch"]
)
def test_a_program_is_for_its_surroundings(folder, loads, setting, monkeypatch):
  compiled()
  if setting == "machine":
    monkeypatch.setattr(programs, "_cpu", lambda: "another")
  elif setting == "flags":
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--other")
  elif setting == "options":
    wanted = {"xla_cpu_enable_fast_math": False}
    monkeypatch.setattr(programs.cpu_compiler, "options", lambda device: wanted)
  elif setting == "precision":
    with jax.default_matmul_precision("float32"):
      compiled()
  else:
    jax.config.update("jax_enable_compilation_cache", False)
    try:
      compiled()
    finally:
      jax.config.update("jax_enable_compilation_cache", True)
  if setting in ("machine", "flags", "options"):
    compiled()
  assert not loads
  assert len(list(folder.iterdir())) == (1 if setting == "switch" else 2)


def test_what_was_not_used_for_longest_goes_first(folder, monkeypatch):
  compiled()
  (first,) = folder.iterdir()
  monkeypatch.setattr(programs, "MOST_BYTES", int(2.5 * first.stat().st_size))
  for age, number in ((9, 3.0), (5, 4.0)):
    for file in folder.iterdir():
      os.utime(file, (time.time() - age, time.time() - age))
    if number == 4.0:
      compiled()  # The oldest one is used again.
    compiled(number)
  assert first in folder.iterdir() and len(list(folder.iterdir())) == 2


def test_a_cache_that_was_set_up_for_jax_takes_its_place(folder, tmp_path):
  jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
  compilation_cache.reset_cache()
  compiled()
  assert not folder.exists()


@pytest.mark.parametrize("home", ["", "relative"])
def test_without_a_cache_home_the_folder_is_in_home(monkeypatch, home):
  monkeypatch.setenv("XDG_CACHE_HOME", home)
  monkeypatch.setenv("HOME", "/somewhere")
  assert str(programs.folder()) == "/somewhere/.cache/clip_jax/programs"


PROCESS = """
import jax, numpy as np
from clip_jax import embedder, programs
from clip_jax.models import variants

write = programs._write
programs._write = lambda *given: print("compiled") or write(*given)
module = variants.create_model("tiny-cbow")
shapes = variants.abstract_variables(module)
variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
tokens = np.ones((2, 16), np.int32)
encoder = embedder.Embedder(module)
print(encoder.embed_tokens(variables, tokens).sum())
"""


def test_another_process_need_not_compile_again(tmp_path):
  environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
  environment.pop("JAX_COMPILATION_CACHE_DIR")
  said = [
    subprocess.run(
      [sys.executable, "-c", PROCESS],
      env=environment,
      capture_output=True,
      text=True,
      check=True,
    )
    for _ in range(2)
  ]
  first, second = (done.stdout.split() for done in said)
  assert first == ["compiled", *second] and len(second) == 1
  assert said[1].stderr == ""


class Slow:
  def compile(self, compiler_options=None):
    time.sleep(0.1)


@pytest.mark.parametrize("patience, told", [(0.01, True), (9.0, False)])
def test_long_compiling_is_told(caplog, monkeypatch, patience, told):
  monkeypatch.setattr(programs, "_PATIENCE_SECONDS", patience)
  with caplog.at_level(logging.INFO):
    programs.compile(Slow(), devices=(), what="the image tower")
  assert ("Compiling the image tower" in caplog.text) == told
