"""Objects in buckets: gs://BUCKET/NAME and s3://BUCKET/NAME.

Arrow's clients list objects and read S3. TensorStore's reads Cloud Storage,
where Arrow's keeps all threads of Python waiting. Both are installed anyway,
and find the credentials that the programs of Google and Amazon find. Other
servers are named by `AWS_ENDPOINT_URL`, and by `STORAGE_EMULATOR_HOST` together
with `TENSORSTORE_GCS_HTTP_URL`.

What fails for a moment is tried again, eight times in all, after waits that
double; what will not mend itself is an `UnreachableError` at once.
"""

import contextlib
import io
import os
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from clip_jax import errors
from clip_jax.buckets import attempts, clients

_AHEAD_BYTES = 2**20
# Of one request: a slow network, too, gives them before the time is over.
_MOST_BYTES = 2**24
# Of reading, before it is asked whether the object is still the same.
_SAME_SECONDS = 10.0
_ADDRESS = re.compile(r"(gs|s3)://")


class Status(NamedTuple):
  """The size of an object and when it was written, in nanoseconds."""

  size: int
  changed_ns: int


class Entry(NamedTuple):
  """What lies below a folder.

  Attributes:
    name: its path below the folder.
    is_folder: whether it is a folder of further objects.
  """

  name: str
  is_folder: bool


def is_address(path: object) -> bool:
  """Whether `path` is the address of something in a bucket."""
  return _ADDRESS.match(str(path)) is not None


def status(address: str) -> Status:
  """Returns what is known of an object.

  Raises:
    FileNotFoundError: there is none of this name.
    UnreachableError: it cannot be known.
  """
  found = _info(address)
  if not found.is_file:
    raise FileNotFoundError(2, "No such object", address)
  return _status(found)


def kind(address: str) -> str | None:
  """Returns "file", "folder", or None where there is nothing.

  Raises:
    UnreachableError: it cannot be known.
  """
  found = _info(address)
  if found.is_file:
    return "file"
  return "folder" if found.type.name == "Directory" else None


def entries(address: str, *, below: bool = False) -> list[Entry]:
  """Returns what lies in a folder, in order of names; none where nothing is.

  Args:
    address: of the folder.
    below: whether to list the objects of its folders, too.

  Raises:
    UnreachableError: it cannot be listed.
  """
  # Cloud Storage's client tells of no folders: they are parts of names.
  deep = below or address.startswith("gs:")
  names: dict[str, bool] = {}
  for name, found in _listed(address, deep=deep):
    is_folder = not found.is_file
    if below and is_folder:
      continue
    if not below:
      name, slash, _ = name.partition("/")
      is_folder = is_folder or bool(slash)
    if name:
      names[name] = names.get(name, False) or is_folder
  return [Entry(name, names[name]) for name in sorted(names)]


def objects(address: str) -> dict[str, Status]:
  """Returns what is known of all objects below a folder, by their names there.

  Raises:
    UnreachableError: it cannot be listed.
  """
  return {
    name: _status(found)
    for name, found in _listed(address, deep=True)
    if found.is_file and name
  }


def _listed(address: str, *, deep: bool) -> Iterator[tuple[str, Any]]:
  """Yields names below a folder and what is known of them."""
  from pyarrow import fs

  place = clients.place(address)

  def ask() -> list[Any]:
    selector = fs.FileSelector(place, recursive=deep, allow_not_found=True)
    return clients.client(address).get_file_info(selector)

  for found in attempts.retried(address, ask):
    yield found.path[len(place) :].strip("/"), found


class ReplacedError(errors.UnreachableError):
  """An object is not the one any more that was opened."""


class File:
  """An object that is read at given positions, from any threads.

  A read that takes several requests, or comes after others to the end, asks
  whether the object is still the one that was opened; so does one in some
  seconds of all others. What is read from front to end is of one object.
  """

  def __init__(self, address: str, *, ahead: bool = False):
    """Asks for its size.

    Args:
      address: of the object.
      ahead: whether more is read at a time than is asked for, and kept; then
        one thread only may read.

    Raises:
      FileNotFoundError: there is none.
      UnreachableError: it cannot be read.
    """
    self.address = address
    self._status = status(address)
    self._ahead = ahead
    self._window, self._start = b"", 0
    self._requests, self._looked_at = 0, time.monotonic()
    self._is_known = False  # That all reads will be of the object opened.
    self._reader = clients.READERS[address[:2]](address)

  def status(self) -> Status:
    """Returns what was known of it when it was opened."""
    return self._status

  def read(self, *, offset: int, size: int) -> bytes:
    """Reads up to `size` bytes; fewer only at the end of the object.

    Raises:
      UnreachableError: they cannot be read.
    """
    size = max(0, min(size, self._status.size - offset))
    if not size:
      return b""
    if not self._ahead:
      return self._read(offset, size)
    at = offset - self._start
    if at < 0 or at + size > len(self._window):
      most = min(max(size, _AHEAD_BYTES), self._status.size - offset)
      self._window, self._start, at = self._read(offset, most), offset, 0
    return self._window[at : at + size]

  def _read(self, offset: int, size: int) -> bytes:
    end = offset + size
    try:
      pieces = [
        self._ask(start, min(_MOST_BYTES, end - start))
        for start in range(offset, end, _MOST_BYTES)
      ]
      self._requests += len(pieces)
      is_done = self._requests > 1 and end == self._status.size
      seconds = time.monotonic() - self._looked_at
      is_due = is_done or len(pieces) > 1 or seconds >= _SAME_SECONDS
      if is_due and not self._is_known:
        self._check()
    except FileNotFoundError:
      raise ReplacedError(
        f"{self.address} was removed or replaced since it was opened; start "
        "again, and leave it alone meanwhile."
      ) from None
    return b"".join(pieces)

  def _ask(self, offset: int, size: int) -> bytes:
    def ask() -> bytes:
      try:
        data = self._reader.read(offset, size)
        if len(data) == size:
          return data
        raise OSError(f"only {len(data):,} of {size:,} bytes came")
      except OSError as error:
        short = re.search(r"bytes came|OUT_OF_RANGE|InvalidRange", str(error))
        if short and status(self.address) != self._status:
          raise FileNotFoundError(self.address) from None  # It is another one.
        raise

    return attempts.retried(self.address, ask)

  def _check(self) -> None:
    """Raises FileNotFoundError where it is not the object that was opened."""
    is_known = attempts.retried(self.address, self._reader.check)
    if status(self.address) != self._status:
      raise FileNotFoundError(2, "No such object", self.address)
    self._is_known, self._looked_at = is_known, time.monotonic()


class _Stream(io.RawIOBase):
  """A `File` as Python reads files."""

  def __init__(self, file: File):
    self._file, self._at = file, 0

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def tell(self) -> int:
    return self._at

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    base = {
      os.SEEK_SET: 0,
      os.SEEK_CUR: self._at,
      os.SEEK_END: self._file.status().size,
    }[whence]
    self._at = max(0, base + offset)
    return self._at

  def readinto(self, buffer: Any) -> int:
    data = self._file.read(offset=self._at, size=len(buffer))
    buffer[: len(data)] = data
    self._at += len(data)
    return len(data)


def stream(
  file: File, *, buffer_bytes: int = _AHEAD_BYTES
) -> io.BufferedReader:
  """Returns `file` as a file of Python's, which reads ahead."""
  return io.BufferedReader(_Stream(file), buffer_bytes)


def read(address: str, *, limit: int) -> bytes:
  """Returns an object's bytes, at most `limit` + 1 of them.

  Raises:
    FileNotFoundError: there is none.
    UnreachableError: it cannot be read.
  """
  file = File(address)
  return file.read(offset=0, size=min(file.status().size, limit + 1))


def read_current(address: str, *, limit: int) -> bytes:
  """Returns the same as `read`, of one that may be replaced meanwhile."""
  while True:
    file = File(address)
    with contextlib.suppress(ReplacedError):
      data = file.read(offset=0, size=min(file.status().size, limit + 1))
      # Its size is asked for first, and may be that of the one before; one of
      # another size may have come and gone in between.
      if status(address) == file.status():
        return data


def _info(address: str) -> Any:
  place = clients.place(address)
  try:
    return attempts.retried(
      address, lambda: clients.client(address).get_file_info(place)
    )
  except FileNotFoundError:
    from pyarrow import fs

    return fs.FileInfo(place, fs.FileType.NotFound)


def _status(found: Any) -> Status:
  return Status(found.size, found.mtime_ns or 0)
