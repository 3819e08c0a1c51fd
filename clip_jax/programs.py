"""A cache of compiled programs in the user's cache folder.

The key is a hash of all that a program is compiled from: its text, the
versions, the options and the machine, down to the features of the CPU. A
damaged file is replaced by a newly compiled one; other errors of the folder
also cost only the time of compiling.
"""

import contextlib
import functools
import hashlib
import logging
import os
import pathlib
import platform
import threading
from collections.abc import Iterator, Sequence

import jax
import jaxlib
from jax.experimental import serialize_executable
from jax.extend import backend as backend_lib

from clip_jax import cpu_compiler, kept_files, sharding

_LOGGER = logging.getLogger(__name__)

MOST_BYTES = 2**28  # Of all files; the least recently used ones are deleted.
_SUFFIX = ".program"
_PATIENCE_SECONDS = 1.0
_SHELL_OPTIONS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")  # Read by the compiler.


def compile(
  lowered: jax.stages.Lowered, *, devices: Sequence[sharding.Device], what: str
) -> jax.stages.Compiled:
  """Returns the compiled program of a lowered function, cached if possible.

  Logs a line if compiling takes longer than a second.

  Args:
    lowered: the result of `jax.jit(f).lower`.
    devices: the devices that it was lowered for, in order; if empty (unknown),
      the program is not cached.
    what: a description for the log, such as "the image tower".
  """
  path = _path_of(lowered, devices)
  if path is not None:
    kept = _read(path, lowered, devices)
    if kept is not None:
      return kept
  with _logging_if_slow(what):
    options = cpu_compiler.options(devices[0]) if devices else None
    compiled = lowered.compile(compiler_options=options)
  if path is not None:
    _write(path, compiled)
  return compiled


def folder() -> pathlib.Path:
  """Returns the folder of the cached programs."""
  return kept_files.folder("programs")


def _path_of(lowered, devices) -> pathlib.Path | None:
  """Returns the file of a program; None if it is not to be cached.

  If the user or a training run has set up JAX's own compilation cache, or
  switched it off, this cache is not used.
  """
  if (
    not devices
    or not jax.config.values["jax_enable_compilation_cache"]
    or jax.config.values["jax_compilation_cache_dir"] is not None
    or jax.process_count() > 1
  ):
    return None
  digest = hashlib.sha256(lowered.as_text().encode())
  digest.update(_surroundings(devices).encode())
  return folder() / (digest.hexdigest() + _SUFFIX)


def options() -> str:
  """Returns JAX's settings as text; a compiled program depends on them."""
  return repr(sorted(jax.config.values.items()))


def _surroundings(devices) -> str:
  """Returns, as text, what a program depends on besides its own text."""
  backend = backend_lib.get_backend()
  return repr(
    [
      jax.__version__,
      jaxlib.__version__,  # pyright: ignore[reportPrivateImportUsage]
      backend.platform,
      backend.platform_version,
      [(device.id, device.device_kind) for device in devices],
      _cpu(),
      [os.environ.get(name) for name in _SHELL_OPTIONS],
      options(),
      cpu_compiler.options(devices[0]),
    ]
  )


@functools.cache
def _cpu() -> str:
  """Returns the CPU's instruction sets; if unknown, the machine's name."""
  with contextlib.suppress(OSError):
    lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    told = [
      line
      for line in lines.splitlines()
      if line.startswith(("flags", "Features", "model name", "CPU part"))
    ]
    if told:
      return "\n".join(told)
  return " ".join(platform.uname())


def _read(path, lowered, devices) -> jax.stages.Compiled | None:
  try:
    program = kept_files.read(path)
    if program is None:
      return None
    loaded = serialize_executable.deserialize_and_load(
      program,
      lowered.in_tree,
      lowered.out_tree,
      execution_devices=devices,
    )
    kept_files.note_use(path)
  except FileNotFoundError:
    return None
  except Exception as error:  # In any case the program can be compiled anew.
    _LOGGER.debug("%s is not used: %s", path, error)
    return None
  return loaded


def _write(path, compiled) -> None:
  """Writes a program to the cache and deletes old ones."""
  try:
    program, _, _ = serialize_executable.serialize(compiled)
    kept_files.write(path, program, most_bytes=MOST_BYTES)
  except Exception as error:  # Such as a full disk: the cache is optional.
    _LOGGER.debug("%s is not kept: %s", path, error)


@contextlib.contextmanager
def _logging_if_slow(what: str) -> Iterator[None]:
  timer = threading.Timer(
    _PATIENCE_SECONDS,
    logging.getLogger("clip_jax").warning,
    (f"Compiling {what} …",),
  )
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
