"""Whether two sources have records in common, however they are addressed."""

import os
from collections.abc import Sequence

import numpy as np

from clip_jax import buckets, errors, terminal
from clip_jax.data import record as record_lib
from clip_jax.data.sources import views

_LOOKED_AT = 8  # Records that are compared where fingerprints are equal.


def count(some: record_lib.Source, other: record_lib.Source) -> int:
  """Returns the number of records of `other` that are among those of `some`.

  Found are the same files under another spelling, and parts of them that an
  option such as `split=` makes. Not found are some of the files by a glob, the
  same ones read by other options, and copies.

  Args:
    some: a source.
    other: a source.
  """
  (one, slots), (two, others) = map(views.base, (some, other))
  if not _are_same(one, two):
    return 0
  return len(np.intersect1d(slots, others))


def check_apart(
  opened: Sequence[record_lib.Source], addresses: Sequence[str], *, hint: str
) -> None:
  """Raises UserError if data to test on are among those to train on.

  Args:
    opened: the training and the test data.
    addresses: of both, for the message.
    hint: what would be done with the records, and what to do instead.
  """
  train, test = opened
  if shared := count(train, test):
    raise errors.UserError(
      f"{shared:,} of the {len(test):,} {terminal.noun(len(test), 'record')} "
      f"of {addresses[1]} {terminal.noun(shared, 'is', 'are')} in "
      f"{addresses[0]}, too, and {hint}"
    )


def _are_same(one: record_lib.Source, two: record_lib.Source) -> bool:
  """Whether two sources read the same files.

  Equal fingerprints are not enough: those of folders are of names alone.
  """
  if one.fingerprint != two.fingerprint or len(one) != len(two):
    return False
  places = np.linspace(0, len(one) - 1, min(len(one), _LOOKED_AT), dtype=int)
  pairs = [[_identity(x, int(at)) for x in (one, two)] for at in places]
  return any(first for first, _ in pairs) and all(x == y for x, y in pairs)


def _identity(
  source: record_lib.Source, place: int
) -> tuple[str, str | bytes] | None:
  """Returns the key and the file of a record; None where it is bad."""
  try:
    record = source[place]
  except record_lib.BadRecord:
    return None
  if not record.path:
    return record.key, record.image
  if buckets.is_address(record.path):
    return record.key, record.path
  return record.key, os.path.realpath(record.path)
