"""Reads image files that a table names, from one of several directories."""

import os
from collections.abc import Iterable
from typing import NamedTuple

from clip_jax import buckets, errors, places
from clip_jax.data import record as record_lib
from clip_jax.data.sources import disk

_SHOWN_PATHS = 3
_ROOT = (
  "name the directory of the images by ?root=DIR at the end of the address"
)


class ImageFile(NamedTuple):
  """An image that was read, and where it lies."""

  path: str
  data: bytes


class ImageFiles:
  """Reads images by the names that a table has for them."""

  def __init__(
    self,
    roots: tuple[str, ...],
    *,
    follow_links: bool = False,
    flat: bool = False,
  ):
    """Opens nothing.

    Args:
      roots: directories that relative names are tried in, in this order.
      follow_links: whether symbolic links and `..` may lead out of the roots.
      flat: whether the file may lie in a root without its name's folders.
    """
    self._roots = roots
    self._follow_links = follow_links
    self._flat = flat

  def read(self, name: str, *, key: str | None = None) -> ImageFile:
    """Returns the image `name`.

    Raises:
      BadRecord: it cannot be read; with this key, or the name.
    """
    key = name if key is None else key
    if not name:
      raise record_lib.BadRecord("missing_image", key)
    climbs = record_lib.climbs(name) and not self._follow_links
    if record_lib.has_control(name) or climbs:
      raise record_lib.BadRecord("unsafe_name", key)
    if buckets.is_address(name):  # A stranger's table, but your account.
      bad = record_lib.BadRecord("missing_file", key)
      bad.hint = (
        "an address in a table is not followed; write names below one folder "
        "there, and add ?root=gs://BUCKET/FOLDER (or s3://) to the address"
      )
      raise bad
    tried = [(os.path.join(root, name), root) for root in self._roots]
    if self._flat and (base := os.path.basename(name)) != name:
      tried += [(os.path.join(root, base), root) for root in self._roots]
    there = (place for place in tried if places.exists(place[0]))
    # Not asked where there is no choice: in a bucket it takes a request.
    path, within = next(there, tried[0]) if len(tried) > 1 else tried[0]
    # An absolute path was written for this machine, and says where it leads.
    if self._follow_links or os.path.isabs(name):
      within = None
    try:
      return ImageFile(path, disk.read_image(path, key=key, within=within))
    except record_lib.BadRecord as error:
      if error.reason == "missing_file":
        paths = list(dict.fromkeys(path for path, _ in tried))
        error.hint, error.advice = _hint(name, paths)
      raise


def _hint(name: str, tried: list[str]) -> tuple[str, str]:
  """Returns what to say of a missing image, and where most are missing."""
  if "://" in name:
    return "a URL is not fetched; img2dataset downloads lists of them", ""
  more = len(tried) - _SHOWN_PATHS
  paths = " and ".join(tried[:_SHOWN_PATHS])
  paths += f" and {more} more" if more > 0 else ""
  were = f"{paths} {'was' if len(tried) == 1 else 'were'} tried"
  if "\\" in name and os.sep == "/":
    return f"{were}; write / in place of the backslashes", ""
  return were, _ROOT


def open_files(
  bases: Iterable[str],
  options: dict[str, str],
  *,
  scheme: str,
  folders: Iterable[str] = (),
  flat: bool = False,
) -> ImageFiles:
  """Returns the files below `?root=`, or else below `bases`.

  Args:
    bases: directories; first the table's own, where a relative root begins.
    options: `root` and `links` of an address.
    scheme: of the address, for messages.
    folders: usual places below the bases or the root.
    flat: as `ImageFiles` has it.

  Raises:
    UserError: the root is no directory.
  """
  bases, folders = list(bases), list(folders)
  if "root" in options:
    root = places.expanded(options["root"])
    beside = os.path.join(bases[0], root)
    tried = (root,) if buckets.is_address(root) else (beside, root)
    found = next(filter(places.is_folder, tried), None)
    if found is None:
      where = f"neither beside the table in {bases[0] or '.'} nor in"
      where = f", {where} the working directory" if len(tried) > 1 else ""
      raise errors.UserError(
        f"{scheme}: root={root} is not a directory{where}."
      )
    bases = [found]
  roots = []
  for base in bases:
    below = (os.path.join(base, name) for name in folders)
    roots += [base, *filter(places.is_folder, below)]
  return ImageFiles(
    tuple(dict.fromkeys(roots)),
    follow_links=disk.follows_links(options),
    flat=flat,
  )
