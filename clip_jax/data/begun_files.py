"""Keeps what was made for a file of records that is not whole yet.

A file of records cannot be gone on with where its writer was killed. So each
entry is written here, too, at once, and a later run takes it from here: nothing
is read, decoded and encoded again but what was on its way.
"""

import os
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from clip_jax import whole_files

# Checksum of what follows; bytes of data, or -1 for none; bytes of the reason;
# whether it was made smaller.
_CHECKSUM = struct.Struct("<I")
_SIZES = struct.Struct("<qH?")
_HEAD_BYTES = _CHECKSUM.size + _SIZES.size


class Entry(NamedTuple):
  """What is written for a slot.

  Attributes:
    data: of the record; None if it is left out as bad.
    bad: why it is bad, or "".
    resized: whether its image was made smaller.
    replaced: why the records are bad in whose place it stands; this is not
      kept, as such are copied without being decoded.
  """

  data: bytes | None
  bad: str
  resized: bool
  replaced: tuple[str, ...] = ()


class BegunFile:
  """The entries of a file that is not whole, in order."""

  def __init__(self, path: pathlib.Path):
    """Stores the path; the file is made with the first entry."""
    self._path = path
    self._file: int | None = None

  def read(self) -> Iterator[Entry]:
    """Yields the entries; what follows a damaged one is removed."""
    end = 0
    try:
      with self._path.open("rb") as file:
        while (entry := _read(file)) is not None:
          end = file.tell()
          yield entry
    except FileNotFoundError:
      return
    if self._path.exists():  # Unless it is whole by now, and removed.
      os.truncate(self._path, end)

  def add(self, entry: Entry) -> None:
    """Writes an entry, so that it stays if this process is killed.

    Raises:
      OSError: it cannot be written; it names the file.
    """
    with whole_files.named(self._path):
      self._add(entry)

  def _add(self, entry: Entry) -> None:
    if self._file is None:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
      self._file = os.open(self._path, flags, 0o644)
    data, reason = entry.data or b"", entry.bad.encode()
    size = -1 if entry.data is None else len(data)
    body = _SIZES.pack(size, len(reason), entry.resized) + reason + data
    rest = memoryview(_CHECKSUM.pack(zlib.crc32(body)) + body)
    while rest:
      rest = rest[os.write(self._file, rest) :]

  def close(self) -> None:
    """Lets go of the file."""
    if self._file is not None:
      os.close(self._file)
      self._file = None

  def remove(self) -> None:
    """Removes the file, once what it is of is whole."""
    self.close()
    self._path.unlink(missing_ok=True)


def _read(file: BinaryIO) -> Entry | None:
  """Returns the next entry; None where it is damaged, or the file ends."""
  head = file.read(_HEAD_BYTES)
  if len(head) < _HEAD_BYTES:
    return None
  (checksum,) = _CHECKSUM.unpack_from(head)
  size, length, resized = _SIZES.unpack_from(head, _CHECKSUM.size)
  left = os.fstat(file.fileno()).st_size - file.tell()
  if not -1 <= size <= left - length:
    return None
  body = file.read(length + max(0, size))
  if zlib.crc32(head[_CHECKSUM.size :] + body) != checksum:
    return None
  data = None if size < 0 else body[length:]
  return Entry(data, body[:length].decode(), resized)
