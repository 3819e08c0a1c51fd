"""Embeddings and cosines of pairs, stored while they are computed."""

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.data import pipeline
from clip_jax.data import record as record_lib
from clip_jax.data.curation import findings
from clip_jax.data.curation import model as model_lib
from clip_jax.data.sources import views

_RANGE = 4096  # Pairs; what a killed run has not kept is computed again.


# From a batch of `eval_batches` and its images' embeddings to what is kept of
# each of its pairs.
_OfBatch = Callable[[dict, np.ndarray], Sequence[Mapping[str, Any]]]


def scores(
  source: record_lib.Source, model: model_lib.Model, **options: Any
) -> findings.Found:
  """Returns `values["scores"]`, the cosine of each image with each caption.

  And the keys, for `keys`.

  Args:
    source: the pairs.
    model: gives the embeddings.
    **options: see `measured`.
  """

  def of_batch(batch: dict, images: np.ndarray) -> list[Mapping[str, Any]]:
    counts = [len(texts) for texts in batch["texts"]]
    texts = model.embed_texts([t for texts in batch["texts"] for t in texts])
    owners = np.repeat(np.arange(len(counts)), counts)
    _check_finite(texts, [batch["key"][i] for i in owners])
    cosines = np.einsum("ne,ne->n", images[owners], texts)
    split = np.split(cosines, np.cumsum(counts)[:-1])
    return [
      {"scores": row, "key": key.encode("utf-8", "surrogatepass")}
      for row, key in zip(split, batch["key"], strict=True)
    ]

  ragged = {"scores": np.dtype(np.float32), "key": np.dtype(np.uint8)}
  return measured(source, model, of_batch, columns={}, ragged=ragged, **options)


def keys(found: findings.Found) -> list[str]:
  """Returns the keys of the good pairs of `scores`."""
  data = found.values["key"].tobytes()
  ends = np.cumsum(found.lengths["key"][found.good]).tolist()
  return [
    data[start:end].decode("utf-8", "surrogatepass")
    for start, end in itertools.pairwise([0, *ends])
  ]


def embeds(
  source: record_lib.Source, model: model_lib.Model, **options: Any
) -> findings.Found:
  """Returns `columns["embeds"]`, float32 (records, embed) of each image.

  Args:
    source: the records.
    model: gives the embeddings.
    **options: see `measured`.
  """
  # The width of the embeddings is that of any image's.
  size = model.needed_preprocess().image_size
  width = model.embed_images(np.zeros((1, size, size, 3), np.uint8)).shape[1]
  columns = {"embeds": np.dtype((np.float32, (width,)))}

  def of_batch(batch: dict, images: np.ndarray) -> list[Mapping[str, Any]]:
    return [{"embeds": row} for row in images]

  return measured(
    source, model, of_batch, columns=columns, ragged={}, **options
  )


def measured(
  source: record_lib.Source,
  model: model_lib.Model,
  of_batch: _OfBatch,
  *,
  columns: Mapping[str, np.dtype],
  ragged: Mapping[str, np.dtype],
  keep: str | os.PathLike,
  batch_size: int = 256,
  threads: int = 4,
  on_pair: Callable[[int, int], None] | None = None,
) -> findings.Found:
  """Returns the findings of `of_batch` about all pairs.

  Args:
    source: the pairs. Its fingerprint says which pairs and captions they are.
    model: gives the embeddings.
    of_batch: see above.
    columns: what it says of each pair; see `survey.Examine`.
    ragged: likewise.
    keep: a directory for what is computed; see `survey.survey`.
    batch_size: pairs that are embedded at a time.
    threads: that read and decode.
    on_pair: called with the number of pairs done, and of all.

  Raises:
    UserError: an embedding is not finite.
  """
  about = (
    *(sorted(columns), sorted(ragged), batch_size),
    *(source.fingerprint, model.fingerprint),
    model.needed_preprocess().limits.max_pixels,
  )
  shelf = findings.Shelf(keep, hashlib.sha256(repr(about).encode()).digest())
  pairs = len(source)
  parts = shelf.parts(pairs)
  todo = findings.gaps(parts, pairs, length=_RANGE)
  done = pairs - sum(stop - start for start, stop in todo)
  batch_size = max(1, min(batch_size, pairs))
  collected = functools.partial(
    findings.collected, columns=columns, ragged=ragged
  )
  for start, stop in todo:
    part = views.Part(source, np.arange(start, stop), start, stop)
    tell = on_pair and (
      lambda number, before=done: on_pair(before + number, pairs)
    )
    rows = _rows(part, model, of_batch, batch_size, threads, tell)
    parts.append(collected(start, rows))
    shelf.put(parts[-1])
    done += stop - start
  return findings.joined(parts or [collected(0, [])])


def _check_finite(embeds: np.ndarray, keys: Sequence[str]) -> None:
  """Raises UserError where an embedding of the record `keys[row]` is not."""
  finite = np.isfinite(embeds).all(axis=1)
  if not finite.all():
    raise errors.not_finite(keys[int(np.argmin(finite))])


def _rows(
  part: record_lib.Source,
  model: model_lib.Model,
  of_batch: _OfBatch,
  batch_size: int,
  threads: int,
  tell: Callable[[int], None] | None,
) -> list[Mapping[str, Any] | str]:
  """Returns the values of each slot, or the reason why it is bad."""
  rows: list[Mapping[str, Any] | str] = [""] * len(part)
  done = 0
  with pipeline.eval_batches(
    part,
    batch_size=batch_size,
    preprocess=model.needed_preprocess(),
    threads=threads,
  ) as batches:
    for batch in batches:
      for problem in batch["problems"]:
        rows[problem.index] = problem.reason
      images = batch["image"]
      if len(images):
        # Always as many rows: a program of another shape may round otherwise.
        filling = np.repeat(images[:1], batch_size - len(images), axis=0)
        embedded = model.embed_images(np.concatenate([images, filling]))
        embedded = embedded[: len(images)]
        _check_finite(embedded, batch["key"])
        said = of_batch(batch, embedded)
        for slot, row in zip(batch["record"].tolist(), said, strict=True):
          rows[slot] = row
      done += len(images) + len(batch["problems"])
      if tell is not None:
        tell(done)
  return rows
