"""The command line: `clip-jax VERB …`.

Exit codes: 0 done; 1 a clear error on stderr; 2 wrong usage, or input with
several meanings; 130 interrupted; 143 told to stop, and saved.
"""

import contextlib
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from clip_jax import errors, terminal
from clip_jax.cli import parser, verbs

FAILED = 1
AMBIGUOUS = 2
INTERRUPTED = 130  # 128 + SIGINT.
BROKEN_PIPE = 141  # 128 + SIGPIPE.

# Below these levels a library's own messages say nothing to a user.
_LIBRARY_LEVELS = {"jax": logging.WARNING, "jaxlib": logging.WARNING}
_OWN_LOGGERS = ("root", "clip_jax")


def main(argv: Sequence[str] | None = None) -> None:
  """Runs one command; raises SystemExit with its code unless that is 0."""
  code = run(sys.argv[1:] if argv is None else argv)
  if code:
    sys.exit(code)


def run(argv: Sequence[str]) -> int:
  """Runs one command and returns its exit code; wrong usage exits with 2."""
  _survive_any_encoding()
  arguments = parser.parse(argv)
  stdout = sys.stdout
  try:
    with _stdout_kept_clean(), _quiet():
      answer = verbs.RUN[arguments.verb](arguments)
    text = to_json(answer.payload) if arguments.json else answer.text
    text = terminal.encodable(text, getattr(stdout, "encoding", None))
    print(text, file=stdout, flush=True)
    return answer.code
  except KeyboardInterrupt:
    return _fail("Interrupted.", INTERRUPTED)
  except BrokenPipeError:
    _discard(stdout)
    return BROKEN_PIPE
  except errors.AmbiguousError as error:
    return _fail(f"Error: {error}", AMBIGUOUS)
  except errors.UserError as error:
    if arguments.json and error.payload is not None:
      print(to_json(error.payload), file=stdout, flush=True)
    return _fail(f"Error: {error}", FAILED)
  except OSError as error:
    _discard(stdout)
    return _fail(f"Error: {_os_error(error)}", FAILED)
  except RuntimeError as error:
    if "Unable to initialize backend" in str(error):
      first = str(error).splitlines()[0]
      return _fail(
        f"Error: {first}. Install the extra for this hardware, pip install "
        "'clip_jax[tpu]' or 'clip_jax[cuda]', or set JAX_PLATFORMS=cpu.",
        FAILED,
      )
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    first = str(error).splitlines()[0]
    return _fail(
      f"Error: the device is out of memory ({first}). Take a smaller batch, or "
      "more devices.",
      FAILED,
    )


def _survive_any_encoding() -> None:
  """Lets a terminal that lacks a character show "?" in its place."""
  for stream in (sys.stdout, sys.stderr):
    # Not every stream can: a test's or a notebook's may not.
    with contextlib.suppress(AttributeError, ValueError):
      stream.reconfigure(errors="replace")


@contextlib.contextmanager
def _stdout_kept_clean() -> Iterator[None]:
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


def _fail(message: str, code: int) -> int:
  # A message may quote a file's name or content: nothing to trust.
  for line in message.splitlines():
    print(terminal.printable(line, limit=4000), file=sys.stderr, flush=True)
  return code


def _os_error(error: OSError) -> str:
  """Returns an error of the system in words, with the file it is about."""
  if error.strerror is None:
    return str(error) or type(error).__name__
  return (
    f"{error.strerror}: {error.filename}"
    if error.filename
    else (error.strerror)
  )


def _discard(stream: Any) -> None:
  """Lets Python flush a stream at its exit that cannot be written to."""
  with contextlib.suppress(OSError, ValueError, AttributeError):
    stream.flush()
    return
  with contextlib.suppress(OSError, ValueError, AttributeError):
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def to_json(payload: Any) -> str:
  """Returns strict JSON; a number that is not finite becomes null."""
  return json.dumps(_plain(payload), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
  if isinstance(value, dict):
    return {str(key): _plain(entry) for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(entry) for entry in value]
  if hasattr(value, "item"):  # A number of numpy or JAX.
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if value is None or isinstance(value, bool | int | float | str):
    return value
  return str(value)  # A path.


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Sends our log lines to stderr, and of the libraries' only what matters."""
  for name, value in {
    "GRPC_VERBOSITY": "ERROR",
    "TF_CPP_MIN_LOG_LEVEL": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
  }.items():
    os.environ.setdefault(name, value)
  handler = logging.StreamHandler(sys.stderr)
  handler.setFormatter(logging.Formatter("%(message)s"))
  handler.addFilter(_matters)
  root = logging.getLogger()
  level = root.level
  root.addHandler(handler)
  root.setLevel(logging.INFO)
  try:
    with warnings.catch_warnings():
      if not sys.warnoptions:  # `python -W` still shows them.
        warnings.simplefilter("ignore")
      yield
  finally:
    root.setLevel(level)
    root.removeHandler(handler)


def _matters(record: logging.LogRecord) -> bool:
  package = record.name.partition(".")[0]
  if package in _OWN_LOGGERS:
    return record.levelno >= logging.INFO
  return record.levelno >= _LIBRARY_LEVELS.get(package, logging.ERROR)
