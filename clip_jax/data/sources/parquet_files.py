"""Finds the Parquet files of a data set, and the split of each.

The HuggingFace hub publishes `data/train-00000-of-00004.parquet` in a folder
for each data set, or `DATA_SET/train/0000.parquet`.
"""

import dataclasses
import glob
import os
import re

from clip_jax import errors, places, terminal
from clip_jax.data.sources import globs, split_names

SUFFIX = ".parquet"
# SPLIT-NUMBER-of-COUNT, to which older versions of the library `datasets` added
# a digest.
_OF_SEVERAL = re.compile(r"(.+)-\d{5}-of-\d{5}(-[0-9a-f]{16})?")
_NUMBERED = re.compile(r"(.+?)[-_.]?\d*")
_FOLDERS = ("", "*", "*/*")  # Where files are looked for, until some are found.


@dataclasses.dataclass(frozen=True)
class Listing:
  """Files of one data set.

  Attributes:
    files: their paths, in order.
    splits: the files of each split; empty if the directory has no splits.
    split: the split that was asked for, to which `files` are limited; None
      where `files` are all of them.
  """

  files: tuple[str, ...]
  splits: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  split: str | None = None

  def of_split(self, wanted: str, *, what: str) -> "Listing":
    """Returns the files of the splits that `wanted` names, joined by "+".

    Raises:
      UserError: there is no such split in `what`.
    """
    names = split_names.chosen(wanted, self.splits, what=what)
    files = [path for name in names for path in self.splits[name]]
    return dataclasses.replace(self, files=tuple(files), split=wanted)


def list_files(path: str) -> Listing:
  """Returns the files that `path` names, without opening them.

  Args:
    path: a file, a directory, DIRECTORY/SPLIT, or a pattern with wildcards or
      braces.

  Raises:
    UserError: there is no such file, or a directory holds several data sets.
  """
  path = places.expanded(path)
  if places.is_folder(path):
    return _list_directory(path)
  directory, _, split = path.rstrip("/").rpartition("/")
  is_there = places.exists(path) or os.path.islink(path)
  # What ends like a file is reported as a missing file, not as a split.
  may_be_split = not glob.has_magic(path) and not split.endswith(SUFFIX)
  if not is_there and may_be_split and places.is_folder(directory):
    listing = _list_directory(directory)
    if listing.splits:
      return listing.of_split(split, what=f"parquet:{directory}")
  return Listing(tuple(globs.find_files(path, suffix=SUFFIX)))


def _list_directory(path: str) -> Listing:
  for folders in _FOLDERS:
    pattern = os.path.join(glob.escape(path), folders, f"*{SUFFIX}")
    # Spark writes folders of this suffix, with the files in them.
    found = [
      each for each in places.matching(pattern) if not os.path.isdir(each)
    ]
    if found:
      break
  else:  # Raises the error for a directory without such files.
    return Listing(tuple(globs.find_files(path, suffix=SUFFIX)))
  below = [os.path.relpath(os.path.dirname(name), path) for name in found]
  data_sets = sorted({_data_set(folder) for folder in below})
  if len(data_sets) > 1:
    seen = ", ".join(
      f"'{terminal.escaped(name, limit=80)}'" for name in data_sets[:5]
    )
    raise errors.UserError(
      f"Directory {path!r} holds {len(data_sets)} data sets in its folders: "
      f"{seen}. Name one: parquet:{os.path.join(path, data_sets[0])}."
    )
  splits: dict[str, list[str]] = {}
  for name in found:
    if (split := _split_of(name, path)) is not None:
      splits.setdefault(split, []).append(name)
  # A directory such as DATA_SET/test is itself a split.
  own = os.path.basename(places.absolute(path).rstrip("/"))
  return Listing(
    tuple(found),
    {name: tuple(files) for name, files in splits.items()},
    own if not splits and split_names.is_usual(own) else None,
  )


def _data_set(folder: str) -> str:
  """Returns a file's folder, or the one above where it is named as a split."""
  head, _, tail = folder.rpartition(os.sep)
  return head if split_names.is_usual(tail) else folder


def _split_of(name: str, top: str) -> str | None:
  """Returns a file's split, by its name or that of its folder below `top`."""
  stem = os.path.basename(name).removesuffix(SUFFIX)
  if match := _OF_SEVERAL.fullmatch(stem):
    return match[1]
  match = _NUMBERED.fullmatch(stem)
  if match and split_names.is_usual(match[1]):
    return match[1]
  folder = os.path.basename(os.path.relpath(os.path.dirname(name), top))
  return folder if split_names.is_usual(folder) else None
