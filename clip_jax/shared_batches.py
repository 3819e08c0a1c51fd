"""Batches of an evaluation that all devices of a run share.

Each process reads and decodes only the rows of a batch that are placed on its
devices. Keys, labels and texts are exchanged, so that every process has the
same whole batches and computes the same measures. Which rows a device computes
does not depend on the processes: on the same number of devices all numbers are
equal to the last bit. An error in reading is exchanged, too: all processes
raise it at the same batch.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from clip_jax import embedder, errors, hosts, sharding
from clip_jax import preprocess as preprocess_lib
from clip_jax.data import pipeline
from clip_jax.data import record as record_lib

_FACTS = ("label", "labels", "ignored", "texts", "key", "record")


def opener(encoder: embedder.Embedder) -> Callable[..., Any]:
  """Returns the function that opens batches for `reading.Reading`.

  Args:
    encoder: of the model, over whose mesh, if it has one, batches are split.
  """
  if encoder.mesh is None:
    return pipeline.eval_batches
  return functools.partial(open_batches, encoder=encoder)


@contextlib.contextmanager
def open_batches(
  source: record_lib.Records,
  *,
  encoder: embedder.Embedder,
  batch_size: int,
  preprocess: preprocess_lib.Preprocess,
  threads: int = 4,
) -> Iterator[Iterator[dict[str, Any]]]:
  """Yields the batches of `eval_batches`, with an `embedder.Share` as `image`.

  Args:
    source: the data; the same on every process.
    encoder: the encoder over whose mesh the batches are split.
    batch_size: the wanted number of rows of a whole batch; one of the encoder's
      sizes is used.
    preprocess: turns images into arrays.
    threads: the number of threads that read and decode.

  Raises:
    UserError: the processes have different data, or one cannot read them.
  """
  assert encoder.mesh is not None
  check_same(source)
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


def check_same(source: record_lib.Records) -> None:
  """Raises UserError where the processes have different data."""
  own = [len(source), getattr(source, "fingerprint", "")]
  shared = [json.loads(text) for text in hosts.exchanged(json.dumps(own))]
  for process, (records, fingerprint) in enumerate(shared):
    if [records, fingerprint] == shared[0]:
      continue
    others = f"{shared[0][0]:,} on process 0"
    if records == shared[0][0]:
      others = "which are others than those of process 0"
    raise errors.UserError(
      f"The processes have different data: {records:,} records on process "
      f"{process}, {others}. Copy the same files to all hosts."
    )


def _batch_size(shapes: Sequence[embedder.Shape], wanted: int) -> int:
  """Returns the smallest batch size of the encoder that has as many rows.

  Where this is more than twice as large, returns the next smaller one.
  """
  sizes = sorted(shape.rows for shape in shapes)
  fitting = [size for size in sizes if wanted <= size <= 2 * wanted]
  smaller = [size for size in sizes if size < wanted]
  return (fitting or smaller[-1:] or sizes)[0]


def _whole(
  batches: Iterable[dict[str, Any]], size: int, rows: np.ndarray
) -> Iterator[dict[str, Any]]:
  batches, start = iter(batches), 0
  while True:
    own, said = _next(batches)
    shared = [json.loads(t) for t in hosts.exchanged(json.dumps(said))]
    hosts.raise_problems([problem for problem, _, _ in shared])
    if own is None:
      return
    pixels = np.zeros((len(rows), *own["image"].shape[1:]), np.uint8)
    pixels[np.searchsorted(rows, own["record"] - start)] = own["image"]
    yield {**_joined(shared), **_images(pixels, shared, start)}
    start += size


def _next(batches: Iterator[dict[str, Any]]) -> tuple[Any, list]:
  """Returns this process's rows of a batch, and what it tells the others.

  That are its problem, if it has one, the facts and the bad records. Without
  rows the data have ended, or cannot be read further.
  """
  nothing = {name: [] for name in _FACTS}
  try:
    own = next(batches, None)
  except errors.UserError as error:
    return None, [str(error), nothing, []]
  if own is None:
    return None, ["", nothing, []]
  facts = {name: _listed(own[name]) for name in _FACTS}
  return own, ["", facts, own["problems"]]


def _listed(values: Any) -> list:
  return values.tolist() if isinstance(values, np.ndarray) else values


def _images(pixels, shared, start) -> dict[str, Any]:
  slots = np.sort(np.concatenate([facts["record"] for _, facts, _ in shared]))
  return {"image": embedder.Share(pixels, slots.astype(int) - start)}


def _joined(shared: list) -> dict[str, Any]:
  """Returns the facts of all processes, in the order of the records."""
  whole = {
    name: [value for _, facts, _ in shared for value in facts[name]]
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
  problems = [
    pipeline.Problem(*fields) for _, _, own in shared for fields in own
  ]
  return {**found, "problems": sorted(problems)}
