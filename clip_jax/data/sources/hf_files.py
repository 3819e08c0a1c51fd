"""The Arrow files that the library `datasets` has saved, by their splits."""

import os

from clip_jax import errors, json_text, places
from clip_jax.data import record as record_lib
from clip_jax.data.sources import globs, parquet_files

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_SUFFIX = ".arrow"


def list_files(path: str) -> parquet_files.Listing:
  """Returns the files that `path` names; opens no Arrow file.

  Args:
    path: a saved data set, one of its splits, a file, or a pattern with
      wildcards or braces.

  Raises:
    UserError: there is no such file, or a list of files is damaged.
  """
  path = places.expanded(path)
  directory, _, split = path.rstrip("/").rpartition("/")
  if places.is_file(os.path.join(path, _SPLITS)):
    names = _names(os.path.join(path, _SPLITS), "splits")
    splits = {n: _files(os.path.join(path, n)) for n in names}
    files = tuple(name for of in splits.values() for name in of)
    return parquet_files.Listing(files, splits)
  if not (places.exists(path) or os.path.islink(path)) and places.is_file(
    os.path.join(directory, _SPLITS)
  ):
    return list_files(directory).of_split(split, what=f"hf:{directory}")
  return parquet_files.Listing(_files(path))


def _files(path: str) -> tuple[str, ...]:
  """Returns the Arrow files of a data set without splits."""
  state = os.path.join(path, _STATE)
  if not places.is_file(state):
    return tuple(globs.find_files(path, suffix=_SUFFIX))
  if json_text.read(state).get("_indices_data_files"):
    raise errors.UserError(
      f"{path} was saved by an old version of the library datasets, with rows "
      "that are only chosen; load it and save it again."
    )
  return tuple(
    os.path.join(path, name) for name in _names(state, "_data_files")
  )


def _names(path: str, field: str) -> list[str]:
  """Returns names in a JSON file, which must lead nowhere else."""
  found = json_text.read(path).get(field)
  names = [
    str(name.get("filename", "") if isinstance(name, dict) else name)
    for name in (found if isinstance(found, list) else [])
  ]
  if not names or not all(
    os.path.basename(name) == name not in ("", ".", "..")
    and not record_lib.has_control(name)
    for name in names
  ):
    raise errors.UserError(
      f"{path} is damaged: its {field!r} is no list of names. Save the data "
      "set again, or name its Arrow files."
    )
  return names
