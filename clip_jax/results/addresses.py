"""Names of data and models without the directories of the machine they lay on.

Pages and cards are passed on; a path may hold a user's name.
"""

import contextlib
import re
from collections.abc import Iterable

from clip_jax import errors, terminal
from clip_jax.data import mixture

# Schemes whose path is a name, unless it begins with a slash.
_NAMED = ("builtin", "tfds")
_PART = re.compile(r"[?&]split=(\w+)")
_ROOTED = re.compile(r"^(?:[/\\~.]|[A-Za-z]:[/\\])")


def shown(address: str, *, limit: int = 80) -> str:
  """Returns a DATA address with the last part of its path alone.

  Of its options `split` stays, which says what was measured. Of a mixture, each
  address stands behind its weight.
  """
  with contextlib.suppress(errors.UserError):
    if (weights := mixture.parse(address)) is not None:
      named = (f"{w} x {shown(each)}" for each, w in weights.items())
      return terminal.printable(" + ".join(named), limit=limit)
  scheme, colon, path = address.partition(":")
  part = _PART.search(path)
  path = re.split(r"\?[a-z_]+=", path)[0]
  if scheme not in _NAMED or _ROOTED.match(path):
    path = last(path)
  split = f"?split={part[1]}" if part else ""
  return terminal.printable(f"{scheme}{colon}{path}{split}", limit=limit)


def last(path: str, *, parts: int = 1) -> str:
  """Returns the last parts of a path; hf-hub:ORG/NAME stays as it is."""
  if path.startswith("hf-hub:"):
    return path
  found = [part for part in re.split(r"[/\\]", path) if part]
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

  Where the last part of the path is not enough, more of it is shown.
  """
  found = list(dict.fromkeys(found))
  names = {address: shown(address) for address in found}
  alike: dict[str, list[str]] = {}
  for address, name in names.items():
    alike.setdefault(name, []).append(address)
  for several in alike.values():
    if len(several) > 1:
      names |= distinct(several)
  return names
