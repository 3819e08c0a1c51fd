"""The files of a folder: which are images and texts, and how one is read."""

import dataclasses
import hashlib

from clip_jax import errors, places
from clip_jax.data import account as account_lib
from clip_jax.data import record as record_lib
from clip_jax.data.sources import disk, naming, strings

# Kinds of files.
IMAGES = (naming.IMAGE, naming.UNREAD_IMAGE)
TEXTS = (naming.TEXT, naming.JSON)


@dataclasses.dataclass(frozen=True)
class Listing:
  """The files below a folder, by their names relative to it.

  Attributes:
    root: the folder.
    within: where links may lead; None for anywhere.
    images: sorted; those in formats that are not read, too.
    texts: sorted `.txt` and `.json` files.
    account: what is neither.
  """

  root: str
  within: str | None
  images: list[str]
  texts: list[str]
  account: account_lib.Account


def list_files(scheme: str, path: str, options: dict[str, str]) -> Listing:
  """Lists the folder at `path`; of the options it reads `links`.

  Raises:
    UserError: it is no folder, or there is no image in it.
  """
  root = places.expanded(path)
  if not places.is_folder(root):
    raise errors.UserError(
      f"{scheme}:{path} is not a directory; check the path"
      f"{places.starting_point(root)}.{errors.beside(root)}"
    )
  within = None if disk.follows_links(options) else root
  account = account_lib.Account()
  names = sorted(disk.walk(root, account, within=within))
  kinds = {name: kind(name) for name in names}
  images = [name for name, of in kinds.items() if of in IMAGES]
  texts = [name for name, of in kinds.items() if of in TEXTS]
  for name, of in kinds.items():
    if of in (None, naming.LABEL):
      account.left_out.add(name)
    elif of == naming.UNREAD_IMAGE:
      account.unread.add(name)
  if images:
    return Listing(root, within, images, texts, account)
  seen = [*texts, *account.left_out.first_names()][:3]
  if not seen and account.notes:  # Of links that are not followed.
    raise errors.UserError(
      f"{scheme}:{path} holds no images. {' '.join(account.notes)}"
    )
  raise errors.UserError(
    f"{scheme}:{path} holds no images (files that end in"
    f" {', '.join(naming.IMAGE_SUFFIXES[:9])} and the like)"
    + (f", but for example {disk.listed(seen)}." if seen else "; it is empty.")
  )


def kind(name: str) -> int | None:
  """Returns a file's kind by its name (naming.py); None if it is not read."""
  part = naming.split(name)
  return None if part is None else part.kind


def read_image(path: str, name: str, *, key: str, within: str | None) -> bytes:
  """Reads the image `name`; raises `BadRecord` where it cannot."""
  if record_lib.is_unsafe(name):
    raise record_lib.BadRecord("unsafe_name", key)
  if kind(name) == naming.UNREAD_IMAGE:
    raise record_lib.BadRecord("unsupported_image", key)
  return disk.read_image(path, key=key, within=within)


def digest(what: str, *lists: strings.Strings) -> str:
  """Returns the fingerprint of lists of names, read as `what` says."""
  found = hashlib.sha256(what.encode())
  for names in lists:
    found.update(names.tobytes())
  return found.hexdigest()
