"""An array of a checkpoint that is read only when it is used."""

import dataclasses
import math
from collections.abc import Callable
from typing import Self

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
  """Shape and dtype of an array, with functions that read its data.

  So a conversion of tens of gigabytes has only the few arrays in memory that it
  is working on.

  Attributes:
    shape: shape of the whole array.
    dtype: a dtype that holds every layer exactly, `ml_dtypes.bfloat16` too.
    read: returns the whole array, a new or a read-only one.
    layer: returns one element of the first axis; None if that is not cheaper.
    layer_dtypes: dtypes of the layers of a stack, if they differ.
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

  def map(
    self,
    change: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...] | None = None,
  ) -> Self:
    """Returns the tensor that `change` makes of the array.

    It has this array's dtype, and its shape unless `shape` is given. It is
    computed when it is read.
    """
    return type(self)(
      self.shape if shape is None else shape,
      self.dtype,
      lambda: change(self.read()).astype(self.dtype, copy=False),
    )

  def part(self, index: int | None) -> np.ndarray:
    """Returns one layer of a stack in its own dtype, or all for None."""
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
    """Returns the array; asserts that it has this shape and dtype."""
    array = self.read()
    assert array.shape == self.shape, f"{array.shape} is not {self.shape}"
    assert array.dtype == self.dtype, f"{array.dtype} is not {self.dtype}"
    return array
