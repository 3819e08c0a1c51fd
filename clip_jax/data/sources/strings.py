"""Many short strings in two buffers, which are quick to pickle."""

from collections.abc import Iterable

import numpy as np


class Strings:
  """An immutable list of strings."""

  def __init__(self, values: Iterable[str]):
    encoded = [value.encode("utf-8", "surrogateescape") for value in values]
    sizes = np.fromiter(map(len, encoded), np.int64, len(encoded))
    self._ends = np.cumsum(sizes)
    self._data = b"".join(encoded)

  def __len__(self) -> int:
    return len(self._ends)

  def __getitem__(self, index: int) -> str:
    start = int(self._ends[index - 1]) if index else 0
    piece = self._data[start : int(self._ends[index])]
    return piece.decode("utf-8", "surrogateescape")

  def tobytes(self) -> bytes:
    """Returns bytes that are equal for equal lists, for digests."""
    return self._ends.tobytes() + self._data
