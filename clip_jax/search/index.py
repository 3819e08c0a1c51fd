"""Reading an index, and exact search in it."""

import dataclasses
import io
import mmap
import numbers
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from clip_jax import buckets, errors, names, npy_header
from clip_jax.search import bucket_index, entry_table, index_files

_ROWS_PER_CHUNK = 1 << 16


@dataclasses.dataclass(frozen=True, slots=True)
class Hit:
  """One found record.

  Attributes:
    key: of the record in its data.
    score: cosine similarity with the query.
    captions: of the record.
    index: position in the index.
    path: of the file that holds the image; "" where there is none.
  """

  key: str
  score: float
  captions: tuple[str, ...]
  index: int
  path: str = ""


class Index:
  """An index opened for reading; embeddings stay on disk, mapped.

  An open index does not change while `clip-jax embed` replaces it: its files
  are mapped, and the system keeps them for that long.

  Attributes:
    meta: the content of `meta.json`: model, fingerprint, data, count and more.
    embeds: (count, embed), as stored; `index_files.floats` makes int8 unit
      vectors.
  """

  def __init__(self, directory: str | os.PathLike):
    """Opens and verifies the index in `directory`, also of a bucket.

    Raises:
      UserError: it is no index, or a file is damaged or missing.
    """
    if buckets.is_address(directory):
      directory = bucket_index.fetched(str(directory))
    self.directory = pathlib.Path(directory)
    for attempt in range(3):
      self.meta = index_files.read_meta(self.directory)
      try:
        self._open()
        break
      except FileNotFoundError as error:
        # A build may just have replaced the index.
        if attempt == 2 or self.meta == index_files.read_meta(self.directory):
          name = pathlib.Path(error.filename).name
          raise self._damaged(f"{name} is missing") from None

  def _open(self) -> None:
    with self._verified("embeddings") as file:
      self.embeds = self._mapped(file)
    name = self.meta["files"]["records"]["name"]
    with self._verified("records") as file:
      mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
      self._table = entry_table.Table(mapped, name=name)
    except entry_table.BadTableError as error:
      raise self._damaged(str(error)) from None
    if len(self._table) != len(self.embeds):
      raise self._damaged(
        f"{len(self._table)} records for {len(self.embeds)} embeddings"
      )

  def _mapped(self, file: io.BufferedIOBase) -> np.ndarray:
    file.seek(0)
    try:
      found = npy_header.read(file.read(npy_header.MAX_BYTES + 12))
    except ValueError as error:
      raise self._damaged(str(error)) from None
    shape, dtype, transposed, start = found
    wanted = self.meta["count"], self.meta["embed_dim"]
    if shape != wanted or transposed or dtype.name not in names.INDEX_DTYPES:
      raise self._damaged(f"embeddings are {dtype} {shape}, not {wanted}")
    try:
      return np.memmap(file, dtype, "r", start, shape)
    except ValueError as error:  # The file is shorter than it says.
      raise self._damaged(str(error)) from None

  def _verified(self, part: str) -> io.BufferedIOBase:
    entry = self.meta["files"][part]
    file = index_files.open_file(self.directory, entry["name"])
    if (
      os.fstat(file.fileno()).st_size != entry["bytes"]
      or index_files.sha256(file) != entry["sha256"]
    ):
      file.close()
      raise self._damaged(
        f"{entry['name']} does not match its size or checksum"
      )
    return file

  def _damaged(self, why: str) -> errors.UserError:
    return errors.UserError(
      f"Index {self.directory} is damaged: {why}. Make it again with "
      "`clip-jax embed`."
    )

  def __len__(self) -> int:
    return len(self.embeds)

  def model_path(self, override: str | None = None) -> str:
    """Returns the path of the index's model: `override`, or the one stored.

    Raises:
      UserError: none is stored.
    """
    path = override or self.meta["model"]
    if not path:
      raise errors.UserError(
        f"Index {self.directory} does not say which model made it; say where "
        "that lies with --model."
      )
    return path

  def check_model(self, path: str, fingerprint: str) -> None:
    """Raises UserError unless the model at `path` made this index."""
    if fingerprint != self.meta["fingerprint"]:
      step = self.meta.get("step")
      trained = f" (at step {step})" if step else ""
      raise errors.UserError(
        f"The model at {path!r} is not the one that made index "
        f"{self.directory}{trained}: another model, or it was trained further. "
        "Give the right one with --model, or make the index again "
        "with `clip-jax embed`."
      )

  def search(self, query: np.ndarray, *, k: int = 10) -> list[Hit]:
    """Returns the `k` records nearest to a unit vector (embed,), best first.

    The search is exact; of equal scores the earlier record comes first.

    Raises:
      UserError: `k` is not positive, or the query does not fit the index.
    """
    return self.search_many(np.asarray(query)[None], k=k)[0]

  def search_many(self, queries: np.ndarray, *, k: int = 10) -> list[list[Hit]]:
    """Returns the results of `search` for each of the queries (queries, embed).

    The embeddings are read once for all of them.
    """
    queries = np.asarray(queries)
    self.check_queries(queries, k=k)
    return self.hits(self._nearest(queries, k=k))

  def _nearest(
    self, queries: np.ndarray, *, k: int
  ) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns rows and scores of each query, the best first."""
    return list(zip(*nearest(self.embeds, queries, k=k), strict=True))

  def check_queries(self, queries: np.ndarray, *, k: int) -> None:
    """Raises UserError unless `search_many` can answer."""
    is_integer = isinstance(k, numbers.Integral) and not isinstance(k, bool)
    if not is_integer or k < 1:
      raise errors.UserError(f"k={k!r} must be a whole number, at least 1.")
    if queries.ndim != 2 or queries.shape[1:] != self.embeds.shape[1:]:
      raise errors.UserError(
        f"A query has shape {queries.shape[1:]}, the index holds vectors of "
        f"shape {self.embeds.shape[1:]}; search with the model that made the "
        "index."
      )
    if queries.dtype.kind in "cmMOSU":
      raise errors.UserError(
        f"A query is a vector of real numbers, got {queries.dtype}."
      )
    if not np.all(np.isfinite(queries)):
      raise errors.UserError(
        "A query's embedding is not finite; the model is damaged. Use an "
        "earlier checkpoint."
      )

  def hits(
    self, found: Sequence[tuple[np.ndarray, np.ndarray]]
  ) -> list[list[Hit]]:
    """Returns the records at rows of the index, which have these scores.

    Args:
      found: of each query, the rows and their scores.
    """
    if not found:
      return []
    entries = self._entries(np.concatenate([rows for rows, _ in found]))
    return [
      [
        Hit(entries[i].key, score, entries[i].captions, i, entries[i].path)
        for i, score in zip(rows.tolist(), scores.tolist(), strict=True)
      ]
      for rows, scores in found
    ]

  def key(self, index: int) -> str:
    """Returns the key of the record at a position, from 0.

    Raises:
      IndexError: there is none.
    """
    if not 0 <= index < len(self):
      raise IndexError(f"{index} is not from 0 to {len(self) - 1}.")
    return self._entries([index])[index].key

  def _entries(self, rows: Iterable[int]) -> dict[int, entry_table.Entry]:
    try:
      return self._table.entries(rows)
    except entry_table.BadTableError as error:
      raise self._damaged(str(error)) from None


def nearest(
  embeds: np.ndarray,
  queries: np.ndarray,
  *,
  k: int,
  rows_per_chunk: int = _ROWS_PER_CHUNK,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the rows of the `k` largest products of each query, and these.

  Rows are read in chunks. Of the largest so far, the least of each query is a
  bar: few products of a later chunk pass it, so that hardly any are sorted.

  Args:
    embeds: (rows, embed), floats, or the int8 of an index.
    queries: (queries, embed).
    k: how many; fewer where there are fewer rows.
    rows_per_chunk: rows that are multiplied at once.

  Returns:
    Rows and products (queries, k), the largest first; of equal ones the lower
    row.
  """
  queries = np.asarray(queries, np.float32)
  k = min(k, len(embeds))
  if not len(queries):
    return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
  rows = np.zeros((len(queries), 0), np.int64)
  scores = np.zeros((len(queries), 0), np.float32)
  for start in range(0, len(embeds), rows_per_chunk):
    chunk = index_files.floats(embeds[start : start + rows_per_chunk])
    new = queries @ chunk.T  # (queries, rows)
    if scores.shape[1] < k:
      more = np.arange(start, start + len(chunk))
      pairs = (
        _largest(np.concatenate(pair), np.append(own_rows, more), k)
        for *pair, own_rows in zip(scores, new, rows, strict=True)
      )
      rows, scores = map(np.stack, zip(*pairs, strict=True))
      continue
    # A later row does not displace an equal one.
    above = new > scores[:, -1:]
    for i in np.flatnonzero(above.any(axis=1)):
      kept = np.flatnonzero(above[i])
      rows[i], scores[i] = _largest(
        np.append(scores[i], new[i, kept]), np.append(rows[i], start + kept), k
      )
  return rows, scores


def _largest(
  scores: np.ndarray, rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the rows and scores of the `k` largest scores, largest first."""
  if len(scores) > k:
    # All that reach the k-th largest, so that ties go by row below.
    kept = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    scores, rows = scores[kept], rows[kept]
  order = np.lexsort((rows, -scores))[:k]
  return rows[order], scores[order]
