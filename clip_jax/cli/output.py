"""What a command prints: stdout holds the answer, stderr all else."""

import contextlib
import io
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from clip_jax import terminal
from clip_jax.plan import environment

# Below these levels a library's own messages say nothing to a user.
_LIBRARY_LEVELS = {"jax": logging.WARNING, "jaxlib": logging.WARNING}
_OWN_LOGGER = "clip_jax"


def survive_any_encoding() -> None:
  """Lets a terminal that lacks a character show "?" in its place."""
  for stream in (sys.stdout, sys.stderr):
    # Not every stream can: a test's or a notebook's may not.
    if isinstance(stream, io.TextIOWrapper):
      with contextlib.suppress(ValueError):
        stream.reconfigure(errors="replace")


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
  """Sends what libraries print to stderr: stdout holds the answer only.

  Native code, such as the collectives of several CPU processes, writes to the
  file descriptor itself.
  """
  with contextlib.ExitStack() as stack:
    # Not every stdout has a descriptor: a test's or a notebook's may have none.
    with contextlib.suppress(OSError, ValueError, AttributeError):
      descriptor = sys.stdout.fileno()
      sys.stdout.flush()
      saved = os.dup(descriptor)
      stack.callback(os.close, saved)
      os.dup2(sys.stderr.fileno(), descriptor)
      stack.callback(os.dup2, saved, descriptor)
    stack.enter_context(contextlib.redirect_stdout(sys.stderr))
    yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Sends our log lines to stderr, and of the libraries' only what matters."""
  for name, value in {
    "GRPC_VERBOSITY": "ERROR",
    "TF_CPP_MIN_LOG_LEVEL": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
  }.items():
    os.environ.setdefault(name, value)
  environment.quiet_libtpu()
  handler = logging.StreamHandler(sys.stderr)
  handler.setFormatter(logging.Formatter("%(message)s"))
  handler.addFilter(_matters)
  root, own = logging.getLogger(), logging.getLogger(_OWN_LOGGER)
  level = own.level
  root.addHandler(handler)
  own.setLevel(logging.INFO)
  try:
    with warnings.catch_warnings():
      if not sys.warnoptions:  # `python -W` still shows them.
        warnings.simplefilter("ignore")
      yield
  finally:
    own.setLevel(level)
    root.removeHandler(handler)


def _matters(record: logging.LogRecord) -> bool:
  package = record.name.partition(".")[0]
  if package == _OWN_LOGGER:
    return record.levelno >= logging.INFO
  return record.levelno >= _LIBRARY_LEVELS.get(package, logging.ERROR)


def discard(stream: Any) -> None:
  """Lets Python flush a stream at its exit that cannot be written to."""
  with contextlib.suppress(OSError, ValueError, AttributeError):
    stream.flush()
    return
  with contextlib.suppress(OSError, ValueError, AttributeError):
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def to_json(payload: Any) -> str:
  """Returns strict JSON; a number that is not finite becomes null."""
  return json.dumps(_plain(payload), indent=2, allow_nan=False)


def _is_unicode(text: str) -> bool:
  try:
    text.encode("utf-8")
  except UnicodeEncodeError:
    return False
  return True


def _plain(value: Any) -> Any:
  if isinstance(value, dict):
    return {str(key): _plain(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(entry) for entry in value]
  if hasattr(value, "item"):  # A number of numpy or JAX.
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if isinstance(value, str):
    # Bytes of a name that were no UTF-8 have no place in JSON.
    return value if _is_unicode(value) else terminal.escaped(value)
  if value is None or isinstance(value, bool | int | float):
    return value
  return str(value)  # A path.
