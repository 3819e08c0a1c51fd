"""An array of a checkpoint that is read when it is asked for."""

import dataclasses
import math
from collections.abc import Callable
from typing import Self

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A named array's header, and a way to its data.

  A conversion handles tens of gigabytes as these: only the few arrays that
  are being worked on are in memory.

  Attributes:
    shape: of the whole.
    dtype: that holds every layer exactly; `ml_dtypes.bfloat16` is one.
    read: returns the whole array, fresh or read-only.
    layer: returns one element of the first axis, where that is cheaper.
    layer_dtypes: of the layers of a stack, where they differ.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]
  layer: Callable[[int], np.ndarray] | None = None
  layer_dtypes: tuple[np.dtype, ...] | None = None

  @classmethod
  def from_array(cls, array: np.ndarray) -> Self:
    """Wraps an array that is in memory already."""
    array = np.asarray(array)
    return cls(array.shape, array.dtype, lambda: array)

  def part(self, index: int | None) -> np.ndarray:
    """Returns one layer of a stack in its own dtype; the whole for None."""
    if index is None:
      return self.read()
    array = self.layer(index) if self.layer else self.read()[index]
    return array.astype(self.dtype_of(index), copy=False)

  def dtype_of(self, index: int | None) -> np.dtype:
    """Returns the dtype of one layer, or of the whole for None."""
    if index is None or self.layer_dtypes is None:
      return self.dtype
    return self.layer_dtypes[index]

  @property
  def nbytes(self) -> int:
    """Size of the data in bytes."""
    return math.prod(self.shape) * self.dtype.itemsize

  def checked_read(self) -> np.ndarray:
    """Returns the array, whose shape and dtype are as announced."""
    array = self.read()
    assert array.shape == self.shape, f"{array.shape} is not {self.shape}"
    assert array.dtype == self.dtype, f"{array.dtype} is not {self.dtype}"
    return array
