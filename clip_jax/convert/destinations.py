"""Writes a new file or directory completely, or not at all."""

import contextlib
import errno
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from clip_jax import errors


@contextlib.contextmanager
def new(
  destination: str | os.PathLike, *, overwrite: bool
) -> Iterator[pathlib.Path]:
  """Yields a path beside `destination`, which is renamed to it at the end.

  After an error it is deleted. In any case `destination` is either as it was
  before, or new and complete.

  Raises:
    UserError: nothing can be written there, or something else was written
      there in the meantime.
  """
  destination = pathlib.Path(destination)
  workspace = _make_workspace(destination)
  partial, old = workspace / destination.name, workspace / "replaced"
  try:
    yield partial
    if overwrite and destination.exists():
      os.rename(destination, old)
    try:
      _take_place(partial, destination)
    except BaseException:
      if old.exists():
        os.rename(old, destination)
      raise
  finally:
    shutil.rmtree(workspace, ignore_errors=True)


def _make_workspace(destination: pathlib.Path) -> pathlib.Path:
  """Makes an empty directory beside `destination`, and its parents."""
  parent = destination.parent
  try:
    parent.mkdir(parents=True, exist_ok=True)
    return pathlib.Path(tempfile.mkdtemp(prefix=".clip-jax-", dir=parent))
  except OSError as error:
    raise errors.UserError(
      f"Cannot write {destination}: {parent} cannot be made or written "
      f"({error.strerror}). Give another destination."
    ) from error


def _take_place(partial: pathlib.Path, destination: pathlib.Path) -> None:
  """Renames `partial`; never replaces a file that appeared in the meantime."""
  try:
    if partial.is_dir():
      if destination.is_dir():
        destination.rmdir()  # Only if it is empty.
      os.rename(partial, destination)
    else:
      os.link(partial, destination)  # Unlike a rename, it replaces nothing.
  except OSError as error:
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
      raise errors.UserError(
        f"{destination} was created by something else while the conversion "
        "ran; nothing was written there. Give another destination."
      ) from None
    if partial.is_dir():
      raise
    os.rename(partial, destination)  # A file system without links.
