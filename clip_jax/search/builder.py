"""Writing an index: row by row, seen by readers only when it is whole.

What a build that was stopped or has failed has written stays in its directory,
hidden, with a journal of how far it is good. The same build goes on from there;
another one removes it when it ends.
"""

import collections
import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np

from clip_jax import errors, json_text, names, regular_files, whole_files
from clip_jax.search import bucket_index, entry_table, holding, index_files

_LOGGER = logging.getLogger(__name__)

SECONDS_TO_KEEP = 10.0  # Work that a kill undoes, at most.
_PARTIAL = ".partial-"


class Builder:
  """Writes an index row by row: a context manager that commits at its end.

  Leaving it by an exception leaves the directory as it was, but for what a
  build that goes on has kept.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    model: str,
    fingerprint: str,
    dtype: str = "float32",
    goes_on_as: str = "",
  ):
    """Prepares to write; nothing is touched before the context is entered.

    Args:
      directory: new, empty, or an index, which will be replaced.
      model: where the model lies that makes the embeddings.
      fingerprint: of that model.
      dtype: float32, float16 for half the size, or int8 for a quarter.
      goes_on_as: what all rows follow from, such as a digest of model, data and
        options: where a build of the same was stopped, this one goes on; empty
        begins anew.
    """
    if dtype not in names.INDEX_DTYPES:
      raise errors.unknown("dtype of an index", dtype, names.INDEX_DTYPES)
    self.directory = pathlib.Path(directory)
    self.dtype = np.dtype(dtype)
    self.rows = 0
    self.state: dict[str, Any] = {}  # Of `keep_so_far`, by a build before.
    self._name = None
    if goes_on_as:
      what = f"{goes_on_as}\0{dtype}\0{index_files.VERSION}"
      digest = hashlib.sha256(what.encode()).hexdigest()
      self._name = f"{_PARTIAL}kept-{digest[:16]}"
    self._embed_dim = 0
    self.meta: dict[str, Any] = {}  # Once it is written.
    self.facts: dict[str, Any] = {"model": model, "fingerprint": fingerprint}
    self._stack = contextlib.ExitStack()

  def __enter__(self) -> "Builder":
    holding.check_replaceable(self.directory)
    with self._stack as stack:
      self._hold = stack.enter_context(holding.Hold(self.directory))
      if self._name is None:
        self._embeds = stack.enter_context(_partial_file(self.directory))
        self._records = stack.enter_context(_partial_file(self.directory))
      else:
        self._hold.keep(self._name)  # Until it is done, whatever happens.
        self._begin_or_go_on(stack, self._name)
      self._stack = stack.pop_all()
    return self

  def _begin_or_go_on(self, stack: contextlib.ExitStack, name: str) -> None:
    """Opens the files of a build that was stopped, or new ones."""
    self._embeds, self._records = files = [
      stack.enter_context(_open_to_go_on(self.directory / f"{name}-{part}"))
      for part in index_files.PARTS
    ]
    journal = _read_journal(self.directory / f"{name}-{holding.JOURNAL}")
    sizes = [journal.get(part, 0) for part in index_files.PARTS]
    ends = [file.seek(0, os.SEEK_END) for file in files]
    if any(end < size for end, size in zip(ends, sizes, strict=True)):
      journal, sizes = {}, [0, 0]  # What does not belong together is not taken.
    for file, size in zip(files, sizes, strict=True):
      file.truncate(size)
      file.seek(size)
    self.rows = journal.get("rows", 0)
    self._embed_dim = journal.get("embed_dim", 0)
    self.state = journal.get("state", {})

  def keep_so_far(self, state: dict[str, Any]) -> None:
    """Makes the rows so far the start of this build when it is begun again.

    Args:
      state: what `state` is then, as JSON has it.
    """
    if self._name is None or not self.rows:
      return
    with whole_files.named(self.directory):
      self._keep(state)

  def _keep(self, state: dict[str, Any]) -> None:
    for file in (self._embeds, self._records):
      _sync(file)
    journal = {
      "rows": self.rows,
      "embed_dim": self._embed_dim,
      "embeddings": self._embeds.tell(),
      "records": self._records.tell(),
      "state": state,
    }
    with _partial_file(self.directory) as file:
      file.write(json.dumps(json_text.seal(journal)).encode())
      _sync(file)
      os.replace(file.name, self.directory / f"{self._name}-{holding.JOURNAL}")

  def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
    with whole_files.named(self.directory), self._stack:
      if kind is None:
        self._commit()
        self._hold.keep("")

  def add(self, embeds: np.ndarray, entries: list[entry_table.Entry]) -> None:
    """Appends unit embeddings (n, embed) and their n entries of the table.

    Raises:
      UserError: an embedding is not finite.
    """
    embeds = np.asarray(embeds)
    assert embeds.ndim == 2 and len(embeds) == len(entries), embeds.shape
    if not np.all(np.isfinite(embeds)):
      self._hold.keep("")  # It would be so again.
      row = int(np.flatnonzero(~np.isfinite(embeds).all(axis=1))[0])
      raise errors.not_finite(entries[row].key)
    if not self.rows:
      self._embed_dim = embeds.shape[1]
      self._write_header()
    assert embeds.shape[1] == self._embed_dim, embeds.shape
    with whole_files.named(self.directory):
      self._embeds.write(index_files.stored(embeds, self.dtype).data)
      self._records.writelines(map(entry_table.to_line, entries))
    self.rows += len(entries)

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
    # All that takes space comes before the files lose the names to go on from.
    self._records.seek(0)
    written = self._stack.enter_context(_partial_file(self.directory))
    try:
      entry_table.write(written, self._records)
    except entry_table.BadTableError:
      self._hold.keep("")  # It would be so again.
      raise errors.UserError(
        f"What a stopped build has left in {self.directory} is damaged; it is "
        "removed. Give the command again."
      ) from None
    files = {
      "embeddings": _entry(self._embeds, "embeddings-{}.npy"),
      "records": _entry(written, "records-{}.parquet"),
    }
    self.meta = {
      "format": index_files.FORMAT,
      "version": index_files.VERSION,
      "count": self.rows,
      "embed_dim": self._embed_dim,
      "dtype": self.dtype.name,
      "files": files,
      **self.facts,
    }
    with _partial_file(self.directory) as file:
      file.write((json.dumps(self.meta, indent=2) + "\n").encode())
      _sync(file)
      for part, whole in (("embeddings", self._embeds), ("records", written)):
        os.replace(whole.name, self.directory / files[part]["name"])
      _sync_directory(self.directory)
      os.replace(file.name, self.directory / index_files.META)
    _sync_directory(self.directory)


def _entry(file: io.BufferedRandom, pattern: str) -> dict[str, Any]:
  """Returns the entry of a finished file in the meta, with its checksum."""
  _sync(file)
  digest = index_files.sha256(file)
  size = os.fstat(file.fileno()).st_size
  return {"name": pattern.format(digest[:16]), "bytes": size, "sha256": digest}


def _open_to_go_on(path: pathlib.Path) -> io.BufferedRandom:
  """Opens a file, which is made where it is missing, to read and write."""

  def create(name: str, flags: int) -> int:
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    return os.open(name, flags, 0o666)

  try:
    return open(path, "r+b", opener=create)
  except OSError as error:
    if not path.is_symlink():
      raise
    raise errors.UserError(
      f"{path} is a link, which a build does not leave; remove it."
    ) from error


def _read_journal(path: pathlib.Path) -> dict[str, Any]:
  """Returns the journal of a stopped build; empty without a good one."""
  try:
    data = regular_files.read_regular(path, limit=index_files.MOST_META_BYTES)
    return json_text.unseal(json_text.parse(data, what=str(path)))
  except (OSError, regular_files.NotRegularError, ValueError):
    return {}


@contextlib.contextmanager
def _partial_file(directory: pathlib.Path) -> Iterator[io.BufferedRandom]:
  """Opens a new file, which is removed at the end unless it was renamed."""
  path = directory / f"{_PARTIAL}{os.getpid()}-{secrets.token_hex(4)}"
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


def build(
  directory: str | os.PathLike,
  *,
  batches: Callable[[int], Generator[dict[str, Any]]],
  embed_images: Callable[[np.ndarray], np.ndarray],
  model: str,
  fingerprint: str,
  dtype: str = "float32",
  goes_on_as: str = "",
  counts: collections.Counter[str] | None = None,
  facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Embeds all images of some data into an index and returns its meta.

  Args:
    directory: new, empty, or an index to replace, also in a bucket.
    batches: called with a number, the data's images from that batch on, with
      their keys, texts and paths.
    embed_images: uint8 (n, size, size, 3) to unit (n, embed).
    model: where the model lies.
    fingerprint: of the model.
    dtype: float32, float16 for half the size, or int8 for a quarter.
    goes_on_as: as in `Builder`.
    counts: what `batches` counts; where a build goes on, what was counted
      before is added to it first.
    facts: more to keep in the meta; read when all batches are done.

  Raises:
    UserError: the directory holds something else, there is no image, or an
      embedding is not finite.
  """
  counts = collections.Counter() if counts is None else counts
  with (
    bucket_index.written(directory) as place,
    Builder(
      place,
      model=model,
      fingerprint=fingerprint,
      dtype=dtype,
      goes_on_as=goes_on_as,
    ) as builder,
  ):
    done = builder.state.get("batches", 0)
    if done:
      _LOGGER.info("Going on after %d images.", builder.rows)
      counts.update(builder.state["counts"])
    kept = time.monotonic()
    with contextlib.closing(batches(done)) as rest:
      for batch in rest:
        embeds = embed_images(batch["image"])
        columns = (batch[name] for name in ("key", "texts", "path"))
        entries = zip(*columns, strict=True)
        builder.add(embeds, list(itertools.starmap(entry_table.Entry, entries)))
        done += 1
        if time.monotonic() - kept >= SECONDS_TO_KEEP:
          builder.keep_so_far({"batches": done, "counts": dict(counts)})
          kept = time.monotonic()
    builder.facts |= facts or {}
  return builder.meta
