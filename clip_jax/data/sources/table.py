"""Pairs in a table: a comma- or tab-separated file with a header line.

Known without options: `filepath`, `title` (OpenCLIP) and `image`, `caption`
(Flickr8k's captions.txt, whose images lie beside it or in `Images/`). Rows of
the same image become one record with several texts, at the place of the first.

Options:
  image, caption: names of the columns.
  root: directory of the images, seen from the table's or else from the working
    directory; the table's by default.
  sep: comma, tab, pipe or semicolon; by default a tab where the header has one.
  quote: none, where a double quote is a letter like others.
"""

import csv
import hashlib
import os
from collections.abc import Iterator

import numpy as np

from clip_jax import errors
from clip_jax.data import record as record_lib
from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import folder, strings

SEPARATORS = {"comma": ",", "tab": "\t", "pipe": "|", "semicolon": ";"}
IMAGE_COLUMNS = ("filepath", "image")
CAPTION_COLUMNS = ("title", "caption")
QUOTES = ("none",)
_IMAGE_FOLDERS = ("Images", "images")


class Table:
  """Records of a table of image paths and captions."""

  class_names = templates = None

  def __init__(self, roots: tuple[str, ...], pairs: Iterator[tuple[str, str]]):
    """Groups `pairs` of image path and caption.

    Args:
      roots: directories that relative paths are tried in, in this order.
      pairs: as they stand in the table.
    """
    texts: dict[str, list[str]] = {}
    for image, caption in pairs:
      texts.setdefault(image, []).append(caption)
    self._roots = roots
    self.names = self._images = strings.Strings(texts)
    # Record i has the texts from bound i to bound i + 1.
    self._bounds = np.cumsum([0, *map(len, texts.values())])
    self._texts = strings.Strings(
      caption for captions in texts.values() for caption in captions
    )
    digest = hashlib.sha256(self._images.tobytes())
    digest.update(self._bounds.tobytes() + self._texts.tobytes())
    self.fingerprint = digest.hexdigest()

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, index: int) -> record_lib.Record:
    if not 0 <= index < len(self):
      raise IndexError(index)
    key = self._images[index]
    if not key:
      raise record_lib.BadRecord("missing_image", key=f"record {index}")
    if record_lib.has_control(key):
      raise record_lib.BadRecord("unsafe_name", key)
    first, end = self._bounds[index : index + 2].tolist()
    pieces = (self._texts[i] for i in range(first, end))
    texts = captions_lib.checked(pieces, key=key)
    image = folder.read_image(self._find(key), key=key)
    return record_lib.Record(image=image, texts=texts, key=key)

  def _find(self, image: str) -> str:
    paths = [os.path.join(root, image) for root in self._roots]
    return next(filter(os.path.exists, paths), paths[0])


def open_table(path: str, options: dict[str, str]) -> Table:
  """Opens the table at `path`; the module says what the options are."""
  path = os.path.expanduser(path)
  if not os.path.isfile(path):
    raise errors.UserError(f"csv:{path} is not a file.")
  directory = os.path.dirname(path)
  if "root" in options:
    root = os.path.expanduser(options["root"])
    places = (os.path.join(directory, root), root)
    roots = tuple(filter(os.path.isdir, places))[:1]
    if not roots:
      raise errors.UserError(
        f"csv: root={root} is not a directory, neither beside {path} nor in "
        "the working directory."
      )
  else:
    beside = (os.path.join(directory, name) for name in _IMAGE_FOLDERS)
    roots = (directory, *filter(os.path.isdir, beside))
  table = Table(roots, _read_pairs(path, options))
  if not len(table):
    raise errors.UserError(f"csv:{path} has a header and no rows.")
  return table


def _read_pairs(
  path: str, options: dict[str, str]
) -> Iterator[tuple[str, str]]:
  try:
    # A byte that is not UTF-8 spoils its own row only (see `Table`).
    with open(
      path, encoding="utf-8-sig", errors="surrogateescape", newline=""
    ) as file:
      yield from _parse(file, path, options)
  except csv.Error as error:
    raise errors.UserError(
      f"csv:{path} cannot be read as a table: {error}. Where double quotes are"
      " letters like others, say so with ?quote=none."
    ) from error


def _parse(
  file, path: str, options: dict[str, str]
) -> Iterator[tuple[str, str]]:
  header = file.readline()
  if not header.strip():
    raise errors.UserError(
      f"csv:{path} is empty; its first line must name the columns, such as"
      " image,caption."
    )
  separator = _separator(header, options.get("sep"))
  quoting = csv.QUOTE_MINIMAL
  if "quote" in options:
    if options["quote"] not in QUOTES:
      raise errors.unknown("value of quote=", options["quote"], QUOTES)
    quoting = csv.QUOTE_NONE
  columns = [
    name.strip() for name in next(csv.reader([header], delimiter=separator), [])
  ]
  image = _column(columns, options.get("image"), IMAGE_COLUMNS, "image", path)
  caption = _column(
    columns, options.get("caption"), CAPTION_COLUMNS, "caption", path
  )
  rows = csv.reader(file, delimiter=separator, quoting=quoting, strict=True)
  for row in rows:
    if not row:
      continue
    name = row[image].strip() if image < len(row) else ""
    text = row[caption] if caption < len(row) else ""
    if caption == len(columns) - 1:
      # Commas of a caption that was not quoted.
      text = separator.join(row[caption:])
    yield name, text


def _separator(header: str, name: str | None) -> str:
  if name is None:
    return "\t" if "\t" in header else ","
  if name not in SEPARATORS:
    raise errors.unknown("value of sep=", name, SEPARATORS)
  return SEPARATORS[name]


def _column(
  columns: list[str],
  wanted: str | None,
  usual: tuple[str, ...],
  option: str,
  path: str,
) -> int:
  for name in usual if wanted is None else (wanted,):
    if name in columns:
      return columns.index(name)
  looked_for = " or ".join(map(repr, usual if wanted is None else (wanted,)))
  raise errors.UserError(
    f"csv:{path} has no column {looked_for}; its columns are"
    f" {', '.join(map(repr, columns))}. Name the right one with"
    f" ?{option}=COLUMN (and sep= if the separator is another)."
  )
