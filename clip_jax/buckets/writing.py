"""Writes and removes objects, whole or not at all.

A store shows an object when all of it has come, and until then the one before:
what is cut off is made again from its beginning.
"""

import contextlib
import ctypes
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from clip_jax import errors
from clip_jax.buckets import attempts, clients

_PIECE_BYTES = 2**24
# A network that is slower than this is given up.
_BYTES_PER_SECOND = 2**20
_RIGHTS = "read, list, write and delete in"
_IsCurrent = Callable[[], bool]


def put(address: str, data: bytes) -> None:
  """Writes an object, or replaces one.

  Raises:
    UnreachableError: it cannot be written.
  """
  _asked(address, lambda current: _put(address, data, current), size=len(data))


def put_file(address: str, path: pathlib.Path) -> None:
  """Writes an object of a file's bytes: those that it has when it is read.

  Raises:
    OSError: the file cannot be read.
    UnreachableError: the object cannot be written.
  """
  with path.open("rb") as file:
    size = os.fstat(file.fileno()).st_size
    _asked(address, lambda current: _copy(address, file, current), size=size)


def remove(address: str) -> None:
  """Removes an object, where there is one.

  Raises:
    UnreachableError: it cannot be removed.
  """
  place = clients.place(address)
  with contextlib.suppress(FileNotFoundError):
    _retried(address, lambda: clients.client(address).delete_file(place))


def remove_folder(address: str) -> None:
  """Removes all objects of a folder, and what stands for it in S3.

  Raises:
    UnreachableError: they cannot be removed.
  """
  place = clients.place(address)
  with contextlib.suppress(FileNotFoundError):
    _retried(address, lambda: clients.client(address).delete_dir(place))


def _put(address: str, data: bytes, is_current: _IsCurrent) -> None:
  with _new_object(address, is_current) as stream:
    stream.write(data)


def _copy(address: str, file: BinaryIO, is_current: _IsCurrent) -> None:
  """Copies a file of the size that it has now."""
  # Its own: an attempt that was given up for its time may still be reading.
  descriptor = os.dup(file.fileno())
  try:
    size = os.fstat(descriptor).st_size
    with _new_object(address, is_current) as stream:
      for start in range(0, size, _PIECE_BYTES):
        length = min(_PIECE_BYTES, size - start)
        piece = os.pread(descriptor, length, start)
        if len(piece) != length:
          raise OSError(f"{file.name} became shorter while it was copied")
        stream.write(piece)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def _new_object(address: str, is_current: _IsCurrent) -> Iterator[Any]:
  """Yields what an object is written to, which replaces the one before."""
  place = clients.place(address)
  stream = clients.client(address).open_output_stream(place)
  try:
    yield stream
    if not is_current():
      raise OSError("it took too long, and was begun again")
    stream.close()
  except BaseException:
    # Arrow makes an object of what was written so far when the stream is
    # deleted, and cannot be told not to: so it never is.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(stream))
    raise


def _asked(
  address: str, ask: Callable[[_IsCurrent], None], *, size: int
) -> None:
  """Calls `ask` until it succeeds; an attempt knows whether it is the last."""
  begun: list[object] = []

  def attempt() -> None:
    begun.append(None)
    number = len(begun)
    ask(lambda: number == len(begun))

  try:
    _retried(address, attempt, size=size)
  except FileNotFoundError:
    bucket = clients.place(address).partition("/")[0]
    raise errors.UserError(
      f"{address} cannot be written: there is no bucket {bucket!r}. Make it, "
      "or name another."
    ) from None
  finally:
    begun.append(None)  # What was given up for its time writes no more.


def _retried(address: str, ask: Callable[[], Any], *, size: int = 0) -> None:
  attempts.retried(
    address,
    ask,
    rights=_RIGHTS,
    seconds=clients.TIMEOUT_SECONDS + size / _BYTES_PER_SECOND,
  )
