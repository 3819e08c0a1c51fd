"""Which record each example of a run reads, and its random generator."""

import concurrent.futures
import functools
import zlib

import grain
import numpy as np

from clip_jax.data import record as record_lib
from clip_jax.data import transforms

_SHUFFLE_ROUNDS = 4  # As grain's own shuffle.


@functools.lru_cache(maxsize=1024)
def _shuffle_seed(seed: int, epoch: int, attempt: int) -> int:
  sequence = np.random.SeedSequence([seed, epoch, attempt])
  return int(sequence.generate_state(1, np.uint32)[0])


def record_index(g: int, *, seed: int, records: int, attempt: int = 0) -> int:
  """Returns which of `records` example `g` reads.

  Every epoch is a permutation of the records. `attempt` counts the bad records
  met so far: each attempt follows a permutation of its own, because neighbours
  of a bad record are often bad too.
  """
  epoch, position = divmod(g, records)
  return grain.experimental.index_shuffle(
    position,
    max_index=records - 1,
    seed=_shuffle_seed(seed, epoch, attempt),
    rounds=_SHUFFLE_ROUNDS,
  )


def batch_digest(step: int, *, seed: int, records: int, batch_size: int) -> int:
  """Returns a checksum of the records of the whole batch of update `step`.

  A bad record counts itself, not the record that is read in its place.
  """
  first = (step - 1) * batch_size  # Updates count from 1.
  indices = [
    record_index(g, seed=seed, records=records)
    for g in range(first, first + batch_size)
  ]
  return zlib.crc32(np.array(indices, "<i8").tobytes())


def generator(seed: int, g: int) -> np.random.Generator:
  """Returns the random generator of example `g`."""
  return np.random.Generator(np.random.Philox(key=[seed, g]))


def first_captions(
  source: record_lib.Source,
  *,
  seed: int,
  number: int,
  caption: str = "random",
  threads: int = 4,
) -> list[str]:
  """Returns the captions of a run's first examples, at most one epoch.

  Those of bad records are left out; images are not looked at.

  Args:
    source: where the records come from.
    seed: decides order and captions.
    number: of examples.
    caption: "random" or "first" of the captions of a record.
    threads: that read.
  """

  def read(g: int) -> str | None:
    try:
      record = source[record_index(g, seed=seed, records=len(source))]
    except record_lib.BadRecord:
      return None
    return transforms.choose_text(
      record, rng=generator(seed, g), caption=caption
    )

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    found = list(pool.map(read, range(min(number, len(source)))))
  return [text for text in found if text is not None]
