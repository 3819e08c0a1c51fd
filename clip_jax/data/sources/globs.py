"""Which files an address names: braces, globs and directories."""

import glob
import itertools
import os
import re
from collections.abc import Collection, Iterator

from clip_jax import errors, places, terminal

# `[{]` and `[}]` are these signs themselves, as `escaped` writes them.
_BRACES = re.compile(r"(?!(?<=\[)\{\])\{([^{}]+)\}(?!(?<=\[\})\])")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_FILES = 1_000_000
# NAME-NUMBER-of-COUNT, and behind it a digest of older versions of `datasets`.
_OF_SEVERAL = re.compile(r"(.+)-(\d{5})-of-(\d{5})(?:-[0-9a-f]{16})?(\.[^.]+)?")
_LOOKED_INTO = 64  # Folders below one, for more of its files.


def find_files(pattern: str, *, suffix: str) -> list[str]:
  """Returns the files that `pattern` names, in a fixed order.

  Args:
    pattern: a file; a directory, for all files in it that end in `suffix`; a
      glob (`*`, `?`, `[...]`); with `{0000..0012}` or `{a,b}` for several.
    suffix: such as ".tar".

  Raises:
    UserError: a file is missing, by name, or a glob or directory has none.
  """
  pattern = places.expanded(pattern)
  if (kind := places.kind(pattern)) is not None:
    return _listed(pattern, kind, suffix)
  files: list[str] = []
  missing: list[str] = []
  names = expand_braces(pattern)
  for name, kind in zip(names, places.kinds(names), strict=True):
    if kind is not None:
      files += _listed(name, kind, suffix)
    elif glob.has_magic(name):
      found = places.matching(name)
      if not found:
        raise errors.UserError(f"No file matches {name!r}.")
      # Beside shards lie lists and notes, which a plain * names, too.
      shards = [each for each in found if each.lower().endswith(suffix)]
      found = shards or found
      kinds = places.kinds(found)
      some = [
        path
        for each, its_kind in zip(found, kinds, strict=True)
        for path in (
          _in_folder(each, suffix)
          if its_kind == "folder"
          else _listed(each, its_kind, suffix)
        )
      ]
      files += some or _listed(found[0], kinds[0], suffix)  # Raises.
    else:
      missing.append(name)
  if missing:
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    raise errors.UserError(
      f"File {missing[0]!r}{more} does not exist.{errors.beside(missing[0])} "
      f"Check the path{places.starting_point(missing[0])}, and the range where "
      "it has one."
    )
  return files


def unread(
  pattern: str,
  files: Collection[str],
  *,
  like: Collection[str],
  ends: tuple[str, ...] = (),
) -> list[str]:
  """Returns names of what looks like more of `files`, but is not among them.

  Such are `a.tar.gz` in a directory of tars, and a folder of more tars.

  Args:
    pattern: a directory or a glob; of anything else nothing is looked at.
    files: that are read of it.
    like: parts of the names of such files, in lower case.
    ends: ends of the names of others that hold data, in lower case.
  """
  pattern = places.expanded(pattern)
  if places.is_folder(pattern):
    there = [os.path.join(pattern, name) for name in places.names(pattern)]
  else:
    there = places.matching(pattern) if glob.has_magic(pattern) else []
  read = set(map(os.path.basename, files))
  for above in (1, 2):  # The folders that the files lie in.
    read |= {
      path.split(os.sep)[-1 - above]
      for path in files
      if path.count(os.sep) >= above
    }

  def is_like(name: str) -> bool:
    return any(part in name.lower() for part in like)

  found = []
  for path in there:
    name = os.path.basename(path)
    if name in read or name.startswith("."):
      continue
    if os.path.isdir(path):  # Of a bucket's folders nothing is asked.
      if is_like(name) or any(map(is_like, _names_below(path))):
        found.append(f"{name}/")
    elif is_like(name) or name.lower().endswith(ends):
      found.append(name)
  return found


def _names_below(path: str) -> Iterator[str]:
  """Yields names of files and folders in a folder, and in some of these."""
  walk = os.walk(path)
  for _, folders, names in itertools.islice(walk, _LOOKED_INTO):
    folders[:] = [name for name in folders if not name.startswith(".")]
    yield from names
    yield from folders


def absent(pattern: str, files: Collection[str]) -> list[str]:
  """Returns a sentence where names count more files than there are.

  Such a name is `train-00000-of-00004.parquet`.

  Args:
    pattern: a directory or a glob; files that are named are meant alone.
    files: that are read of it.
  """
  pattern = places.expanded(pattern)
  if places.kind(pattern) == "file" or _BRACES.search(pattern):
    return []
  numbers: dict[tuple[str, ...], set[int]] = {}
  for path in files:
    if match := _OF_SEVERAL.fullmatch(os.path.basename(path)):
      before, number, count, after = match.groups("")
      numbers.setdefault((before, count, after), set()).add(int(number))
  missing = [
    f"{before}-{number:0{len(count)}d}-of-{count}{after}"
    for (before, count, after), there in numbers.items()
    if int(count) <= _MAX_FILES
    for number in _counted(int(count), there)
    if number not in there
  ]
  if not missing:
    return []
  are = terminal.noun(len(missing), "is", "are")
  them = terminal.noun(len(missing), "it", "them")
  return [
    f"{terminal.counted(len(missing), 'file')} that the names of the others "
    f"count {are} not there, such as "
    f"'{terminal.escaped(missing[0], limit=80)}'; get {them}, unless a part is "
    "meant."
  ]


def _counted(count: int, there: Collection[int]) -> range:
  """Returns the numbers of `count` files: from 0 on, or from 1 as some do."""
  return range(1, count + 1) if count in there else range(count)


def _listed(path: str, kind: str | None, suffix: str) -> list[str]:
  leads_nowhere = kind is None and os.path.islink(path)
  if kind == "file" or leads_nowhere:  # Which is told where it is read.
    return [path]
  if kind != "folder":
    raise errors.UserError(f"{path!r} is neither a file nor a directory.")
  if not (found := _in_folder(path, suffix)):
    there = places.names(path)
    seen = ", ".join(
      f"'{terminal.escaped(name, limit=80)}'" for name in there[:3]
    )
    raise errors.UserError(
      f"Directory {path!r} holds no {suffix} files"
      + (f", but for example {seen}." if seen else "; it is empty.")
    )
  return found


def _in_folder(path: str, suffix: str) -> list[str]:
  """Returns the files in a folder that end in `suffix`; folders are none."""
  names = (n for n in places.names(path) if n.lower().endswith(suffix))
  paths = (os.path.join(path, name) for name in names)
  return [each for each in paths if not os.path.isdir(each)]


def escaped(path: str) -> str:
  """Returns a pattern that names `path` alone, whatever signs are in it."""
  return re.sub(r"[{}]", r"[\g<0>]", glob.escape(path))


def expand_braces(pattern: str) -> list[str]:
  """Expands `{0000..0012}` (numbers keep their width) and `{a,b}`.

  `[{]` and `[}]` stay, which are these signs in a glob.
  """
  pieces = _BRACES.split(pattern)  # Text and groups in turn.
  choices = [
    _alternatives(piece) if i % 2 else [piece] for i, piece in enumerate(pieces)
  ]
  count = 1
  for choice in choices:
    count *= len(choice)
  if count > _MAX_FILES:
    raise errors.UserError(
      f"{pattern!r} names {count} files; at most {_MAX_FILES} are allowed."
    )
  return ["".join(parts) for parts in itertools.product(*choices)]


def _alternatives(group: str) -> list[str] | range:
  match = _RANGE.fullmatch(group)
  if not match:
    return group.split(",") if "," in group else ["{" + group + "}"]
  first, last = int(match[1]), int(match[2])
  if last < first:
    raise errors.UserError(
      f"The range {{{group}}} is empty; the first number comes first."
    )
  if last - first >= _MAX_FILES:
    raise errors.UserError(
      f"The range {{{group}}} names {last - first + 1} files; at most"
      f" {_MAX_FILES} are allowed."
    )
  return [str(i).zfill(len(match[1])) for i in range(first, last + 1)]
