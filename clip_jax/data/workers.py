"""Worker processes of the loader, and their shared memory.

Workers end when their run ends, however it ends. The shared memory that they
leave is removed at once or, where all processes were killed together, at the
next start: the name of a segment says which run owns it, and so whether that
run is still there.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import multiprocessing
import os
import pathlib
import re
import stat
from multiprocessing import connection, shared_memory
from typing import Any

import grain
import numpy as np

from clip_jax.data import parent

_LOGGER = logging.getLogger(__name__)

# Where Linux keeps shared memory; elsewhere it cannot be listed.
_MEMORY = pathlib.Path("/dev/shm")
_PROC = pathlib.Path("/proc")
_NAME = re.compile(
  r"clip_jax-(?P<namespace>\d+)-(?P<pid>\d+)-(?P<start>\d+)-.+"
)

# The ending of a segment that lists the semaphores of a worker.
_SEMAPHORES = "-semaphores"

_numbers = itertools.count()


def _start_time(pid: int | str) -> str | None:
  """Returns the kernel's time of a process's start; None if it is dead."""
  try:
    text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
  except (FileNotFoundError, ProcessLookupError):
    return None
  # The second field is the program's name, which may hold anything.
  state, *fields = text.rpartition(")")[2].split()
  return None if state in "ZX" else fields[18]


@functools.cache
def _namespace() -> str | None:
  """Identifies what numbers processes here; None where Linux does not."""
  try:
    return str((_PROC / "self/ns/pid").stat().st_ino)
  except OSError:
    return None


def new_owner() -> str | None:
  """Returns the prefix of the names of a loader's segments.

  None where the system cannot list segments, to remove them later.
  """
  pid = os.getpid()
  if _namespace() is None or not _MEMORY.is_dir():
    return None
  return f"clip_jax-{_namespace()}-{pid}-{_start_time(pid)}-{next(_numbers)}-"


def remove_leftovers() -> None:
  """Removes the shared memory of runs that are no longer there.

  Only segments of this user's runs on this machine whose process is dead.
  """
  if _namespace() is None or not _MEMORY.is_dir():
    return
  removed = []
  for path in list(_MEMORY.iterdir()):
    name = _NAME.fullmatch(path.name)
    if not name or name["namespace"] != _namespace():
      continue
    if not _is_own(path) or _start_time(name["pid"]) == name["start"]:
      continue
    if path.name.endswith(_SEMAPHORES):
      with contextlib.suppress(OSError):
        names = re.findall(r"^sem\.[^/\0\n]+$", path.read_text("utf-8"), re.M)
        removed += [_remove(_MEMORY / semaphore) for semaphore in names]
    removed.append(_remove(path))
  sizes = [size for size in removed if size is not None]
  if sizes:
    _LOGGER.info(
      "Removed %d pieces of shared memory (%.0f MB) that killed runs left.",
      len(sizes),
      sum(sizes) / 1e6,
    )


def _is_own(path: pathlib.Path) -> bool:
  """Whether it is a file of this user; others' are never removed."""
  try:
    found = path.lstat()
  except OSError:  # Somebody else has removed it.
    return False
  return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


def _remove(path: pathlib.Path) -> int | None:
  """Removes a file; returns its size, or None if it is not this user's."""
  try:
    found = path.lstat()
    if found.st_uid != os.geteuid():
      return None
    path.unlink()
    return found.st_size
  except OSError:  # Somebody else has removed it.
    return None


def end(owner: str | None) -> None:
  """Removes the shared memory that a loader's ended workers have left."""
  if owner is None:
    return
  for path in list(_MEMORY.glob(f"{owner}*")):
    try:
      # Not by its path: the process that watches over names hears of it so.
      segment = shared_memory.SharedMemory(path.name)
      segment.close()
      segment.unlink()
    except ValueError:  # It is empty: its worker was killed while making it.
      _remove(path)
    except OSError:  # Somebody else has removed it.
      continue


def begin(owner: str | None, index: int, count: int) -> None:
  """Prepares a worker process, which ends when its parent does.

  Args:
    owner: the prefix of its segments' names.
    index: of the worker.
    count: of the workers.
  """
  del index, count
  parent.ignore_signals()
  process = multiprocessing.parent_process()
  assert process is not None
  # The kernel closes this pipe when the parent is dead, also if it was so
  # before; what the command line watches from a worker's first moment may miss
  # that, and a worker of a script is watched from here on only.
  died = functools.partial(connection.wait, [process.sentinel])
  if died(timeout=0):
    os._exit(1)
  parent.end_after(died)
  if owner is not None:
    _note_semaphores(owner)


def _create(name: str, size: int) -> shared_memory.SharedMemory:
  """Creates and registers a segment; the process cannot end in between.

  Registered segments are removed with the last process of a run.
  """
  with parent.ending:
    return shared_memory.SharedMemory(name, create=True, size=size)


def _note_semaphores(owner: str) -> None:
  """Writes down the semaphores of this process's queues, which bear no name."""
  maps = (_PROC / "self/maps").read_text("utf-8", "replace")
  names = sorted(set(re.findall(rf"{_MEMORY}/(sem\.\S+)$", maps, re.MULTILINE)))
  if not names:
    return
  content = "\n".join(names).encode()
  segment = _create(f"{owner}{os.getpid()}{_SEMAPHORES}", len(content))
  assert segment.buf is not None
  segment.buf[:] = content
  segment.close()


@dataclasses.dataclass(frozen=True)
class SharedArray:
  """The name of an array in shared memory; its reader removes the segment.

  Grain's own shared arrays are removed when they are collected, which fails
  where the segments of a run have been removed before; this is only a name.
  """

  name: str
  shape: tuple[int, ...]
  dtype: np.dtype

  @classmethod
  def create(cls, name: str, array: np.ndarray) -> "SharedArray":
    """Copies an array into a new segment."""
    segment = _create(name, array.nbytes)
    np.copyto(np.ndarray(array.shape, array.dtype, segment.buf), array)
    segment.close()
    return cls(name, array.shape, array.dtype)

  def move_to(self, out: np.ndarray) -> None:
    """Copies the array into `out` and removes its segment."""
    segment = shared_memory.SharedMemory(self.name)
    np.copyto(out, np.ndarray(self.shape, self.dtype, segment.buf))
    segment.close()
    segment.unlink()


class Share(grain.transforms.Map):
  """Puts the arrays of an element into shared memory under the owner's name.

  Grain would do the same, but under names that do not tell their owner.
  """

  def __init__(self, owner: str):
    self._owner = owner

  def map(self, element: Any) -> Any:
    """Returns a dict with its arrays shared; anything else as it is."""
    if not isinstance(element, dict):
      return element
    return {name: self._shared(value) for name, value in element.items()}

  def _shared(self, value: Any) -> Any:
    if not isinstance(value, np.ndarray) or not value.nbytes:
      return value
    name = f"{self._owner}{os.getpid()}-{next(_numbers)}"
    return SharedArray.create(name, value)
