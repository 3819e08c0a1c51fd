"""Opens regular files at untrusted paths; never blocks on a pipe or device."""

import errno
import functools
import os
import stat
from typing import BinaryIO

from clip_jax import buckets, errors

LFS = b"version https://git-lfs"  # With it begins what stands for a file.


class NotRegularError(errors.UserError):
  """A pipe, device or socket where a file should be."""


class OutsideError(errors.UserError):
  """A symbolic link that leads out of the directory it must stay in."""


def open_regular(
  path: str | os.PathLike, *, within: str | None = None
) -> BinaryIO:
  """Opens a regular file for reading, without blocking on a pipe or device.

  The open file itself is checked, so that nobody can exchange it between the
  check and the opening.

  Args:
    path: the file's path, or its address in a bucket.
    within: a directory that symbolic links must not lead out of.

  Raises:
    OSError: it cannot be opened, or is a directory.
    ValueError: the path holds a NUL.
    NotRegularError: it is not a regular file.
    OutsideError: it lies outside of `within`.
  """
  if buckets.is_address(path):
    return buckets.stream(buckets.File(os.fspath(path)))
  flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
  try:
    descriptor = os.open(path, flags)
  except OSError as error:
    if error.errno in (errno.ENXIO, errno.ENODEV):  # A socket or a device.
      raise _not_regular(path) from None
    if error.errno == errno.ELOOP:  # A link to itself leads to no file.
      name = os.fspath(path)
      raise FileNotFoundError(errno.ENOENT, error.strerror, name) from None
    raise
  try:
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISDIR(mode):
      number = errno.EISDIR
      raise IsADirectoryError(number, os.strerror(number), os.fspath(path))
    if not stat.S_ISREG(mode):
      raise _not_regular(path)
    if within is not None and not _is_inside(descriptor, path, within):
      raise OutsideError(
        f"{os.fspath(path)} is a link that leads out of {within}."
      )
    return os.fdopen(descriptor, "rb")
  except BaseException:
    os.close(descriptor)
    raise


def read_regular(
  path: str | os.PathLike, *, limit: int, within: str | None = None
) -> bytes:
  """Returns the content of a regular file, at most `limit` + 1 bytes of it.

  It reads no more than the size that the file system gives, so that files which
  the kernel generates (in `/proc`, of size zero) are empty.
  """
  if buckets.is_address(path):
    return buckets.read(os.fspath(path), limit=limit)
  with open_regular(path, within=within) as file:
    size = os.fstat(file.fileno()).st_size
    return file.read(min(size, limit + 1))


def is_plain_name(name: str) -> bool:
  """Whether a name can only be that of a file in a given directory.

  It holds nothing of what any system's paths are made of.
  """
  return (
    name not in ("", ".", "..")
    and name.isprintable()
    and len(name.encode()) <= 255
    and not any(sign in name for sign in "/\\:")
  )


def _is_inside(descriptor: int, path: str | os.PathLike, within: str) -> bool:
  root = _real_root(os.path.abspath(within))
  try:
    real = os.readlink(f"/proc/self/fd/{descriptor}")  # Linux: what was opened.
  except OSError:
    real = os.path.realpath(path)
    if not os.path.samestat(os.stat(real), os.fstat(descriptor)):
      return False
  return real.startswith(root)


@functools.lru_cache(maxsize=64)  # Asked for with every record.
def _real_root(directory: str) -> str:
  return os.path.join(os.path.realpath(directory), "")


def _not_regular(path: str | os.PathLike) -> NotRegularError:
  return NotRegularError(f"{os.fspath(path)} is not a regular file.")
