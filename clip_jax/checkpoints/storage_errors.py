"""Shortens the errors and logs of Orbax and TensorStore to one line."""

import contextlib
import errno
import functools
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from clip_jax import errors

# TensorStore's messages about an error of the operating system end with this.
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")
# What all messages about arrays and unfinished saves contain.
_OF_STORAGE = re.compile(r"tensorstore_spec|\.orbax-checkpoint-tmp")
# Errors of the machine, not of the files: they may be gone at the next try.
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
  """Silences the threads' repeated messages about a failure, for good.

  Orbax logs each traceback, asyncio each read or write that nobody waited for,
  and TensorStore calls back into event loops that are closed already. The
  caller that waits for a checkpoint gets its error, which is enough.
  """
  logging.getLogger("absl").addFilter(
    lambda record: (
      record.levelno < logging.ERROR
      or f"{os.sep}orbax{os.sep}" not in record.pathname
    )
  )
  logging.getLogger("asyncio").addFilter(
    lambda record: not _OF_STORAGE.search(record.getMessage())
  )
  hook = sys.unraisablehook

  def without_echoes(unraisable: Any) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
      hook(unraisable)

  sys.unraisablehook = without_echoes


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Silences libraries' logs of errors that we report in one line."""
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
  """Returns why a save failed: the operating system's message, if any."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  if code := _OS_ERROR.search(str(error)):
    return os.strerror(int(code[1]))
  return f"{type(error).__name__}: {errors.first_line(error)[:300]}"


def is_passing(error: Exception) -> bool:
  """Whether an error is about the machine's present state, not the files."""
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
    return True
  code = getattr(error, "errno", None)
  if found := _OS_ERROR.search(str(error)):
    code = int(found[1])
  return code in _PASSING
