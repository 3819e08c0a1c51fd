"""Views of a source: a part of its records, or other captions for them."""

import dataclasses
import hashlib
import itertools
import os
from typing import Any

import numpy as np

from clip_jax import errors, terminal
from clip_jax.data import record as record_lib

SPLITS = ("train", "held_out")
HELD_OUT = 0.2  # The share that is held out by default.


def fingerprint(source: record_lib.Source, *how: Any) -> str:
  """Returns the fingerprint of what is made of `source` in the way `how`."""
  said = repr((source.fingerprint, *how))
  return hashlib.sha256(said.encode()).hexdigest()


class View:
  """A view of a source; what it does not change is the source's."""

  def __init__(self, source: record_lib.Source, *how: Any):
    self._source = source
    self.class_names = source.class_names
    self.templates = source.templates
    self.names = getattr(source, "names", None)
    self.account = getattr(source, "account", None)
    self.fingerprint = fingerprint(source, *how)

  @property
  def viewed(self) -> record_lib.Source:
    """What it is a view of."""
    return self._source

  def places(self, slots: np.ndarray) -> np.ndarray:
    """Returns where records are in the source, (n,), from their slots, (n,)."""
    return slots

  def __len__(self) -> int:
    return len(self._source)


class Part(View):
  """Some of the records of a source."""

  def __init__(self, source: record_lib.Source, slots: np.ndarray, *how: Any):
    super().__init__(source, *how)
    self._slots = slots
    self.names = None  # Those of the source are of all records.
    if self.account is not None:
      self.account = self.account.of_part(len(slots) / len(source))

  def places(self, slots: np.ndarray) -> np.ndarray:
    """Returns where records are in the source, (n,), from their slots, (n,)."""
    return self._slots[slots]

  def __len__(self) -> int:
    return len(self._slots)

  def __getitem__(self, index: int) -> record_lib.Record:
    if not 0 <= index < len(self):
      raise IndexError(index)
    return self._source[int(self._slots[index])]


class Chosen(Part):
  """Some of the records of a source, and of each some of its captions."""

  def __init__(
    self,
    source: record_lib.Source,
    slots: np.ndarray,
    starts: np.ndarray,
    stays: np.ndarray,
    *how: Any,
  ):
    """Stores the arguments.

    Args:
      source: the source.
      slots: of the records, int64 (n,).
      starts: where each record's captions begin in `stays`, and the end of
        all, int64 (n + 1,).
      stays: whether each caption stays, bool (captions,); at least one does.
      *how: the choice was made.
    """
    super().__init__(source, slots, *how)
    self._starts, self._stays = starts, stays

  def __getitem__(self, index: int) -> record_lib.Record:
    record = super().__getitem__(index)
    stays = self._stays[self._starts[index] : self._starts[index + 1]]
    if stays.all():
      return record
    texts = tuple(itertools.compress(record.texts, stays))
    return dataclasses.replace(record, texts=texts)


class Captioned(View):
  """Records whose caption is their class's name in a template."""

  def __init__(self, source: record_lib.Source, template: tuple[str, str]):
    """Makes the captions.

    Args:
      source: names its classes.
      template: what stands before and after the name.
    """
    super().__init__(source, template)
    before, after = template
    names = source.class_names or ()
    self._texts = [before + name + after for name in names]

  def __getitem__(self, index: int) -> record_lib.Record:
    record = self._source[index]
    if record.label is None:
      return record
    return record_lib.Record(
      image=record.image,
      texts=(self._texts[record.label],),
      key=record.key,
      label=record.label,
      path=record.path,
    )


def base(
  source: record_lib.Source,
) -> tuple[record_lib.Source, np.ndarray]:
  """Returns the source that a view is of, and the places of its records."""
  slots = np.arange(len(source))
  while isinstance(source, View):
    slots = source.places(slots)
    source = source.viewed
  return source, slots


def part(
  source: record_lib.Source, split: str, *, held_out: float = HELD_OUT
) -> Part:
  """Returns one of the two `SPLITS` of a source; no record is read for it.

  The same records are held out every time. Where records have names, the names
  decide, so that records that come or go move few others; of each class of a
  folder, as many are held out as of the others, at least one of two.

  Args:
    source: any.
    split: "train", or "held_out" for the rest.
    held_out: share of the records that are held out.

  Raises:
    UserError: there is no such split, or nothing to hold out.
  """
  if split not in SPLITS:
    raise errors.unknown("value of split=", split, SPLITS)
  chosen = np.zeros(len(source), bool)
  for slots in _groups(source):
    count = round(held_out * len(slots))
    chosen[slots[: min(max(count, 1), len(slots) - 1)]] = True
  if not chosen.any():
    raise errors.UserError(
      f"Of {terminal.counted(len(source), 'record')} none can be held out: "
      "that takes at least two of a class. Add data, or evaluate on other data."
    )
  slots = np.flatnonzero(chosen if split == "held_out" else ~chosen)
  return Part(source, slots, split, held_out)


def _groups(source: record_lib.Source) -> list[np.ndarray]:
  """Returns the slots of each class in a random order that stays the same."""
  names = getattr(source, "names", None)
  if names is None:
    # This generator's numbers are the same in every version of numpy.
    return [np.random.RandomState(0).permutation(len(source))]
  ranks = np.empty(len(source), np.uint64)
  classes = getattr(source, "classes", None)  # Else folders are classes.
  groups: dict[str | int, list[int]] = {}
  for slot, name in enumerate(names):
    data = name.encode("utf-8", "surrogateescape")
    rank = hashlib.blake2b(data, digest_size=8).digest()
    ranks[slot] = int.from_bytes(rank, "big")
    if source.class_names:
      own = name.split(os.sep)[0] if classes is None else int(classes[slot])
      groups.setdefault(own, []).append(slot)
  slots = map(np.array, groups.values()) if groups else [np.arange(len(source))]
  return [own[np.argsort(ranks[own], kind="stable")] for own in slots]
