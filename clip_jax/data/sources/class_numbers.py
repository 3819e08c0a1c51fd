"""What classes the numbers in files of tables stand for, by the files' names.

Each file's schema may list the names of the classes, and files that are read
together need not list them in the same order.
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from clip_jax import errors, terminal
from clip_jax.data.sources import columns as columns_lib

_Names = tuple[str, ...] | None


def maps(
  columns: columns_lib.Columns,
  schemas: Mapping[str, pa.Schema],
  *,
  address: str,
  as_they_stand: bool,
) -> list[np.ndarray | None]:
  """Returns, for each file, the class of each number in it.

  Classes are numbered as in the first file. None stands for the same numbers.

  Args:
    columns: of the first file.
    schemas: of all files, by their paths.
    address: the scheme and the path, for messages.
    as_they_stand: whether all files' numbers are those of the first: a user has
      named their classes, or reads captions and has not asked for labels.

  Raises:
    UserError: a file tells other classes than the first, or only one of both
      tells any while files differ.
  """
  same: list[np.ndarray | None] = [None] * len(schemas)
  if columns.label is None or columns.label_is_text or as_they_stand:
    return same
  told = columns_lib.class_names(schemas.values(), columns.label)
  if len({*told} - {None}) <= 1:
    return same
  first = columns.class_names
  found = []
  for path, names in zip(schemas, told, strict=True):
    if names == first:
      found.append(None)
    elif names and first and _are_reordered(names, first):
      found.append(np.array([first.index(name) for name in names]))
    else:
      raise errors.UserError(
        f"{address}: {terminal.escaped(path)} {_differ(names, first)}, so that "
        "equal numbers may stand for different classes. Read the files apart, "
        "or, where a number stands for the same class in all of them, add "
        "?classes=FILE with the names."
      )
  return found


def _are_reordered(names: tuple[str, ...], first: tuple[str, ...]) -> bool:
  """Whether the names are the same, and each is there once."""
  return len({*names}) == len(names) and sorted(names) == sorted(first)


def _differ(names: _Names, first: _Names) -> str:
  if names is None:
    return "does not name the classes of its labels, as other files do"
  if first is None:
    return "names the classes of its labels, as the first file does not"
  for name in names:
    if name not in first:
      return f"has the class {name!r:.80}, which is not in the first file"
  for name in first:
    if name not in names:
      return f"lacks the class {name!r:.80} of the first file"
  return "orders its classes in another way, and several have the same name"
