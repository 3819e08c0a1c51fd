"""Indexes of FAISS and usearch: made of an index, and searched in its place.

Their identifiers are the rows of the index that they were made of, which still
gives keys, captions and the model.
"""

import os
import pathlib
import shlex
import threading
import types
from typing import Any

import numpy as np

from clip_jax import buckets, errors, mirrors, versions
from clip_jax.search import export_digest, index_files
from clip_jax.search import index as index_lib

SUFFIXES = (".faiss", ".usearch")
_ROWS_PER_CHUNK = 1 << 16
_ROWS_COMPARED = 64
# How far a number of a unit vector may be from that of the index: usearch's
# int8 has steps of 1 / 127, ours of at most that.
_TOLERANCE = 0.02
# The least share of rows that an approximate index must find by themselves.
# Measured of IVF, HNSW, scalar and product quantization: 0.94 and more; of an
# index of other vectors: at most 0.02.
_SHARE_FOUND = 1 / 4


def is_exported(path: str | os.PathLike) -> bool:
  """Whether the name is that of a file of FAISS or usearch."""
  return pathlib.Path(path).suffix in SUFFIXES


def open_index(
  path: str | os.PathLike, *, keys: str | os.PathLike | None = None
) -> index_lib.Index:
  """Opens an index of clip_jax, or a file of FAISS or usearch.

  Args:
    path: a directory, or a file that ends in .faiss or .usearch, also in a
      bucket.
    keys: of a file, the directory of the index that it was made of; by default
      the one beside it with its name: `my/index` for `my/index.faiss`.

  Raises:
    UserError: it cannot be read, or file and directory do not go together.
  """
  where, path = os.fspath(path), pathlib.Path(path)
  in_bucket = buckets.is_address(where)
  if not is_exported(path) or path.is_dir():
    if keys is not None:
      raise errors.UserError(
        f"keys go with a file that ends in {' or '.join(SUFFIXES)}; {where} is "
        "none, and an index of clip_jax has its own."
      )
    return index_lib.Index(where)
  if in_bucket:
    keys = keys or where.removesuffix(path.suffix)
    digest = where + export_digest.SUFFIX
    return ExportedIndex(
      mirrors.fetched(where),
      keys,
      digest=mirrors.fetched(digest) if buckets.kind(digest) else None,
    )
  errors.check_local("The index", where)
  if not path.is_file():
    raise errors.UserError(
      f"{path} does not exist or is no file. `clip-jax search INDEX --export "
      f"{shlex.quote(str(path))}` makes it."
    )
  if keys is None and not path.with_suffix("").is_dir():
    raise errors.UserError(
      f"{path} has no keys and captions, and there is no index "
      f"{path.with_suffix('')} beside it; give the one that it was made of "
      "with --keys."
    )
  return ExportedIndex(path, path.with_suffix("") if keys is None else keys)


def export(index: index_lib.Index, path: str | os.PathLike) -> None:
  """Writes the embeddings of an index as FAISS or usearch have them.

  Beside the file lies its SHA-256, which `open_index` compares.

  Args:
    index: opened for reading.
    path: of the new file, which is replaced if it is there. For .faiss a flat
      index of inner products in float32 (IndexFlatIP), which is exact; for
      .usearch a graph, which is not, in float16 where the index is, else in
      float32.

  Raises:
    UserError: the name ends otherwise, its directory is missing, or the library
      is not installed.
  """
  errors.check_out(path)
  path = pathlib.Path(path)
  if path.suffix not in SUFFIXES:
    raise errors.UserError(
      f"{path} must end in {' or '.join(SUFFIXES)}, which says what to write."
    )
  if path.is_dir() or not path.parent.is_dir():
    why = "is a directory" if path.is_dir() else "is in no directory"
    raise errors.UserError(f"{path} {why}; name a file in one that is there.")
  make = _make_faiss if path.suffix == ".faiss" else _make_usearch
  save = make(index)
  with export_digest.replacing(path) as file:
    save(file.name)


class ExportedIndex(index_lib.Index):
  """An index whose nearest rows a file of FAISS or usearch finds."""

  def __init__(
    self,
    path: str | os.PathLike,
    keys: str | os.PathLike,
    *,
    digest: pathlib.Path | None = None,
  ):
    """Opens the file at `path`, and the index it was made of, `keys`.

    Args:
      path: of the file.
      keys: the directory of the index.
      digest: the file with the SHA-256 of the file; by default that beside it,
        if there is one.

    Raises:
      UserError: one cannot be read, they do not go together, or the library is
        not installed.
    """
    super().__init__(keys)
    self.path = pathlib.Path(path)
    try:
      export_digest.check(self.path, digest)
      if self.path.suffix == ".faiss":
        self._other: Any = _Faiss(self.path)
      else:
        self._other = _Usearch(self.path)
    except errors.UserError:
      raise
    except (RuntimeError, ValueError, OSError, MemoryError) as error:
      raise errors.UserError(
        f"{self.path} cannot be read as an index of {self.path.suffix[1:]}: "
        f"{errors.first_line(error)[:200]}. {self._again()}"
      ) from None
    found, wanted = self._other.shape, self.embeds.shape
    if found != wanted:
      raise errors.UserError(
        f"{self.path} has {found[0]} vectors of {found[1]} numbers, index "
        f"{self.directory} has {wanted[0]} of {wanted[1]}: it was not made of "
        f"this one. {self._again()}"
      )
    rows = np.linspace(0, len(self) - 1, _ROWS_COMPARED).astype(np.int64)
    vectors = self._other.vectors(rows)
    own = index_files.floats(self.embeds[rows])
    if vectors is None:
      is_same = self._finds(own)
    else:
      is_same = np.allclose(vectors, own, rtol=0, atol=_TOLERANCE)
    if not is_same:
      raise errors.UserError(
        f"{self.path} has other vectors than index {self.directory}: it was "
        f"not made of this one, or that was made again. {self._again()}"
      )

  def _finds(self, own: np.ndarray) -> bool:
    """Whether rows of the index find themselves, or what is as near."""
    few = min(10, 1 + len(self) // 100)  # By chance that happens to few.
    found = 0
    for vector, (rows, _) in zip(own, self._nearest(own, k=few), strict=True):
      cosines = index_files.floats(self.embeds[rows]) @ vector
      found += cosines.max(initial=-1) >= vector @ vector - _TOLERANCE
    return found >= _SHARE_FOUND * len(own)

  def _again(self) -> str:
    index, path = shlex.quote(str(self.directory)), shlex.quote(str(self.path))
    return (
      "Give the index that it was made of with --keys, or make it again with "
      f"`clip-jax search {index} --export {path}`."
    )

  def _nearest(
    self, queries: np.ndarray, *, k: int
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = []
    queries = np.ascontiguousarray(queries, np.float32)
    for rows, scores in zip(
      *self._other.search(queries, min(k, len(self))), strict=True
    ):
      found = rows != -1  # An approximate search may find fewer.
      rows, scores = rows[found].astype(np.int64), scores[found]
      if np.any((rows < 0) | (rows >= len(self))):
        raise errors.UserError(
          f"{self.path} has identifiers that are no rows of {self.directory}. "
          f"{self._again()}"
        )
      order = np.lexsort((rows, -scores))
      pairs.append((rows[order], scores[order]))
    return pairs


class _Faiss:
  """A file of FAISS."""

  def __init__(self, path: pathlib.Path):
    faiss = _faiss()
    self._index = faiss.read_index(str(path))
    if self._index.metric_type != faiss.METRIC_INNER_PRODUCT:
      raise ValueError("its metric is not the inner product")
    self._is_flat = isinstance(self._index, faiss.IndexFlat)
    self.shape = self._index.ntotal, self._index.d

  def vectors(self, rows: np.ndarray) -> np.ndarray | None:
    """Returns those of rows; None of an index that changes vectors."""
    return self._index.reconstruct_batch(rows) if self._is_flat else None

  def search(
    self, queries: np.ndarray, k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows, -1 for none, and scores (queries, k)."""
    scores, rows = self._index.search(queries, k)
    return rows, scores


class _Usearch:
  """A file of usearch."""

  def __init__(self, path: pathlib.Path):
    usearch = _usearch()
    self._index = usearch.Index.restore(str(path))
    if self._index is None:
      raise ValueError("it is none")
    kinds = usearch.MetricKind
    if self._index.metric_kind not in (kinds.IP, kinds.Cos):
      raise ValueError("its metric is neither the inner product nor the cosine")
    self.shape = len(self._index), self._index.ndim
    # Searches of several threads at once would share their memory.
    self._lock = threading.Lock()

  def vectors(self, rows: np.ndarray) -> np.ndarray | None:
    """Returns those of rows; NaN for rows that it has not."""
    found = self._index.get(rows.astype(np.uint64))
    missing = np.full(self.shape[1], np.nan)
    own = [missing if row is None else row for row in found]
    vectors = np.asarray(own, np.float32)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(length, np.finfo(np.float32).tiny)

  def search(
    self, queries: np.ndarray, k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows, -1 for none, and scores (queries, k)."""
    with self._lock:
      # A graph finds what it keeps in sight: the least is usearch's default.
      self._index.expansion_search = max(64, k)
      found = self._index.search(queries, k)
    keys = np.atleast_2d(found.keys).astype(np.int64)
    scores = 1 - np.atleast_2d(found.distances).astype(np.float32)
    if len(queries) > 1:
      counts = np.asarray(found.counts)[:, None]
      keys = np.where(np.arange(keys.shape[1]) < counts, keys, -1)
    return keys, scores


def _make_faiss(index: index_lib.Index) -> Any:
  """Returns a function that writes a flat index to a path."""
  faiss = _faiss()
  made = faiss.IndexFlatIP(index.embeds.shape[1])
  for start in range(0, len(index), _ROWS_PER_CHUNK):
    made.add(index_files.floats(index.embeds[start : start + _ROWS_PER_CHUNK]))
  return lambda path: faiss.write_index(made, path)


def _make_usearch(index: index_lib.Index) -> Any:
  """Returns a function that writes a graph to a path."""
  usearch = _usearch()
  dtype = "f16" if index.embeds.dtype == np.float16 else "f32"
  made = usearch.Index(ndim=index.embeds.shape[1], metric="ip", dtype=dtype)
  for start in range(0, len(index), _ROWS_PER_CHUNK):
    rows = index_files.floats(index.embeds[start : start + _ROWS_PER_CHUNK])
    made.add(np.arange(start, start + len(rows), dtype=np.uint64), rows)
  return made.save


def _faiss() -> types.ModuleType:
  try:
    import faiss  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise _missing("faiss", error) from error
  return faiss


def _usearch() -> types.ModuleType:
  try:
    import usearch.index  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise _missing("usearch", error) from error
  return usearch.index


def _missing(name: str, error: ImportError) -> errors.UserError:
  return errors.UserError(
    f"{name} does not import ({error}); install it: "
    f"{versions.install('search')}"
  )
