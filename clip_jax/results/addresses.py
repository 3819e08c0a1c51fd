"""Names of data and models without the directories of the machine they lay on.

Pages and cards are passed on; a path may hold a user's name.
"""

import collections
import contextlib
import re
from collections.abc import Iterable

from clip_jax import errors, terminal
from clip_jax.data import mixture

_CHECKPOINTS = "checkpoints"  # In a workdir.
# Schemes whose path is a name, unless it begins with a slash.
_NAMED = ("builtin", "tfds")
_PART = re.compile(r"[?&]split=(\w+)")
_OPTIONS = re.compile(r"\?(?=[a-z_]+=)")
_ROOTED = re.compile(r"^(?:[/\\~.]|[A-Za-z]:[/\\])")
# Parts of a path that many data sets have, so that they name none: splits, and
# numbered files of them.
_OF_MANY = re.compile(
  r"(?:(?:test|train|training|val|valid|validation|dev|restval|held_out|data"
  r"|images)(?:[-_+*{\[\d].*|\.\w+)?|[\d{*?\[].*)",
  re.IGNORECASE,
)
_HOMES = frozenset(["home", "users"])  # A directory in them is a user's.
_MOST_PARTS = 8


def shown(address: str, *, limit: int = 80, parts: int = 1) -> str:
  """Returns a DATA address with the end of its path alone.

  That is the last part, and before a split or its files the parts up to the one
  that names the data: `cifar10/test`. Of the options `split` stays, which says
  what was measured. Of a mixture, each address stands behind its weight.

  Args:
    address: the address, or a name.
    limit: of characters.
    parts: the least number of parts, if there are so many below the directory
      of a user.
  """
  with contextlib.suppress(errors.UserError):
    if (weights := mixture.parse(address)) is not None:
      named = (
        f"{w} x {shown(each, parts=parts)}" for each, w in weights.items()
      )
      return terminal.printable(" + ".join(named), limit=limit)
  scheme, colon, path = address.partition(":")
  part = _PART.search(path)
  path = _OPTIONS.split(path)[0]
  if scheme not in _NAMED or _ROOTED.match(path):
    path = _end(path, parts)
  split = f"?split={part[1]}" if part else ""
  return terminal.printable(f"{scheme}{colon}{path}{split}", limit=limit)


def _end(path: str, least: int) -> str:
  """Returns the end of a path that names data, of `least` parts or more."""
  parts = [part for part in re.split(r"[/\\]", path) if part]
  number = next(
    (n for n, part in enumerate(reversed(parts), 1) if not _is_of_many(part)),
    1,
  )
  private = next(
    (
      place
      for place in reversed(range(len(parts)))
      if parts[place] in (".", "..", "root")
      or parts[place].startswith("~")
      or (place and parts[place - 1].lower() in _HOMES)
      or parts[place].lower() in _HOMES
    ),
    -1,
  )
  number = min(max(number, least), len(parts) - 1 - private)
  return last(path, parts=max(number, 1))


def _is_of_many(part: str) -> bool:
  return _OF_MANY.fullmatch(part) is not None


def last(path: str, *, parts: int = 1) -> str:
  """Returns the last parts of a path; hf-hub:ORG/NAME stays as it is.

  A checkpoint of a run, RUN/checkpoints/STEP, counts as one part.
  """
  if path.startswith("hf-hub:"):
    return path
  found = [part for part in re.split(r"[/\\]", path) if part]
  if len(found) > 2 and found[-2] == _CHECKPOINTS and found[-1].isdecimal():
    found[-3:] = ["/".join(found[-3:])]
  return "/".join(found[-parts:]) or path


def distinct(paths: Iterable[str]) -> dict[str, str]:
  """Returns a short name of each path, longer where two would be the same."""
  paths = list(dict.fromkeys(paths))
  names = {path: last(path) for path in paths}
  for path in paths:
    same = [other for other in paths if last(other) == last(path)]
    if len(same) > 1:
      names[path] = next(
        (
          last(path, parts=n)
          for n in range(2, 64)
          if sum(last(o, parts=n) == last(path, parts=n) for o in same) == 1
        ),
        path,
      )
  return {
    path: terminal.printable(name, limit=60) or "?"
    for path, name in names.items()
  }


def shown_apart(found: Iterable[str]) -> dict[str, str]:
  """Returns `shown` of each DATA address, but no two the same.

  Where the end of the path is not enough, more of it is shown, and at last a
  number.
  """
  found = list(dict.fromkeys(found))
  names = {address: shown(address) for address in found}
  for parts in range(2, _MOST_PARTS):
    alike = collections.Counter(names.values())
    for address, name in names.items():
      if alike[name] > 1:
        names[address] = shown(address, parts=parts)
  numbers: collections.Counter[str] = collections.Counter()
  for address, name in names.items():
    numbers[name] += 1
    if numbers[name] > 1:
      names[address] = f"{name} ({numbers[name]})"
  return names
