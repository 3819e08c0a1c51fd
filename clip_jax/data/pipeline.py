"""Batches as a pure function of the seed and the global example index.

Example `g = step * batch_size + row` of a run is the same whatever the number
of worker processes, threads, hosts or devices: the order of an epoch is a
permutation computed from the seed, and crops and the choice among captions are
drawn from a generator keyed by `(seed, g)`. To resume is to start at a step.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import grain
import numpy as np
from absl import flags

from clip_jax import errors
from clip_jax import preprocess as preprocess_lib
from clip_jax.data import elements, order
from clip_jax.data import record as record_lib
from clip_jax.data import workers as worker_processes
from clip_jax.data.batches import Batches, Guarded
from clip_jax.data.ledger import Problem

if TYPE_CHECKING:
  from clip_jax.config.schema import Augment

__all__ = [
  "CHUNK_ROWS",
  "Batches",
  "Problem",
  "eval_batches",
  "train_batches",
]

# Rows that one thread makes at a time: what is in flight is bounded by
# threads x workers x this, not by the batch.
CHUNK_ROWS = 256
_ENDLESS_STEPS = 2**40


class _Example(NamedTuple):
  """One row of a batch; `image_id` is 0 unless it is asked for."""

  slot: int
  pixels: np.ndarray
  image_id: int
  caption: str
  met: list[record_lib.BadRecord]


@dataclasses.dataclass(frozen=True)
class _TrainChunk:
  """Makes one chunk of the rows of a batch: element k -> dict of arrays."""

  source: record_lib.Source
  slots: order.Order
  seed: int
  batch_size: int
  chunks: tuple[np.ndarray, ...]
  preprocess: preprocess_lib.Preprocess
  tokenizer: Callable[[list[str]], np.ndarray]
  resize_ratio: float
  augment: "Augment | None"
  caption: str
  image_ids: bool
  decode: elements.Decoder

  def __call__(self, element: int) -> dict:
    step, chunk = divmod(element, len(self.chunks))
    rows = self.chunks[chunk]
    size = self.preprocess.image_size
    images = np.empty((len(rows), size, size, 3), np.uint8)
    slots = np.empty(len(rows), np.int64)
    bad = np.zeros(len(rows), np.int32)
    image_ids = np.zeros(len(rows), np.uint32)
    captions: list[str] = []
    problems: list[Problem] = []
    index = step * self.batch_size + rows.astype(np.int64)
    for i, g in enumerate(index.tolist()):
      example = self._example(g)
      slots[i], images[i] = example.slot, example.pixels
      image_ids[i], bad[i] = example.image_id, len(example.met)
      captions.append(example.caption)
      problems += [
        Problem(g, error.key, error.reason, example.slot)
        for error in example.met
      ]
    ids = {"image_ids": image_ids.view(np.int32)} if self.image_ids else {}
    return {
      "image": images,
      "tokens": self.tokenizer(captions),
      "index": index,
      "record": slots,
      "bad": bad,
      "problems": problems,
      **ids,
    }

  def _example(self, g: int) -> _Example:
    def read(slot: int) -> tuple[int, record_lib.Record, np.ndarray, str]:
      record = self.source[slot]
      pixels, caption = elements.train_element(
        record,
        decode=self.decode,
        preprocess=self.preprocess,
        rng=order.generator(self.seed, g),
        resize_ratio=self.resize_ratio,
        augment=self.augment,
        caption=self.caption,
      )
      return slot, record, pixels, caption

    (slot, record, pixels, caption), met = order.first_good(self.slots, g, read)
    image_id = zlib.crc32(record.image) if self.image_ids else 0
    return _Example(slot, pixels, image_id, caption, met)


@dataclasses.dataclass(frozen=True)
class _EvalBatch:
  """Makes one batch of an evaluation: element k -> dict."""

  source: record_lib.Records
  batch_size: int
  preprocess: preprocess_lib.Preprocess
  rows: tuple[int, ...]

  def __call__(self, element: int) -> dict:
    start = element * self.batch_size
    end = len(self.source)
    slots = [start + row for row in self.rows if start + row < end]
    good: list[tuple[int, record_lib.Record, np.ndarray]] = []
    problems: list[Problem] = []
    for slot in slots:
      try:
        record = self.source[slot]
        pixels = elements.eval_element(record, preprocess=self.preprocess)
      except record_lib.BadRecord as error:
        problems.append(Problem(slot, error.key, error.reason, substitute=-1))
        continue
      good.append((slot, record, pixels))
    size = self.preprocess.image_size
    images = np.empty((len(good), size, size, 3), np.uint8)
    for i, (_, _, pixels) in enumerate(good):
      images[i] = pixels
    labels = [-1 if r.label is None else r.label for _, r, _ in good]
    return {
      "image": images,
      "label": np.array(labels, np.int64),
      "labels": [record.labels for _, record, _ in good],
      "ignored": [record.ignored for _, record, _ in good],
      "record": np.array([slot for slot, _, _ in good], np.int64),
      "texts": [record.texts for _, record, _ in good],
      "key": [record.key for _, record, _ in good],
      "path": [record.path for _, record, _ in good],
      "problems": problems,
    }


def train_batches(
  source: record_lib.Source,
  *,
  seed: int,
  batch_size: int,
  rows: np.ndarray,
  start_step: int,
  preprocess: preprocess_lib.Preprocess,
  tokenizer: Callable[[list[str]], np.ndarray],
  workers: int = 0,
  threads: int = 4,
  prefetch: int = 4,
  resize_ratio: float = 1.0,
  augment: "Augment | None" = None,
  caption: str = "random",
  image_ids: bool = False,
) -> Batches:
  """Returns an endless iterator over this host's rows of the global batches.

  A batch is a dict with `image` uint8 (rows, size, size, 3), `tokens` int32
  (rows, context), `index` int64 (rows,): the global example index, `record`
  int64 (rows,): the slot that was read, `bad` int32 (rows,): the number of bad
  records met on the way to it, and `problems`: a list of `Problem`; if asked
  for, `image_ids` int32 (rows,): a checksum of the encoded image.

  Args:
    source: where the records come from.
    seed: decides order, crops and captions.
    batch_size: rows of the global batch.
    rows: which of them to make, ascending (see `sharding.local_rows`).
    start_step: number of batches already used; 0 at the start of a run.
    preprocess: how an image becomes an array.
    tokenizer: called with a list of captions.
    workers: processes; with 0 the threads of this process do the work.
    threads: threads of each process.
    prefetch: chunks of `CHUNK_ROWS` rows that each process makes ahead.
    resize_ratio: shortest side before the crop, over the image size.
    augment: other random changes of the images.
    caption: "random" or "first" of the captions of a record.
    image_ids: whether to add the checksums of the images.

  Raises:
    UserError: from the iterator, where no usable record is found.
  """
  if not len(source):
    raise errors.UserError("The training data holds no records.")
  rows = np.asarray(rows)
  chunks = math.ceil(len(rows) / CHUNK_ROWS)
  make_chunk = _TrainChunk(
    source=source,
    slots=order.of(source, seed),
    seed=seed,
    batch_size=batch_size,
    chunks=tuple(np.array_split(rows, chunks)),
    preprocess=preprocess,
    tokenizer=tokenizer,
    resize_ratio=resize_ratio,
    augment=augment,
    caption=caption,
    image_ids=image_ids,
    decode=elements.Decoder(preprocess.limits),
  )
  dataset = (
    grain.MapDataset.range(start_step * chunks, _ENDLESS_STEPS * chunks)
    .map(Guarded(make_chunk))
    .to_iter_dataset(_read_options(threads, prefetch))
  )
  worker_processes.remove_leftovers()
  owner = worker_processes.new_owner() if workers else None
  if workers:
    dataset = _by_workers(dataset, workers, owner)
  return Batches(iter(dataset), chunks=chunks, endless=True, owner=owner)


def _by_workers(
  dataset: grain.IterDataset, workers: int, owner: str | None
) -> grain.IterDataset:
  """Returns `dataset` as so many processes make it, for `owner`, if any."""
  if not flags.FLAGS.is_parsed():
    # Grain reads its flags in the parent of its workers.
    flags.FLAGS.mark_as_parsed()
  if owner is not None:
    dataset = dataset.map(worker_processes.Share(owner))
  return dataset.mp_prefetch(
    grain.MultiprocessingOptions(num_workers=workers),
    worker_init_fn=functools.partial(worker_processes.begin, owner),
  )


def eval_batches(
  source: record_lib.Records,
  *,
  batch_size: int,
  preprocess: preprocess_lib.Preprocess,
  threads: int = 4,
  rows: Sequence[int] | np.ndarray | None = None,
  start: int = 0,
  step: int = 1,
) -> Batches:
  """Returns an iterator over all of `source` in order.

  A batch is a dict of the usable records among `batch_size` slots: `image`
  uint8 (n, size, size, 3), `label` int64 (n,), -1 where there is none, `record`
  int64 (n,), lists of length n: `labels`, `ignored`, `texts`, `key` and `path`
  as a `Record` has them, and `problems`: a list of `Problem` with the slots
  that had to be left out.

  Args:
    source: where the records come from.
    batch_size: slots of a batch.
    preprocess: how an image becomes an array.
    threads: threads that read and decode.
    rows: which slots of each batch to read, ascending; None reads all.
    start: the number of the first batch.
    step: how much larger the number of each next one is.
  """
  all_rows = range(min(batch_size, len(source)))
  chosen = all_rows if rows is None else map(int, rows)
  make_batch = _EvalBatch(source, batch_size, preprocess, tuple(chosen))
  dataset = (
    grain.MapDataset.range(start, math.ceil(len(source) / batch_size), step)
    .map(Guarded(make_batch))
    .to_iter_dataset(_read_options(threads, threads))
  )
  return Batches(iter(dataset), chunks=1, endless=False)


def _read_options(threads: int, prefetch: int) -> grain.ReadOptions:
  return grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(threads, prefetch)
  )
