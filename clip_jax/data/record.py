"""One pair as every source gives it: an encoded image and its texts."""

import dataclasses
import re
from typing import Protocol

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ROW = re.compile(r"\[[0-9]+\]\Z")
_HINTS = {
  "bad_label": "a label is the number of a class, counted from 0, and one of "
  "those that have names, where there are names",
  "lfs_pointer": "these are pointers of Git LFS; get the files by `git lfs "
  "pull`",
  "not_utf8": "its text is in another encoding than UTF-8; convert it, for "
  "example by `iconv -f CP1252 -t UTF-8 OLD > NEW`",
  "parts_not_adjacent": "the parts of a sample must follow one another in a "
  "tar; pack it anew by `tar --sort=name`",
  "several_images": "files whose names differ in the suffix alone are one "
  "record, which has one image: rename or remove the others",
  "too_many_pixels": "larger images are read with --max-pixels N, in a config "
  "with data.max_pixels",
  "unsupported_image": "its format is not read; convert it to JPEG or PNG",
  "unsafe_name": "a name may hold no `..`, no control character and, in a tar, "
  "no / at its beginning: rename it; a table's names with `..` are read with "
  "?links=follow at the end of the address",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
  """An encoded image and the texts that go with it.

  Attributes:
    image: the encoded image, in a format that `preprocess.decode` reads.
    texts: at least one caption; none of a source of images alone.
    key: names the record within its source; never a path to write to.
    label: index into the source's `class_names`.
    labels: where an example may be of several classes, those that it is of;
      None where it has one `label` or none.
    ignored: classes of which nobody says whether it is of them, as of objects
      that are marked as difficult.
    path: of the file that the image was read from: its own, or the tar or table
      that holds it; "" where there is none.
  """

  image: bytes
  texts: tuple[str, ...]
  key: str
  label: int | None = None
  labels: tuple[int, ...] | None = None
  ignored: tuple[int, ...] = ()
  # A copy of the record lies elsewhere, and is the same.
  path: str = dataclasses.field(default="", compare=False)

  def all_labels(self) -> tuple[int, ...]:
    """Returns every class that the record names in any way."""
    one = () if self.label is None else (self.label,)
    return (*one, *(self.labels or ()), *self.ignored)


class BadRecord(Exception):
  """A slot of a source that holds no usable record.

  Attributes:
    reason: one machine-readable word, such as "missing_caption".
    key: the key of the slot, as far as it is known.
    hint: what to do about it, where there is more to say than the reason.
    advice: what to do where most records of the source are bad like this one.
  """

  advice = ""

  def __init__(self, reason: str, key: str):
    super().__init__(reason, key)
    self.reason = reason
    self.key = key
    self.hint = _HINTS.get(reason, "")

  def __str__(self) -> str:
    return f"{self.key}: {self.reason}"


def name_row(table: str, row: int) -> str:
  """Returns the key of a record that has no name: its place in a table."""
  return f"{table}[{row}]"


def is_row(key: str) -> bool:
  """Whether a key tells where a record stands, as `name_row` does."""
  return bool(_ROW.search(key))


def has_control(name: str) -> bool:
  """Whether a name holds a NUL or another control character."""
  return bool(_CONTROL.search(name))


def climbs(name: str) -> bool:
  """Whether a name goes up by `..`, wherever that leads."""
  return ".." in name.split("/")


def is_unsafe(key: str) -> bool:
  """Whether a relative name is refused: it leads out, or has controls."""
  return key.startswith("/") or climbs(key) or has_control(key)


class Records(Protocol):
  """Random access to records; picklable and safe to read from threads."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...


class Source(Records, Protocol):
  """Records, and what they are.

  A slot whose record is damaged or incomplete stays in the index and raises
  `BadRecord` when it is read: the length does not depend on it.

  A source that passes over anything has an `account` of it, too (account.py).
  """

  @property
  def class_names(self) -> tuple[str, ...] | None:
    """Names of the labels, where the records have labels."""
    ...

  @property
  def templates(self) -> tuple[str, ...] | None:
    """Prompts for these names, with `{}` where the name goes."""
    ...

  @property
  def fingerprint(self) -> str:
    """A digest of what the records are read from."""
    ...
