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
import tempfile
import threading
from collections.abc import Iterator, Sequence

import jax
import jaxlib
from jax.experimental import serialize_executable
from jax.extend import backend as backend_lib

from clip_jax import sharding

_LOGGER = logging.getLogger(__name__)

MOST_BYTES = 2**28  # Of all files; the least recently used ones are deleted.
_SUFFIX = ".program"
_DIGEST_BYTES = hashlib.sha256().digest_size
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
    compiled = lowered.compile()
  if path is not None:
    _write(path, compiled)
  return compiled


def folder() -> pathlib.Path:
  """Returns the cache's folder: in XDG_CACHE_HOME, or in ~/.cache."""
  cache = os.environ.get("XDG_CACHE_HOME", "")
  # The XDG specification says that a relative path is to be ignored.
  base = pathlib.Path(cache) if os.path.isabs(cache) else _home() / ".cache"
  return base / "clip_jax" / "programs"


def _home() -> pathlib.Path:
  return pathlib.Path(os.path.expanduser("~"))


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
    if not _is_private(path.parent):
      return None
    content = path.read_bytes()
    digest, program = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(program).digest() != digest:
      raise ValueError("it is damaged")
    loaded = serialize_executable.deserialize_and_load(
      program,
      lowered.in_tree,
      lowered.out_tree,
      execution_devices=devices,
    )
    os.utime(path)
  except FileNotFoundError:
    return None
  except Exception as error:  # In any case the program can be compiled anew.
    _LOGGER.debug("%s is not used: %s", path, error)
    return None
  return loaded


def _write(path, compiled) -> None:
  """Writes a program to the cache atomically, and deletes old ones."""
  partial = None
  try:
    program, _, _ = serialize_executable.serialize(compiled)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(path.parent) or len(program) > MOST_BYTES:
      return
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
      partial = file.name
      file.write(hashlib.sha256(program).digest() + program)
    os.replace(partial, path)
    _make_room(path.parent)
  except Exception as error:  # Such as a full disk: the cache is optional.
    _LOGGER.debug("%s is not kept: %s", path, error)
    if partial is not None:
      with contextlib.suppress(OSError):
        os.unlink(partial)


def _is_private(directory: pathlib.Path) -> bool:
  """Whether only this user can write there, since cached programs are run."""
  if not hasattr(os, "getuid"):  # Windows.
    return True
  status = directory.stat()
  return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _make_room(directory: pathlib.Path) -> None:
  entries = [(file.stat(), file) for file in directory.iterdir()]
  entries.sort(key=lambda entry: -entry[0].st_mtime)
  total = 0
  for status, file in entries:
    total += status.st_size
    if total > MOST_BYTES:
      file.unlink(missing_ok=True)


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
