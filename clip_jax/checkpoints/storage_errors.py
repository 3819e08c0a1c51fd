"""What Orbax and TensorStore say of damage and failure, in a line or less."""

import contextlib
import errno
import functools
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

# How TensorStore's messages end where the operating system refused.
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")
# What may be over by the next try, or is somebody's to mend on the machine.
_PASSING = {
  errno.EACCES,
  errno.EIO,
  errno.EMFILE,
  errno.ENFILE,
  errno.ENOMEM,
  errno.EPERM,
  errno.ESTALE,
  errno.ETIMEDOUT,
}


@functools.cache
def silence_echoes() -> None:
  """Drops what many threads say of a failed save, up to the process's end.

  Orbax logs each traceback, asyncio each write that nobody waited for, and
  TensorStore calls back into event loops that are closed by then. Whoever waits
  for the save raises its error; that is said once.
  """
  logging.getLogger("absl").addFilter(
    lambda record: (
      record.levelno < logging.ERROR
      or f"{os.sep}orbax{os.sep}" not in record.pathname
    )
  )
  logging.getLogger("asyncio").addFilter(
    lambda record: ".orbax-checkpoint-tmp" not in record.getMessage()
  )
  hook = sys.unraisablehook

  def without_echoes(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
      hook(unraisable)

  sys.unraisablehook = without_echoes


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps libraries from reporting at length what we report in a line."""
  loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
  levels = [logger.level for logger in loggers]
  for logger in loggers:
    logger.setLevel(logging.CRITICAL + 1)
  try:
    yield
  finally:
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)


def reason(error: Exception) -> str:
  """Returns why a save failed: in the system's words, where it was that."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  if code := _OS_ERROR.search(str(error)):
    return os.strerror(int(code[1]))
  return f"{type(error).__name__}: {first_line(error)}"


def is_passing(error: Exception) -> bool:
  """Returns whether an error speaks of the machine now, not of the files."""
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
    return True
  code = getattr(error, "errno", None)
  if found := _OS_ERROR.search(str(error)):
    code = int(found[1])
  return code in _PASSING


def first_line(error: Exception) -> str:
  """Returns the first line of a message, shortened."""
  return (str(error).splitlines() or [""])[0][:300]
