"""Files of one JSON object a line, which a killed process leaves torn."""

import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from clip_jax import json_text, regular_files

_LOGGER = logging.getLogger(__name__)

# Longer ones are damaged: ours have some hundred bytes.
_MAX_LINE_BYTES = 2**20

Entry = dict[str, Any]


def read(
  path: pathlib.Path, fields: dict[str, type]
) -> Iterator[tuple[bytes, Entry | None]]:
  """Yields each line, ended, and its object; None where it is damaged.

  Args:
    path: what is no file has no lines.
    fields: the object's names that must be there, with their types.
  """
  if not path.is_file():
    return
  with regular_files.open_regular(path) as file:
    while line := file.readline(_MAX_LINE_BYTES):
      yield line.removesuffix(b"\n") + b"\n", _parse(line, fields)


def _parse(line: bytes, fields: dict[str, type]) -> Entry | None:
  try:
    entry = json_text.parse(line)
  except json_text.JsonError:
    return None
  # By type(): True is no step.
  fits = all(type(entry.get(name)) is kind for name, kind in fields.items())
  return entry if fits else None


def rewrite(
  path: pathlib.Path, fields: dict[str, type], keep: Callable[[Entry], bool]
) -> None:
  """Leaves the lines in a file that `keep` wants; sets damaged ones aside.

  They are moved to the end of `path` + ".damaged", and that is told. The file
  is replaced as a whole.

  Args:
    path: nothing happens where it is no file.
    fields: as in `read`.
    keep: from an object to whether its line stays.
  """
  if not path.is_file():
    return
  partial = path.with_name(path.name + ".partial")
  damaged = path.with_name(path.name + ".damaged")
  bad = 0
  with partial.open("wb") as kept:
    for line, entry in read(path, fields):
      if entry is not None:
        if keep(entry):
          kept.write(line)
        continue
      bad += 1
      with damaged.open("ab") as aside:
        aside.write(line)
    kept.flush()
    os.fsync(kept.fileno())
  os.replace(partial, path)
  if bad:
    _LOGGER.warning(
      "%s: %d damaged line%s set aside in %s; the run goes on without them.",
      path,
      bad,
      " is" if bad == 1 else "s are",
      damaged,
    )
