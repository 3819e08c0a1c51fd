"""Pairs in a table: a comma- or tab-separated file with a header line.

Known without options, in any capitals: `filepath`, `title` (OpenCLIP), `image`,
`caption` (Flickr8k's captions.txt, whose images lie beside it or in `Images/`)
and `image_name`, `comment` (Flickr30k's results.csv). Rows of the same image
become one record with several texts, at the place of the first.

Options:
  image, caption: names of the columns.
  root: directory of the images, seen from the table's or else from the working
    directory; the table's by default.
  sep: comma, tab, pipe or semicolon; by default a tab where the header has one,
    and a pipe or a semicolon where it has neither tab nor comma. A first line
    such as `sep=;`, which spreadsheets write, says it too.
  quote: none, where a double quote is a letter like others.
  links: follow, where symbolic links may lead out of the images' directory.

A table is UTF-8, or UTF-16 where it looks like it, which is told.
"""

import contextlib
import csv
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from typing import TextIO

import numpy as np

from clip_jax import errors, regular_files, terminal
from clip_jax.data import account as account_lib
from clip_jax.data import record as record_lib
from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import image_files, strings

SEPARATORS = {"comma": ",", "tab": "\t", "pipe": "|", "semicolon": ";"}
IMAGE_COLUMNS = ("filepath", "image", "image_name")
CAPTION_COLUMNS = ("title", "caption", "comment")
_BY_DEFAULT = ("\t", ",", "|", ";")  # The first that the header has.
QUOTES = ("none",)
_IMAGE_FOLDERS = ("Images", "images")
# By the first bytes. The longer mark goes first.
_UTF_32, _UTF_16 = (
  (b"\xff\xfe\0\0", b"\0\0\xfe\xff"),
  (b"\xff\xfe", b"\xfe\xff"),
)
_MAX_FIELD = 2**31 - 1  # What a C long holds everywhere.


class Table:
  """Records of a table of image paths and captions.

  Attributes:
    account: notes on how the table was read.
  """

  class_names = templates = None

  def __init__(
    self,
    images: image_files.ImageFiles,
    pairs: Iterable[tuple[str, str | None]],
    *,
    notes: list[str],
  ):
    """Groups `pairs` of image path and caption.

    Args:
      images: reads them.
      pairs: as they stand in the table; a caption that is too long is None.
      notes: for the account; may grow while `pairs` are taken.
    """
    texts: dict[str | int, list[str]] = {}  # By number where no image is named.
    for number, (image, caption) in enumerate(pairs):
      captions = texts.setdefault(image or number, [])
      if caption is not None:
        captions.append(caption)
    self.account = account_lib.Account(notes=notes)
    self._images = images
    self.names = strings.Strings(
      image if isinstance(image, str) else "" for image in texts
    )
    # Record i has the texts from bound i to bound i + 1.
    self._bounds = np.cumsum([0, *map(len, texts.values())])
    self._texts = strings.Strings(
      caption for captions in texts.values() for caption in captions
    )
    digest = hashlib.sha256(self.names.tobytes())
    digest.update(self._bounds.tobytes() + self._texts.tobytes())
    self.fingerprint = digest.hexdigest()

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> record_lib.Record:
    if not 0 <= index < len(self):
      raise IndexError(index)
    key = self.names[index]
    if not key:
      raise record_lib.BadRecord("missing_image", key=f"record {index}")
    if record_lib.has_control(key):
      raise record_lib.BadRecord("unsafe_name", key)
    first, end = self._bounds[index : index + 2].tolist()
    if first == end:
      raise record_lib.BadRecord("too_large", key)
    pieces = (self._texts[i] for i in range(first, end))
    texts = captions_lib.checked(pieces, key=key)
    return record_lib.Record(image=self._images.read(key), texts=texts, key=key)


def open_table(path: str, options: dict[str, str]) -> Table:
  """Opens the table at `path`; the module says what the options are."""
  path = os.path.expanduser(path)
  if not os.path.isfile(path):
    raise errors.UserError(
      f"csv:{path} is not a file.{errors.beside(path)} Check the path, which "
      "is taken from the working directory."
    )
  images = image_files.open_files(
    [os.path.dirname(path)], options, scheme="csv", folders=_IMAGE_FOLDERS
  )
  notes: list[str] = []
  table = Table(images, read_pairs(path, options, notes), notes=notes)
  if not len(table):
    raise errors.UserError(f"csv:{path} has a header and no rows.")
  return table


def read_pairs(
  path: str, options: dict[str, str], notes: list[str]
) -> Iterator[tuple[str, str | None]]:
  """Yields image path and caption of each row, None where it is too long.

  Args:
    path: of the table.
    options: the module says which.
    notes: grow by what is to be told of the table.

  Raises:
    UserError: it cannot be read as a table.
  """
  with open_text(path, notes) as file, _long_fields():
    yield from _parse(file, path, options, notes)


def open_text(path: str, notes: list[str]) -> TextIO:
  """Opens a table in its encoding; one byte spoils its own row only."""
  file = regular_files.open_regular(path)
  head = file.read(64)
  file.seek(0)
  undecodable = "replace"
  if head.startswith(_UTF_32):
    encoding = "utf-32"
  elif head.startswith(_UTF_16):
    encoding = "utf-16"
  elif 2 * head[1::2].count(0) > len(head[1::2]):  # Nearly all is ASCII.
    encoding = "utf-16-le"
  elif 2 * head[::2].count(0) > len(head[::2]):
    encoding = "utf-16-be"
  else:
    encoding, undecodable = "utf-8-sig", "surrogateescape"
  if encoding != "utf-8-sig":
    notes.append(
      f"The table is read as {encoding.upper()}, by its first bytes."
    )
  return io.TextIOWrapper(file, encoding, undecodable, newline="")


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
  """Lets a field that is too long make its row bad, not the whole table."""
  before = csv.field_size_limit(_MAX_FIELD)
  try:
    yield
  finally:
    csv.field_size_limit(before)


def _parse(
  file: TextIO, path: str, options: dict[str, str], notes: list[str]
) -> Iterator[tuple[str, str | None]]:
  header = file.readline()
  if not header.strip():
    raise errors.UserError(
      f"csv:{path} is empty; its first line must name the columns, such as"
      " image,caption."
    )
  if record_lib.has_control("".join(header.split())):
    raise errors.UserError(
      f"csv:{path} is no text: it begins with "
      f"'{terminal.escaped(header, limit=40)}'. "
      "Unpack it where it is compressed, and save other kinds of tables as CSV."
    )
  declared = re.fullmatch(r"\s*sep=([,;|\t])\s*", header)
  if declared:
    header = file.readline()
  separator = _separator(
    header, options.get("sep"), declared.group(1) if declared else None
  )
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
  silent: list[str] = []  # Images of rows without a caption.
  longer: list[int] = []  # Rows with more fields than the header.
  for number, row in enumerate(_watched(rows, path, separator, notes), 1):
    if len(row) > len(columns) and caption < len(columns) - 1:
      longer.append(number)
    name = row[image].strip() if image < len(row) else ""
    text = row[caption] if caption < len(row) else ""
    if caption == len(columns) - 1:
      # Commas of a caption that was not quoted.
      text = separator.join(row[caption:])
    if len(name) > captions_lib.MAX_TEXT_BYTES:
      name = ""
    if not text.strip():
      silent.append(name)
    yield name, text if len(text) <= captions_lib.MAX_TEXT_BYTES else None

  if longer:
    rows_have = "1 row has" if len(longer) == 1 else f"{len(longer)} rows have"
    notes.append(
      f"{rows_have} more fields than the header's {len(columns)}, the first is "
      f"row {longer[0]}, and what comes after a separator within a field is "
      "lost; put such fields in quotes, or name another separator by ?sep=."
    )
  if silent:
    rows_are = "1 row has" if len(silent) == 1 else f"{len(silent)} rows have"
    notes.append(
      f"{rows_are} no caption, the first for the image "
      f"'{terminal.escaped(silent[0], limit=80)}'; only its other rows count."
    )


def _watched(
  rows, path: str, separator: str, notes: list[str]
) -> Iterator[list[str]]:
  """Yields the rows that are not empty; tells of quotes that may be letters.

  A quote that opens a caption swallows what follows, up to the next one.
  """
  suspects, number, first = 0, 0, ""
  try:
    start = 2  # The header is line 1.
    for row in rows:
      number, end = number + bool(row), rows.line_num + 1
      # An ordinary quoted field may have several lines, or the separator.
      if end > start and any(
        separator in field and ("\n" in field or "\r" in field) for field in row
      ):
        suspects += 1
        first = first or f"Row {number} (lines {start} to {end})"
      start = end + 1
      if row:
        yield row
  except csv.Error as error:
    raise errors.UserError(
      f"csv:{path} cannot be read as a table: {error} (line "
      f"{rows.line_num + 1}, after row {number}). Where double quotes are"
      " letters like others, say so with ?quote=none."
    ) from error
  if suspects:
    more = f", and so have {suspects - 1} more rows" if suspects > 1 else ""
    notes.append(
      f"{first} has a quoted field that spans lines and contains the separator"
      f"{more}. If that is several rows, double quotes are letters here: add "
      "?quote=none to the address."
    )


def _separator(header: str, name: str | None, declared: str | None) -> str:
  if name is None:
    if declared is not None:
      return declared
    return next((one for one in _BY_DEFAULT if one in header), ",")
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
  folded = [column.casefold() for column in columns]
  for name in usual if wanted is None else (wanted,):
    if name in columns:
      return columns.index(name)
    if folded.count(name.casefold()) == 1:
      return folded.index(name.casefold())
  looked_for = " or ".join(map(repr, usual if wanted is None else (wanted,)))
  raise errors.UserError(
    f"csv:{path} has no column {looked_for}; its columns are"
    f" {', '.join(map(repr, columns))}. Name the right one with"
    f" ?{option}=COLUMN (and sep= if the separator is another)."
  )
