"""A few examples of each class, drawn at random and embedded."""

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from clip_jax import errors, terminal
from clip_jax import preprocess as preprocess_lib
from clip_jax.data import sources
from clip_jax.data.sources import views
from clip_jax.evals import labelled_features
from clip_jax.evals import reading as reading_lib

SEEDS = 3  # Draws whose mean and deviation are told, as big_vision's probe.


@dataclasses.dataclass(frozen=True)
class Shots:
  """The examples of one draw.

  Attributes:
    examples: of all classes.
    place: (n,), the place of each in the draw of its class.
  """

  examples: labelled_features.Examples
  place: np.ndarray


_AT_ONCE = 4096  # Labels that are asked for.


class Pool:
  """What shots are drawn from.

  The labels are read once, when a draw first needs them; an image is embedded
  only where a draw has it.
  """

  def __init__(self, source: sources.Source, address: str):
    """Takes labelled data; reads nothing.

    Args:
      source: the data to draw from.
      address: its DATA address, for messages.
    """
    self.source = source
    self._address = address

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """The label of each record; -1 where it is bad."""
    slots = range(len(self.source))
    found: list[int] = []
    with concurrent.futures.ThreadPoolExecutor() as pool:
      # In parts: each call that waits takes a kilobyte or two.
      for start in range(0, len(slots), _AT_ONCE):
        found += pool.map(self._label, slots[start : start + _AT_ONCE])
    return np.array(found, np.int64)

  def _label(self, slot: int) -> int:
    try:
      label = self.source[slot].label
    except sources.BadRecord:
      return -1
    if label is None:
      raise labelled_features.unlabelled(self._address)
    return label

  def fewest(self) -> int:
    """Returns the number of examples of the smallest class.

    Raises:
      UserError: a class has no example.
    """
    names = self.source.class_names or ()
    counts = np.bincount(self.labels[self.labels >= 0], minlength=len(names))
    if empty := [names[label] for label in np.flatnonzero(counts == 0)]:
      raise errors.UserError(
        f"{self._address} has no example of {', '.join(empty[:5])}; a few-shot "
        "probe draws some of every class."
      )
    return int(counts.min())

  def draw(
    self, seed: int, most: int, *, without: Collection[int] = ()
  ) -> list[list[int]]:
    """Returns slots of at most `most` examples of each class.

    The first k of each are the draw of k shots: it depends on the seed and on
    k alone.

    Args:
      seed: of the draw.
      most: examples of a class.
      without: slots that cannot be used.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for label in range(len(self.source.class_names or ())):
      slots = rng.permutation(np.flatnonzero(self.labels == label)).tolist()
      drawn.append([slot for slot in slots if slot not in without][:most])
    return drawn

  def embed(
    self,
    embed: Callable[[np.ndarray], np.ndarray],
    *,
    most: int,
    seeds: int,
    preprocess: preprocess_lib.Preprocess,
    reading: reading_lib.Reading = reading_lib.DEFAULT,
  ) -> tuple[list[Shots], collections.Counter[str]]:
    """Returns the draws of each seed, and why records could not be drawn.

    What turns out to be bad is replaced by the next of its class.

    Args:
      embed: returns features (n, width) of uint8 images (n, size, size, 3).
      most: examples of a class.
      seeds: draws, of the seeds 0, 1, ….
      preprocess: how an image becomes an array.
      reading: how the data are read; progress counts images, not seeds.
    """
    known: dict[int, np.ndarray] = {}
    damaged: set[int] = set()
    bad: collections.Counter[str] = collections.Counter()
    while True:
      drawn = [self.draw(seed, most, without=damaged) for seed in range(seeds)]
      wanted = {slot for draw in drawn for slots in draw for slot in slots}
      if not (new := sorted(wanted - known.keys())):
        return [self._gather(draw, known) for draw in drawn], bad
      part = views.Part(self.source, np.array(new), "drawn", new)
      with reading.open(part, preprocess) as batches:
        for batch in batches:
          for problem in batch["problems"]:
            bad[problem.reason] += 1
            damaged.add(new[problem.index])
          if rows := batch["record"].tolist():
            features = np.asarray(embed(batch["image"]), np.float32)
            known.update(zip((new[row] for row in rows), features, strict=True))
          if reading.progress is not None:
            reading.progress(len(known), len(wanted))

  def _gather(
    self, draw: Sequence[Sequence[int]], known: dict[int, np.ndarray]
  ) -> Shots:
    sizes = [len(slots) for slots in draw]
    if 0 in sizes:
      name = (self.source.class_names or ())[sizes.index(0)]
      raise errors.UserError(
        f"{self._address}: all images of {name} are bad; `clip-jax data "
        "inspect` says what is wrong with which."
      )
    features = np.stack([known[slot] for slots in draw for slot in slots])
    if not np.all(np.isfinite(features)):
      raise errors.UserError(labelled_features.NOT_FINITE)
    return Shots(
      examples=labelled_features.Examples(
        features,
        np.repeat(np.arange(len(draw)), sizes),
        tuple(self.source.class_names or ()),
      ),
      place=np.concatenate([np.arange(size) for size in sizes]),
    )


def summary(k: int, accuracies: Sequence[float], **more: Any) -> dict[str, Any]:
  """Returns the entry of k shots in a result: mean and deviation over seeds.

  The deviation is that of a sample; 0 with one seed.
  """
  deviation = np.std(accuracies, ddof=1) if len(accuracies) > 1 else 0.0
  return {
    "k": k,
    "mean": float(np.mean(accuracies)),
    "std": float(deviation),
    "seeds": len(accuracies),
    "top1": list(accuracies),
    **more,
  }


def too_few(shots: Sequence[int], fewest: int) -> list[str]:
  """Returns a warning where a class has fewer examples than shots."""
  if fewest >= max(shots):
    return []
  return [
    f"The smallest class has {terminal.counted(fewest, 'example')} to draw "
    f"from, fewer than {max(shots)} shots: where a class has no "
    "more, all of it is taken."
  ]
