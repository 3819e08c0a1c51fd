"""How an evaluation reads its data: in batches, with threads and progress."""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from clip_jax import errors
from clip_jax import preprocess as preprocess_lib
from clip_jax.data import pipeline
from clip_jax.data import record as record_lib

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Reading:
  """How an evaluation reads its data.

  Attributes:
    batch_size: images embedded at once.
    threads: threads that read and decode.
    progress: called with the examples done and their total.
    open_batches: what gives the batches; where several processes share them,
      another function of the same arguments.
  """

  batch_size: int = 256
  threads: int = 4
  progress: Progress | None = None
  open_batches: Callable[..., Any] = pipeline.eval_batches

  def part(self, before: int, total: int) -> "Reading":
    """Returns the reading of a part of some work, for its progress.

    Args:
      before: examples of the work that come before this part.
      total: examples of the whole work.
    """
    tell = self.progress
    if tell is None:
      return self
    return dataclasses.replace(
      self, progress=lambda done, _: tell(before + done, total)
    )

  def open(
    self, source: record_lib.Records, preprocess: preprocess_lib.Preprocess
  ) -> Any:
    """Returns the batches of `source`, which are to be closed."""
    return self.open_batches(
      source,
      batch_size=self.batch_size,
      preprocess=preprocess,
      threads=self.threads,
    )

  @contextlib.contextmanager
  def watched(
    self,
    source: record_lib.Records,
    preprocess: preprocess_lib.Preprocess,
    bad: collections.Counter[str],
  ) -> Iterator[Iterator[dict[str, Any]]]:
    """Opens the batches of `source` and tells their progress.

    Args:
      source: the data.
      preprocess: how an image becomes an array.
      bad: a counter of bad records by reason, changed in place.

    Raises:
      UserError: after the last batch, if every record was bad.
    """
    with self.open(source, preprocess) as batches:
      yield watch(batches, bad, total=len(source), progress=self.progress)


DEFAULT = Reading()


def watch(
  batches: Iterable[dict[str, Any]],
  bad: collections.Counter[str],
  *,
  total: int,
  done: int = 0,
  progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
  """Yields `batches`, counting their bad records by reason in `bad`.

  Args:
    batches: of `pipeline.eval_batches`.
    bad: a counter, changed in place.
    total: number of records, good and bad.
    done: records before these batches, of which `bad` has the bad ones.
    progress: called with the records done and their total.

  Raises:
    UserError: after the last batch, if every record was bad.
  """
  for batch in batches:
    for problem in batch["problems"]:
      bad[problem.reason] += 1
    yield batch
    done += len(batch["image"]) + len(batch["problems"])
    if progress is not None:
      progress(done, total)
  if done and bad.total() == done:
    reasons = ", ".join(f"{n} {reason}" for reason, n in bad.most_common())
    which = f"All {done} records are" if done > 1 else "The only record is"
    raise errors.UserError(
      f"{which} bad ({reasons}); `clip-jax data inspect` says "
      "what is wrong with which."
    )
