"""Reading from many files, from many threads and processes."""

import collections
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

from clip_jax import regular_files

# Well below the usual limit of 1,024 open files a process.
_MAX_OPEN = 128


class Pool:
  """A pool of readers of the files used last; each process opens its own.

  A reader must close itself when it is no longer referred to: another thread
  may still be reading when the pool lets go of it.
  """

  def __init__(self, paths: Sequence[str], *, opener: Callable[[str], Any]):
    self.paths = tuple(paths)
    self._opener = opener
    self._lock = threading.Lock()
    self._open: collections.OrderedDict[int, Any] = collections.OrderedDict()

  def __reduce__(self) -> tuple:
    return _remake, (self.paths, self._opener)

  def get(self, number: int) -> Any:
    """Returns the reader of file `number`."""
    with self._lock:
      reader = self._open.get(number)
      if reader is not None:
        self._open.move_to_end(number)
        return reader
    # Opened outside of the lock: on network storage this takes a while.
    reader = self._opener(self.paths[number])
    with self._lock:
      self._open[number] = reader
      while len(self._open) > _MAX_OPEN:
        self._open.popitem(last=False)
    return reader


def _remake(paths: tuple[str, ...], opener: Callable[[str], Any]) -> Pool:
  return Pool(paths, opener=opener)


class RawFile:
  """A file that is read at given positions."""

  def __init__(self, path: str):
    self._file = regular_files.open_regular(path)

  def __del__(self) -> None:
    if hasattr(self, "_file"):
      self._file.close()

  def read(self, *, offset: int, size: int) -> bytes:
    """Reads up to `size` bytes; fewer only at the end of the file."""
    pieces = []
    while size > 0:
      piece = os.pread(self._file.fileno(), size, offset)
      if not piece:
        break
      pieces.append(piece)
      offset += len(piece)
      size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
