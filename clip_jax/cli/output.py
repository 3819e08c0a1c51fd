"""The output of a command: its answer on stdout, all else on stderr."""

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

from clip_jax import mirrors, terminal
from clip_jax.plan import environment

# Messages of these libraries below these levels are of no use to a user.
_LIBRARY_LEVELS = {"jax": logging.WARNING, "jaxlib": logging.WARNING}
_OWN_LOGGER = "clip_jax"


def survive_any_encoding() -> None:
  """Makes stdout and stderr print "?" for characters they cannot encode.

  Messages to a stderr that is closed go nowhere.
  """
  if sys.stderr is None:
    sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
  for stream in (sys.stdout, sys.stderr):
    # The streams of a test or a notebook may be of another class.
    if isinstance(stream, io.TextIOWrapper):
      with contextlib.suppress(ValueError):
        stream.reconfigure(errors="replace")


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
  """Redirects what libraries print to stderr, so that stdout has the answer.

  The file descriptor is redirected too, since native code, such as the
  collectives of several CPU processes, writes to it directly.
  """
  with contextlib.ExitStack() as stack:
    # The stdout of a test or a notebook may have no descriptor.
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
  """Logs our messages to stderr, and only important ones of the libraries."""
  for name, value in {
    "GRPC_VERBOSITY": "ERROR",
    "TF_CPP_MIN_LOG_LEVEL": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
  }.items():
    os.environ.setdefault(name, value)
  if not terminal.is_one(sys.stderr):  # Bars are of use on a terminal only.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
  environment.quiet_libtpu()
  handler = logging.StreamHandler(sys.stderr)
  # On a terminal a bar may stand where the message goes.
  clear = terminal.CLEAR if terminal.is_one(sys.stderr) else ""
  handler.setFormatter(_Formatter(f"{clear}%(message)s"))
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


class _Formatter(logging.Formatter):
  """Names addresses in place of their copies, but for whoever makes these."""

  def format(self, record: logging.LogRecord) -> str:
    text = super().format(record)
    is_own = record.name.startswith(mirrors.__name__)
    return text if is_own else mirrors.named(text)


def _matters(record: logging.LogRecord) -> bool:
  package = record.name.partition(".")[0]
  if package == _OWN_LOGGER:
    return record.levelno >= logging.INFO
  return record.levelno >= _LIBRARY_LEVELS.get(package, logging.ERROR)


def discard(stream: Any) -> None:
  """Redirects a broken stream to the null device.

  Python flushes its streams at exit, which would otherwise raise an error.
  """
  with contextlib.suppress(OSError, ValueError, AttributeError):
    stream.flush()
    return
  with contextlib.suppress(OSError, ValueError, AttributeError):
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def to_json(payload: Any) -> str:
  """Returns strict JSON text; numbers that are not finite become null.

  Its texts name addresses in place of their copies.
  """
  return json.dumps(_plain(payload), indent=2, allow_nan=False)


def is_unicode(text: str) -> bool:
  """Whether a text, such as a file's name, is without bytes of no character."""
  try:
    text.encode("utf-8")
  except UnicodeEncodeError:
    return False
  return True


def _plain(value: Any) -> Any:
  if isinstance(value, dict):
    return {_plain(str(key)): _plain(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(entry) for entry in value]
  if hasattr(value, "item"):  # A number of numpy or JAX.
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if isinstance(value, str):
    # In each text, not in all of the JSON, where marks of it are escaped.
    value = mirrors.named(value)
    # A file's name may hold bytes that are not UTF-8; JSON cannot hold them.
    return value if is_unicode(value) else terminal.escaped(value)
  if value is None or isinstance(value, bool | int | float):
    return value
  return str(value)  # A path.
