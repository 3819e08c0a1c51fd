"""Files and folders at paths of the disk, or at addresses in buckets."""

import concurrent.futures
import fnmatch
import glob
import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from clip_jax import buckets
from clip_jax.buckets import attempts

_THREADS = 32  # Hides the latency of buckets and of network storage.
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


class Status(NamedTuple):
  """The size of a file, and its times in nanoseconds."""

  size: int
  changed_ns: int
  moved_ns: int  # The system's own; in a bucket, the same.


def expanded(path: str) -> str:
  """Returns `path` with the home folder in place of `~`."""
  return os.path.expanduser(path)


def of_each(
  function: Callable[[_Item], _Answer],
  items: Iterable[_Item],
  *,
  threads: int = _THREADS,
) -> list[_Answer]:
  """Returns the results of `function` for all items, called in threads."""
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    try:
      return list(pool.map(function, items))
    except KeyboardInterrupt:
      with attempts.given_up():  # Else Ctrl-C would wait for a server.
        pool.shutdown(cancel_futures=True)
      raise


def starting_point(path: str) -> str:
  """Returns the words by which an error says where a relative path begins."""
  if buckets.is_address(path) or os.path.isabs(path):
    return ""
  return " from the working directory"


def exists(path: str) -> bool:
  """Whether there is a file or a folder."""
  if buckets.is_address(path):
    return buckets.kind(path) is not None
  return os.path.exists(path)


def kind(path: str) -> str | None:
  """Returns "file", "folder", "other", or None where there is nothing."""
  if buckets.is_address(path):
    return buckets.kind(path)
  if os.path.isfile(path):
    return "file"
  if os.path.isdir(path):
    return "folder"
  return "other" if os.path.exists(path) else None


def kinds(paths: Sequence[str]) -> list[str | None]:
  """Returns the `kind` of each path; of those in buckets, asked in threads."""
  if paths and buckets.is_address(paths[0]):
    return of_each(kind, paths)
  return list(map(kind, paths))


def is_file(path: str) -> bool:
  """Whether there is a file."""
  return kind(path) == "file"


def is_folder(path: str) -> bool:
  """Whether there is a folder."""
  return kind(path) == "folder"


def status(path: str) -> Status:
  """Returns size and times; raises OSError where there is no file."""
  if buckets.is_address(path):
    found = buckets.status(path)
    return Status(found.size, found.changed_ns, found.changed_ns)
  found = os.stat(path)
  return Status(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def names(path: str) -> list[str]:
  """Returns the names in a folder, sorted."""
  if buckets.is_address(path):
    return [entry.name for entry in buckets.entries(path)]
  return sorted(os.listdir(path))


def real(path: str) -> str:
  """Returns the path without links; an address as it is."""
  return path if buckets.is_address(path) else os.path.realpath(path)


def absolute(path: str) -> str:
  """Returns the path from the root; an address as it is."""
  return path if buckets.is_address(path) else os.path.abspath(path)


def matching(pattern: str) -> list[str]:
  """Returns the files and folders that match a glob, sorted.

  `*`, `?` and `[...]` stand for signs of one name, `**` for any folders.
  """
  if not buckets.is_address(pattern):
    return sorted(glob.glob(pattern, recursive=True))
  root, wanted = _split_pattern(pattern)
  found = buckets.entries(root, below=len(wanted) > 1)
  return [
    f"{root}/{entry.name}"
    for entry in found
    if _fits(entry.name.split("/"), wanted)
  ]


def _split_pattern(pattern: str) -> tuple[str, list[str]]:
  """Returns the folder in front of the first name with magic, and the rest."""
  scheme, _, rest = pattern.partition("://")
  parts = rest.split("/")
  plain = next(i for i, part in enumerate(parts) if glob.has_magic(part))
  return f"{scheme}://{'/'.join(parts[:plain])}", parts[plain:]


def _fits(names: list[str], wanted: list[str]) -> bool:
  if not wanted:
    return not names
  if wanted[0] == "**":
    return _fits(names, wanted[1:]) or (
      bool(names) and not _is_hidden(names[0]) and _fits(names[1:], wanted)
    )
  return (
    bool(names)
    and fnmatch.fnmatchcase(names[0], wanted[0])
    and (wanted[0].startswith(".") or not _is_hidden(names[0]))
    and _fits(names[1:], wanted[1:])
  )


def _is_hidden(name: str) -> bool:
  return name.startswith(".")
