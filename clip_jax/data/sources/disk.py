"""Reads files of a disk or a bucket: walks folders, gives one file's bytes.

What cannot be read is a `BadRecord`, so that another record can replace it;
only errors of the disk itself end a run.
"""

import errno
import os
from collections.abc import Iterable, Iterator

from clip_jax import buckets, errors, regular_files, terminal
from clip_jax.data import account as account_lib
from clip_jax.data import record as record_lib

LINKS = ("follow",)
MAX_IMAGE_BYTES = 64 * 2**20


def follows_links(options: dict[str, str]) -> bool:
  """Whether symbolic links may lead out of the data's root."""
  links = options.get("links")
  if links is not None and links not in LINKS:
    raise errors.unknown("value of links=", links, LINKS)
  return links == "follow"


def read_image(path: str, *, key: str, within: str | None) -> bytes:
  """Reads an image file; raises `BadRecord` where it cannot."""
  data = read_file(path, key=key, limit=MAX_IMAGE_BYTES, within=within)
  if not data:
    raise record_lib.BadRecord("empty_image", key)
  return data


def read_file(path: str, *, key: str, limit: int, within: str | None) -> bytes:
  """Reads at most `limit` bytes; raises `BadRecord` where it cannot.

  Args:
    path: of a regular file; a pipe or a device is none.
    key: of the record.
    limit: a larger file is bad.
    within: a directory that symbolic links must not lead out of.
  """
  try:
    data = regular_files.read_regular(path, limit=limit, within=within)
  except (FileNotFoundError, NotADirectoryError):
    raise record_lib.BadRecord("missing_file", key) from None
  except (regular_files.NotRegularError, IsADirectoryError):
    raise record_lib.BadRecord("not_a_file", key) from None
  except regular_files.OutsideError:
    bad = record_lib.BadRecord("link_leads_outside", key)
    bad.hint = (
      f"{path} leads out of {within}; add ?links=follow to the address to "
      "follow such links"
    )
    raise bad from None
  except errors.UnreachableError:
    raise  # The network's fault, as below.
  except ValueError:  # A NUL in the path.
    raise record_lib.BadRecord("read_error", key) from None
  except OSError as error:
    if error.errno == errno.ENAMETOOLONG:
      raise record_lib.BadRecord("missing_file", key) from None
    if error.errno in (errno.EACCES, errno.EPERM):
      raise record_lib.BadRecord("no_permission", key) from None
    # The disk's fault, not the record's: to replace it would make the batch a
    # matter of luck.
    raise errors.UserError(f"Cannot read {path}: {error.strerror}.") from error
  if len(data) > limit:
    raise record_lib.BadRecord("too_large", key)
  return data


def walk(
  root: str, account: account_lib.Account, *, within: str | None
) -> Iterator[str]:
  """Yields files below `root` by relative name; follows links, once each.

  Told in `account` instead are hidden files and folders, links to folders that
  are read by another name, and those that lead out of `within`, where it is
  given.
  """
  if buckets.is_address(root):
    yield from _objects(root, account)
    return
  seen, outside, again = set(), [], []
  closed: list[OSError] = []
  inside = within and os.path.join(os.path.realpath(within), "")
  left_out = account.left_out
  # Links come after all folders, so that a folder is read by its own name.
  starts = [root]
  for start in starts:
    for directory, subdirectories, names in os.walk(
      start, onerror=closed.append
    ):
      real = os.path.realpath(directory)
      leads_out = inside and not os.path.join(real, "").startswith(inside)
      if leads_out:
        outside.append(os.path.relpath(directory, root))
      elif real in seen:
        again.append(os.path.relpath(directory, root))
      if leads_out or real in seen:
        subdirectories.clear()
        continue
      seen.add(real)
      for name in filter(is_hidden, subdirectories):
        left_out.add(_below(root, directory, name) + os.sep)
      subdirectories[:] = [s for s in subdirectories if not is_hidden(s)]
      paths = [os.path.join(directory, s) for s in subdirectories]
      starts.extend(path for path in paths if os.path.islink(path))
      for name in names:
        if is_hidden(name):
          left_out.add(_below(root, directory, name))
        else:
          yield _below(root, directory, name)
  if closed:
    if closed[0].filename == root:
      raise closed[0]
    named = _first([os.path.relpath(each.filename, root) for each in closed])
    account.notes.append(
      f"Folders that cannot be opened ({closed[0].strerror}) are left out, "
      f"with all that is in them: {named}."
    )
  if outside:
    account.notes.append(
      f"Folders that links lead to out of {terminal.escaped(root)} are not "
      f"read: {_first(outside)}; add ?links=follow to the address to follow "
      "such links."
    )
  if again:
    account.notes.append(
      "Links to folders that are read by another name are not read again: "
      f"{_first(again)}."
    )


def _objects(root: str, account: account_lib.Account) -> Iterator[str]:
  """Yields what `walk` does, of a bucket: there are no links."""
  told: set[str] = set()
  for entry in buckets.entries(root, below=True):
    parts = entry.name.split("/")
    hidden = next((i for i, part in enumerate(parts) if is_hidden(part)), None)
    if hidden is None:
      yield entry.name
    elif hidden == len(parts) - 1:
      account.left_out.add(entry.name)
    else:  # Once for all that is in it.
      folder = "/".join(parts[: hidden + 1]) + os.sep
      if folder not in told:
        told.add(folder)
        account.left_out.add(folder)


def is_hidden(name: str) -> bool:
  """Whether a file or a folder is passed over: its name begins with a dot."""
  return name.startswith(".")


def _first(names: list[str]) -> str:
  more = f" and {len(names) - 5} more" if len(names) > 5 else ""
  return listed(sorted(names)[:5]) + more


def _below(root: str, directory: str, name: str) -> str:
  return os.path.relpath(os.path.join(directory, name), root)


def listed(names: Iterable[str]) -> str:
  """Returns names in quotes, for a message."""
  return ", ".join(f"'{terminal.escaped(name, limit=80)}'" for name in names)
