"""The entries of a zip archive, and the positions of their bytes.

Python's `zipfile` parses the directory. Its entries are checked against the
file, and their bytes are read by position, within the sizes that were checked.
"""

import dataclasses
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np

from clip_jax.convert.files import datafile

# Some 20,000 entries: `zipfile` takes half a second to parse them.
MAX_DIRECTORY_BYTES = 1 << 21
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
MAGIC = b"PK\x03\x04"
ALIGNMENT = 64
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_FILES = (0, stat.S_IFREG, stat.S_IFDIR)
_ENCRYPTED = 1 | 1 << 6 | 1 << 13
_SIZES_FOLLOW = 1 << 3  # Flag: the checksum and sizes come after the data.
_MAX_DESCRIPTOR_BYTES = 24  # Bytes that they take there.

_BAD_NAME = re.compile(r"^/|^[A-Za-z]:|\\|\x00|(^|/)\.{1,2}(/|$)|//")


@dataclasses.dataclass(frozen=True)
class Entry:
  """An entry of an archive: `stored` bytes at `offset`, `size` unpacked."""

  name: str
  offset: int
  stored: int
  size: int
  crc: int
  compressed: bool


def read(file: datafile.DataFile) -> dict[str, Entry]:
  """Returns the entries of a zip archive by name.

  Raises:
    DamagedError: entries overlap, exceed the file, are encrypted, are links,
      occur twice, or have a name that leads out of a directory.
  """
  _check_directory_size(file)
  with file.opened() as raw, zipfile.ZipFile(raw) as archive:
    infos = archive.infolist()
    entries = {}
    end = slack = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
      entry = _entry(raw, info)
      if entry.name in entries:
        raise ValueError(f"entry {entry.name!r:.100} is there twice")
      _check_gap(end, info.header_offset, slack)
      entries[entry.name] = entry
      end = entry.offset + entry.stored
      slack = _MAX_DESCRIPTOR_BYTES if info.flag_bits & _SIZES_FOLLOW else 0
    _check_gap(end, archive.start_dir, slack)
  return entries


def _check_directory_size(file: datafile.DataFile) -> None:
  """Checks the size of the directory, before `zipfile` parses it."""
  # A record of long sizes, its locator, and the end record, which is the last
  # of a file that has no comment.
  tail = file.read(max(file.size - 98, 0), min(file.size, 98)).rjust(98, b"\0")
  if tail[76:80] != b"PK\x05\x06":
    raise ValueError("it does not end as a zip archive does")
  (size,) = struct.unpack_from("<I", tail, 76 + 12)
  if tail[56:60] == b"PK\x06\x07":
    (long_size,) = struct.unpack_from("<Q", tail, 40)
    size = long_size if size == 0xFFFFFFFF else max(size, long_size)
  if size > MAX_DIRECTORY_BYTES:
    raise ValueError(
      f"its directory has {size} bytes, more than {MAX_DIRECTORY_BYTES}"
    )


def _check_gap(end: int, start: int, slack: int) -> None:
  """Checks that no entry overlaps another, and nothing is hidden between."""
  if not end <= start <= end + slack:
    raise ValueError(
      f"its entries do not follow each other: one ends at byte {end}, the next "
      f"begins at {start}"
    )


def _entry(raw, info: zipfile.ZipInfo) -> Entry:
  """Returns an entry of the directory, checked against its own header."""
  name = info.orig_filename
  shown = f"{name!r:.100}"
  compressed = info.compress_type == zipfile.ZIP_DEFLATED
  sizes = info.compress_size, info.file_size
  for is_wrong, what in (
    (not name or _BAD_NAME.search(name), "has a name that is not allowed"),
    (
      stat.S_IFMT(info.external_attr >> 16) not in _FILES,
      "is a link or a device",
    ),
    (info.flag_bits & _ENCRYPTED, "is encrypted"),
    (info.compress_type not in _METHODS, "is compressed in an unusual way"),
    (not compressed and sizes[0] != sizes[1], "has two sizes"),
    (info.header_offset < 0, "begins before the file"),
  ):
    if is_wrong:
      raise ValueError(f"entry {shown} {what}")
  raw.seek(info.header_offset)
  header = raw.read(LOCAL_HEADER.size)
  if len(header) < LOCAL_HEADER.size:
    raise ValueError(f"entry {shown} has no header")
  magic, _, flags, method, _, _, crc, _, _, name_size, extra_size = (
    LOCAL_HEADER.unpack(header)
  )
  encoding = "utf-8" if flags & 1 << 11 else "cp437"
  if (
    magic != MAGIC
    or method != info.compress_type
    or flags & _ENCRYPTED
    or raw.read(name_size).decode(encoding) != name
    or (crc != info.CRC and not flags & _SIZES_FOLLOW)
  ):
    raise ValueError(f"entry {shown} differs from the archive's directory")
  offset = info.header_offset + LOCAL_HEADER.size + name_size + extra_size
  return Entry(
    name, offset, info.compress_size, info.file_size, info.CRC, compressed
  )


def content(file: datafile.DataFile, entry: Entry) -> np.ndarray:
  """Returns the bytes of an entry as a uint8 array, checked."""
  data = file.read_array(entry.offset, entry.stored)
  if entry.compressed:
    data = np.frombuffer(_inflate(entry, data.data), np.uint8)
  _compare_crc(entry, zlib.crc32(data.data))
  return data


def head(file: datafile.DataFile, entry: Entry, size: int) -> bytes:
  """Returns up to `size` of an entry's first bytes; the rest is unchecked."""
  data = file.read(entry.offset, min(entry.stored, size))
  if entry.compressed:
    data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size)
  return data


def check(file: datafile.DataFile, entry: Entry) -> None:
  """Compares the bytes of an uncompressed entry with their checksum."""
  crc = 0
  for piece in file.chunks(entry.offset, entry.stored):
    crc = zlib.crc32(piece, crc)
  _compare_crc(entry, crc)


def _inflate(entry: Entry, data: memoryview) -> bytes:
  """Returns the unpacked bytes; never makes more than the entry's size."""
  inflater = zlib.decompressobj(-zlib.MAX_WBITS)
  # With room for one more, so that a longer entry is noticed.
  found = inflater.decompress(data, entry.size + 1)
  if len(found) != entry.size or not inflater.eof or inflater.unused_data:
    raise ValueError(
      f"entry {entry.name!r:.100} has not the {entry.size} bytes that it says"
    )
  return found


def _compare_crc(entry: Entry, crc: int) -> None:
  if crc != entry.crc:
    raise ValueError(
      f"the checksum of entry {entry.name!r:.100} is {crc:08x}, the archive "
      f"says {entry.crc:08x}"
    )


def write(
  file: BinaryIO, entries: Iterable[tuple[str, Iterable[Any], int]]
) -> None:
  """Writes an archive of uncompressed entries, deterministically.

  Times and modes are fixed. Data begin at multiples of 64 bytes, which suits
  torch and mmap.

  Args:
    file: a new file.
    entries: name, buffers and size in bytes of each entry.
  """
  archive = zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)
  try:
    for name, pieces, size in entries:
      with archive.open(_info(name, size, file.tell()), "w") as entry:
        entry.writelines(pieces)
  except BaseException:
    archive.fp = None  # Else a directory with an incomplete entry is written.
    raise
  archive.close()


def _info(name: str, size: int, at: int) -> zipfile.ZipInfo:
  """Returns the header of an entry, padded such that its data are aligned."""
  info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
  info.create_system = 3  # Unix, on every system.
  info.external_attr = 0o644 << 16
  info.file_size = size
  # Above this size zipfile adds a field of 20 bytes for long sizes.
  long = size * 1.05 > zipfile.ZIP64_LIMIT
  # The last 4 bytes are the header of the padding.
  padding = -(at + LOCAL_HEADER.size + len(name.encode()) + 20 * long + 4)
  padding %= ALIGNMENT
  info.extra = struct.pack("<2sH", b"FB", padding) + b"\0" * padding
  return info
