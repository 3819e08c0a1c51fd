"""An array of a checkpoint that is read when it is asked for."""

import dataclasses
from collections.abc import Callable
from typing import Self

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A named array's header, and a way to its data.

  A conversion handles tens of gigabytes as these: only the few arrays that
  are being worked on are in memory.
  """

  shape: tuple[int, ...]
  dtype: np.dtype  # `ml_dtypes.bfloat16` is one.
  # Returns an array of this shape and dtype, fresh or read-only.
  read: Callable[[], np.ndarray]
  # Returns one element of the first axis, where that is cheaper.
  row: Callable[[int], np.ndarray] | None = None

  @classmethod
  def from_array(cls, array: np.ndarray) -> Self:
    """Wraps an array that is in memory already."""
    array = np.asarray(array)
    return cls(array.shape, array.dtype, lambda: array)

  def read_row(self, index: int) -> np.ndarray:
    """Returns element `index` of the first axis."""
    return self.row(index) if self.row else self.read()[index]

  @property
  def nbytes(self) -> int:
    """Size of the data in bytes."""
    size = self.dtype.itemsize
    for length in self.shape:
      size *= length
    return size

  def checked_read(self) -> np.ndarray:
    """Returns the array, whose shape and dtype are as announced."""
    array = self.read()
    assert array.shape == self.shape, f"{array.shape} is not {self.shape}"
    assert array.dtype == self.dtype, f"{array.dtype} is not {self.dtype}"
    return array
