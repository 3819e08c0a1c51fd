"""Writes files completely, or not at all."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import BinaryIO


def write(path: pathlib.Path, data: bytes) -> None:
  """Writes a file, or replaces one; after an error it is as it was before.

  Raises:
    OSError: it cannot be written.
  """
  with replacing(path) as file:
    file.write(data)


@contextlib.contextmanager
def named(path: str | os.PathLike) -> Iterator[None]:
  """Adds a file's path to an error of reading or writing, which lacks it."""
  try:
    yield
  except OSError as error:
    if error.filename is None and error.errno is not None:
      error.filename = os.fspath(path)
    raise


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens a new file, which replaces `path` when it is complete.

  After an error `path` is as it was before.

  Raises:
    OSError: it cannot be written.
  """
  partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.partial")
  try:
    with named(path), partial.open("xb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
