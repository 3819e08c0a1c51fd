"""Flattens the nested dicts of a file into one dict with joined names."""

import re
from collections.abc import Callable, Mapping
from typing import Any

# A function of a tree and the separator that joins names, such as `flatten`; it
# returns the leaves of a model by name.
Select = Callable[[Mapping[str, Any], str], dict[str, Any]]

MAX_DEPTH = 64
MAX_LEAVES = 300_000
MAX_NAME_CHARS = 1000
_HALF = re.compile("[\ud800-\udfff]")  # Of a character, in no valid UTF-8.


def flatten(value: Any, separator: str) -> dict[str, Any]:
  """Returns the leaves of nested dicts, lists and tuples by joined name.

  Raises:
    ValueError: it is too deep (or contains itself), too large, or two leaves
      have the same name, or one that no file can hold.
  """
  leaves: dict[str, Any] = {}
  seen = 0
  # A stack instead of recursion, since the file may be nested deeply. An item
  # is a name, a value and its depth.
  waiting = [("", value, 0)]
  while waiting:
    name, value, depth = waiting.pop()
    if not isinstance(value, dict | list | tuple):
      if name in leaves:
        raise ValueError(f"two values have the name {name!r}")
      leaves[name] = value
      continue
    seen += len(value)
    if depth == MAX_DEPTH:
      raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    if seen > MAX_LEAVES:
      raise ValueError(f"it has more than {MAX_LEAVES} values")
    items = value.items() if isinstance(value, dict) else enumerate(value)
    children = []
    for key, child in items:
      joined = f"{name}{separator}{key}" if depth else str(key)
      if len(joined) > MAX_NAME_CHARS:
        raise ValueError(f"the name {joined[:100]!r}… is too long")
      if _HALF.search(joined):
        raise ValueError(f"the name {joined!r:.100} has half a character")
      children.append((joined, child, depth + 1))
    waiting.extend(reversed(children))
  return leaves
