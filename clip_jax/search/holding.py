"""The directory of an index that is built: locked, and cleaned at the end."""

import contextlib
import fcntl
import logging
import os
import pathlib
from typing import Any

from clip_jax import (
  buckets,
  errors,
  json_text,
  places,
  regular_files,
  terminal,
)
from clip_jax.search import index_files

_LOGGER = logging.getLogger(__name__)

JOURNAL = "journal"  # How the name of a file ends that says what is kept.


def check_replaceable(directory: str | os.PathLike) -> None:
  """Raises UserError if `directory` holds anything but an index."""
  if not buckets.is_address(directory):
    errors.check_new("The index", directory)
  directory = str(directory).rstrip("/") or "/"
  if (kind := places.kind(directory)) is None:
    return
  if kind != "folder":
    raise errors.UserError(f"{directory} is a file; name a new directory.")
  names = places.names(directory)
  others = [name for name in names if not index_files.is_own(name)]
  if others:
    raise errors.UserError(
      f"{directory} is no index (it holds {', '.join(others[:3])}) and is left "
      "alone; name a new directory, or an index to replace."
    )
  meta = f"{directory}/{index_files.META}"
  # A damaged index may be replaced; anybody else's meta.json may not.
  known = index_files.FORMAT.encode()
  if index_files.META in names and known not in _content(meta):
    raise errors.UserError(
      f"{meta} is not of an index and is left alone; name a new directory."
    )


def tell_replaced(
  directory: str | os.PathLike, *, fingerprint: str, data: str
) -> None:
  """Warns where `directory` holds an index of something else.

  Args:
    directory: where an index is written, also in a bucket.
    fingerprint: of its model.
    data: address of its images.
  """
  meta = f"{str(directory).rstrip('/')}/{index_files.META}"
  try:
    found = json_text.parse(_content(meta), what=meta)
  except errors.UserError:  # None, or a damaged one.
    return
  if found.get("fingerprint") == fingerprint and found.get("data") == data:
    return
  _LOGGER.warning(
    "%s holds an index of %s images of %s by %s. The new one replaces it, once "
    "it is whole.",
    directory,
    *(
      terminal.escaped(str(found.get(name)), limit=200)
      for name in ("count", "data", "model")
    ),
  )


def _content(meta: str | os.PathLike) -> bytes:
  """Returns the bytes of a file; b"" if it cannot be read."""
  try:
    return regular_files.read_regular(meta, limit=index_files.MOST_META_BYTES)
  except (OSError, regular_files.NotRegularError):
    return b""


class Hold:
  """Makes and locks the directory; removes leftovers at the end.

  The lock is on the directory itself: it leaves no file, and the system lets
  go of it when the process dies, in whatever way.
  """

  def __init__(self, directory: pathlib.Path):
    self._directory = directory
    self._kept = ""

  def keep(self, prefix: str) -> None:
    """Keeps files whose names have this prefix, if one of them is a journal."""
    self._kept = prefix

  def __enter__(self) -> "Hold":
    while True:
      self._directory.mkdir(parents=True, exist_ok=True)
      # Another may just have removed it.
      with contextlib.suppress(FileNotFoundError):
        self._descriptor = os.open(self._directory, os.O_RDONLY)
        if _lock(self._descriptor, self._directory):
          return self
        os.close(self._descriptor)

  def __exit__(self, *_: Any) -> None:
    journal = self._directory / f"{self._kept}-{JOURNAL}"
    _clean(self._directory, self._kept if journal.is_file() else "")
    with contextlib.suppress(OSError):
      self._directory.rmdir()  # Only where nothing was written.
    os.close(self._descriptor)


def _lock(descriptor: int, directory: pathlib.Path) -> bool:
  """Locks the directory; returns whether it is still the one at its path."""
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    os.close(descriptor)
    raise errors.UserError(
      f"Another `clip-jax embed` is writing {directory}. Wait for its end or "
      "stop it, or name another directory."
    ) from None
  except OSError as error:  # Some mounted buckets have no locks.
    _LOGGER.warning("%s cannot be locked: %s", directory, error.strerror)
  return os.path.samestat(os.fstat(descriptor), os.stat(directory))


def _clean(directory: pathlib.Path, kept: str) -> None:
  """Removes files that `meta.json` does not name, left by other builds.

  Args:
    directory: of the index; it may be of another version.
    kept: what the names of those that stay begin with; empty for none.
  """
  meta = _content(directory / index_files.META)
  for entry in directory.iterdir():
    if kept and entry.name.startswith(kept):
      continue
    named = entry.name == index_files.META or os.fsencode(entry.name) in meta
    if index_files.is_own(entry.name) and not named:
      entry.unlink(missing_ok=True)
