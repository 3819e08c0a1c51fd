"""Reading from many files, from many threads and processes."""

import collections
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clip_jax import (
  buckets,
  errors,
  mirrors,
  places,
  regular_files,
  whole_files,
)

# Size and time of change of files, by their paths.
Statuses = Mapping[str, tuple[int, int]]
# Well below the usual limit of 1,024 open files a process.
_MAX_OPEN = 128


class Pool:
  """A pool of readers of the files used last; each process opens its own.

  A reader must close itself when it is no longer referred to: another thread
  may still be reading when the pool lets go of it.
  """

  def __init__(
    self,
    paths: Sequence[str],
    *,
    opener: Callable[[str], Any],
    found: Statuses | None = None,
  ):
    """Opens nothing.

    Args:
      paths: of the files.
      opener: makes the reader of one.
      found: their `statuses`, where these are known.
    """
    self._start(paths, opener, statuses(paths) if found is None else found)

  def _start(self, paths, opener, found):
    self.paths = tuple(paths)
    self._opener = opener
    self._found = found
    self._lock = threading.Lock()
    self._open: collections.OrderedDict[int, Any] = collections.OrderedDict()

  def __reduce__(self) -> tuple:
    return _remake, (self.paths, self._opener, self._found)

  def get(self, number: int) -> Any:
    """Returns the reader of file `number`."""
    with self._lock:
      reader = self._open.get(number)
      if reader is not None:
        self._open.move_to_end(number)
        return reader
    # Opened outside of the lock: on network storage this takes a while.
    reader = self._opener(self.paths[number])
    if not isinstance(reader, SameFile):  # Which checks itself.
      self.check(number)
    with self._lock:
      self._open[number] = reader
      while len(self._open) > _MAX_OPEN:
        self._open.popitem(last=False)
    return reader

  def check(self, number: int) -> None:
    """Raises UserError where file `number` is not as it was at first."""
    path = self.paths[number]
    if status(path) != self._found[path]:
      raise changed(path)


def _remake(paths, opener, found) -> Pool:
  pool = Pool.__new__(Pool)
  pool._start(paths, opener, found)
  return pool


class RawFile:
  """A file that is read at given positions."""

  def __init__(self, path: str, *, ahead: bool = False):
    """Opens the file.

    Args:
      path: of the disk, or an address in a bucket.
      ahead: whether one thread reads it from front to back: from a bucket,
        more is then read at a time.
    """
    self._object, self._path = None, path
    if buckets.is_address(path):
      self._object = buckets.File(path, ahead=ahead)
    else:
      self._file = regular_files.open_regular(path)

  def __del__(self) -> None:
    if hasattr(self, "_file"):
      self._file.close()

  def status(self) -> places.Status:
    """Returns the status of the open file."""
    if self._object is not None:
      found = self._object.status()
      return places.Status(found.size, found.changed_ns, found.changed_ns)
    found = os.fstat(self._file.fileno())
    return places.Status(found.st_size, found.st_mtime_ns, found.st_ctime_ns)

  def read(self, *, offset: int, size: int) -> bytes:
    """Reads up to `size` bytes; fewer only at the end of the file."""
    if self._object is not None:
      return self._object.read(offset=offset, size=size)
    pieces = []
    while size > 0:
      with whole_files.named(self._path):
        piece = os.pread(self._file.fileno(), size, offset)
      if not piece:
        break
      pieces.append(piece)
      offset += len(piece)
      size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class Copied:
  """Opens files of which some lie in buckets, and have copies; picklable.

  Attributes:
    opener: takes a path, and `copy`, the path of its copy or None.
    copies: by address.
  """

  def __init__(self, paths: Sequence[str], opener: Callable[..., Any]):
    """Copies those of `paths` that are addresses; the others stay.

    Raises:
      UserError: one cannot be copied.
    """
    self.opener = opener
    self.copies = mirrors.copied(list(filter(buckets.is_address, paths)))

  def __call__(self, path: str) -> Any:
    """Opens a file of the paths."""
    return self.opener(path, copy=self.copies.get(path))


class SameFile:
  """A file that is read at given positions as long as nobody changes it."""

  def __init__(self, path: str, *, size: int, changed_ns: int):
    """Opens nothing; the size and the time of change are what they must be."""
    self._path, self._size, self._changed_ns = path, size, changed_ns
    self._raw: RawFile | None = None

  def __reduce__(self) -> tuple:
    return _same_file, (self._path, self._size, self._changed_ns)

  def read(self, *, offset: int, size: int) -> bytes:
    """Reads `size` bytes; raises `UserError` where they are not to be had."""
    try:
      raw = self._raw = self._raw or RawFile(self._path)
      found = raw.status()
      if (found.size, found.changed_ns) == (self._size, self._changed_ns):
        data = raw.read(offset=offset, size=size)
        if len(data) == size:
          return data
    except OSError as error:
      raise errors.UserError(
        f"Cannot read {self._path}: {error.strerror}."
      ) from error
    raise changed(self._path)


def changed(path: str) -> errors.UserError:
  """Returns the error where a file is not the one that was opened."""
  return errors.UserError(
    f"{path} has changed since it was opened; start again, and leave it alone "
    "meanwhile."
  )


class SameFiles:
  """Opens files as `SameFile`, which have the status given; picklable."""

  def __init__(self, found: Statuses):
    self._found = found

  def __call__(self, path: str) -> SameFile:
    """Returns a reader of the file at `path`, which it opens later."""
    size, changed_ns = self._found[path]
    return SameFile(path, size=size, changed_ns=changed_ns)


def statuses(paths: Sequence[str]) -> dict[str, tuple[int, int]]:
  """Returns the `status` of each file, by its path."""
  return dict(zip(paths, places.of_each(status, paths), strict=True))


def status(path: str) -> tuple[int, int]:
  """Returns a file's size and time of change; -1 of one that is not there."""
  try:
    found = places.status(path)
  except OSError:
    return -1, -1
  return found.size, found.changed_ns


def _same_file(path: str, size: int, changed_ns: int) -> SameFile:
  return SameFile(path, size=size, changed_ns=changed_ns)
