"""Messages about copies: of where they were made, in place of where they lie.

Beside each copy stands the folder of its address, so that messages can be
translated wherever they come from, also from other processes.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

from clip_jax import errors, kept_files

FOLDER = "buckets"  # Of the user's cache.
_COPY = r"/([0-9a-f]{16}-(?:read|data|watch|run\d+))(?=/)"


class OnDiskError(errors.UserError):
  """An error whose message names a copy, and means it."""


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
  """Has errors of the disk, in writing the copy at `path`, say what to do.

  Raises:
    OnDiskError: in place of an OSError; a file that is missing stays one.
  """
  try:
    yield
  except FileNotFoundError:  # Maybe of an object.
    raise
  except OSError as error:
    said = error.strerror or errors.first_line(error)
    raise OnDiskError(
      f"{said}: {error.filename or path}. There lie copies of what buckets "
      "hold; free some space, or set XDG_CACHE_HOME to a folder that can be "
      "written."
    ) from error


def note(address: str, path: pathlib.Path) -> None:
  """Notes what the copy at `path` is a copy of."""
  file = path.parent.with_suffix(".address")
  folder = address.rpartition("/")[0]
  # Without it, a message names the copy.
  with contextlib.suppress(OSError):
    if not file.exists() or file.read_text() != folder:
      file.write_text(folder)


def named(text: str) -> str:
  """Returns a message with addresses in place of the paths of their copies."""
  root = kept_files.folder(FOLDER)
  for place in {str(root), os.path.realpath(root)}:
    if place in text:
      text = re.sub(re.escape(place) + _COPY, _folder_of(root), text)
  return text


def _folder_of(root: pathlib.Path):
  def folder(match: re.Match[str]) -> str:
    try:
      return (root / f"{match[1]}.address").read_text()
    except (OSError, ValueError):
      return match[0]

  return folder


@contextlib.contextmanager
def in_errors() -> Iterator[None]:
  """Has the errors of the block name addresses."""
  try:
    yield
  except OnDiskError:
    raise
  except errors.UserError as error:
    said = str(error)
    if (told := named(said)) != said:
      error.args = (told,)
    raise
