"""Image files in a folder, with classes or with captions beside them.

- classes: `PATH/CLASS/**/IMAGE`; the label is the position of CLASS among the
  sorted names, and its name, with "_" read as a space, is the text.
- captions: `PATH/**/KEY.jpg` with `KEY.txt` or `KEY.json` beside it, as
  img2dataset writes "files".

A folder where a `.txt` or `.json` file is named like an image beside it has
captions, unless `?layout=classes` says otherwise. Symbolic links that lead out
of the folder are bad records, unless `?links=follow` allows them.
"""

import errno
import hashlib
import os
from collections.abc import Iterator

from clip_jax import errors, regular_files
from clip_jax.data import record as record_lib
from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import strings

LAYOUTS = ("classes", "captions")
LINKS = ("follow",)
_MAX_IMAGE_BYTES = 64 * 2**20
_TEXT_SUFFIXES = ("txt", "json")


class ClassFolder:
  """Images in folders that are named after their classes."""

  templates = None

  def __init__(self, root: str, names: list[str], *, within: str | None):
    directories = sorted({name.split(os.sep)[0] for name in names})
    self.class_names = tuple(name.replace("_", " ") for name in directories)
    self._root = root
    self._within = within
    self._labels = {name: label for label, name in enumerate(directories)}
    self._names = strings.Strings(names)
    self.fingerprint = _digest("classes", self._names)

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> record_lib.Record:
    if not 0 <= index < len(self):
      raise IndexError(index)
    name = self._names[index]
    label = self._labels[name.split(os.sep)[0]]
    return record_lib.Record(
      image=read_image(
        os.path.join(self._root, name), key=name, within=self._within
      ),
      texts=(self.class_names[label],),
      key=name,
      label=label,
    )


class CaptionFolder:
  """Images with a text or JSON file of the same name beside them."""

  class_names = templates = None

  def __init__(
    self, root: str, names: list[str], *, captions: str, within: str | None
  ):
    grouped: dict[str, list[str]] = {}
    for name in names:
      stem, suffix = os.path.splitext(name)
      grouped.setdefault(stem, []).append(suffix.removeprefix("."))
    self._root = root
    self._within = within
    self._captions = captions_lib.check_choice(captions)
    self._keys = strings.Strings(grouped)
    self._suffixes = strings.Strings(map(" ".join, grouped.values()))
    self.fingerprint = _digest(captions, self._keys, self._suffixes)

  def __len__(self) -> int:
    return len(self._keys)

  def __getitem__(self, index: int) -> record_lib.Record:
    if not 0 <= index < len(self):
      raise IndexError(index)
    key = self._keys[index]
    suffixes = self._suffixes[index].split(" ")
    images = [s for s in suffixes if s.lower() in captions_lib.IMAGE_SUFFIXES]
    if len(images) != 1:
      reason = "several_images" if images else "missing_image"
      raise record_lib.BadRecord(reason, key)
    path = os.path.join(self._root, key)
    texts = self._texts(path, key, suffixes)
    image = read_image(f"{path}.{images[0]}", key=key, within=self._within)
    return record_lib.Record(image=image, texts=texts, key=key)

  def _texts(self, path: str, key: str, suffixes: list[str]) -> tuple[str, ...]:
    how = {"limit": captions_lib.MAX_TEXT_BYTES, "within": self._within}
    if "txt" in suffixes:
      data = read_file(f"{path}.txt", key=key, **how)
      return captions_lib.from_text(data, key=key, captions=self._captions)
    if "json" in suffixes:
      data = read_file(f"{path}.json", key=key, **how)
      return captions_lib.from_json(data, key=key)
    raise record_lib.BadRecord("missing_caption", key)


def open_folder(
  path: str, options: dict[str, str]
) -> ClassFolder | CaptionFolder:
  """Opens a folder; options: `layout`, `links`, `captions` (captions.py)."""
  root = os.path.expanduser(path)
  if not os.path.isdir(root):
    raise errors.UserError(
      f"folder:{path} is not a directory; check the path, which is taken from"
      " the working directory."
    )
  layout = options.get("layout")
  if layout is not None and layout not in LAYOUTS:
    raise errors.unknown("value of layout=", layout, LAYOUTS)
  within = None if follows_links(options) else root
  found = {
    suffixes: sorted(_walk(root, suffixes))
    for suffixes in (captions_lib.IMAGE_SUFFIXES, _TEXT_SUFFIXES)
  }
  images = found[captions_lib.IMAGE_SUFFIXES]
  texts = found[_TEXT_SUFFIXES]
  if not images:
    raise errors.UserError(
      f"folder:{path} holds no images (files that end in"
      f" {', '.join(captions_lib.IMAGE_SUFFIXES)})."
    )
  stems = {os.path.splitext(name)[0] for name in images}
  captioned = any(os.path.splitext(name)[0] in stems for name in texts)
  if layout == "captions" or (layout is None and captioned):
    names = sorted(images + texts)
    return CaptionFolder(
      root, names, captions=options.get("captions", "text"), within=within
    )
  outside = [name for name in images if os.sep not in name]
  if outside:
    raise errors.UserError(
      f"folder:{path} holds images outside of a class folder, such as"
      f" {outside[0]!r}. Put each class into a folder of its own, or a .txt"
      " file with the caption beside each image."
    )
  return ClassFolder(root, images, within=within)


def follows_links(options: dict[str, str]) -> bool:
  """Returns whether symbolic links may lead out of the data's root."""
  links = options.get("links")
  if links is not None and links not in LINKS:
    raise errors.unknown("value of links=", links, LINKS)
  return links == "follow"


def read_image(path: str, *, key: str, within: str | None) -> bytes:
  """Reads an image file; raises `BadRecord` where it cannot."""
  data = read_file(path, key=key, limit=_MAX_IMAGE_BYTES, within=within)
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
    raise record_lib.BadRecord("link_leads_outside", key) from None
  except ValueError:  # A NUL in the path.
    raise record_lib.BadRecord("read_error", key) from None
  except OSError as error:
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
      raise record_lib.BadRecord("missing_file", key) from None
    if error.errno in (errno.EACCES, errno.EPERM):
      raise record_lib.BadRecord("no_permission", key) from None
    # The disk's fault, not the record's: to replace it would make the batch a
    # matter of luck.
    raise errors.UserError(f"Cannot read {path}: {error.strerror}.") from error
  if len(data) > limit:
    raise record_lib.BadRecord("too_large", key)
  return data


def _walk(root: str, suffixes: tuple[str, ...]) -> Iterator[str]:
  """Yields files below `root` by relative name; follows links, once each."""
  endings = tuple(f".{suffix}" for suffix in suffixes)
  seen = set()
  for directory, subdirectories, names in os.walk(root, followlinks=True):
    real = os.path.realpath(directory)
    if real in seen:
      subdirectories.clear()
      continue
    seen.add(real)
    subdirectories[:] = [s for s in subdirectories if not s.startswith(".")]
    for name in names:
      if name.lower().endswith(endings) and not name.startswith("."):
        yield os.path.relpath(os.path.join(directory, name), root)


def _digest(kind: str, *lists: strings.Strings) -> str:
  digest = hashlib.sha256(kind.encode())
  for names in lists:
    digest.update(names.tobytes())
  return digest.hexdigest()
