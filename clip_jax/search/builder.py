"""Writing an index: row by row, seen by readers only when it is whole."""

import contextlib
import fcntl
import io
import json
import logging
import os
import pathlib
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from clip_jax import errors, names, regular_files
from clip_jax.search import layout

_LOGGER = logging.getLogger(__name__)


class Builder:
  """Writes an index row by row: a context manager that commits at its end.

  Leaving it by an exception leaves the directory as it was.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    model: str,
    fingerprint: str,
    dtype: str = "float32",
  ):
    """Prepares to write; nothing is touched before the context is entered.

    Args:
      directory: new, empty, or an index, which will be replaced.
      model: where the model lies that makes the embeddings.
      fingerprint: of that model.
      dtype: float32, or float16 for half the size.
    """
    if dtype not in names.INDEX_DTYPES:
      raise errors.unknown("dtype of an index", dtype, names.INDEX_DTYPES)
    self.directory = pathlib.Path(directory)
    self.dtype = np.dtype(dtype)
    self.rows = 0
    self._embed_dim = 0
    self.meta: dict[str, Any] = {}  # Once it is written.
    self.facts: dict[str, Any] = {"model": model, "fingerprint": fingerprint}
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> "Builder":
    check_replaceable(self.directory)
    with self._stack as stack:
      stack.enter_context(_hold(self.directory))
      self._embeds = stack.enter_context(_partial_file(self.directory))
      self._records = stack.enter_context(_partial_file(self.directory))
      self._stack = stack.pop_all()
    return self

  def __exit__(self, kind: Any, *_: Any) -> None:
    with self._stack:
      if kind is None:
        self._commit()

  def add(
    self, embeds: np.ndarray, records: list[tuple[str, tuple[str, ...]]]
  ) -> None:
    """Appends unit embeddings (n, embed) and n pairs of key and captions.

    Raises:
      UserError: an embedding is not finite.
    """
    embeds = np.asarray(embeds)
    assert embeds.ndim == 2 and len(embeds) == len(records), embeds.shape
    if not np.all(np.isfinite(embeds)):
      row = int(np.flatnonzero(~np.isfinite(embeds).all(axis=1))[0])
      raise errors.UserError(
        f"The embedding of {records[row][0]!r} is not finite; the model is "
        "damaged or its training diverged. Use an earlier checkpoint."
      )
    if not self.rows:
      self._embed_dim = embeds.shape[1]
      self._write_header()
    assert embeds.shape[1] == self._embed_dim, embeds.shape
    self._embeds.write(np.ascontiguousarray(embeds, self.dtype).data)
    for key, captions in records:
      line = json.dumps({"key": key, "captions": list(captions)}) + "\n"
      self._records.write(line.encode())
    self.rows += len(records)

  def _write_header(self) -> None:
    """Writes the header of the .npy file, whose size is always the same."""
    self._embeds.seek(0)
    np.lib.format.write_array_header_1_0(
      self._embeds,
      {
        "descr": np.lib.format.dtype_to_descr(self.dtype),
        "fortran_order": False,
        "shape": (self.rows, self._embed_dim),
      },
    )

  def _commit(self) -> None:
    if not self.rows:
      raise errors.UserError("There is no record to make an index of.")
    end = self._embeds.tell()
    self._write_header()
    size = self.rows * self._embed_dim * self.dtype.itemsize
    assert self._embeds.tell() + size == end, (self._embeds.tell(), size, end)
    files = {
      "embeddings": self._keep(self._embeds, "embeddings-{}.npy"),
      "records": self._keep(self._records, "records-{}.jsonl"),
    }
    self.meta = {
      "format": layout.FORMAT,
      "version": layout.VERSION,
      "count": self.rows,
      "embed_dim": self._embed_dim,
      "dtype": self.dtype.name,
      "files": files,
      **self.facts,
    }
    _sync_directory(self.directory)
    with _partial_file(self.directory) as file:
      file.write((json.dumps(self.meta, indent=2) + "\n").encode())
      _sync(file)
      os.replace(file.name, self.directory / layout.META)
    _sync_directory(self.directory)

  def _keep(self, file: io.BufferedRandom, pattern: str) -> dict[str, Any]:
    """Renames a finished file; returns its entry in the meta, with checksum."""
    _sync(file)
    digest = layout.sha256(file)
    name = pattern.format(digest[:16])
    os.replace(file.name, self.directory / name)
    size = (self.directory / name).stat().st_size
    return {"name": name, "bytes": size, "sha256": digest}


def check_replaceable(directory: str | os.PathLike) -> None:
  """Raises UserError if `directory` holds anything but an index."""
  errors.check_local("The index", directory)
  directory = pathlib.Path(directory)
  if directory.exists() and not directory.is_dir():
    raise errors.UserError(f"{directory} is a file; name a new directory.")
  if not directory.is_dir():
    return
  others = sorted(
    entry.name for entry in directory.iterdir() if not layout.is_own(entry.name)
  )
  if others:
    raise errors.UserError(
      f"{directory} is no index (it holds {', '.join(others[:3])}) and is left "
      "alone; name a new directory, or an index to replace."
    )
  meta = directory / layout.META
  # A damaged index may be replaced; anybody else's meta.json may not.
  if os.path.lexists(meta) and not _is_of_index(meta):
    raise errors.UserError(
      f"{meta} is not of an index and is left alone; name a new directory."
    )


def _is_of_index(meta: pathlib.Path) -> bool:
  """Returns whether it is a file that says that it is of an index."""
  try:
    content = regular_files.read_regular(meta, limit=layout.MOST_META_BYTES)
  except (OSError, regular_files.NotRegularError):
    return False
  return layout.FORMAT.encode() in content


@contextlib.contextmanager
def _hold(directory: pathlib.Path) -> Iterator[None]:
  """Makes and locks the directory; removes leftovers at the end.

  The lock is on the directory itself: it leaves no file, and the system lets
  go of it when the process dies, in whatever way.
  """
  while True:
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # Another has just removed it.
      descriptor = os.open(directory, os.O_RDONLY)
      if _lock(descriptor, directory):
        break
      os.close(descriptor)
  try:
    yield
  finally:
    _clean(directory)
    with contextlib.suppress(OSError):
      directory.rmdir()  # Only where nothing was written.
    os.close(descriptor)


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


@contextlib.contextmanager
def _partial_file(directory: pathlib.Path) -> Iterator[io.BufferedRandom]:
  """Opens a new file, which is removed at the end unless it was renamed."""
  path = directory / f".partial-{os.getpid()}-{secrets.token_hex(4)}"
  try:
    with path.open("x+b") as file:
      yield file
  finally:
    path.unlink(missing_ok=True)


def _sync(file: io.BufferedRandom) -> None:
  file.flush()
  os.fsync(file.fileno())


def _sync_directory(directory: pathlib.Path) -> None:
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _clean(directory: pathlib.Path) -> None:
  """Removes files that `meta.json` does not name, left by other builds."""
  try:
    files = layout.read_meta(directory)["files"]
  except errors.UserError:
    files = {}
  keep = {
    layout.META,
    *(files[part]["name"] for part in files if part in layout.PARTS),
  }
  for entry in directory.iterdir():
    if entry.name not in keep and layout.is_own(entry.name):
      entry.unlink(missing_ok=True)


def build(
  directory: str | os.PathLike,
  *,
  batches: Iterable[dict[str, Any]],
  embed_images: Callable[[np.ndarray], np.ndarray],
  model: str,
  fingerprint: str,
  dtype: str = "float32",
  facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Embeds all images of some data into an index and returns its meta.

  Args:
    directory: new, empty, or an index to replace.
    batches: the data's images, with their keys and texts.
    embed_images: uint8 (n, size, size, 3) to unit (n, embed).
    model: where the model lies.
    fingerprint: of the model.
    dtype: float32, or float16 for half the size.
    facts: more to keep in the meta; read when all batches are done.

  Raises:
    UserError: the directory holds something else, there is no image, or an
      embedding is not finite.
  """
  builder = Builder(
    directory, model=model, fingerprint=fingerprint, dtype=dtype
  )
  with builder:
    for batch in batches:
      embeds = embed_images(batch["image"])
      builder.add(embeds, list(zip(batch["key"], batch["texts"], strict=True)))
    builder.facts |= facts or {}
  return builder.meta
