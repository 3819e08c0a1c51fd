"""Files with one JSON object per line, of which some may be damaged."""

import logging
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from clip_jax import json_text, regular_files, whole_files

_LOGGER = logging.getLogger(__name__)

# Longer lines are taken as damaged: valid ones have a few hundred bytes.
_MAX_LINE_BYTES = 2**20

Entry = dict[str, Any]


def read(
  path: pathlib.Path, fields: dict[str, type]
) -> Iterator[tuple[bytes, Entry | None]]:
  """Yields each line with its newline, and its object (None if damaged).

  A process that is killed while it writes leaves a damaged last line. A line
  that is too long is damaged, and comes in pieces: only the last has a newline.

  Args:
    path: the file; yields nothing if there is none.
    fields: names that each object must have, with the types of their values;
      an int is a number of something, from 0 up.
  """
  if not path.is_file():
    return
  with regular_files.open_regular(path) as file:
    starts = True  # A line, which the rest of a longer one does not.
    while piece := file.readline(_MAX_LINE_BYTES):
      if not piece.endswith(b"\n") and len(piece) == _MAX_LINE_BYTES:
        yield piece, None
        starts = False
      else:
        line = piece.removesuffix(b"\n") + b"\n"
        yield line, _parse(line, fields) if starts else None
        starts = True


def _parse(line: bytes, fields: dict[str, type]) -> Entry | None:
  try:
    entry = json_text.parse(line)
  except json_text.JsonError:
    return None
  # Compares by type(), since isinstance(True, int) is true.
  fits = all(
    type(value := entry.get(name)) is kind and not (kind is int and value < 0)
    for name, kind in fields.items()
  )
  return entry if fits else None


def rewrite(
  path: pathlib.Path, fields: dict[str, type], keep: Callable[[Entry], bool]
) -> None:
  """Rewrites a file with only the lines whose objects `keep` accepts.

  Damaged lines are appended to `path` + ".damaged", with a warning. The file is
  replaced atomically.

  Args:
    path: the file; nothing happens if there is none.
    fields: as in `read`.
    keep: returns whether the line of an object stays.
  """
  if not path.is_file():
    return
  partial = path.with_name(path.name + ".partial")
  damaged = path.with_name(path.name + ".damaged")
  bad, starts = 0, True
  with whole_files.named(path), partial.open("wb") as kept:
    for line, entry in read(path, fields):
      if entry is not None:
        if keep(entry):
          kept.write(line)
        continue
      bad, starts = bad + starts, line.endswith(b"\n")
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
