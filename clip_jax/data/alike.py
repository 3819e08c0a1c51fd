"""Classes and captions that leave nothing to tell apart."""

import collections
import contextlib
from collections.abc import Iterable

from clip_jax import terminal, tokenizer
from clip_jax.data import record as record_lib

_SHOWN = 5
_LOOKED_AT = 32  # Records, where all are alike.


def note_classes(names: Iterable[str]) -> list[str]:
  """Returns a sentence on classes of the same name; none where there are none.

  Args:
    names: of the classes.
  """
  counts = collections.Counter(map(tokenizer.plain, names))
  twice = sorted(name for name, count in counts.items() if count > 1)
  if not twice:
    return []
  more = f" and {len(twice) - _SHOWN} more" if len(twice) > _SHOWN else ""
  return [
    "Several classes have the same name, but for capitals and spaces, and "
    "most models cannot tell them apart: "
    f"{', '.join(map(repr, twice[:_SHOWN]))}{more}."
  ]


def note_caption(caption: str, *, of: str) -> str:
  """Returns a sentence on the only caption `of` some data."""
  shown = terminal.escaped(caption, limit=80)
  return (
    f"{of} have the same caption, '{shown}', which leaves nothing to tell "
    "apart; a model learns from captions, or classes, that differ."
  )


def only_caption(source: record_lib.Source) -> str | None:
  """Returns the caption that some records all have; None if they differ.

  Where the first two differ, as they usually do, no more are read.
  """
  captions: set[str] = set()
  good = 0
  step = max(2, len(source) // _LOOKED_AT)
  # Neighbours, too: captions may come in turn.
  for slot in (x for at in range(0, len(source), step) for x in (at, at + 1)):
    # The loader tells what cannot be read.
    with contextlib.suppress(record_lib.BadRecord, OSError, IndexError):
      captions.update(source[slot].texts)
      good += 1
    if len(captions) > 1:
      return None
  return next(iter(captions), None) if good > 1 else None
