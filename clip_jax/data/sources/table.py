"""Pairs in a table: a comma- or tab-separated file with a header line.

Known without options, in any capitals: `filepath`, `title` (OpenCLIP), `image`,
`caption` (Flickr8k's captions.txt, whose images lie beside it or in `Images/`),
`image_name`, `comment` (Flickr30k's results.csv) and `file_name`, `text` (the
hub's metadata.csv), and the other names of `IMAGE_COLUMNS`. Rows of the same
image become one record with several texts, at the place of the first.

Options:
  image, caption: names of the columns.
  label: in place of `caption`, the column with the name of each image's class.
    An image with rows of several classes is of all of them.
  root: the directory of the images, relative to that of the table or else the
    working directory; by default that of the table.
  sep: comma, tab, pipe or semicolon; by default a tab where the header has one,
    and a pipe or a semicolon where it has neither tab nor comma. A first line
    such as `sep=;`, which spreadsheets write, says it too.
  quote: none, where a double quote is a letter like others.
  links: follow, where symbolic links may lead out of the images' directory.

A table is UTF-8, or UTF-16 where it looks like it, which is told.
"""

import codecs
import csv
import functools
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from typing import TextIO

import numpy as np

from clip_jax import errors, places, regular_files, terminal, whole_files
from clip_jax.data import account as account_lib
from clip_jax.data import record as record_lib
from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import (
  classified,
  grouping,
  image_files,
  kept_index,
  open_files,
  strings,
  table_columns,
  table_lines,
  table_rows,
)

SEPARATORS = {"comma": ",", "tab": "\t", "pipe": "|", "semicolon": ";"}
IMAGE_COLUMNS = (
  *("filepath", "image", "image_name", "file_name", "filename"),
  *("image_path", "img_path", "path"),
)
CAPTION_COLUMNS = ("title", "caption", "comment", "text")
_BY_DEFAULT = ("\t", ",", "|", ";")  # The first that the header has.
QUOTES = ("none",)
_READ_BY = ("image", "caption", "label", "sep", "quote")  # Options.
_UTF_8 = "utf-8-sig"
_SPOILED = "clip_jax.spoiled"  # A way to read what is not in an encoding.
_IMAGE_FOLDERS = ("Images", "images")
# By the first bytes. The longer mark goes first.
_UTF_32, _UTF_16 = (
  (b"\xff\xfe\0\0", b"\0\0\xfe\xff"),
  (b"\xff\xfe", b"\xfe\xff"),
)
_MAX_FIELD = 2**31 - 1  # What a C long holds everywhere.


def _spoil(error: UnicodeError) -> tuple[str, int]:
  """Returns, for bytes that are none of UTF-16, what is no text either."""
  assert isinstance(error, UnicodeDecodeError)
  return "\udcff", error.end


codecs.register_error(_SPOILED, _spoil)


class Table:
  """Records of a table of image paths and captions.

  Attributes:
    account: notes on how the table was read.
    names: of the images.
    texts: of all records.
    bounds: record i has the texts from bound i to bound i + 1.
  """

  class_names = templates = None

  def __init__(
    self,
    images: image_files.ImageFiles,
    index: kept_index.Index,
    *,
    file: strings.File | None = None,
  ):
    """Stores what `index_rows` has made.

    Args:
      images: reads them.
      index: of the table.
      file: the table, where names and captions are read from it.
    """
    self.account = account_lib.Account(notes=list(index.facts["notes"]))
    self.fingerprint = index.facts["fingerprint"]
    self._images, self._index, self._file = images, index, file
    self.names, self.texts = _strings(index, file)
    self.bounds = index.arrays["bounds"]

  def __reduce__(self) -> tuple:
    return _remake, (self._images, self._index, self._file)

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
    first, end = self.bounds[index : index + 2].tolist()
    if first == end:
      raise record_lib.BadRecord("too_large", key)
    pieces = (self.texts[i] for i in range(first, end))
    texts = captions_lib.checked(pieces, key=key)
    path, image = self._images.read(key)
    return record_lib.Record(image=image, texts=texts, key=key, path=path)


def _remake(images, index, file) -> Table:
  return Table(images, index, file=file)


def _strings(
  index: kept_index.Index, file: strings.File | None
) -> list[strings.Pieces]:
  """Returns the names of the images, and the captions in their order."""
  return [
    strings.Pieces(
      index.arrays[f"{what}_starts"],
      index.arrays[f"{what}_sizes"],
      file=file,
      beside=index.arrays["beside"],
    )
    for what in ("name", "text")
  ]


def of_pairs(
  images: image_files.ImageFiles,
  pairs: Iterable[tuple[str, str | None]],
  *,
  notes: list[str],
) -> Table:
  """Returns the records of `pairs` of image path and caption.

  Args:
    images: reads them.
    pairs: a caption that is too long is None.
    notes: for the account; may grow while `pairs` are taken.
  """
  collected = table_rows.Collected()
  collected.add_pairs(pairs)
  return Table(images, index_rows(collected, notes, file=None))


def index_rows(
  collected: table_rows.Collected,
  notes: list[str],
  *,
  file: strings.File | None,
) -> kept_index.Index:
  """Groups rows by image; those without one are records by themselves."""
  rows = collected.finish()
  order, bounds = grouping.group(rows.hashes)
  arrays = vars(rows).copy()
  del rows, arrays["hashes"]  # They are most of the memory.
  heads = bounds[:-1] if order is None else order[bounds[:-1]]
  if len(heads) < len(collected):
    for name in ("name_starts", "name_sizes"):
      arrays[name] = arrays[name][heads]
  kept = arrays["text_sizes"] != table_rows.TOO_LONG
  if order is not None:
    kept = kept[order]
  for name in ("text_starts", "text_sizes"):
    if order is not None:
      arrays[name] = arrays[name][order]
    if not kept.all():
      arrays[name] = arrays[name][kept]
  if not kept.all():
    bounds = np.append(0, np.cumsum(kept))[bounds]
  arrays["bounds"] = bounds
  names, texts = _strings(kept_index.Index(arrays, {}), file)
  digest = hashlib.sha256()
  names.update(digest)
  digest.update(bounds.tobytes())
  texts.update(digest)
  some = [texts[i] for i in range(min(len(texts), captions_lib.LOOKED_AT))]
  notes.extend(captions_lib.note_lists(some))
  notes.extend(captions_lib.note_empties(some))
  facts = {"notes": notes, "fingerprint": digest.hexdigest()}
  return kept_index.Index(arrays, facts)


def open_table(
  path: str, options: dict[str, str]
) -> Table | classified.Classified:
  """Opens the table at `path`; the module says what the options are."""
  path = places.expanded(path)
  if not places.is_file(path):
    raise errors.UserError(
      f"csv:{path} is not a file.{errors.beside(path)} Check the path"
      f"{places.starting_point(path)}."
    )
  images = image_files.open_files(
    [os.path.dirname(path)], options, scheme="csv", folders=_IMAGE_FOLDERS
  )
  found = places.status(path)
  file = open_files.SameFile(path, size=found.size, changed_ns=found.changed_ns)
  index = kept_index.keep(
    "table",
    [path],
    {name: options.get(name) for name in _READ_BY},
    functools.partial(_index, path, options, file),
    sampled=True,
  )
  table = Table(images, index, file=file)
  if "label" not in options:
    return table
  return classified.Classified(table, table.texts, table.bounds)


def _index(
  path: str, options: dict[str, str], file: strings.File
) -> kept_index.Index:
  notes: list[str] = []
  collected = table_rows.Collected()
  _allow_long_fields()
  with whole_files.named(path), open_text(path, notes) as text:
    form, header = _form(text, path, options, notes)
    reader = table_rows.Reader(form)
    if text.encoding == _UTF_8:
      text.buffer.seek(0)
      mark = codecs.BOM_UTF8
      begin = len(mark) if text.buffer.read(len(mark)) == mark else 0
      text.buffer.seek(begin + len(strings.encode(header)))
      reader.scan(text.buffer, collected)
    else:
      collected.add_pairs(reader.pairs(text))
  notes.extend(reader.notes())
  if not len(collected):
    raise errors.UserError(f"csv:{path} has a header and no rows.")
  return index_rows(collected, notes, file=file)


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
  _allow_long_fields()
  with whole_files.named(path), open_text(path, notes) as file:
    reader = table_rows.Reader(_form(file, path, options, notes)[0])
    yield from reader.pairs(file)
  notes.extend(reader.notes())


def open_text(path: str, notes: list[str]) -> TextIO:
  """Opens a table in its encoding; one byte spoils its own row only."""
  file = regular_files.open_regular(path)
  try:
    head = file.read(64)
  except OSError:
    file.close()
    raise
  file.seek(0)
  undecodable = _SPOILED
  if head.startswith(_UTF_32):
    encoding = "utf-32"
  elif head.startswith(_UTF_16):
    encoding = "utf-16"
  elif 2 * head[1::2].count(0) > len(head[1::2]):  # Nearly all is ASCII.
    encoding = "utf-16-le"
  elif 2 * head[::2].count(0) > len(head[::2]):
    encoding = "utf-16-be"
  else:
    encoding, undecodable = _UTF_8, "surrogateescape"
  if encoding != _UTF_8:
    notes.append(
      f"The table is read as {encoding.upper()}, by its first bytes."
    )
  return io.TextIOWrapper(file, encoding, undecodable, newline="")


def _allow_long_fields() -> None:
  """Lets a field that is too long make its row bad, not the whole table.

  The limit is the process's and stays: another thread may read a table, too.
  """
  csv.field_size_limit(max(_MAX_FIELD, csv.field_size_limit()))


def _form(
  file: TextIO, path: str, options: dict[str, str], notes: list[str]
) -> tuple[table_lines.Form, str]:
  """Reads the header; returns what it says, and it.

  `notes` grow by which of several columns that might be meant is read.
  """
  header = read = file.readline()
  if not header.strip():
    what = "begins with an empty line" if header else "is empty"
    raise errors.UserError(
      f"csv:{path} {what}; its first line must name the columns, such as"
      " image,caption."
    )
  if header.encode("utf-8", "replace").startswith(regular_files.LFS):
    raise errors.UserError(
      f"csv:{path} is a pointer of Git LFS; get the file by `git lfs pull`."
    )
  if record_lib.has_control("".join(header.split())):
    raise errors.UserError(
      f"csv:{path} is no text: it begins with "
      f"'{terminal.escaped(header, limit=40)}'. "
      "Unpack it where it is compressed, and save other kinds of tables as CSV."
    )
  header = header.lstrip("\ufeff")  # Some tools write it twice.
  declared = re.fullmatch(r"\s*sep=([,;|\t])\s*", header)
  if declared:
    header = file.readline()
    read += header
  separator = _separator(
    header, options.get("sep"), declared.group(1) if declared else None
  )
  quote = options.get("quote")
  if quote is not None and quote not in QUOTES:
    raise errors.unknown("value of quote=", quote, QUOTES)
  columns = [
    name.strip() for name in next(csv.reader([header], delimiter=separator), [])
  ]
  if options.keys() >= {"caption", "label"}:
    raise errors.UserError(
      f"csv:{path}: a row's text is its caption or its class; give caption= or "
      "label=, not both."
    )
  text = "label" if "label" in options else "caption"
  image, caption = (
    table_columns.find(columns, options.get(option), usual, option, path, notes)
    for option, usual in (("image", IMAGE_COLUMNS), (text, CAPTION_COLUMNS))
  )
  form = table_lines.Form(
    path,
    separator,
    quotes=quote is None,
    columns=len(columns),
    image=image,
    caption=caption,
    has_classes=text == "label",
  )
  return form, read


def _separator(header: str, name: str | None, declared: str | None) -> str:
  if name is None:
    if declared is not None:
      return declared
    return next((one for one in _BY_DEFAULT if one in header), ",")
  if name not in SEPARATORS:
    raise errors.unknown("value of sep=", name, SEPARATORS)
  return SEPARATORS[name]
