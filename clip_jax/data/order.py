"""Which record each example of a run reads, and its random generator."""

import concurrent.futures
import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Protocol, TypeVar

import grain
import numpy as np

from clip_jax import errors
from clip_jax.data import elements
from clip_jax.data import record as record_lib

_SHUFFLE_ROUNDS = 4  # As grain's own shuffle.
_MAX_SUBSTITUTES = 100

_Found = TypeVar("_Found")


class Order(Protocol):
  """Which slot of its source each example of a run reads; picklable."""

  def slot(self, g: int, *, attempt: int = 0) -> int:
    """Returns the slot of example `g`, another one for each attempt."""
    ...


@dataclasses.dataclass(frozen=True)
class Shuffled:
  """The order of one source: a permutation of it for each epoch.

  Attributes:
    seed: of the run.
    records: of the source.
  """

  seed: int
  records: int

  def slot(self, g: int, *, attempt: int = 0) -> int:
    """Returns the slot of example `g`, another one for each attempt."""
    return record_index(
      g, seed=self.seed, records=self.records, attempt=attempt
    )


def of(source: record_lib.Source, seed: int) -> Order:
  """Returns the order in which a run with this seed reads `source`."""
  make_order = getattr(source, "make_order", None)  # A mixture has its own.
  if make_order is not None:
    return make_order(seed)
  return Shuffled(seed, len(source))


@functools.lru_cache(maxsize=1024)
def _shuffle_seed(seed: int, epoch: int, attempt: int, tag: int) -> int:
  numbers = [seed, epoch, attempt, *([tag] if tag else [])]
  return int(np.random.SeedSequence(numbers).generate_state(1, np.uint32)[0])


def record_index(
  g: int, *, seed: int, records: int, attempt: int = 0, tag: int = 0
) -> int:
  """Returns the number, of `records`, that example `g` of a source reads.

  Every epoch is a permutation of the records. `attempt` counts the bad records
  met so far: each attempt follows a permutation of its own, because neighbours
  of a bad record are often bad too. So does each `tag`, which tells a source
  from others.
  """
  epoch, position = divmod(g, records)
  return grain.experimental.index_shuffle(
    position,
    max_index=records - 1,
    seed=_shuffle_seed(seed, epoch, attempt, tag),
    rounds=_SHUFFLE_ROUNDS,
  )


def first_good(
  slots: Order, g: int, read: Callable[[int], _Found]
) -> tuple[_Found, list[record_lib.BadRecord]]:
  """Returns what `read` makes of the first good record for example `g`.

  Args:
    slots: the order of the run.
    g: the example's number.
    read: called with a slot; raises BadRecord where it holds nothing usable,
      and is then called with another one.

  Returns:
    What `read` returned, and the bad records met on the way.

  Raises:
    UserError: one bad record after another.
  """
  met: list[record_lib.BadRecord] = []
  while len(met) <= _MAX_SUBSTITUTES:
    try:
      return read(slots.slot(g, attempt=len(met))), met
    except record_lib.BadRecord as error:
      met.append(error)
  raise errors.UserError(
    f"Example {g} met {len(met)} bad records in a row; the last one is"
    f" {met[-1].key!r}: {met[-1].reason}. This data cannot be trained on;"
    " `clip-jax data inspect` lists what is wrong."
  )


def batch_digest(step: int, *, slots: Order, batch_size: int) -> int:
  """Returns a checksum of the records of the whole batch of update `step`.

  A bad record counts itself, not the record that is read in its place.
  """
  first = (step - 1) * batch_size  # Updates count from 1.
  indices = [slots.slot(g) for g in range(first, first + batch_size)]
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
  slots = of(source, seed)

  def read(g: int) -> str | None:
    try:
      record = source[slots.slot(g)]
    except record_lib.BadRecord:
      return None
    return elements.choose_text(record, rng=generator(seed, g), caption=caption)

  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    found = list(pool.map(read, range(min(number, len(source)))))
  return [text for text in found if text is not None]
