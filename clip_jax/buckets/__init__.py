"""Reads objects in buckets: gs://BUCKET/NAME and s3://BUCKET/NAME.

Objects are listed by Arrow, which also reads S3. Cloud Storage is read by
TensorStore, because Arrow's client for it blocks all threads of Python. Both
libraries are installed anyway, and find the credentials that Google's and
Amazon's own programs find. `AWS_ENDPOINT_URL` names another server for S3,
`STORAGE_EMULATOR_HOST` together with `TENSORSTORE_GCS_HTTP_URL` one for Cloud
Storage.

A failure that may pass is tried again, eight times in all, after waits that
double. One that will stay raises `UnreachableError` at once.
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
# The most bytes of one request, so that slow networks, too, answer in time.
_REQUEST_BYTES = 2**24
# Of reading, before it is asked whether the object is still the same.
_SAME_SECONDS = 10.0
_ADDRESS = re.compile(r"(gs|s3)://")


class Status(NamedTuple):
  """The size of an object and when it was written, in nanoseconds."""

  size: int
  changed_ns: int


class Entry(NamedTuple):
  """An object or a folder in a folder.

  Attributes:
    name: its path below the folder.
    is_folder: whether it is a folder.
  """

  name: str
  is_folder: bool


def is_address(path: object) -> bool:
  """Whether `path` is the address of something in a bucket."""
  return _ADDRESS.match(str(path)) is not None


def status(address: str) -> Status:
  """Returns the size of an object and when it was written.

  Raises:
    FileNotFoundError: there is no object of this name.
    UnreachableError: the server cannot be asked.
  """
  found = _info(address)
  if not found.is_file:
    raise FileNotFoundError(2, "No such object", address)
  return _status(found)


def kind(address: str) -> str | None:
  """Returns "file", "folder", or None where there is nothing.

  Raises:
    UnreachableError: the server cannot be asked.
  """
  found = _info(address)
  if found.is_file:
    return "file"
  return "folder" if found.type.name == "Directory" else None


def entries(address: str, *, below: bool = False) -> list[Entry]:
  """Returns the contents of a folder, by name; [] where there is no folder.

  Args:
    address: of the folder.
    below: whether to list all objects below it instead, at any depth, and no
      folders.

  Raises:
    UnreachableError: it cannot be listed.
  """
  # Arrow lists no folders of Cloud Storage, where they are parts of names.
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
  """Returns the status of each object below a folder, by its name there.

  Raises:
    UnreachableError: it cannot be listed.
  """
  return {
    name: _status(found)
    for name, found in _listed(address, deep=True)
    if found.is_file and name
  }


def _listed(address: str, *, deep: bool) -> Iterator[tuple[str, Any]]:
  """Yields names below a folder, each with Arrow's `FileInfo`."""
  from pyarrow import fs

  place = clients.place(address)

  def ask() -> list[Any]:
    selector = fs.FileSelector(place, recursive=deep, allow_not_found=True)
    return clients.client(address).get_file_info(selector)

  for found in attempts.retried(address, ask):
    yield found.path[len(place) :].strip("/"), found


class ReplacedError(errors.UnreachableError):
  """An object was removed or replaced since it was opened."""


class File:
  """An object that is read at given positions, from any threads.

  A read that takes several requests, or comes after others to the end, asks
  whether the object is still the one that was opened; so does one in some
  seconds of all others. What is read from front to end is of one object.
  """

  def __init__(self, address: str, *, ahead: bool = False):
    """Asks for the object's size; reads nothing yet.

    Args:
      address: of the object.
      ahead: whether to read more at a time than is asked for, and keep it; then
        only one thread may read.

    Raises:
      FileNotFoundError: there is no such object.
      UnreachableError: the server cannot be asked.
    """
    self.address = address
    self._status = status(address)
    self._ahead = ahead
    self._window, self._start = b"", 0
    self._requests, self._looked_at = 0, time.monotonic()
    self._is_known = False  # That all reads will be of the object opened.
    self._reader = clients.READERS[address[:2]](address)

  def status(self) -> Status:
    """Returns the object's status when it was opened."""
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
        self._ask(start, min(_REQUEST_BYTES, end - start))
        for start in range(offset, end, _REQUEST_BYTES)
      ]
      self._requests += len(pieces)
      is_done = self._requests > 1 and end == self._status.size
      seconds = time.monotonic() - self._looked_at
      is_due = is_done or len(pieces) > 1 or seconds >= _SAME_SECONDS
      if is_due and not self._is_known:
        self.check()
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
          raise FileNotFoundError(self.address) from None  # It was replaced.
        raise

    return attempts.retried(self.address, ask)

  def check(self) -> None:
    """Raises FileNotFoundError where it is not the object that was opened."""
    if status(self.address) != self._status:
      raise FileNotFoundError(2, "No such object", self.address)
    # Last: of S3, a status is the same for two objects of one size and second.
    is_known = attempts.retried(self.address, self._reader.check)
    self._is_known, self._looked_at = is_known, time.monotonic()


class _Stream(io.RawIOBase):
  """A `File` with a position, as Python's `io` needs it."""

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


def stream(file: File) -> io.BufferedReader:
  """Returns an open file of Python's that reads from `file`, and ahead."""
  return io.BufferedReader(_Stream(file), _AHEAD_BYTES)


def read(address: str, *, limit: int) -> bytes:
  """Returns an object's bytes; of one that is longer, the first `limit` + 1.

  Raises:
    FileNotFoundError: there is no such object.
    UnreachableError: it cannot be read.
  """
  file = File(address)
  return file.read(offset=0, size=min(file.status().size, limit + 1))


def read_current(address: str, *, limit: int) -> bytes:
  """Returns the same as `read`, of an object that may be replaced meanwhile."""
  while True:
    file = File(address)
    with contextlib.suppress(ReplacedError, FileNotFoundError):
      data = file.read(offset=0, size=min(file.status().size, limit + 1))
      # The size may be of the object before; another may have been there only
      # while its bytes were read.
      file.check()
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
