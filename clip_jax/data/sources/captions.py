"""Captions and labels from the bytes of text, JSON and label files.

These are the files beside an image that img2dataset writes, in a tar or in a
folder: `KEY.txt` is one caption (or one a line, where asked for), `KEY.json`
has `caption` or `captions`, a text or a list of texts, and `KEY.cls` a label.
Where there are both, the `.txt` counts.
"""

import codecs
import contextlib
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from clip_jax import (
  buckets,
  errors,
  json_text,
  npy_header,
  places,
  regular_files,
  terminal,
)
from clip_jax.data import record as record_lib

# "text": a `.txt` is one caption; "lines": each of its lines is one.
CAPTIONS = ("text", "lines")
# Larger files are not read as captions.
MAX_TEXT_BYTES = 2**20
# The text of an image that is of none of the classes.
NO_CLASS = "none of the classes"
_NPY = b"\x93NUMPY"
LOOKED_AT = 64  # Texts, before it is said that they look like several.
# Where that takes no time: all of what recall is usually measured on.
_LOOKED_AT_ON_DISK = 1024
_LIST = re.compile(r"""\[\s*(?:(["']).*\1)?\s*\]""", re.DOTALL)
# What pandas, Python, SQL and spreadsheets write for a missing value.
_EMPTIES = frozenset(
  ("nan", "NaN", "None", "NULL", "null", "NaT", "<NA>", "#N/A", "N/A", "n/a")
)


def check_choice(captions: str) -> str:
  """Returns `captions`; raises `UserError` if it is not one of `CAPTIONS`."""
  if captions not in CAPTIONS:
    raise errors.unknown("value of captions=", captions, CAPTIONS)
  return captions


def from_text(data: bytes, *, key: str, captions: str) -> tuple[str, ...]:
  """Returns the captions in the bytes of a `.txt` file."""
  # The bytes are split, not the text: in a text U+2028 and others end a line
  # too, which end no caption.
  pieces = data.splitlines() if captions == "lines" else [data]
  return checked((_decode(piece, key) for piece in pieces), key=key)


def from_json(data: bytes, *, key: str) -> tuple[str, ...]:
  """Returns the captions in the bytes of a `.json` file."""
  try:
    fields = json_text.parse(data)
  except json_text.JsonError as error:
    raise record_lib.BadRecord(error.reason, key) from None
  problem = "missing_caption"
  for name in ("caption", "captions"):
    found = fields.get(name)
    pieces = found if isinstance(found, list) else [found]
    try:
      return checked([p for p in pieces if isinstance(p, str)], key=key)
    except record_lib.BadRecord as error:
      if error.reason == "not_utf8":
        raise
    if any(piece is not None for piece in pieces):
      is_text = any(isinstance(piece, str) for piece in pieces)
      problem = "empty_caption" if is_text else "bad_json"
  raise record_lib.BadRecord(problem, key)


def label_from(data: bytes, *, key: str, classes: int | None) -> int:
  """Returns the label in the bytes of a `.cls` file."""
  digits = data.removeprefix(codecs.BOM_UTF8).strip()
  if not digits.isdigit() or len(digits) > 9:
    raise record_lib.BadRecord("bad_label", key)
  label = int(digits)
  if classes is not None:
    check_label(label, key=key, classes=classes)
  return label


def labels_from(
  data: bytes, *, key: str, classes: int | None
) -> tuple[int, ...]:
  """Returns the labels in the bytes of a `.cls` or `.npy` file.

  The first holds their numbers with spaces, commas or semicolons between, the
  second (as CLIP_benchmark writes it) a 1 for each class that is there and a 0
  for the others.
  """
  if data.startswith(_NPY):
    found = _marked(data, key)
    if classes is not None and len(found) != classes:
      raise record_lib.BadRecord("bad_label", key)
    return tuple(np.flatnonzero(found).tolist())
  words = re.split(rb"[\s,;]+", data.removeprefix(codecs.BOM_UTF8).strip())
  labels = (label_from(w, key=key, classes=classes) for w in words if w)
  return tuple(sorted(set(labels)))


def _marked(data: bytes, key: str) -> np.ndarray:
  try:
    found = npy_header.array(data)
  except ValueError:
    raise record_lib.BadRecord("bad_label", key) from None
  if found.ndim != 1 or found.dtype.kind not in "biuf":
    raise record_lib.BadRecord("bad_label", key)
  if not np.all((found == 0) | (found == 1)):
    raise record_lib.BadRecord("bad_label", key)
  return found


def from_labels(
  label: int | None,
  labels: tuple[int, ...] | None,
  class_names: tuple[str, ...] | None,
) -> tuple[str, ...] | None:
  """Returns the names of a record's classes; None where nothing names any."""
  if class_names is None or (label is None and labels is None):
    return None
  numbers = (label,) if labels is None else labels
  names = tuple(class_names[n] for n in numbers if n is not None)
  return names or (NO_CLASS,)


def spaced(name: str) -> str:
  """Returns a class's name with spaces for its `_`, unless nothing is left."""
  text = name.replace("_", " ")
  return text if text.strip() else name


def check_label(label: int, *, key: str, classes: int) -> None:
  """Raises `BadRecord` unless `label` is from 0 to `classes` - 1."""
  if not 0 <= label < classes:
    raise record_lib.BadRecord("bad_label", key)


def read_classes(path: str) -> tuple[str, ...]:
  """Returns the names of classes in a file, one a line.

  Raises:
    UserError: the file cannot be read, or names no class.
  """
  names = [line.strip() for line in re.split("\r\n?|\n", _read_text(path))]
  while names and not names[-1]:
    names.pop()
  if not names:
    raise errors.UserError(
      f"{path} names no class; write one name a line, or remove it."
    )
  if "" in names:
    raise errors.UserError(
      f"Line {names.index('') + 1} of {path} is blank, but a class is known by "
      "its line: write its name there, or take the line out if no class is "
      "meant."
    )
  return tuple(names)


def read_lines(path: str) -> tuple[str, ...]:
  """Returns the lines of a text file that are not empty, stripped.

  Raises:
    UserError: it cannot be read.
  """
  # In a text U+2028 and others end a line too, which end no name.
  lines = re.split(r"[\r\n]+", _read_text(path))
  return tuple(line.strip() for line in lines if line.strip())


def _read_text(path: str) -> str:
  try:
    with regular_files.open_regular(path) as file:
      return file.read().decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise errors.UserError(
      f"{path} is not UTF-8 ({error.reason} at byte {error.start}); it must "
      "be text with one name a line."
    ) from None
  except OSError as error:
    raise errors.UserError(
      f"{path} cannot be read ({error.strerror}); it must be text with one "
      "name a line."
    ) from None


def _decode(data: bytes, key: str) -> str:
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError:
    raise record_lib.BadRecord("not_utf8", key) from None


def exceeds(text: str, limit: int) -> bool:
  """Whether a text has more bytes in UTF-8 than `limit`."""
  if 4 * len(text) <= limit:  # As many as it can have.
    return False
  return len(text) > limit or len(text.encode("utf-8", "replace")) > limit


def checked(pieces: Iterable[str], *, key: str) -> tuple[str, ...]:
  """Strips captions and leaves out the empty ones; at least one must stay."""
  texts = tuple(stripped for piece in pieces if (stripped := piece.strip()))
  if not texts:
    raise record_lib.BadRecord("empty_caption", key)
  try:
    "".join(texts).encode("utf-8")
  except UnicodeEncodeError:  # Surrogates: bytes that were no UTF-8.
    raise record_lib.BadRecord("not_utf8", key) from None
  return texts


def note_lists(texts: Sequence[str]) -> list[str]:
  """Returns a sentence where most of `texts` are printed lists, else nothing.

  pandas and csv.writer print a list of captions into one field.
  """
  lists = [text for text in texts if _LIST.fullmatch(text.strip())]
  if 2 * len(lists) <= len(texts):
    return []
  return [
    f"{len(lists)} of {terminal.counted(len(texts), 'caption')} looked at "
    f"{terminal.noun(len(lists), 'is a list that was', 'are lists that were')} "
    f"written as a text, such as '{terminal.escaped(lists[0], limit=60)}', and "
    "each is read as one caption. Write each of its captions on a row of its "
    "own, with the same image."
  ]


def note_empties(texts: Sequence[str]) -> list[str]:
  """Returns a sentence where some of `texts` stand for none, else nothing.

  A program that prints a missing value writes such words.
  """
  empties = [text for text in texts if text.strip() in _EMPTIES]
  if not empties:
    return []
  are = terminal.noun(len(empties), "is", "are")
  return [
    f"{len(empties)} of {terminal.counted(len(texts), 'caption')} looked at "
    f"{terminal.noun(len(empties), 'stands', 'stand')} for none, such as "
    f"{empties[0].strip()!r}, and {are} read as "
    f"{terminal.noun(len(empties), 'a caption', 'captions')}. Leave such a "
    "field empty."
  ]


def propose_lines(
  text_of: Callable[[int], bytes | None], *, slots: int, place: str
) -> list[str]:
  """Returns a sentence where texts have several lines, else nothing.

  Args:
    text_of: the bytes of the `.txt` file of a slot, where it has one.
    slots: number of slots.
    place: where the texts lie: in a bucket, where each is a request, fewer of
      them are looked at.
  """
  most = LOOKED_AT if buckets.is_address(place) else _LOOKED_AT_ON_DISK

  def lines_of(slot: int) -> int | None:
    with contextlib.suppress(record_lib.BadRecord):
      if (text := text_of(slot)) is not None:
        return sum(bool(line.strip()) for line in text.splitlines())
    return None

  some = np.linspace(0, slots - 1, min(slots, most)).astype(int).tolist()
  counts = [x for x in places.of_each(lines_of, some) if x is not None]
  looked, several = len(counts), sum(count > 1 for count in counts)
  if not several:
    return []
  return [
    f"{several} of {terminal.counted(looked, 'caption')} looked at "
    f"{terminal.noun(several, 'has', 'have')} several lines, and each is read "
    "as one text. Where a line is a caption of its own, as in "
    "CLIP_benchmark's retrieval data, add ?captions=lines to the address: the "
    "recall of retrieval is wrong without it. ?captions=text says that they "
    "are one text."
  ]
