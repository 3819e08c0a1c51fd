"""Batches of an evaluation that all processes of a run share.

Each process reads and decodes only the rows of a batch that are placed on its
devices. Keys, labels and texts are exchanged, so that every process has the
same whole batches and computes the same measures, for any number of processes.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from clip_jax import embedder, sharding
from clip_jax import preprocess as preprocess_lib
from clip_jax.data import pipeline, sources

_FACTS = ("label", "labels", "ignored", "texts", "key", "record")
_LEAST_BYTES = 1024  # The smallest size of an exchanged text.


@dataclasses.dataclass(frozen=True)
class Images:
  """The images of a whole batch, of which this process has some rows.

  Attributes:
    pixels: this process's rows of the batch, uint8 (rows, size, size, 3); rows
      without an image are black.
    rows: the numbers of the rows of the whole batch that have an image, in
      ascending order.
  """

  pixels: np.ndarray
  rows: np.ndarray

  def __len__(self) -> int:
    return len(self.rows)


def embed(
  images: Images, encoder: embedder.Embedder, variables: Any
) -> np.ndarray:
  """Returns the unit embeddings of all images of a batch, on each process.

  Args:
    images: the images of `open_batches`; every process passes its own part.
    encoder: the encoder over whose mesh the batch is split.
    variables: the variables of the model.
  """
  return encoder.embed_rows(variables, images.pixels)[images.rows]


@contextlib.contextmanager
def open_batches(
  source: sources.Source,
  *,
  encoder: embedder.Embedder,
  batch_size: int,
  preprocess: preprocess_lib.Preprocess,
  threads: int = 4,
) -> Iterator[Iterator[dict[str, Any]]]:
  """Yields the batches of `pipeline.eval_batches`, with `Images` as `image`.

  Args:
    source: the data; the same on every process.
    encoder: the encoder over whose mesh the batches are split.
    batch_size: the wanted number of rows of a whole batch; the next size of the
      encoder is used.
    preprocess: turns images into arrays.
    threads: the number of threads that read and decode.
  """
  assert encoder.mesh is not None  # Several processes have one.
  size = _batch_size(encoder.image_shapes, min(batch_size, len(source)))
  split = sharding.batch_sharding(encoder.mesh)
  rows = sharding.local_rows(split, size)
  with pipeline.eval_batches(
    source,
    batch_size=size,
    preprocess=preprocess,
    threads=threads,
    rows=rows,
  ) as batches:
    yield _whole(batches, size, rows)


def _batch_size(shapes: Sequence[embedder.Shape], wanted: int) -> int:
  """Returns the smallest batch size of the encoder that has as many rows."""
  sizes = sorted(shape.rows for shape in shapes)
  return next((size for size in sizes if size >= wanted), sizes[-1])


def _whole(
  batches: Iterable[dict[str, Any]], size: int, rows: np.ndarray
) -> Iterator[dict[str, Any]]:
  for number, own in enumerate(batches):
    start = number * size
    pixels = np.zeros((len(rows), *own["image"].shape[1:]), np.uint8)
    pixels[np.searchsorted(rows, own["record"] - start)] = own["image"]
    facts = {name: _listed(own[name]) for name in _FACTS}
    said = json.dumps([facts, own["problems"]])
    shared = [json.loads(text) for text in _exchanged(said)]
    yield {**_joined(shared), **_images(pixels, shared, start)}


def _listed(values: Any) -> list:
  return values.tolist() if isinstance(values, np.ndarray) else values


def _images(pixels, shared, start) -> dict[str, Any]:
  slots = np.sort(np.concatenate([facts["record"] for facts, _ in shared]))
  return {"image": Images(pixels, slots.astype(int) - start)}


def _joined(shared: list) -> dict[str, Any]:
  """Returns the facts of all processes, in the order of the records."""
  whole = {
    name: [value for facts, _ in shared for value in facts[name]]
    for name in _FACTS
  }
  order = np.argsort(np.array(whole["record"], int), kind="stable")
  found: dict[str, Any] = {
    name: [whole[name][i] for i in order] for name in _FACTS
  }
  for name in ("label", "record"):
    found[name] = np.array(found[name], np.int64)
  for name in ("labels", "ignored", "texts"):
    found[name] = [x if x is None else tuple(x) for x in found[name]]
  problems = [pipeline.Problem(*fields) for _, own in shared for fields in own]
  return {**found, "problems": sorted(problems)}


def _exchanged(text: str) -> list[str]:
  """Returns the texts of all processes; every process must call this."""
  if jax.process_count() == 1:
    return [text]
  content = np.frombuffer(text.encode("ascii"), np.uint8)
  lengths = multihost_utils.process_allgather(np.array(len(content)))
  # Few different sizes, because each size compiles a program.
  size = _LEAST_BYTES
  while size < lengths.max():
    size *= 2
  padded = np.zeros(size, np.uint8)
  padded[: len(content)] = content
  gathered = multihost_utils.process_allgather(padded)
  return [
    row[:length].tobytes().decode("ascii")
    for row, length in zip(gathered, lengths, strict=True)
  ]
