"""Says of each data set of the suite whether it is there and what it should be.

No record is read.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from clip_jax import errors
from clip_jax.evals.suite import data_sets, layouts, set_sources

THERE, MISSING, WRONG = "there", "missing", "wrong"


def check(
  entries: Iterable[data_sets.Entry], root: str
) -> Iterator[dict[str, Any]]:
  """Yields what is known of each data set below `root`.

  `state` is "there", "missing" or "wrong": its class list or its number of test
  images is not the table's, or it cannot be opened; `problem` says it then.
  `choices` are sentences about what is read where that is not evident.

  Raises:
    UserError: `root` is no directory.
  """
  place = layouts.check_root(root)
  for entry in entries:
    said: dict[str, Any] = {
      "set": entry.name,
      "title": entry.title,
      "group": entry.group,
      "state": MISSING,
      "data": None,
      "classes": entry.classes,
      "examples": None,
      "expected_examples": list(entry.counts),
      "metric": entry.metric,
      "problem": "",
      "choices": [],
      "note": entry.note,
      "get": entry.how_to_get(root),
    }
    try:
      if found := layouts.find(entry, place):
        said |= {"state": THERE, "data": found.address}
        opened = set_sources.open_found(entry, found)
        said |= {"data": opened.found.address, "examples": opened.count}
        said["choices"] = list(opened.notes)
        if opened.warnings:
          said |= {"state": WRONG, "problem": " ".join(opened.warnings)}
    except errors.UserError as error:
      said |= {"state": WRONG, "problem": str(error)}
    yield said
