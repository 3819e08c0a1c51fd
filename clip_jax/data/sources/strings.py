"""Many short strings in few buffers, which are quick to pickle."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

_PIECES = 2**18  # Read at a time.
_WINDOW_BYTES = 2**16  # Of a file, where strings are far apart.
_DENSE = 8  # A run that is at most so many times as long is read as a whole.


def encode(text: str) -> bytes:
  """Returns the bytes that `decode` makes the text of."""
  return text.encode("utf-8", "surrogateescape")


def decode(data: bytes) -> str:
  """Returns a text; bytes that are no UTF-8 come back by `encode`."""
  return data.decode("utf-8", "surrogateescape")


class Strings:
  """An immutable list of strings."""

  def __init__(self, values: Iterable[str]):
    encoded = list(map(encode, values))
    sizes = np.fromiter(map(len, encoded), np.int64, len(encoded))
    self._ends = np.cumsum(sizes)
    self._data: bytes | np.ndarray = b"".join(encoded)

  @classmethod
  def of_buffers(cls, ends: np.ndarray, data: bytes | np.ndarray) -> "Strings":
    """Returns the strings that end so in `data`, UTF-8."""
    made = cls(())
    made._ends, made._data = ends, data
    return made

  @property
  def buffers(self) -> tuple[np.ndarray, bytes | np.ndarray]:
    """What `of_buffers` takes."""
    return self._ends, self._data

  def __len__(self) -> int:
    return len(self._ends)

  def __getitem__(self, index: int) -> str:
    start = int(self._ends[index - 1]) if index else 0
    return decode(bytes(self._data[start : int(self._ends[index])]))

  def tobytes(self) -> bytes:
    """Returns bytes that are equal for equal lists, for digests."""
    return self._ends.tobytes() + bytes(self._data)


class File(Protocol):
  """Bytes of a file, as `open_files.SameFile` reads them."""

  def read(self, *, offset: int, size: int) -> bytes:
    """Returns so many bytes."""
    ...


class Digest(Protocol):
  """One of hashlib's."""

  def update(self, data: bytes, /) -> None:
    """Adds bytes."""
    ...


class Pieces:
  """An immutable list of strings that stand in a file, or in bytes beside it.

  Safe to read from threads.
  """

  def __init__(
    self,
    starts: np.ndarray,
    sizes: np.ndarray,
    *,
    file: File | None,
    beside: np.ndarray,
  ):
    """Stores the arguments.

    Args:
      starts: offsets in the file, or ~offset in `beside`; int64 (strings,).
      sizes: in bytes, int32 (strings,).
      file: UTF-8, as good as it is.
      beside: more bytes, uint8.
    """
    self._starts, self._sizes = starts, sizes
    self._file, self._beside = file, beside

  def __len__(self) -> int:
    return len(self._starts)

  def __getitem__(self, index: int) -> str:
    return decode(self._read(int(self._starts[index]), int(self._sizes[index])))

  def __iter__(self) -> Iterator[str]:
    for first in range(0, len(self), _PIECES):
      yield from map(decode, self._several(first))

  def update(self, digest: Digest) -> None:
    """Digests what `Strings.tobytes` returns of the same strings."""
    total = 0
    for first in range(0, len(self), _PIECES):
      sizes = self._sizes[first : first + _PIECES]
      ends = np.cumsum(sizes, dtype=np.int64) + total
      total = int(ends[-1])
      digest.update(ends.tobytes())
    for first in range(0, len(self), _PIECES):
      digest.update(b"".join(self._several(first)))

  def _read(self, start: int, size: int) -> bytes:
    if start < 0:
      return self._beside[~start : ~start + size].tobytes()
    if not size:
      return b""
    assert self._file is not None
    return self._file.read(offset=start, size=size)

  def _several(self, first: int) -> list[bytes]:
    """Returns the bytes of the strings from `first` on."""
    starts = self._starts[first : first + _PIECES]
    sizes = self._sizes[first : first + _PIECES]
    ends = starts + sizes
    inside = (starts >= 0) & (sizes > 0)
    low, high = 0, 0
    if inside.any():
      low, high = int(starts[inside].min()), int(ends[inside].max())
    if high - low > max(2**20, _DENSE * int(sizes.sum())):
      return self._scattered(starts, sizes, high)
    run = self._read(low, high - low)
    spans = zip((starts - low).tolist(), (ends - low).tolist(), strict=True)
    pieces = [run[start:end] for start, end in spans]
    for slot in np.flatnonzero((starts < 0) & (sizes > 0)):
      pieces[slot] = self._read(int(starts[slot]), int(sizes[slot]))
    return pieces

  def _scattered(
    self, starts: np.ndarray, sizes: np.ndarray, high: int
  ) -> list[bytes]:
    """Returns the bytes of strings up to `high`, read in the file's order."""
    pieces = [b""] * len(starts)
    order = np.argsort(starts)
    low, run = 0, b""
    for slot, start, size in zip(
      order.tolist(), starts[order].tolist(), sizes[order].tolist(), strict=True
    ):
      if start < 0:
        pieces[slot] = self._read(start, size)
      elif size:
        if start + size > low + len(run):
          low = start
          run = self._read(low, min(max(_WINDOW_BYTES, size), high - low))
        pieces[slot] = run[start - low : start - low + size]
    return pieces
