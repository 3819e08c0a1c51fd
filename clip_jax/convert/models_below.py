"""Hints at the models in a directory that is none itself."""

import itertools
import pathlib
import re
from collections.abc import Callable

from clip_jax.convert import weights_file

_MOST_LOOKED_AT = 1000  # Entries of a directory.
_MOST_FOLDERS = 100
_DEPTH = 2
_SAVED = "checkpoints"
# What trainers keep beside a model, and tables of features.
_NO_MODEL = re.compile(
  r"optim|sched|rng|random_states|training_args|scaler|feature|embed",
  re.IGNORECASE,
)
# What trainers call the files and directories of one model after the other.
_OF_A_RUN = re.compile(
  r"(epoch|step|checkpoint|ckpt|iter)[-_=]?(\d|latest|last)|^\d+$",
  re.IGNORECASE,
)


def hint(path: pathlib.Path, is_model: Callable[[pathlib.Path], bool]) -> str:
  """Returns the sentence on what to give in place of `path`.

  It begins with a space; it is "" where nothing below `path` is a model.

  Args:
    path: a directory that is in no known format.
    is_model: whether a directory is in one.
  """
  folders = [path]
  for depth in range(_DEPTH + 1):
    files = {
      folder: [x for x in _entries(folder) if _is_weights(x)]
      for folder in folders
    }
    if any(files.values()):
      there = [x for x in folders if files[x]]
      saved = [x for x in there if x.name == _SAVED]
      return _told(files[_chosen(saved or there)])
    folders = [x for f in folders for x in _entries(f) if x.is_dir()]
    folders = folders[:_MOST_FOLDERS]
    if depth < _DEPTH and (models := [x for x in folders if is_model(x)]):
      return _told(models)
  return ""


def _is_weights(path: pathlib.Path) -> bool:
  return weights_file.is_one(path) and not _NO_MODEL.search(path.stem)


def _told(found: list[pathlib.Path]) -> str:
  chosen = _chosen(found)
  more = len(found) - 1
  others = f" ({more} more lie beside it)" if more else ""
  return f" To read {chosen.name}, give its own path, {str(chosen)!r}{others}."


def _chosen(found: list[pathlib.Path]) -> pathlib.Path:
  """Returns the newest of a run, else the first."""
  return next((x for x in found[::-1] if _OF_A_RUN.search(x.name)), found[0])


def _entries(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns what lies in a directory, numbers by their size."""
  try:
    visible = (x for x in folder.iterdir() if not x.name.startswith("."))
    found = list(itertools.islice(visible, _MOST_LOOKED_AT))
  except OSError:
    return []
  return sorted(found, key=lambda path: _natural(path.name))


def _natural(name: str) -> list[tuple[int, int, str]]:
  parts = re.split(r"(\d+)", name)
  return [
    (0, int(x), "") if x.isdecimal() else (1, 0, x.casefold())
    for x in parts
    if x
  ]
