"""Bounds the copies that are read: those unused for longest go first.

Whoever reads a copy holds a lock on it until the process ends, so that none
goes that a running process uses; where nothing can be locked, none goes at all.
"""

import contextlib
import fcntl
import functools
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Iterator

from clip_jax import errors, terminal

_LOGGER = logging.getLogger(__name__)

VARIABLE = "CLIP_JAX_COPIES_GB"
_GIGABYTES = 100.0
_GIGABYTE = 10**9
_READ = re.compile(r"[0-9a-f]{16}-(read|data|watch)")


def use(path: pathlib.Path) -> None:
  """Keeps the copy at `path` until this process ends."""
  file = path.parent.with_suffix(".used")
  with contextlib.suppress(OSError):
    _held(str(file))
    os.utime(file)


@functools.cache
def _held(file: str) -> int:
  descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_SH)
  except OSError:
    os.close(descriptor)
    raise
  return descriptor


def make(path: pathlib.Path, wanted_bytes: int) -> None:
  """Removes copies that nobody uses, where all would be too large.

  That is above the limit, or more than the disk holds, if it holds them without
  the others.

  Args:
    path: of the copy that `wanted_bytes` are to be added to.
    wanted_bytes: of new files.
  """
  most, free = _limit(), shutil.disk_usage(path.parent).free
  folders = [
    folder
    for folder in path.parent.parent.iterdir()
    if _READ.fullmatch(folder.name) and folder.is_dir()
  ]
  sizes = {folder: _size(folder) for folder in folders}
  held = sum(sizes.values())
  if wanted_bytes <= free + held - sizes.get(path.parent, 0):
    most = min(most, held + free)
  total = held + wanted_bytes
  for folder in sorted(folders, key=_used_at):
    if total <= most:
      return
    if folder != path.parent and _remove_unused(folder):
      total -= sizes[folder]


def _limit() -> float:
  text = os.environ.get(VARIABLE, "")
  try:
    found = float(text) if text else _GIGABYTES
    if found > 0:
      return found * _GIGABYTE
  except ValueError:
    pass
  raise errors.UserError(
    f"{VARIABLE}={text!r:.80} must be a number above 0: the most gigabytes of "
    "copies of what lies in buckets."
  )


def _used_at(folder: pathlib.Path) -> float:
  try:
    return folder.with_suffix(".used").stat().st_mtime
  except OSError:
    return 0.0


def _size(folder: pathlib.Path) -> int:
  total = 0
  for directory, _, names in os.walk(folder):
    for name in names:
      with contextlib.suppress(OSError):
        total += os.stat(os.path.join(directory, name)).st_size
  return total


def _remove_unused(folder: pathlib.Path) -> bool:
  """Removes a copy; returns False where somebody makes or uses it."""
  try:
    # In this order: who has the first one takes the second before it goes.
    with _alone(folder, ".lock"), _alone(folder, ".used"):
      size = _size(folder)
      folder.with_suffix(".json").unlink(missing_ok=True)
      shutil.rmtree(folder)
  except OSError:
    return False
  _LOGGER.info(
    "Removed %s (%s), which was unused for longest.",
    *(folder, terminal.size(size)),
  )
  return True


@contextlib.contextmanager
def _alone(folder: pathlib.Path, suffix: str) -> Iterator[None]:
  with folder.with_suffix(suffix).open("a") as file:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield
