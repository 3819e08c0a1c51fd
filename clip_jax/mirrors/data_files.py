"""Copies of the files of data that a library reads from a disk only.

A copy is known by the size and the time of change of its object, and of itself.
All of a folder's are kept together, in whatever order they are asked for.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from clip_jax import buckets, errors, places
from clip_jax.mirrors import fetching, manifest, room, stamps, translation

_USE = "data"
_NOTED_FILES = 16  # After so many, what is there is noted.


def copied(wanted: Sequence[str]) -> dict[str, pathlib.Path]:
  """Returns the path of a copy of each object, by its address.

  Raises:
    UserError: there is no room, or one cannot be read.
  """
  folders: dict[str, list[str]] = {}
  for address in map(fetching.checked, wanted):
    folder, _, name = address.rpartition("/")
    manifest.check_name(name)
    folders.setdefault(folder, []).append(name)
  found = {}
  for folder, names in folders.items():
    path = fetching.local_path(folder, use=_USE)
    _copy_folder(folder, path, names)
    found |= {f"{folder}/{name}": path / name for name in names}
  return found


def _copy_folder(folder: str, path: pathlib.Path, names: list[str]) -> None:
  with fetching.locked(path):
    translation.note(folder, path)
    room.use(path)
    path.mkdir(exist_ok=True)
    for left in path.glob(".*.partial"):  # By a process that was killed.
      left.unlink()

    def copy_all() -> None:
      found = places.of_each(lambda x: _stamp(f"{folder}/{x}"), names)
      _copy_missing(folder, path, dict(zip(names, found, strict=True)))

    advice = "Start again, and do not change it meanwhile"
    fetching.repeat_if_changed(copy_all, advice)


def _stamp(address: str) -> str:
  try:
    return stamps.of(buckets.status(address))
  except FileNotFoundError:
    raise errors.UserError(
      f"There is nothing at {address}, which belongs to the data; check the "
      "name, or copy it there again."
    ) from None


def _copy_missing(
  folder: str, path: pathlib.Path, wanted: dict[str, str]
) -> None:
  kept = stamps.read(path)
  missing = {
    name: fetching.Wanted(f"{folder}/{name}", stamp, is_digest=False)
    for name, stamp in wanted.items()
    if kept.get(name) != [stamp, _own_stamp(path / name)]
  }
  opened = fetching.open_objects(folder, path, missing)
  names = list(missing)
  for start in range(0, len(names), _NOTED_FILES):
    some = names[start : start + _NOTED_FILES]
    fetching.copy(path, {name: opened[name] for name in some}, missing)
    kept |= {name: [wanted[name], _own_stamp(path / name)] for name in some}
    stamps.write(path, kept)


def _own_stamp(path: pathlib.Path) -> Any:
  try:
    found = os.stat(path)
  except OSError:
    return None
  return [found.st_size, found.st_mtime_ns]
