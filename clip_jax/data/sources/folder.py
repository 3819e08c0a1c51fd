"""Image files in a folder, with classes or with captions beside them.

- classes: `PATH/CLASS/**/IMAGE`; the label is the position of CLASS among the
  sorted names, numbers by their value, and its name, with "_" read as a space,
  is the text.
- captions: `PATH/**/KEY.jpg` with `KEY.txt` or `KEY.json` beside it, as
  img2dataset writes "files".

A folder where at least half of the images have a `.txt` or `.json` file of
their name beside them has captions, one where fewer have any has classes, and
so has one where class folders hold numbers instead of captions; `?layout=` says
it instead. Symbolic links that lead out of the folder are bad records, and
folders that they lead to are told and not read, unless `?links=follow` allows
them.
"""

import dataclasses
import os
import re
from collections.abc import Iterator

import numpy as np

from clip_jax import buckets, errors, terminal
from clip_jax.data import account as account_lib
from clip_jax.data import record as record_lib
from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import (
  classified,
  disk,
  folder_files,
  images_alone,
  naming,
  split_names,
  strings,
)

LAYOUTS = ("classes", "captions")
# So many files are read to see whether they hold captions.
_LOOKED_AT = 16
_NUMBERS = re.compile(rb"[\s\d.,;:+eE-]*")


class ClassFolder(images_alone.ImagesAlone):
  """Images in folders that are named after their classes."""

  class_names: tuple[str, ...]

  def __init__(
    self,
    root: str,
    names: list[str],
    *,
    account: account_lib.Account,
    within: str | None,
  ):
    super().__init__(root, names, account=account, within=within)
    directories = classified.in_order({name.split(os.sep)[0] for name in names})
    self.class_names = tuple(map(_class_name, directories))
    self._labels = {name: label for label, name in enumerate(directories)}
    self.fingerprint = folder_files.digest("classes", self.names)

  def labels(self) -> np.ndarray:
    """Returns the labels of all records, int64 (n,); reads no image."""
    tops = (name.split(os.sep)[0] for name in self.names)
    return np.fromiter(map(self._labels.__getitem__, tops), np.int64)

  def __getitem__(self, index: int) -> record_lib.Record:
    record = super().__getitem__(index)
    label = self._labels[record.key.split(os.sep)[0]]
    return dataclasses.replace(
      record, texts=(self.class_names[label],), label=label
    )


class CaptionFolder:
  """Images with a text or JSON file of the same name beside them."""

  class_names = templates = None

  def __init__(
    self,
    root: str,
    names: list[str],
    *,
    captions: str | None,
    account: account_lib.Account,
    within: str | None,
  ):
    grouped: dict[str, list[str]] = {}
    for name in names:
      stem, suffix = os.path.splitext(name)
      grouped.setdefault(stem, []).append(suffix.removeprefix("."))
    self.account = account
    self._root = root
    self._within = within
    self._captions = captions_lib.check_choice(captions or "text")
    self.names = self._keys = strings.Strings(grouped)
    self._suffixes = strings.Strings(map(" ".join, grouped.values()))
    self.fingerprint = folder_files.digest(
      self._captions, self._keys, self._suffixes
    )
    if captions is None:
      account.notes.extend(
        captions_lib.propose_lines(self._text, slots=len(self), place=root)
      )

  def __len__(self) -> int:
    return len(self._keys)

  def __getitem__(self, index: int) -> record_lib.Record:
    if not 0 <= index < len(self):
      raise IndexError(index)
    key = self._keys[index]
    images = self._named(index, folder_files.IMAGES)
    if len(images) != 1:
      reason = "several_images" if images else "missing_image"
      raise record_lib.BadRecord(reason, key)
    # Such as a.txt and a.TXT: nothing says which of them counts.
    if any(len(self._named(index, (kind,))) > 1 for kind in folder_files.TEXTS):
      raise record_lib.BadRecord("several_captions", key)
    texts = self._texts(index, key)
    path = os.path.join(self._root, images[0])
    image = folder_files.read_image(
      path, images[0], key=key, within=self._within
    )
    return record_lib.Record(image=image, texts=texts, key=key, path=path)

  def _named(self, index: int, kinds: tuple[int, ...]) -> list[str]:
    """Returns the files of a slot that are of one of `kinds`."""
    key = self._keys[index]
    names = [f"{key}.{s}" for s in self._suffixes[index].split(" ")]
    return [name for name in names if folder_files.kind(name) in kinds]

  def _texts(self, index: int, key: str) -> tuple[str, ...]:
    if (text := self._text(index)) is not None:
      return captions_lib.from_text(text, key=key, captions=self._captions)
    for name in self._named(index, (naming.JSON,)):
      return captions_lib.from_json(self._read(name, key), key=key)
    raise record_lib.BadRecord("missing_caption", key)

  def _text(self, index: int) -> bytes | None:
    """Returns the bytes of a slot's `.txt`, where it has one."""
    for name in self._named(index, (naming.TEXT,)):
      return self._read(name, self._keys[index])
    return None

  def _read(self, name: str, key: str) -> bytes:
    return disk.read_file(
      os.path.join(self._root, name),
      key=key,
      limit=captions_lib.MAX_TEXT_BYTES,
      within=self._within,
    )


def open_folder(
  path: str, options: dict[str, str]
) -> ClassFolder | CaptionFolder:
  """Opens a folder; options: `layout`, `links`, `captions` (captions.py)."""
  layout = options.get("layout")
  if layout is not None and layout not in LAYOUTS:
    raise errors.unknown("value of layout=", layout, LAYOUTS)
  if "captions" in options:
    captions_lib.check_choice(options["captions"])
  found = folder_files.list_files("folder", path, options)
  root, within, account = found.root, found.within, found.account
  images, texts = found.images, found.texts
  if layout is None:
    layout = _decide(root, images, texts, account.notes, within=within)
  splits = [*_note_splits(path, images, layout)]
  account.notes.extend(splits)
  if layout == "captions":
    return CaptionFolder(
      root,
      sorted(images + texts),
      captions=options.get("captions"),
      account=account,
      within=within,
    )
  for name in texts:
    account.left_out.add(name)
  account.notes.extend(_note_empty(root, images))
  if not splits:
    account.notes.extend(_note_deeper(path, images))
  if outside := [name for name in images if os.sep not in name]:
    raise errors.UserError(
      f"folder:{path} holds images outside of a class folder, such as "
      f"{disk.listed(outside[:1])}. Put each class into a folder of its own, "
      "or a .txt file with the caption beside each image. Images that are only "
      f"searched need neither: give `clip-jax embed` images:{path}."
    )
  source = ClassFolder(root, images, account=account, within=within)
  if len(source.class_names) == 1 and not splits:
    name = terminal.escaped(source.class_names[0], limit=80)
    account.notes.append(
      f"All images are of one class, '{name}', which leaves nothing to tell "
      "apart."
    )
  return source


def _decide(
  root: str,
  images: list[str],
  texts: list[str],
  notes: list[str],
  *,
  within: str | None,
) -> str:
  """Returns the layout; adds to `notes` why, where it could be the other."""
  beside = {os.path.splitext(name)[0]: name for name in texts}
  stems = [os.path.splitext(name)[0] for name in images]
  named = [beside[stem] for stem in stems if stem in beside]
  if not named:
    return "classes"
  them = terminal.noun(len(named), "it", "them")
  count = (
    f"{len(named)} of {terminal.counted(len(images), 'image')} "
    f"{terminal.noun(len(named), 'has', 'have')} a .txt or .json file"
  )
  in_folders = all(os.sep in name for name in images)
  if in_folders and 2 * len(named) < len(images):
    notes.append(
      f"{count} beside {them}, so folders are read as classes; add "
      "?layout=captions to the address to read captions."
    )
    return "classes"
  if in_folders and not _hold_captions(root, named, within):
    notes.append(
      f"{count} beside {them}, but those looked into hold no captions, so "
      "folders are read as classes; add ?layout=captions to the address to "
      "read captions."
    )
    return "classes"
  if len(named) < len(images):
    outside = [name for name in images if os.sep not in name]
    other = "; add ?layout=classes to the address to read folders as classes"
    if 2 * len(outside) > len(images):
      other = ""
    elif outside:
      other += f", once {disk.listed(outside[:1])} lies in one, too"
    notes.append(
      f"{count} beside {them}, so captions are read, and the others are bad "
      f"records{other}."
    )
  return "captions"


def _hold_captions(root: str, names: list[str], within: str | None) -> bool:
  """Whether there is a caption in the first of the files `names`.

  Numbers alone, such as those of boxes beside images, are none.
  """
  limit = captions_lib.MAX_TEXT_BYTES
  for name in names[:_LOOKED_AT]:
    try:
      data = disk.read_file(
        os.path.join(root, name), key=name, limit=limit, within=within
      )
      if folder_files.kind(name) == naming.JSON:
        captions_lib.from_json(data, key=name)
        return True
    except record_lib.BadRecord:
      continue
    if not _NUMBERS.fullmatch(data):
      return True
  return False


def _note_splits(path: str, images: list[str], layout: str) -> Iterator[str]:
  """Yields a sentence where folders are named like the splits of a data set."""
  parts = [name.split(os.sep) for name in images]
  for depth in range(max(map(len, parts)) - 1):
    splits = {
      os.sep.join(p[: depth + 1])
      for p in parts
      if len(p) > depth + 1 and split_names.is_usual(p[depth])
    }
    # So deep, one alone may be what is in the pictures, as a train is.
    if depth > 1 and len({os.path.basename(s).lower() for s in splits}) < 2:
      continue
    nested = {os.sep.join(p[: depth + 1]) for p in parts if len(p) > depth + 2}
    if len(splits) > 1 or splits & nested:
      first = sorted(splits)[0]
      read = "together" if depth or layout == "captions" else "as classes"
      yield (
        "Folders that are named like splits, "
        f"{disk.listed(sorted(splits)[:5])}, are read {read}; "
        f"folder:{os.path.join(path, first)} reads one of them."
      )
      return


def _note_deeper(path: str, images: list[str]) -> Iterator[str]:
  """Yields a sentence where folders within the class folders may be classes.

  One folder of the same name in each, such as `images`, is none.
  """
  parts = [name.split(os.sep) for name in images]
  inner = {p[1] for p in parts if len(p) > 2}
  deeper = sorted({os.sep.join(p[:2]) for p in parts if len(p) > 2})
  if len(inner) > 1 and 2 * sum(len(p) > 2 for p in parts) > len(parts):
    above = deeper[0].split(os.sep)[0]
    yield (
      f"Most images lie in folders within the class folders, such as "
      f"{disk.listed(deeper[:2])}, and their class is the folder above, "
      f"{disk.listed([above])}. Where the folders within are the classes, give "
      f"folder:{os.path.join(path, above)}, or move them up."
    )


def _class_name(directory: str) -> str:
  """Returns a directory's name as text; bytes that are no UTF-8 become "�"."""
  name = directory.encode("utf-8", "surrogateescape")
  return captions_lib.spaced(name.decode("utf-8", "replace"))


def _note_empty(root: str, images: list[str]) -> Iterator[str]:
  """Yields a sentence that names the class folders without an image.

  Links to folders are told by `disk.walk`.
  """
  classes = {name.split(os.sep)[0] for name in images}
  if buckets.is_address(root):  # Where a folder without objects is none.
    return
  with os.scandir(root) as entries:
    empty = sorted(
      entry.name
      for entry in entries
      if entry.is_dir(follow_symlinks=False)
      if not disk.is_hidden(entry.name)
      if entry.name not in classes
    )
  if empty:
    more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
    named = disk.listed(empty[:5])
    yield f"Folders without an image are no classes: {named}{more}."
