"""Parquet tables of images, as the HuggingFace hub publishes data sets.

A row is a record. Columns hold

- the image: encoded, alone or in `datasets`' pair of `bytes` and `path`; or a
  path. Rows of the same path become one record, as in a table of text.
- captions: a text or a list of texts; several columns where there is a column
  for each caption.
- a label: a number, whose names the schema's metadata of `datasets` have or
  `?classes=` gives, or the name of its class. It stands for captions where
  there are none; a number below zero is no label.

Options:
  image, caption, label: names of the columns, captions joined by commas; by
    default they are found by type and usual names, which is told.
  classes: a file with the names of the classes, one a line.
  root: directory that paths of images are seen from; the file's by default.
  links: follow, where symbolic links may lead out of it.
  split: such as test or train+validation, where the files' names or folders
    tell splits; parquet:DIRECTORY/test is the same.

Any row can be read, but a row group is unpacked for it, of which those used
last are kept.
"""

import concurrent.futures
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clip_jax import errors, terminal
from clip_jax.data import account as account_lib
from clip_jax.data import record as record_lib
from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import columns as columns_lib
from clip_jax.data.sources import (
  disk,
  grouping,
  image_files,
  parquet_files,
  row_groups,
  strings,
  views,
)

_OPEN_THREADS = 8  # Hides the latency of network storage.
LARGE_GROUP_BYTES = 4 * 2**20
_MAX_CLASSES = 100_000


class ParquetRecords:
  """The rows of Parquet files; the module says what they hold.

  Attributes:
    account: files that are damaged, and which columns are read.
  """

  templates = None

  def __init__(
    self,
    paths: Sequence[str],
    footers: Sequence[row_groups.Footer],
    *,
    columns: columns_lib.Columns,
    images: image_files.ImageFiles,
    class_names: tuple[str, ...] | None,
    account: account_lib.Account,
  ):
    """Reads the paths of images and the names of classes, where rows have them.

    Args:
      paths: of the files; what follows their common directory names rows.
      footers: of the same files.
      columns: that are read.
      images: reads images by their paths.
      class_names: of labels, in order; None takes those that are texts.
      account: of the files.
    """
    self.account = account
    self._columns = columns
    self._images = images
    places = list(map(os.path.abspath, paths))
    top = os.path.commonpath(list(map(os.path.dirname, places)))
    self._names = strings.Strings(os.path.relpath(p, top) for p in places)
    self._groups = row_groups.RowGroups(paths, columns=columns.names)
    # Of each row group: its file, its number there and the end of its rows.
    counts = [len(footer.rows) for footer in footers]
    self._files = np.repeat(np.arange(len(counts)), counts)
    self._numbers = np.concatenate([np.arange(count) for count in counts])
    self._ends = np.cumsum(
      [n for footer in footers for n in footer.rows], dtype=np.int64
    )
    self.class_names = class_names
    self._labels: dict[str, int] = {}
    if columns.label is not None and columns.label_is_text:
      names = class_names or self._find_classes(columns.label)
      self._labels = {name: label for label, name in enumerate(names)}
      self.class_names = tuple(map(columns_lib.as_class_name, names))
    # Record i has the rows from bound i to bound i + 1 of this order.
    self._order = self._bounds = None
    if columns.has_paths:
      self._order, self._bounds = self._group_rows(columns.image)
    self.fingerprint = self._digest(footers)

  def __len__(self) -> int:
    if self._bounds is not None:
      return len(self._bounds) - 1
    return int(self._ends[-1]) if len(self._ends) else 0

  def __getitem__(self, index: int) -> record_lib.Record:
    if not 0 <= index < len(self):
      raise IndexError(index)
    if self._order is None or self._bounds is None:
      rows = [index]
    else:
      rows = self._order[slice(*self._bounds[index : index + 2])].tolist()
    found = list(map(self._cells, rows))
    cells, key = found[0]
    label = self._label(cells, key)
    if self._columns.has_paths:
      key, image = self._read(cells[self._columns.image], key)
    else:
      image = self._encoded(cells[self._columns.image], key)
    texts = [text for row, of in found for text in self._texts(row, of)]
    if texts:
      checked = captions_lib.checked(texts, key=key)
    else:
      checked = self._class_as_caption(label, key)
    return record_lib.Record(image=image, texts=checked, key=key, label=label)

  def _cells(self, row: int) -> tuple[dict[str, Any], str]:
    """Returns the cells of a row of all files, and a key for it."""
    slot = int(np.searchsorted(self._ends, row, side="right"))
    file, group = int(self._files[slot]), int(self._numbers[slot])
    before = np.searchsorted(self._files, file)  # Its first group.
    first = int(self._ends[before - 1]) if before else 0
    start = int(self._ends[slot - 1]) if slot else 0
    key = f"{self._names[file]}[{row - first}]"
    return self._groups.row(file, group, row - start, key=key), key

  def _label(self, cells: dict[str, Any], key: str) -> int | None:
    if self._columns.label is None:
      return None
    value = _value(cells[self._columns.label], key)
    if isinstance(value, str):
      value = self._labels.get(value)
      if value is None:  # Not in `?classes=`, or damaged when it was opened.
        raise record_lib.BadRecord("bad_label", key)
    # Test splits without labels have -1.
    if value is None or value < 0:
      return None
    if self.class_names is not None:
      captions_lib.check_label(value, key=key, classes=len(self.class_names))
    return value

  def _read(self, cell: Any, key: str) -> tuple[str, bytes]:
    """Returns the path in a cell, and the image that lies there."""
    path = _value(cell, key)
    if not path:
      raise record_lib.BadRecord("missing_image", key)
    return path, self._images.read(path)

  def _encoded(self, cell: Any, key: str) -> bytes:
    path = None
    if isinstance(cell, pa.StructScalar) and cell.is_valid:
      named = [field.name for field in cell.type]
      path = _value(cell["path"], key) if "path" in named else None
      cell = cell["bytes"]
    image = _value(cell, key, limit=disk.MAX_IMAGE_BYTES)
    if image is None and path:
      return self._images.read(path, key=key)
    if not image:
      reason = "missing_image" if image is None else "empty_image"
      raise record_lib.BadRecord(reason, key)
    return image

  def _texts(self, cells: dict[str, Any], key: str) -> Iterator[str]:
    """Yields the texts in a row's cells."""
    for name in self._columns.captions:
      cell = cells[name]
      values = (
        _elements(cell, key) if columns_lib.is_list(cell.type) else [cell]
      )
      for value in values:
        text = _value(value, key)
        if isinstance(text, bytes):
          text = text.decode("utf-8", "surrogateescape")
        if text is not None:
          yield text

  def _class_as_caption(self, label: int | None, key: str) -> tuple[str, ...]:
    error = record_lib.BadRecord("missing_caption", key)
    if not self._columns.captions and label is not None:
      if self.class_names is not None:
        return (self.class_names[label],)
      error.hint = (
        f"it has the label {label} and no text; add ?classes=FILE, a file with "
        "a name a line, or ?caption=COLUMN to the address"
      )
    raise error

  def _walk(self, column: str) -> Iterator[tuple[int, row_groups.Texts]]:
    """Yields (first row, texts) of the pieces of a column."""
    start = 0
    for slot, end in enumerate(self._ends.tolist()):
      file = self._groups.files.get(int(self._files[slot]))
      unpacked = file.unpack(int(self._numbers[slot]), (column,))
      for piece in unpacked.pieces(column):
        piece = piece[: max(0, end - start)]
        if len(piece):
          yield start, row_groups.Texts.of(piece)
        start += len(piece)
      start = end

  def _find_classes(self, column: str) -> list[str]:
    names: set[str] = set()
    for _, texts in self._walk(column):
      found = texts.array.filter(pa.array(texts.good)).unique().to_pylist()
      names.update(name.decode() for name in found)
      if len(names) > _MAX_CLASSES:
        raise errors.UserError(
          f"The column {column!r} has more than {_MAX_CLASSES} different texts,"
          " so it holds no labels. Choose another with ?label=COLUMN, or"
          " captions with ?caption=COLUMN."
        )
    return sorted(names)

  def _group_rows(self, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows in an order where those of a path are together."""
    total = int(self._ends[-1]) if len(self._ends) else 0
    # Rows whose paths are missing or damaged are records by themselves.
    hashes = grouping.hash_numbers(np.arange(total))
    for start, texts in self._walk(column):
      first, last = texts.bounds[[0, -1]].tolist()
      data = texts.array.buffers()[2]
      sizes = np.diff(texts.bounds)
      named = texts.good & (sizes > 0)
      hashes[:, start + np.flatnonzero(named)] = grouping.hash_names(
        data.slice(first, last - first).to_pybytes() if last > first else b"",
        texts.bounds[:-1][named] - first,
        sizes[named],
      )
    order, bounds = grouping.group(hashes)
    return np.arange(total) if order is None else order, bounds

  def _digest(self, footers: Sequence[row_groups.Footer]) -> str:
    columns = self._columns
    settings = (columns.names, self.class_names, list(self._labels))
    digest = hashlib.sha256(repr(settings).encode("utf-8", "backslashreplace"))
    digest.update(self._names.tobytes())
    for footer in footers:
      digest.update(footer.digest.encode())
    if self._order is not None and self._bounds is not None:
      digest.update(self._order.tobytes() + self._bounds.tobytes())
    return digest.hexdigest()


def _value(
  cell: Any, key: str, *, limit: int = captions_lib.MAX_TEXT_BYTES
) -> Any:
  """Returns a cell as Python's value; raises `BadRecord` where it cannot."""
  if isinstance(cell, pa.DictionaryScalar):
    cell = cell.value
  if not cell.is_valid:
    return None
  is_binary = isinstance(cell, pa.BinaryScalar)  # Texts are, too.
  if is_binary and cell.as_buffer().size > limit:
    raise record_lib.BadRecord("too_large", key)
  try:
    return cell.as_py()
  except UnicodeDecodeError:
    raise record_lib.BadRecord("not_utf8", key) from None


def _elements(cell: Any, key: str) -> list[Any]:
  """Returns the cells of a list; raises `BadRecord` where they are too many."""
  if not cell.is_valid:
    return []
  if cell.values.nbytes > captions_lib.MAX_TEXT_BYTES:
    raise record_lib.BadRecord("too_large", key)
  return list(cell.values)


def open_parquet(path: str, options: dict[str, str]) -> record_lib.Source:
  """Opens the files that `path` names; the module says what the options are."""
  listing = parquet_files.list_files(path)
  split = options.get("split")
  if split is not None and listing.splits and listing.split is None:
    listing, split = listing.of_split(split, what=f"parquet:{path}"), None
  footers, damages = _read_footers(listing.files)
  first = next(iter(footers))
  columns = columns_lib.find(footers[first].schema, options, path=first)
  lost: dict[str, int | None] = {}
  for name, footer in list(footers.items()):
    if not columns.are_in(footer.schema):
      damages[name], lost[name] = "other_columns", sum(footers.pop(name).rows)
  # A damaged file had as many rows as the others, so far as anybody knows.
  total = sum(sum(footer.rows) for footer in footers.values())
  for name in damages:
    lost.setdefault(name, max(1, round(total / len(footers))))
  classes = options.get("classes")
  source = ParquetRecords(
    list(footers),
    list(footers.values()),
    columns=columns,
    images=image_files.open_files(
      dict.fromkeys(map(os.path.dirname, footers)), options, scheme="parquet"
    ),
    class_names=(
      columns.class_names
      if classes is None
      else captions_lib.read_classes(classes)
    ),
    account=account_lib.Account(
      damages=[(name, 0, reason) for name, reason in damages.items()],
      lost=lost,
      choices=list(_choices(columns, list(footers.values()))),
    ),
  )
  if not len(source):
    raise errors.UserError(f"parquet:{path} has no rows.")
  return source if split is None else views.part(source, split)


def _read_footers(
  names: Sequence[str],
) -> tuple[dict[str, row_groups.Footer], dict[str, str]]:
  """Returns the footers of whole files, and why others are not, by path."""

  def read(name: str) -> row_groups.Footer | str:
    try:
      return row_groups.ParquetFile(name).footer
    except row_groups.DamagedError as error:
      return error.reason

  with concurrent.futures.ThreadPoolExecutor(_OPEN_THREADS) as pool:
    found = dict(zip(names, pool.map(read, names), strict=True))
  footers = {n: each for n, each in found.items() if not isinstance(each, str)}
  damages = {n: each for n, each in found.items() if isinstance(each, str)}
  if not footers:
    name, reason = next(iter(damages.items()))
    more = len(damages) - 1
    raise errors.UserError(
      f"parquet:{terminal.escaped(name)} {account_lib.WORDS[reason]}"
      f"{f', and {more} more are damaged, too' if more else ''}; copy or "
      "download it again."
    )
  return footers, damages


def _choices(
  columns: columns_lib.Columns, footers: Sequence[row_groups.Footer]
) -> Iterator[str]:
  if columns.guessed:
    yield (
      f"Columns, found by type and name: {columns.describe()}; ?image=, "
      "?caption= and ?label= name others."
    )
  sizes = [size for footer in footers for size in footer.group_bytes]
  mean = sum(sizes) / max(len(sizes), 1)
  if mean > LARGE_GROUP_BYTES and sum(sizes) > row_groups.KEPT_BYTES:
    yield (
      f"For a row, a row group of {mean / 1e6:.0f} MB is unpacked, which takes "
      "long in the random order of training; `clip-jax data prepare` makes a "
      "copy that is read row by row."
    )
