"""Writes and removes objects, whole or not at all.

A store shows an object when all of it has come, and until then the one before:
what is cut off is made again from its beginning.
"""

import contextlib
import os
import pathlib
from collections.abc import Callable
from typing import Any, BinaryIO

from clip_jax import errors
from clip_jax.buckets import attempts, clients

_PIECE_BYTES = 2**24
# A network that is slower than this is given up.
_BYTES_PER_SECOND = 2**20
_RIGHTS = "read, list, write and delete in"


def put(address: str, data: bytes) -> None:
  """Writes an object, or replaces one.

  Raises:
    UnreachableError: it cannot be written.
  """
  _asked(address, lambda: _put(address, data), size=len(data))


def put_file(address: str, path: pathlib.Path) -> None:
  """Writes an object of a file's bytes: those that it has when it is read.

  Raises:
    OSError: the file cannot be read.
    UnreachableError: the object cannot be written.
  """
  with path.open("rb") as file:
    size = os.fstat(file.fileno()).st_size
    _asked(address, lambda: _copy(address, file), size=size)


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


def _put(address: str, data: bytes) -> None:
  stream = clients.client(address).open_output_stream(clients.place(address))
  stream.write(data)
  stream.close()


def _copy(address: str, file: BinaryIO) -> None:
  """Copies a file of the size that it has now."""
  # Its own: an attempt that was given up for its time may still be reading.
  descriptor = os.dup(file.fileno())
  try:
    size = os.fstat(descriptor).st_size
    stream = None
    for start in range(0, size, _PIECE_BYTES) or (0,):
      length = min(_PIECE_BYTES, size - start)
      piece = os.pread(descriptor, length, start)
      if len(piece) != length:
        # Not closed: what was written so far would become the object.
        raise OSError(f"{file.name} became shorter while it was copied")
      if stream is None:  # Of a small file nothing is begun that is given up.
        place = clients.place(address)
        stream = clients.client(address).open_output_stream(place)
      stream.write(piece)
    if stream is not None:
      stream.close()
  finally:
    os.close(descriptor)


def _asked(address: str, ask: Callable[[], None], *, size: int) -> None:
  try:
    _retried(address, ask, size=size)
  except FileNotFoundError:
    bucket = clients.place(address).partition("/")[0]
    raise errors.UserError(
      f"{address} cannot be written: there is no bucket {bucket!r}. Make it, "
      "or name another."
    ) from None


def _retried(address: str, ask: Callable[[], Any], *, size: int = 0) -> None:
  attempts.retried(
    address,
    ask,
    rights=_RIGHTS,
    seconds=clients.TIMEOUT_SECONDS + size / _BYTES_PER_SECOND,
  )
