"""Parquet tables of images, as the HuggingFace hub publishes data sets.

A row is a record. Columns hold

- the image: encoded, alone or in `datasets`' pair of `bytes` and `path`; or a
  path. Rows of the same path become one record, as in a table of text.
- captions: a text or a list of texts; several columns where there is a column
  for each caption.
- a label: the name of a class, or its number; an image with rows of several
  classes is of all of them. The names of numbers are those of `datasets`'
  metadata in the schema, or of `?classes=`. Files whose schemas list the same
  classes in different orders are read by the names, numbered as in the first
  file. A number below zero is no label. Without captions, the label's name is
  the caption.

Options:
  image, caption, label: names of the columns, captions joined by commas; by
    default they are guessed by type and usual names, and the guess is reported.
  classes: a file with the names of the classes, one a line.
  root: the directory that paths of images are relative to; by default that of
    the file.
  links: "follow" where symbolic links may lead out of it.
  split: such as test or train+validation, where the names of files or folders
    name splits; parquet:DIRECTORY/test is the same.

To read a row, its whole row group is unpacked; the row groups used last are
kept in memory.
"""

import concurrent.futures
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import pyarrow as pa

from clip_jax import errors, places, terminal
from clip_jax.data import account as account_lib
from clip_jax.data import record as record_lib
from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import (
  class_numbers,
  globs,
  image_files,
  parquet_files,
  row_groups,
  rows,
  shard,
  views,
)
from clip_jax.data.sources import columns as columns_lib

_DIGITS = re.compile(r"\d+")
_OPEN_THREADS = 8  # Hides the latency of network storage.
LARGE_GROUP_BYTES = 4 * 2**20


def open_parquet(path: str, options: dict[str, str]) -> record_lib.Source:
  """Opens the files that `path` names, with the module's options."""
  return open_tables(
    parquet_files.list_files(path),
    options,
    address=f"parquet:{path}",
    opener=row_groups.ParquetFile,
    like=".parq",
  )


def open_tables(
  listing: parquet_files.Listing,
  options: dict[str, str],
  *,
  address: str,
  opener: Callable[[str], row_groups.TableFile],
  like: str,
  has_ends: bool = True,
) -> record_lib.Source:
  """Opens files of tables of any format.

  Files that are damaged or have other columns than the first are left out and
  reported.

  Args:
    listing: the files.
    options: those of the module.
    address: the scheme and the path, for messages.
    opener: opens a file by its path.
    like: a part of the names of such files.
    has_ends: whether a file that was cut anywhere shows it.

  Raises:
    UserError: all files are damaged, or an option does not fit.
  """
  scheme = address.partition(":")[0]
  listing, options = of_split(listing, options, address=address)
  split = options.get("split")
  footers, damages = _read_footers(listing.files, opener, scheme)
  first = next(iter(footers))
  columns = columns_lib.find(
    footers[first].schema, options, path=f"{scheme}:{first}"
  )
  lost: dict[str, int | None] = {}
  for name, footer in list(footers.items()):
    if not columns.are_in(footer.schema):
      damages[name], lost[name] = "other_columns", sum(footers.pop(name).rows)
  sites = _count_lost(footers, damages, lost)
  if any(footer.index is not None for footer in footers.values()):
    opener = row_groups.Reopen(opener, footers)
  classes = options.get("classes")
  source = rows.Rows(
    list(footers),
    list(footers.values()),
    columns=columns,
    class_maps=class_numbers.maps(
      columns,
      {name: footer.schema for name, footer in footers.items()},
      address=address,
      as_they_stand=classes is not None
      or ("label" not in options and len(columns.captions) > 0),
    ),
    images=image_files.open_files(
      dict.fromkeys(map(os.path.dirname, footers)), options, scheme=scheme
    ),
    class_names=(
      columns.class_names
      if classes is None
      else captions_lib.read_classes(classes)
    ),
    account=account_lib.Account(
      damages=sites,
      lost=lost,
      choices=list(_choices(columns, list(footers.values()))),
    ),
    opener=opener,
  )
  if not len(source):
    raise errors.UserError(f"{address} has no rows.")
  path = address.partition(":")[2]
  for name in _unread(listing, path, like):
    source.account.left_out.add(name)
  source.account.notes.extend(globs.absent(path, listing.files))
  if not has_ends:
    source.account.notes.extend(_note_short(footers))
  return source if split is None else views.part(source, split)


def _count_lost(
  footers: Mapping[str, row_groups.Footer],
  damages: Mapping[str, str],
  lost: dict[str, int | None],
) -> list[tuple[str, int, str]]:
  """Returns where files are damaged, and why; adds their rows to `lost`.

  A damaged file is taken to have had as many rows as the others have.

  Args:
    footers: of the files that are read.
    damages: why each of the others is not.
    lost: the rows that are known to be lost, by file; those of the other
      damaged files are added.
  """
  mean = _mean_rows(footers)
  for name in damages:
    total = sum(sum(footer.rows) for footer in footers.values())
    usual = round(total / len(footers)) if mean is None else mean
    lost.setdefault(name, max(1, usual))
  sites = [(name, 0, reason) for name, reason in damages.items()]
  for name, footer in footers.items():
    if footer.damage is not None:
      offset, reason, count = footer.damage
      if count is None and mean is not None:
        least = 0 if reason == row_groups.NO_END else 1
        count = max(least, mean - sum(footer.rows))
      if count != 0:
        lost[name] = count
      sites.append((name, offset, reason))
  return sites


def _mean_rows(footers: Mapping[str, row_groups.Footer]) -> int | None:
  """Returns the mean number of rows of undamaged files; None without any."""
  counts = [sum(each.rows) for each in footers.values() if each.damage is None]
  last = list(footers.values())[-1]
  # The last file may hold what is left over: it is no measure of others.
  if len(counts) > 1 and last.damage is None and counts[-1] < min(counts[:-1]):
    counts.pop()
  return round(sum(counts) / len(counts)) if counts else None


def _note_short(footers: Mapping[str, row_groups.Footer]) -> Iterator[str]:
  """Yields a sentence where some files hold less than all others do.

  Files are alike whose names differ in numbers alone. The last of them may hold
  what is left over, those that were filled evenly differ by one, and damage is
  told elsewhere; so is what a file beside states.
  """
  alike: dict[str, list[str]] = {}
  for name in footers:
    alike.setdefault(_DIGITS.sub("0", name), []).append(name)
  for names in alike.values():
    counts = {
      name: sum(footers[name].rows)
      for name in names[:-1]
      if footers[name].damage is None
    }
    most = max(counts.values(), default=0)
    few = [name for name, count in counts.items() if count < most - 1]
    if 2 * len(few) >= len(counts):
      continue
    stated = zip(few, shard.stated_counts(few), strict=True)
    short = [name for name, count in stated if count is None]
    if short:
      yield (
        f"{terminal.counted(len(short), 'file')} of {len(names)} "
        f"{terminal.noun(len(short), 'holds', 'hold')} fewer records than the "
        f"{most} of the others, such as "
        f"'{terminal.escaped(short[0], limit=200)}', which has "
        f"{counts[short[0]]}: one that was cut between two records looks whole."
      )


def _unread(listing: parquet_files.Listing, path: str, like: str) -> list[str]:
  """Returns what lies beside the files and is named like them."""
  every = {*listing.files, *(x for of in listing.splits.values() for x in of)}
  if listing.splits and not places.is_folder(places.expanded(path)):
    path = path.rstrip("/").rpartition("/")[0]  # Of DIRECTORY/SPLIT.
  return globs.unread(path, every, like=(like,))


def of_split(
  listing: parquet_files.Listing, options: dict[str, str], *, address: str
) -> tuple[parquet_files.Listing, dict[str, str]]:
  """Returns the files of the split that `options` name, and the other options.

  Without splits, or where a split was chosen already, both stay as they are.

  Raises:
    UserError: the files have splits, but not this one.
  """
  split = options.get("split")
  if split is None or not listing.splits or listing.split is not None:
    return listing, options
  rest = {name: options[name] for name in options if name != "split"}
  return listing.of_split(split, what=address), rest


def _read_footers(
  names: Sequence[str],
  opener: Callable[[str], row_groups.TableFile],
  scheme: str,
) -> tuple[dict[str, row_groups.Footer], dict[str, str]]:
  """Returns footers, and for damaged files the reasons, both by path."""

  def read(name: str) -> row_groups.Footer | str:
    try:
      footer = opener(name).footer
      _read_names(footer.schema)
      return footer
    except UnicodeDecodeError:
      return "bad_footer"
    except row_groups.BadFileError as error:
      return error.reason

  with concurrent.futures.ThreadPoolExecutor(_OPEN_THREADS) as pool:
    found = dict(zip(names, pool.map(read, names), strict=True))
  footers = {n: each for n, each in found.items() if not isinstance(each, str)}
  damages = {n: each for n, each in found.items() if isinstance(each, str)}
  if not footers:
    name, reason = next(iter(damages.items()))
    more = len(damages) - 1
    raise errors.UserError(
      f"{scheme}:{terminal.escaped(name)} {account_lib.WORDS[reason]}"
      f"{f', and {more} more are damaged, too' if more else ''}; copy or "
      "download it again."
    )
  return footers, damages


def _read_names(fields: Iterable[pa.Field]) -> None:
  """Raises UnicodeDecodeError where the name of a field is not UTF-8."""
  for field in fields:
    _ = field.name
    _read_names(field.type.field(i) for i in range(field.type.num_fields))


def _choices(
  columns: columns_lib.Columns, footers: Sequence[row_groups.Footer]
) -> Iterator[str]:
  if columns.guessed:
    yield columns.tell()
  sizes = [size for footer in footers for size in footer.group_bytes]
  mean = sum(sizes) / max(len(sizes), 1)
  if mean > LARGE_GROUP_BYTES and sum(sizes) > row_groups.KEPT_BYTES:
    yield (
      f"To read a row, a row group of {mean / 1e6:.0f} MB is unpacked, which "
      "is slow in the random order of training; `clip-jax data prepare` makes "
      "a copy that is read row by row."
    )
