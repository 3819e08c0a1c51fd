"""Opens a data set of the suite, and checks that it is what the table says."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping

from clip_jax import errors, regular_files, terminal
from clip_jax.data import record as record_lib
from clip_jax.data import sources
from clip_jax.data.sources import folder, tfds_prepared
from clip_jax.evals import folds
from clip_jax.evals.suite import classes as classes_lib
from clip_jax.evals.suite import data_sets, layouts

_NEAR = 0.01  # The share by which counts of sets with other classes may differ.
_SHARD_COUNT = "nshards.txt"  # CLIP_benchmark writes it beside the tars.


@dataclasses.dataclass(frozen=True)
class Opened:
  """A data set that is there and is what the table says.

  Attributes:
    found: where it lies.
    source: its records, labelled with the numbers of the table's classes.
    count: number of its test images; None where some are left out and only
      reading tells how many.
    warnings: sentences about counts that differ from the table's.
    parts: the test images of each split, where the metric is the mean over
      splits.
    notes: sentences about what was chosen.
  """

  found: layouts.Found
  source: record_lib.Source
  count: int | None
  warnings: tuple[str, ...]
  parts: tuple[record_lib.Source, ...] = ()
  notes: tuple[str, ...] = ()


def open_found(entry: data_sets.Entry, found: layouts.Found) -> Opened:
  """Opens a data set and checks its classes; reads no record.

  Raises:
    UserError: it cannot be read, or its classes are not those of the table.
  """
  notes = ()
  try:
    _check_shards(found)
    try:
      source = sources.open_source(found.address)
    except tfds_prepared.NotPreparedError as error:
      found, notes = _only_version(entry, found, error)
      source = sources.open_source(found.address)
  except OSError as error:
    raise errors.UserError(
      f"{found.address} cannot be read: {error}. Copy it again."
    ) from error
  count: int | None = len(source)
  splits = []
  if found.lists:
    names = folds.names_of(source, found.address)
    splits = folds.read_splits(found.lists, names, train=False)
  if entry.task == "zero_shot":
    if source.class_names is None:
      raise errors.UserError(
        f"{found.address} names no classes, and a label's number says nothing "
        "about its class: add the names (for tar files, classnames.txt beside "
        "them)."
      )
    of_table = data_sets.classes(entry)
    numbers = classes_lib.match(
      source.class_names,
      of_table,
      within=data_sets.classes_of(entry.within) if entry.within else None,
      others_left_out=entry.others_left_out,
    )
    if entry.others_left_out and (numbers < 0).any():
      known = isinstance(source, folder.ClassFolder)
      count = int((numbers[source.labels()] >= 0).sum()) if known else None
    source = classes_lib.Relabelled(
      source, class_names=of_table.names, classes=numbers
    )
  parts = folds.test_parts(source, splits)
  if parts:
    count = len(parts[0])
  where = " in its first split" if parts else ""
  warnings = ()
  if count is not None:
    warnings = count_warnings(entry, found.address, count, where=where)
  return Opened(found, source, count, warnings, parts, notes)


def count_warnings(
  entry: data_sets.Entry,
  address: str,
  count: int,
  *,
  damaged: int = 0,
  where: str = "",
) -> tuple[str, ...]:
  """Returns a sentence where a set has not the table's number of images.

  Where a set holds others, too, those that are measured need only be about as
  many.

  Args:
    entry: the set.
    address: of its test images.
    count: how many they are.
    damaged: how many more there may be.
    where: words for the part that was counted.
  """
  near = _NEAR if entry.others_left_out else 0
  for known in entry.counts:
    if count - near * known <= known <= count + damaged + near * known:
      return ()
  known = " or ".join(f"{number:,}" for number in entry.counts)
  return (
    f"{address} holds {count:,} test {terminal.noun(count, 'image')}{where}, "
    f"but {entry.title} has {known}: the figure does not compare with "
    "published ones.",
  )


def remarks(
  entry: data_sets.Entry,
  opened: Opened,
  *,
  examples: int,
  bad: Mapping[str, int],
) -> list[str]:
  """Returns all sentences about a set, once its records are read.

  Args:
    entry: the set.
    opened: its data.
    examples: number of those that were measured.
    bad: number of the others by reason.
  """
  found = [*opened.notes, *opened.warnings]
  if opened.count is None:
    damaged = sum(classes_lib.only_damage(bad).values())
    address = opened.found.address
    found += count_warnings(entry, address, examples, damaged=damaged)
  return found


def _only_version(
  entry: data_sets.Entry,
  found: layouts.Found,
  error: tfds_prepared.NotPreparedError,
) -> tuple[layouts.Found, tuple[str, ...]]:
  """Returns the only version that TFDS prepared, and a sentence about it.

  Raises:
    UserError: `error`, where several are there, or another config.
  """
  if len(error.versions) != 1:
    raise error
  name, _, split = entry.tfds.rpartition("/")
  (version,) = error.versions
  options = found.address.removeprefix(f"tfds:{name}/{split}")
  address = f"tfds:{version}/{split}{options}"
  note = (
    f"{address} is read, the only version that is there; TFDS now prepares "
    f"{error.wanted}."
  )
  return dataclasses.replace(found, address=address), (note,)


def _check_shards(found: layouts.Found) -> None:
  """Raises UserError where fewer tars are there than were written."""
  if found.layout != "wds":
    return
  place = sources.parse_address(found.address)[1]
  path = os.path.join(place, _SHARD_COUNT)
  if not os.path.isfile(path):
    return
  text = regular_files.read_regular(path, limit=100).decode("ascii", "replace")
  shards = len(list(pathlib.Path(place).glob("*.tar")))
  if re.fullmatch(r"\s*\d+\s*", text) and int(text) != shards:
    raise errors.UserError(
      f"{place} holds {terminal.counted(shards, 'tar file')}, but "
      f"{_SHARD_COUNT} says that there are {int(text)}. Get the others."
    )
