"""Finds the members of a tar file, even where the file is damaged.

The archive is scanned header by header (POSIX ustar with pax, GNU). Where the
next header is not in its place, the scan goes on at the next valid one, at any
byte: after bytes that were changed, removed or inserted, only the members that
were hit are lost. The stream readers in common use end there without a word.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from clip_jax import regular_files
from clip_jax.data.sources import open_files

BLOCK = 512
MAX_MEMBER_BYTES = 64 * 2**20
MAX_EXTENSION_BYTES = 2**20  # Long names and pax headers.
# Archives are padded to a multiple of this, by GNU tar, BSD tar and Python.
_RECORD = 20 * BLOCK
# An end marker has two blocks of zeros and less than a record of padding, by
# whole blocks; a longer run is damage.
_MAX_END_BYTES = 2 * BLOCK + _RECORD - BLOCK
_PIECE = 2**20  # Bytes read at a time while searching.
# Bytes behind a member's data that are zeros, unless data were pushed there.
_TELLING = 16
_SIZE_DIGITS = 20
_MAGIC = b"ustar"
_MAGIC_AT = 257
# Type flags of POSIX, and GNU's for long names.
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_DIRECTORY = b"5"
_LONG_NAME, _LONG_LINK, _PAX, _GLOBAL_PAX = b"L", b"K", b"x", b"g"
_EXTENSIONS = (_LONG_NAME, _LONG_LINK, _PAX, _GLOBAL_PAX)
# First bytes of compressed files, which must be unpacked first.
_COMPRESSED = (
  b"\x1f\x8b",  # gzip
  b"BZh",
  b"\xfd7zXZ\0",
  b"\x28\xb5\x2f\xfd",  # Zstandard
  b"PK\x03\x04",  # zip
  b"7z\xbc\xaf\x27\x1c",
)


class Member(NamedTuple):
  """A file in the archive; `problem` says why it cannot be used, or "".

  `offset` and `size` are those of its data, in bytes.
  """

  name: str
  offset: int
  size: int
  problem: str = ""


class Damage(NamedTuple):
  """A damaged place of the archive.

  Attributes:
    offset: where it begins.
    reason: damaged_header, shifted (bytes are missing or too many), zeros,
      truncated (inside a header), no_end_marker, trailing_bytes, empty,
      compressed, lfs_pointer or dangling_link.
    size: bytes passed over.
    headers: headers of members among them.
    at_end: whether an unknown number of bytes is missing behind it.
  """

  offset: int
  reason: str
  size: int = 0
  headers: int = 0
  at_end: bool = False


class _Header(NamedTuple):
  name: bytes
  size: int
  kind: bytes


def scan(path: str) -> Iterator[Member | Damage]:
  """Yields the members of the tar file at `path` and its damages, in order.

  Directories are left out; links, devices and the like have the problem
  "not_a_file".
  """
  if os.path.islink(path) and not os.path.exists(path):
    yield Damage(0, "dangling_link", at_end=True)
    return
  yield from _Scan(open_files.RawFile(path, ahead=True)).run()


def heads(block: bytes, size: int) -> bool:
  """Whether `block` may be the header of a member of so many bytes."""
  header = _parse(block)
  return header is not None and _agrees(header, size)


class _Scan:
  """One pass over one archive."""

  def __init__(self, file: open_files.RawFile):
    self._file = file
    self._end = file.status().size
    # What a long name or a pax header says about the header after it.
    self._next: dict[str, bytes] = {}
    # The last member, held back until the header behind it is found: whether
    # its data are whole is known only then. Where its data begin, too.
    self._last: Member | None = None
    self._data = 0
    self._ended = False

  def _read(self, offset: int, size: int) -> bytes:
    return self._file.read(offset=offset, size=size)

  def _release(self) -> Iterator[Member]:
    if self._last is not None:
      yield self._last
    self._last = None

  def run(self) -> Iterator[Member | Damage]:
    if self._read(0, len(regular_files.LFS)) == regular_files.LFS:
      yield Damage(0, "lfs_pointer", self._end, at_end=True)
      return
    if self._read(0, 8).startswith(_COMPRESSED):
      yield Damage(0, "compressed", self._end, at_end=True)
      return
    position = 0
    while position < self._end:
      block = self._read(position, BLOCK)
      if not block[0] and not block.strip(b"\0"):
        position = yield from self._zeros(position)
      elif (header := _parse(block)) is None:
        position = yield from self._resume(position)
      else:
        yield from self._release()
        position, damage = self._entry(position, header)
        if damage is not None:
          yield damage
    yield from self._release()
    if not self._end or (self._ended and not self._data):
      reason = "zeros" if self._end > _MAX_END_BYTES else "empty"
      yield Damage(0, reason, self._end, at_end=True)
    elif not self._ended:
      yield Damage(self._end, "no_end_marker", at_end=True)

  def _entry(self, position: int, header: _Header) -> tuple[int, Damage | None]:
    """Reads a header; returns the offset at which the next one should be."""
    self._ended, damage = False, None
    self._data = data = position + BLOCK
    if header.kind in _EXTENSIONS:
      size = header.size
      if not self._extension(header, data):
        damage = Damage(position, "damaged_header", BLOCK, headers=1)
    else:
      size = self._member(header, data)
      self._next = {}
    if size > self._end - data:  # Not to be believed, or cut.
      found = self._find(data)
      return self._end if found is None else found, damage
    return data + -(-size // BLOCK) * BLOCK, damage

  def _zeros(self, position: int) -> Iterator[Member | Damage]:
    """Skips zeros; returns the offset at which the next header should be.

    Zeros are the end, unless archives were put one after the other, or a part
    of the file was never written.
    """
    after = self._skip_zeros(position)
    size = after - position
    if after == self._end:
      if not self._data:
        pass  # Empty: `run` says so.
      elif size > _MAX_END_BYTES:
        yield from self._close(position, position)
        yield Damage(position, "zeros", size, at_end=True)
      elif size % BLOCK and not self._is_whole(position, position):
        yield from self._close(position, position)
        yield Damage(position, "shifted")
      self._ended = True
      return after
    ends = size in (BLOCK, 2 * BLOCK) or (
      size <= _MAX_END_BYTES and after % _RECORD == 0
    )
    if ends and _parse(self._read(after, BLOCK)) is not None:
      self._ended = True
      return after
    if ends and self._find(after) is None and self._trailing_zeros() < BLOCK:
      self._ended = True
      yield from self._close(position, position)
      yield Damage(after, "trailing_bytes")
      return self._end
    return (yield from self._resume(position, zeros=True))

  def _skip_zeros(self, position: int) -> int:
    """Returns the offset of the first block that is not all zeros."""
    start = position
    while position < self._end:
      piece = self._read(position, _PIECE)
      rest = piece.lstrip(b"\0")
      position += len(piece) - len(rest)
      if rest:
        return start + (position - start) // BLOCK * BLOCK
    return self._end

  def _resume(
    self, expected: int, *, zeros: bool = False
  ) -> Iterator[Member | Damage]:
    """Yields the damage at `expected`; returns the offset of the next header.

    Bytes may be missing before it: it is looked for in the last member's data,
    too.
    """
    found = self._find(self._data)
    where = self._end if found is None else found
    yield from self._close(expected, where)
    self._next = {}
    offset = min(expected, where)
    # Zeros at the end of the file are no part of what is passed over.
    trailing = self._trailing_zeros() if found is None else 0
    size = max(0, where - trailing - offset)
    headers = self._count_headers(offset, where)
    if self._end - expected < BLOCK:
      reason = "truncated"
    elif zeros:
      reason = "zeros"
    elif found is not None and not headers and (where - expected) % BLOCK:
      reason = "shifted"
    else:
      reason = "damaged_header"
    yield Damage(offset, reason, size, headers)
    if found is None:
      self._ended = trailing >= 2 * BLOCK
      if trailing > _MAX_END_BYTES:
        yield Damage(self._end - trailing, "zeros", trailing, at_end=True)
    return where

  def _trailing_zeros(self) -> int:
    """Returns the number of zero bytes at the end of the file."""
    zeros = 0
    while zeros < self._end:
      start = max(0, self._end - zeros - _PIECE)
      piece = self._read(start, self._end - zeros - start)
      run = len(piece) - len(piece.rstrip(b"\0"))
      zeros += run
      if run < len(piece):
        break
    return zeros

  def _close(self, expected: int, where: int) -> Iterator[Member]:
    """Yields the last member, with a problem unless it is known to be whole."""
    last = self._last
    if last and not last.problem and not self._is_whole(expected, where):
      self._last = last._replace(problem="damaged_member")
    yield from self._release()

  def _is_whole(self, expected: int, where: int) -> bool:
    """Whether the last member's data are as they were written.

    Args:
      expected: where the next header should be.
      where: where it is.
    """
    if self._last is None or not self._last.size:
      return True
    end = self._last.offset + self._last.size
    if where < end:
      return False
    padding = self._read(end, min(where, expected) - end)
    if padding[:_TELLING].strip(b"\0"):
      return False  # Too many bytes: the last ones of the data are here.
    if self._read(expected + _MAGIC_AT, len(_MAGIC)) == _MAGIC:
      return True  # The header is in its place, and itself damaged.
    # With bytes missing, the data would end in the zeros of the padding.
    return expected > end and self._read(end - 1, 1) != b"\0"

  def _find(self, start: int) -> int | None:
    """Returns the offset of the first valid header from `start` on, if any."""
    for position in range(start, self._end, _PIECE):
      piece = self._read(position, _PIECE + BLOCK)
      hit = piece.find(_MAGIC, _MAGIC_AT)
      while hit >= 0:
        block = piece[hit - _MAGIC_AT :][:BLOCK]
        if _parse(block) is not None:
          return position + hit - _MAGIC_AT
        hit = piece.find(_MAGIC, hit + 1)
    return None

  def _count_headers(self, start: int, end: int) -> int:
    return sum(
      self._read(p, min(_PIECE, end - p)).count(_MAGIC)
      for p in range(start, end, _PIECE)
    )

  def _extension(self, header: _Header, data: int) -> bool:
    """Reads a long name or a pax header; returns False if it is damaged."""
    if header.size > min(MAX_EXTENSION_BYTES, self._end - data):
      return False
    payload = self._read(data, header.size)
    if header.kind == _LONG_NAME:
      self._next["path"] = payload.rstrip(b"\0")
    elif header.kind == _PAX:
      records = _parse_pax(payload)
      if records is None:
        return False
      self._next |= records
    return True  # Links' targets and global headers say nothing we need.

  def _size(self, header: _Header) -> int:
    if header.kind in _WITHOUT_DATA:
      return 0
    told = self._next.get("size", b"")
    # Of so many digits, numbers are beyond any file.
    return int(told[:_SIZE_DIGITS]) if told.isdigit() else header.size

  def _member(self, header: _Header, data: int) -> int:
    """Holds the member of `header` back; returns the size of its data."""
    path = self._next.get("path", header.name)
    name = self._next.get("GNU.sparse.name", path)  # Else that of a temporary.
    size = self._size(header)
    if header.kind == _DIRECTORY or name.endswith(b"/"):
      return size
    problem = ""
    if header.kind not in _REGULAR or any(
      key.startswith("GNU.sparse") for key in self._next
    ):
      problem = "not_a_file"
    elif size > self._end - data:
      problem = "truncated"
    elif size > MAX_MEMBER_BYTES:
      problem = "too_large"
    elif not _agrees(header, size):
      problem = "damaged_header"  # Two sizes, of which one is wrong.
    self._last = Member(
      name.decode("utf-8", "surrogateescape"),
      data,
      min(size, self._end - data),  # No number is too large to be kept.
      problem,
    )
    return size


def _agrees(header: _Header, size: int) -> bool:
  # A pax header gives a size that is too large for this one, which is then 0.
  return header.size in (size, 0)


def _parse(block: bytes) -> _Header | None:
  """Returns the parsed header; None where its checksum is wrong."""
  if len(block) < BLOCK:
    return None
  stored = _number(block[148:156])
  # The checksum field itself counts as eight spaces. Most bytes are zeros: to
  # leave them out first makes this the quicker sum.
  rest = block[:148] + block[156:]
  if stored != 8 * ord(" ") + sum(rest.translate(None, b"\0")):
    return None
  size = _number(block[124:136])
  if size is None or size < 0:
    return None
  # Zeros come before it where as many are missing behind it.
  name = block[:100].lstrip(b"\0").split(b"\0", 1)[0]
  if block[257:263] == b"ustar\0":
    prefix = block[345:500].split(b"\0", 1)[0]
    name = prefix + b"/" + name if prefix else name
  return _Header(name, size, block[156:157])


def _number(field: bytes) -> int | None:
  """Reads an octal number, or GNU's binary one, which sets the first bit."""
  if field[0] == 0x80:
    return int.from_bytes(field[1:], "big")
  digits = field.strip(b"\0 ")
  try:
    return int(digits, 8) if digits else 0
  except ValueError:
    return None


def _parse_pax(payload: bytes) -> dict[str, bytes] | None:
  """Returns the records of a pax header; None where it is not one."""
  records: dict[str, bytes] = {}
  while payload:
    length, space, _ = payload.partition(b" ")
    if not space or not length.isdigit() or len(length) > 7:
      return None
    record = payload[: int(length)]
    body, end = record[len(length) + 1 : -1], record[-1:]
    keyword, equals, value = body.partition(b"=")
    if end != b"\n" or not equals or len(record) != int(length):
      return None
    records[keyword.decode("utf-8", "replace")] = value
    payload = payload[len(record) :]
  return records
