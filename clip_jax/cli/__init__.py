"""The command line: `clip-jax VERB …`.

Exit codes: 0 done; 1 an error, explained on stderr; 2 wrong usage, or input
with several possible meanings; 75 another process of the run is gone, so start
all of them again; 130 interrupted; 143 stopped by SIGTERM, after saving.
"""

import argparse
import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TextIO

from clip_jax import errors, interrupts, mirrors, terminal, versions
from clip_jax.cli import output, parser, verbs
from clip_jax.data import parent

_LOGGER = logging.getLogger(__name__)

FAILED = 1
AMBIGUOUS = 2
BROKEN_PIPE = 141  # 128 + SIGPIPE.
_NO_ROOM = {  # What to do where a file cannot be written.
  errno.ENOSPC: "Make room there, or write elsewhere.",
  errno.EDQUOT: "Make room there, or write elsewhere.",
  errno.EFBIG: "Raise the limit of a file's size (`ulimit -f`).",
}

parent.begin_if_worker()


def main(argv: Sequence[str] | None = None) -> None:
  """Runs one command; raises SystemExit if its exit code is not 0."""
  try:
    code = run(sys.argv[1:] if argv is None else argv)
  except Exception:
    if not _has_joined_others():
      raise
    traceback.print_exc()
    code = FAILED
  if code and _has_joined_others():
    # On a normal exit JAX would wait for the other processes, perhaps for ever.
    sys.stderr.flush()
    os._exit(code)
  if code:
    sys.exit(code)


def _has_joined_others() -> bool:
  """Whether this is one of several processes of a run."""
  jax = sys.modules.get("jax")
  return jax is not None and jax.distributed.is_initialized()


def run(argv: Sequence[str]) -> int:
  """Runs one command and returns its exit code; wrong usage exits with 2."""
  output.survive_any_encoding()
  stdout = sys.stdout
  try:
    if stdout is None:
      raise OSError(
        "stdout is closed, so that the answer would be lost; send it to a file "
        "or to /dev/null."
      )
    return _run(parser.parse(argv), stdout)
  except KeyboardInterrupt as error:
    interrupts.keep(error)
    return _fail(interrupts.MESSAGE, interrupts.EXIT_CODE)
  except BrokenPipeError:
    output.discard(stdout)
    return BROKEN_PIPE
  except OSError as error:
    output.discard(stdout)
    return _fail(f"Error: {mirrors.named(_os_error(error))}", FAILED)


def _run(arguments: argparse.Namespace, stdout: TextIO) -> int:
  try:
    versions.check()
    parser.check_values(arguments)
    with output.stdout_kept_clean(), output.quiet(), mirrors.in_errors():
      for remark in arguments.remarks:
        _LOGGER.warning("%s", remark)
      answer = verbs.VERBS[arguments.verb].run(arguments)
    text = (
      output.to_json(answer.payload)
      if arguments.json
      else mirrors.named(answer.text)
    )
    text = terminal.encodable(text, getattr(stdout, "encoding", None))
    print(text, file=stdout, flush=True)
    problem = mirrors.named(answer.problem)
    return _fail(f"Error: {problem}", FAILED) if problem else 0
  except errors.AmbiguousError as error:
    return _fail(f"Error: {error}", AMBIGUOUS)
  except errors.UserError as error:
    if arguments.json and error.payload is not None:
      print(output.to_json(error.payload), file=stdout, flush=True)
    return _fail(f"Error: {error}", FAILED)
  except (RuntimeError, MemoryError) as error:
    if (known := errors.of_machine(error)) is None:
      raise
    return _fail(f"Error: {known}", FAILED)


def _fail(message: str, code: int) -> int:
  # A message may quote a file's name or content, which is not trusted.
  for line in message.splitlines():
    print(terminal.printable(line, limit=4000), file=sys.stderr, flush=True)
  return code


def _os_error(error: OSError) -> str:
  """Returns the message of an operating system's error, with its file."""
  if error.strerror is None:
    return str(error) or type(error).__name__
  try:
    os.getcwd()
  except FileNotFoundError:
    return "The working directory is gone; change into one that is there."
  said = f"{error.strerror}: {error.filename}"
  said = said if error.filename else error.strerror
  advice = _NO_ROOM.get(error.errno or 0)
  return f"{said}. {advice}" if advice else said
