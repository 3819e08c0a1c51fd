"""Where the members of a tar file lie, found even where it is damaged.

The archive is scanned header by header (POSIX ustar with pax, GNU). Where a
header is damaged, the scan goes on at the next block that is a valid header,
so that only that member is lost; the stream readers in common use end there
without a word.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512
MAX_MEMBER_BYTES = 64 * 2**20
MAX_EXTENSION_BYTES = 2**20  # Long names and pax headers.
_ZEROS = bytes(BLOCK)
_ZERO_RUN = 2**20
_MAGIC = b"ustar"
# Type flags of POSIX, and GNU's for long names.
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")
_DIRECTORY = b"5"
_LONG_NAME, _LONG_LINK, _PAX, _GLOBAL_PAX = b"L", b"K", b"x", b"g"
_EXTENSIONS = (_LONG_NAME, _LONG_LINK, _PAX, _GLOBAL_PAX)


class Member(NamedTuple):
  """A file in the archive; `problem` says why it cannot be used, or "".

  `offset` and `size` are those of its data, in bytes.
  """

  name: str
  offset: int
  size: int
  problem: str = ""


class Damage(NamedTuple):
  """A place where the archive is not what it should be."""

  offset: int
  reason: str


class _Header(NamedTuple):
  name: bytes
  size: int
  kind: bytes


def scan(path: str) -> Iterator[Member | Damage]:
  """Yields the members of the tar file at `path` and its damages, in order.

  Directories are left out; links, devices and the like have the problem
  "not_a_file".
  """
  descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
  try:
    yield from _Scan(descriptor).run()
  finally:
    os.close(descriptor)


class _Scan:
  """One pass over one archive."""

  def __init__(self, descriptor: int):
    self._descriptor = descriptor
    self._end = os.fstat(descriptor).st_size
    # What a long name or a pax header says about the header after it.
    self._next: dict[str, bytes] = {}

  def _read(self, offset: int, size: int) -> bytes:
    return os.pread(self._descriptor, size, offset)

  def run(self) -> Iterator[Member | Damage]:
    position, lost, ended = 0, False, False
    while position < self._end:
      block = self._read(position, BLOCK)
      if block == _ZEROS:
        # The end, unless archives were put one after the other.
        position, ended, lost = self._skip_zeros(position), True, False
        continue
      # In search of a header, only one with the magic word will do.
      candidate = not lost or block[257:262] == _MAGIC
      header = _parse(block) if candidate else None
      if header is None:
        if not lost:
          whole = len(block) == BLOCK
          reason = "damaged_header" if whole else "truncated"
          yield Damage(position, reason)
        self._next, lost = {}, True
        position += BLOCK
        continue
      lost, ended = False, False
      data = position + BLOCK
      if header.kind in _EXTENSIONS:
        size = header.size
        if not self._extension(header, data):
          yield Damage(position, "damaged_header")
          if size > self._end - data:
            size = 0  # Not to be believed: look for headers from here on.
            lost = True
      else:
        yield from self._member(header, data)
        size = self._size(header)
        if size > self._end - data:
          size, lost = 0, True
        self._next = {}
      position = data + -(-size // BLOCK) * BLOCK
    if not ended:
      yield Damage(self._end, "no_end_marker")

  def _skip_zeros(self, position: int) -> int:
    while position < self._end:
      run = self._read(position, _ZERO_RUN)
      rest = run.lstrip(b"\0")
      if rest:
        return position + (len(run) - len(rest)) // BLOCK * BLOCK
      position += len(run)
    return position

  def _extension(self, header: _Header, data: int) -> bool:
    """Takes in a long name or a pax header; False where it is damaged."""
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
    try:
      return max(0, int(self._next.get("size", header.size)))
    except ValueError:
      return header.size

  def _member(self, header: _Header, data: int) -> Iterator[Member]:
    name = self._next.get("path", header.name)
    if header.kind == _DIRECTORY or name.endswith(b"/"):
      return
    size = self._size(header)
    problem = ""
    if header.kind not in _REGULAR or any(
      key.startswith("GNU.sparse") for key in self._next
    ):
      problem = "not_a_file"
    elif size > self._end - data:
      problem = "truncated"
    elif size > MAX_MEMBER_BYTES:
      problem = "too_large"
    yield Member(name.decode("utf-8", "surrogateescape"), data, size, problem)


def _parse(block: bytes) -> _Header | None:
  """Returns what the header says; None where its checksum is not right."""
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
  name = block[:100].split(b"\0", 1)[0]
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
