"""Records from rows of tables of any kind; `parquet` says what they hold."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clip_jax import errors, terminal
from clip_jax.data import account as account_lib
from clip_jax.data import record as record_lib
from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import (
  classified,
  disk,
  grouping,
  image_files,
  row_groups,
  strings,
)
from clip_jax.data.sources import columns as columns_lib

_MAX_CLASSES = 100_000
_NO_LABEL = -1
_MOST_LABEL = 2**63  # Of int64, in which labels are compared.


class Rows:
  """The rows of some tables of one kind.

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
    class_maps: Sequence[np.ndarray | None],
    account: account_lib.Account,
    opener: Callable[[str], row_groups.TableFile],
  ):
    """Reads the paths of images and the names of classes, where rows have them.

    Args:
      paths: of the files; without their common directory, they begin the keys.
      footers: of the same files.
      columns: that are read.
      images: reads images by their paths.
      class_names: of labels, in order; None takes the texts of that column.
      class_maps: of each file the class of each number in it; None where a
        class's number is that.
      account: of the files.
      opener: opens a file.
    """
    self.account = account
    self._columns = columns
    self._images = images
    places = list(map(os.path.abspath, paths))
    top = os.path.commonpath(list(map(os.path.dirname, places)))
    self._names = strings.Strings(os.path.relpath(p, top) for p in places)
    self._groups = row_groups.RowGroups(
      paths, columns=columns.names, opener=opener
    )
    # Of each row group: its file, its number there and the end of its rows.
    counts = [len(footer.rows) for footer in footers]
    self._files = np.repeat(np.arange(len(counts)), counts)
    self._numbers = np.concatenate([np.arange(count) for count in counts])
    self._ends = np.cumsum(
      [n for footer in footers for n in footer.rows], dtype=np.int64
    )
    self.class_names = class_names
    self._class_maps = class_maps
    self._labels: dict[str, int] = {}
    if columns.label is not None and columns.label_is_text:
      names = class_names or self._find_classes(columns.label)
      self._labels = {name: label for label, name in enumerate(names)}
      self.class_names = tuple(map(columns_lib.as_class_name, names))
    # Record i has the rows from bound i to bound i + 1 of this order.
    self._order = self._bounds = None
    self._several = False  # Whether an image may be of several classes.
    if columns.has_paths:
      self._order, self._bounds = self._group_rows(columns.image)
      count = 0 if columns.label is None else self._count_several(columns.label)
      if count:
        self._several = True
        account.choices.append(
          f"{terminal.counted(count, 'image')} "
          f"{terminal.noun(count, 'has', 'have')} rows of several classes, and "
          f"{terminal.noun(count, 'is', 'are')} of all of them."
        )
    self.fingerprint = self._digest(footers)
    schemas = (footer.schema for footer in footers if sum(footer.rows))
    self.account.notes.extend(self._note_captions(next(schemas, None)))

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
    cells, key, file = found[0]
    numbers = self._classes(found)
    cell = cells[self._columns.image]
    if self._columns.has_paths:
      key = self._name(cell, key)
      path, image = self._images.read(key)
    else:
      path, image = self._encoded(
        cell, key, table=self._groups.files.paths[file]
      )
    texts = [text for row, of, _ in found for text in self._texts(row, of)]
    texts = texts or self._names_of_classes(numbers, key)
    return record_lib.Record(
      image=image,
      texts=captions_lib.checked(texts, key=key),
      key=key,
      label=numbers[0] if numbers and not self._several else None,
      labels=numbers if numbers and self._several else None,
      path=path,
    )

  def _cells(self, row: int) -> tuple[dict[str, Any], str, int]:
    """Returns the cells of a row of all files, a key for it, and its file."""
    slot = int(np.searchsorted(self._ends, row, side="right"))
    file, group = int(self._files[slot]), int(self._numbers[slot])
    before = np.searchsorted(self._files, file)  # Its first group.
    first = int(self._ends[before - 1]) if before else 0
    start = int(self._ends[slot - 1]) if slot else 0
    key = record_lib.name_row(self._names[file], row - first)
    return self._groups.row(file, group, row - start, key=key), key, file

  def _classes(
    self, rows: list[tuple[dict[str, Any], str, int]]
  ) -> tuple[int, ...]:
    """Returns the numbers of the classes that the rows of a record name."""
    if (name := self._columns.label) is None:
      return ()
    labels = {self._label(cells[name], key, file) for cells, key, file in rows}
    return tuple(sorted(label for label in labels if label is not None))

  def _label(self, cell: Any, key: str, file: int) -> int | None:
    value = _value(cell, key)
    if isinstance(value, str):
      if not (value := value.strip()):
        return None
      value = self._labels.get(value)
      if value is None:  # Not in `?classes=`, or damaged when it was opened.
        raise record_lib.BadRecord("bad_label", key)
    # Test splits without labels have -1.
    if value is None or value < 0:
      return None
    if (classes := self._class_maps[file]) is not None:
      captions_lib.check_label(value, key=key, classes=len(classes))
      value = int(classes[value])
    names = self.class_names
    most = _MOST_LABEL if names is None else len(names)
    captions_lib.check_label(value, key=key, classes=most)
    return value

  def _name(self, cell: Any, key: str) -> str:
    """Returns the name of an image in a cell."""
    name = _value(cell, key)
    if not name:
      raise record_lib.BadRecord("missing_image", key)
    return name

  def _encoded(
    self, cell: Any, key: str, *, table: str
  ) -> image_files.ImageFile:
    """Returns the image in a cell of the file `table`, or that it names."""
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
    return image_files.ImageFile(table, image)

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

  def _names_of_classes(self, numbers: tuple[int, ...], key: str) -> list[str]:
    """Returns what stands for captions; raises `BadRecord` without any."""
    only_labels = self._columns.label and not self._columns.captions
    if only_labels and not numbers:
      raise record_lib.BadRecord("missing_label", key)
    error = record_lib.BadRecord("missing_caption", key)
    if only_labels:
      if self.class_names is not None:
        return [self.class_names[number] for number in numbers]
      error.hint = (
        f"it has the label {numbers[0]} and no text; add ?classes=FILE, a file "
        "with a name a line, or ?caption=COLUMN to the address"
      )
    raise error

  def _walk(self, column: str) -> Iterator[tuple[int, int, pa.Array]]:
    """Yields (file, first row, cells) of the pieces of a column."""
    start = 0
    for slot, end in enumerate(self._ends.tolist()):
      number = int(self._files[slot])
      file = self._groups.files.get(number)
      unpacked = file.unpack(int(self._numbers[slot]), (column,))
      for piece in unpacked.pieces(column):
        piece = piece[: max(0, end - start)]
        if len(piece):
          yield number, start, piece
        start += len(piece)
      start = end

  def _note_captions(self, schema: pa.Schema | None) -> Iterator[str]:
    """Yields sentences where the first captions look like none.

    Args:
      schema: of the first file with rows; what it has as lists is not looked
        into.
    """
    if schema is None:
      return
    for name in self._columns.captions:
      if not columns_lib.is_text(schema.field(name).type):
        continue
      for _, _, piece in itertools.islice(self._walk(name), 1):
        if not columns_lib.is_text(piece.type):
          continue  # That file is damaged, and this one has another type.
        texts = row_groups.Texts.of(piece)
        some = texts.array.slice(0, captions_lib.LOOKED_AT).to_pylist()
        read = zip(some, texts.good, strict=False)
        found = [text.decode() for text, good in read if good]
        yield from captions_lib.note_lists(found)
        yield from captions_lib.note_empties(found)

  def _find_classes(self, column: str) -> list[str]:
    names: set[str] = set()
    for _, _, piece in self._walk(column):
      texts = row_groups.Texts.of(piece)
      found = texts.array.filter(pa.array(texts.good)).unique().to_pylist()
      names.update(name.decode().strip() for name in found)
      if len(names) > _MAX_CLASSES:
        raise errors.UserError(
          f"The column {column!r} has more than {_MAX_CLASSES} different texts,"
          " so it holds no labels. Choose another with ?label=COLUMN, or"
          " captions with ?caption=COLUMN."
        )
    return classified.in_order(names - {""})

  def _group_rows(self, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows in an order where those of a path are together."""
    total = int(self._ends[-1]) if len(self._ends) else 0
    # Rows whose paths are missing or damaged are records by themselves.
    hashes = grouping.hash_numbers(np.arange(total))
    for _, start, piece in self._walk(column):
      texts = row_groups.Texts.of(piece)
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

  def _count_several(self, column: str) -> int:
    """Returns how many images have rows of different classes."""
    order, bounds = self._order, self._bounds
    assert order is not None and bounds is not None
    if len(bounds) > len(order):  # A row each.
      return 0
    labels = np.full(len(order), _NO_LABEL)
    for file, start, piece in self._walk(column):
      labels[start : start + len(piece)] = self._numbers_in(piece, file)
    labels = labels[order]
    last = np.maximum.reduceat(labels, bounds[:-1])
    labels[labels < 0] = _MOST_LABEL - 1
    first = np.minimum.reduceat(labels, bounds[:-1])
    return int((first < last).sum())

  def _numbers_in(self, piece: pa.Array, file: int) -> np.ndarray:
    """Returns the classes of labels, int64 (cells,); below 0 for none."""
    if self._columns.label_is_text:
      texts = row_groups.Texts.of(piece).array.dictionary_encode()
      known = [
        self._labels.get(strings.decode(text).strip(), _NO_LABEL)
        for text in texts.dictionary.to_pylist()
      ]
      piece, classes = texts.indices, np.array(known, np.int64)
    else:
      classes = self._class_maps[file]
    cells = piece.cast(pa.int64(), safe=False).fill_null(_NO_LABEL)
    numbers = np.array(cells)
    if classes is not None:
      there = (numbers >= 0) & (numbers < len(classes))
      numbers[there] = classes[numbers[there]]
      numbers[~there] = _NO_LABEL
    if self.class_names is not None:  # Others make a record bad.
      numbers[numbers >= len(self.class_names)] = _NO_LABEL
    return numbers

  def _digest(self, footers: Sequence[row_groups.Footer]) -> str:
    columns = self._columns
    settings = (columns.names, self.class_names, list(self._labels))
    digest = hashlib.sha256(repr(settings).encode("utf-8", "backslashreplace"))
    digest.update(self._names.tobytes())
    for file, classes in enumerate(self._class_maps):
      if classes is not None:
        digest.update(f"{file}{classes.tolist()}".encode())
    for footer in footers:
      digest.update(footer.digest.encode())
    if self._order is not None and self._bounds is not None:
      digest.update(self._order.tobytes() + self._bounds.tobytes())
    if self._several:
      digest.update(b"several")
    return digest.hexdigest()


def _value(cell: Any, key: str, *, limit: int | None = None) -> Any:
  """Returns a cell as Python's value; raises `BadRecord` where it cannot.

  A text may be as long as `limit` says, or else as long as captions may be.
  """
  if limit is None:
    limit = captions_lib.MAX_TEXT_BYTES
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
