"""Reading an index, and exact search in it."""

import dataclasses
import os
import pathlib

import numpy as np

from clip_jax import errors, json_text
from clip_jax.search import layout

_ROWS_PER_CHUNK = 1 << 16
_BYTES_PER_READ = 1 << 22


@dataclasses.dataclass(frozen=True, slots=True)
class Hit:
  """One found record.

  Attributes:
    key: of the record in its data.
    score: cosine similarity with the query.
    captions: of the record.
    index: position in the index.
  """

  key: str
  score: float
  captions: tuple[str, ...]
  index: int


class Index:
  """An index opened for reading; embeddings stay on disk, mapped.

  Attributes:
    meta: what `meta.json` says: model, fingerprint, data, count and more.
    embeds: (count, embed).
  """

  def __init__(self, directory: str | os.PathLike):
    """Opens and verifies the index in `directory`.

    Raises:
      UserError: it is no index, or a file is damaged or missing.
    """
    self.directory = pathlib.Path(directory)
    for attempt in range(3):
      self.meta = layout.read_meta(self.directory)
      try:
        self._open()
        break
      except FileNotFoundError as error:
        # A build may just have replaced the index.
        if attempt == 2 or self.meta == layout.read_meta(self.directory):
          name = pathlib.Path(error.filename).name
          raise self._damaged(f"{name} is missing") from None

  def _open(self) -> None:
    embeds = self._verified("embeddings")
    self._records = self._verified("records")
    try:
      self.embeds = np.load(embeds, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
      raise self._damaged(str(error)) from None
    shape = (self.meta["count"], self.meta["embed_dim"])
    if (
      self.embeds.shape != shape or self.embeds.dtype.name not in layout.DTYPES
    ):
      raise self._damaged(
        f"embeddings are {self.embeds.dtype} {self.embeds.shape}, not {shape}"
      )
    self._offsets = _line_offsets(self._records)
    if len(self._offsets) != len(self.embeds):
      raise self._damaged(
        f"{len(self._offsets)} records for {len(self.embeds)} embeddings"
      )

  def _verified(self, part: str) -> pathlib.Path:
    entry = self.meta["files"][part]
    path = self.directory / entry["name"]
    if (
      path.stat().st_size != entry["bytes"]
      or layout.sha256(path) != entry["sha256"]
    ):
      raise self._damaged(f"{path.name} is not as it was written")
    return path

  def _damaged(self, why: str) -> errors.UserError:
    return errors.UserError(
      f"Index {self.directory} is damaged: {why}. Make it again with "
      "`clip-jax embed`."
    )

  def __len__(self) -> int:
    return len(self.embeds)

  def model_path(self, override: str | None = None) -> str:
    """Returns where the index's model lies: `override`, or as it remembers.

    Raises:
      UserError: the remembered place is no longer there.
    """
    if override is not None:
      return override
    path = self.meta["model"]
    if not path or not pathlib.Path(path).exists():
      raise errors.UserError(
        f"The model that made index {self.directory} is no longer at {path!r}; "
        "say where it is with --model."
      )
    return path

  def check_model(self, path: str, fingerprint: str) -> None:
    """Raises UserError unless the model at `path` made this index."""
    if fingerprint != self.meta["fingerprint"]:
      step = self.meta.get("step")
      raise errors.UserError(
        f"The model at {path!r} is not the one that made index "
        f"{self.directory} (at step {step}): another model, or it was trained "
        "further. Give the right one with --model, or make the index again "
        "with `clip-jax embed`."
      )

  def search(self, query: np.ndarray, *, k: int = 10) -> list[Hit]:
    """Returns the `k` records nearest to a unit vector (embed,), best first.

    The search is exact; of equal scores the earlier record comes first.

    Raises:
      UserError: `k` is not positive, or the query does not fit the index.
    """
    if k < 1:
      raise errors.UserError(f"k={k} must be at least 1.")
    if query.shape != self.embeds.shape[1:]:
      raise errors.UserError(
        f"The query has shape {query.shape}, the index holds vectors of shape "
        f"{self.embeds.shape[1:]}; search with the model that made the index."
      )
    if not np.all(np.isfinite(query)):
      raise errors.UserError("The query's embedding is not finite.")
    best = nearest(self.embeds, query, k=k)
    hits = []
    for index, score in best:
      key, captions = self._record(index)
      hits.append(Hit(key, score, captions, index))
    return hits

  def _record(self, index: int) -> tuple[str, tuple[str, ...]]:
    with self._records.open("rb") as file:
      file.seek(self._offsets[index])
      record = json_text.parse(file.readline(), what=str(self._records))
    key, captions = record.get("key"), record.get("captions")
    if not isinstance(captions, list) or not all(
      isinstance(text, str) for text in [key, *captions]
    ):
      raise self._damaged(f"record {index} lacks its key or captions")
    return key, tuple(captions)


def nearest(
  embeds: np.ndarray,
  query: np.ndarray,
  *,
  k: int,
  rows_per_chunk: int = _ROWS_PER_CHUNK,
) -> list[tuple[int, float]]:
  """Returns (row, score) of the `k` largest products, best first.

  Rows are read in chunks; of equal scores the lower row comes first.
  """
  rows = np.zeros(0, np.int64)
  scores = np.zeros(0, np.float32)
  query = np.asarray(query, np.float32)
  for start in range(0, len(embeds), rows_per_chunk):
    chunk = np.asarray(embeds[start : start + rows_per_chunk], np.float32)
    new = chunk @ query  # (rows,)
    kept = np.arange(len(new))
    if len(new) > k:
      # All that reach the k-th largest score, so that ties go by row below.
      kept = np.flatnonzero(new >= np.partition(new, -k)[-k])
    rows = np.concatenate([rows, start + kept])
    scores = np.concatenate([scores, new[kept]])
    order = np.lexsort((rows, -scores))[:k]
    rows, scores = rows[order], scores[order]
  return list(zip(rows.tolist(), scores.tolist(), strict=True))


def _line_offsets(path: pathlib.Path) -> np.ndarray:
  """Returns where each line of a file starts."""
  ends, position = [np.zeros(1, np.int64)], 0
  with path.open("rb") as file:
    while block := file.read(_BYTES_PER_READ):
      newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
      ends.append(position + newlines + 1)
      position += len(block)
  return np.concatenate(ends)[:-1]
