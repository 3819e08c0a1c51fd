"""Worker processes of the loader, and the memory that they share.

Whatever ends a run ends its workers, and what they left in shared memory goes
at once or, where everything was killed together, at the next start. Segments
bear the name of the run that owns them, so that it can be seen from the name
alone whether that run is still there.
"""

import contextlib
import functools
import itertools
import logging
import multiprocessing
import os
import pathlib
import re
import signal
import stat
import threading
from multiprocessing import connection, shared_memory
from typing import Any

import grain
import numpy as np

# Where Linux keeps shared memory; elsewhere it cannot be listed.
_MEMORY = pathlib.Path("/dev/shm")
_PROC = pathlib.Path("/proc")
_NAME = re.compile(
  r"clip_jax-(?P<namespace>\d+)-(?P<pid>\d+)-(?P<start>\d+)-.+"
)

# The ending of a segment that lists the semaphores of a worker.
_SEMAPHORES = "-semaphores"

_numbers = itertools.count()
_creating = threading.Lock()


def _start_time(pid: int | str) -> str | None:
  """Returns when a process started, by the kernel's clock; None: it is dead."""
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
  """Returns how the segments of a loader and its workers are to begin.

  None where the names of segments could not be looked at later.
  """
  pid = os.getpid()
  if _namespace() is None or not _MEMORY.is_dir():
    return None
  return f"clip_jax-{_namespace()}-{pid}-{_start_time(pid)}-{next(_numbers)}-"


def remove_leftovers() -> None:
  """Removes the shared memory of runs that are no longer there.

  Only what this user's runs on this machine have named, whose process is dead.
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
    logging.info(
      "Removed %d pieces of shared memory (%.0f MB) that killed runs left.",
      len(sizes),
      sum(sizes) / 1e6,
    )


def _is_own(path: pathlib.Path) -> bool:
  """Tells whether it is a file of this user, who alone says what to remove."""
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
  """Removes what the workers of a loader, now ended, have left."""
  if owner is None:
    return
  for path in list(_MEMORY.glob(f"{owner}*")):
    with contextlib.suppress(OSError):
      # Not by its path: the process that watches over names hears of it so.
      segment = shared_memory.SharedMemory(path.name)
      segment.close()
      segment.unlink()


def begin(owner: str | None, index: int, count: int) -> None:
  """Prepares a worker process: it lives exactly as long as its parent.

  Args:
    owner: how its segments begin.
    index: of the worker.
    count: of the workers.
  """
  del index, count
  # What a terminal or a scheduler tells all processes is the parent's to
  # decide: it may want some more batches before it saves.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()
  assert parent is not None
  if connection.wait([parent.sentinel], timeout=0):
    os._exit(1)  # It died while this process was being started.
  threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
  if owner is not None:
    _note_semaphores(owner)


def _end_with(parent: Any) -> None:
  # Linux's signal of the parent's death is of no use here: it comes when the
  # thread ends that started this process, and grain starts it from a pool. The
  # kernel closes this pipe when the parent is dead, also if it was so before.
  connection.wait([parent.sentinel])
  with _creating:
    os._exit(1)


def _create(name: str, size: int) -> shared_memory.SharedMemory:
  """Creates a segment: made and registered, or neither, as this process ends.

  What is registered goes with the last process of a run.
  """
  with _creating:
    return shared_memory.SharedMemory(name, create=True, size=size)


def _note_semaphores(owner: str) -> None:
  """Writes down the semaphores of this process's queues, which bear no name."""
  maps = (_PROC / "self/maps").read_text("utf-8", "replace")
  names = sorted(set(re.findall(rf"{_MEMORY}/(sem\.\S+)$", maps, re.MULTILINE)))
  if not names:
    return
  content = "\n".join(names).encode()
  segment = _create(f"{owner}{os.getpid()}{_SEMAPHORES}", len(content))
  segment.buf[:] = content
  segment.close()


class Share(grain.transforms.Map):
  """Puts the arrays of an element into shared memory under the owner's name.

  Grain would do the same, under names of which nobody knows whose they are.
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
    segment = _create(name, value.nbytes)
    array = grain.multiprocessing.SharedMemoryArray.from_shared_memory(
      segment, value.shape, value.dtype
    )
    np.copyto(array, value)
    return array
