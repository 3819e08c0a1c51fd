"""Bounded reads from a file of arrays."""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping

import ml_dtypes
import numpy as np

from clip_jax import errors, regular_files
from clip_jax.convert import tensor as tensor_lib

CHUNK_BYTES = 1 << 20

# numpy's own limit is 64 axes, torch's and safetensors' have none.
MAX_AXES = 32

# Errors that the parsers of containers raise for invalid bytes.
_PARSER_ERRORS = (
  EOFError,
  MemoryError,
  NotImplementedError,
  OverflowError,
  RecursionError,
  ValueError,  # UnicodeError and json.JSONDecodeError are some.
  struct.error,
  zipfile.BadZipFile,
  zlib.error,
)


@dataclasses.dataclass(frozen=True)
class Contents:
  """The tensors of a file, and what else it says about the model.

  Attributes:
    tensors: tensors by name.
    torchscript: whether the file is a TorchScript archive.
    constants: tensors in its traced code by name: "c0" is `CONSTANTS.c0`.
  """

  tensors: dict[str, tensor_lib.Tensor]
  torchscript: bool = False
  constants: Mapping[str, tensor_lib.Tensor] = dataclasses.field(
    default_factory=dict
  )


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
  """Puts `what` in front of the messages of ValueErrors."""
  try:
    yield
  except errors.UserError:
    raise
  except ValueError as error:
    raise ValueError(f"{what}: {error}") from None


@contextlib.contextmanager
def checked(path: pathlib.Path, kind: str) -> Iterator[None]:
  """Turns any error of reading `path` as a `kind` of file into a UserError."""
  try:
    yield
  except errors.UserError:
    raise
  except FileNotFoundError:
    raise errors.UserError(
      f"{path} does not exist; fetch it, as it belongs to the model."
    ) from None
  except OSError as error:
    raise errors.UserError(
      f"{path} cannot be read: {error.strerror or error}. Make it readable, or "
      "fetch it again."
    ) from None
  except _PARSER_ERRORS as error:
    what = str(error)[:200] or type(error).__name__
    raise damaged(path, f"it cannot be read as {kind}: {what}") from None


def damaged(path: pathlib.Path, what: str) -> errors.DamagedError:
  """Returns the error for a file whose content contradicts itself."""
  with contextlib.suppress(OSError), open(path, "rb") as file:
    if file.read(len(regular_files.LFS)) == regular_files.LFS:
      return errors.DamagedError(
        f"{path} is a pointer of Git LFS, not the file that it stands for; "
        "fetch that with `git lfs pull`."
      )
  return errors.DamagedError(
    f"{path} is damaged or not what its name says: {what}. Fetch or make it "
    "again."
  )


class DataFile:
  """A regular file that is read by position.

  The file is not kept open and not mapped, so that a model of a thousand
  tensors needs no memory and no open file before they are read.
  """

  def __init__(self, path: str | os.PathLike):
    """Notes the file's identity; reading is an error if it changes later."""
    self.path = pathlib.Path(path)
    with checked(self.path, "a file"):
      status = self.path.stat()
    if not stat.S_ISREG(status.st_mode):
      raise errors.UserError(
        f"{self.path} is not a regular file; put the file itself there."
      )
    self.size = status.st_size
    self._identity = _identity(status)

  @contextlib.contextmanager
  def opened(self) -> Iterator[io.BufferedReader]:
    """Opens the file; raises UserError if it is not the same any more."""
    with self.path.open("rb") as file:
      if _identity(os.fstat(file.fileno())) != self._identity:
        raise errors.UserError(
          f"{self.path} was changed while it was being read; start again."
        )
      yield file

  def read(self, offset: int, size: int) -> bytes:
    """Returns `size` bytes from `offset`; it is an error if there are fewer."""
    return self.read_array(offset, size).tobytes()

  def read_array(self, offset: int, size: int) -> np.ndarray:
    """Returns `size` bytes from `offset` as a new uint8 array."""
    if offset < 0 or size < 0 or offset + size > self.size:
      raise damaged(
        self.path,
        f"it has {self.size} bytes, bytes {offset} to {offset + size} are "
        "asked for",
      )
    buffer = np.empty(size, np.uint8)
    with self.opened() as file:
      file.seek(offset)
      if file.readinto(buffer.data) != size:
        raise damaged(self.path, "it ends early")
    return buffer

  def chunks(self, offset: int, size: int) -> Iterator[bytes]:
    """Yields `size` bytes from `offset` in pieces of at most 1 MiB."""
    end = offset + size
    for at in range(offset, end, CHUNK_BYTES):
      yield self.read(at, min(CHUNK_BYTES, end - at))


def _identity(status: os.stat_result) -> tuple[int, ...]:
  return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def byte_count(shape: tuple[int, ...], dtype: np.dtype) -> int:
  """Returns the size of an array's data in bytes.

  Raises:
    ValueError: numpy cannot hold such an array.
  """
  if len(shape) > MAX_AXES:
    raise ValueError(f"a tensor has {len(shape)} axes, at most {MAX_AXES} do")
  for length in shape:
    if type(length) is not int or length < 0:
      raise ValueError(f"a tensor's shape has the axis {length!r:.50}")
  # The strides of an array without elements must be valid, too.
  if math.prod(max(length, 1) for length in shape) * dtype.itemsize >= 2**62:
    raise ValueError("a tensor's shape is beyond all memory")
  return math.prod(shape) * dtype.itemsize


def as_array(
  raw: np.ndarray, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
  """Views little-endian bytes as an array, in C order.

  Raises:
    ValueError: a boolean is neither 0 nor 1, which numpy cannot hold.
  """
  if dtype == np.bool_ and raw.size and raw.max() > 1:
    raise ValueError(f"a truth value is stored as {raw.max()}")
  return raw.view(dtype).reshape(shape)


def tensor_bytes(tensor: tensor_lib.Tensor) -> Iterator[memoryview]:
  """Yields the data of a tensor in C order, little-endian."""
  array = tensor.checked_read()
  if array.dtype.kind != "V" and array.dtype.byteorder == ">":
    array = array.astype(array.dtype.newbyteorder("<"))
  array = np.ascontiguousarray(array).reshape(-1)
  yield array.view(np.uint8).data if array.size else memoryview(b"")


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# By name; numpy knows the names of `ml_dtypes` too.
DTYPES = {
  name: np.dtype(name)
  for name in (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32"),
    *("uint64", "int64", "float16", "bfloat16", "float32", "float64"),
    *("float8_e4m3fn", "float8_e5m2"),
  )
}
