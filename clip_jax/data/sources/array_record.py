"""ArrayRecord files of records, as `clip-jax data prepare` writes them.

A record is the 8 bytes `CLIPJAX1`, the length of a JSON header as 4 bytes
(unsigned, little-endian), the header in UTF-8, then the encoded image. The
header has `key`, `texts` (a list) and, where there are any, `label`, `labels`
and `ignored` (lists); or `key` and `bad`, the reason why the slot holds no
record. `dataset.json` in the same directory has what belongs to all records:
`format`, `version`, `records`, `files` (a list of `name`, `records`, `bytes`),
`class_names`, `templates`, and where they came from.

ArrayRecord hashes its chunks: with one record a chunk, a damaged byte costs one
record and never goes unseen.
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module  # pyright: ignore

from clip_jax import (
  buckets,
  errors,
  json_text,
  places,
  regular_files,
  terminal,
)
from clip_jax.data import account as account_lib
from clip_jax.data import record as record_lib
from clip_jax.data.sources import captions as captions_lib
from clip_jax.data.sources import globs, open_files

FORMAT = "clip_jax records"
VERSION = 1
SIDECAR = "dataset.json"
SUFFIX = ".array_record"
_MAGIC = b"CLIPJAX1"
_LENGTH = struct.Struct("<I")
_HEADER_START = len(_MAGIC) + _LENGTH.size
_OPEN_THREADS = 16  # Hides the latency of network storage.


def encode(record: record_lib.Record | record_lib.BadRecord) -> bytes:
  """Returns the bytes of a record or of a bad slot, the same each time."""
  fields: dict[str, Any] = {"key": record.key}
  image = b""
  if isinstance(record, record_lib.BadRecord):
    fields["bad"] = record.reason
  else:
    image = record.image
    fields["texts"] = record.texts
    if record.label is not None:
      fields["label"] = record.label
    if record.labels is not None:
      fields["labels"] = record.labels
    if record.ignored:
      fields["ignored"] = record.ignored
  header = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
  return _MAGIC + _LENGTH.pack(len(header)) + header + image


def decode(data: bytes, *, path: str = "") -> record_lib.Record:
  """Returns the record that `encode` wrote; raises `BadRecord` for a bad slot.

  Args:
    data: what `encode` returned.
    path: of the file that it was read from.

  Raises:
    ValueError: the bytes are something else.
  """
  if data[: len(_MAGIC)] != _MAGIC:
    raise ValueError(f"not a record of clip_jax: it starts with {data[:8]!r}")
  (length,) = _LENGTH.unpack_from(data, len(_MAGIC))
  end = _HEADER_START + length
  try:
    fields = json_text.parse(data[_HEADER_START:end], what="Its header")
    if "bad" in fields:
      raise record_lib.BadRecord(str(fields["bad"]), str(fields["key"]))
    labels = fields.get("labels")
    if not isinstance(fields["texts"], list):
      raise TypeError("a list of texts")
    record = record_lib.Record(
      image=data[end:],
      texts=tuple(fields["texts"]),
      key=fields["key"],
      label=fields.get("label"),
      labels=None if labels is None else tuple(labels),
      ignored=tuple(fields.get("ignored", ())),
      path=path,
    )
  except (KeyError, TypeError) as error:
    raise ValueError(f"a record of clip_jax without {error}") from error
  if not record.texts or not all(
    isinstance(text, str) for text in (record.key, *record.texts)
  ):
    raise ValueError("a record of clip_jax whose key or texts are no text")
  try:
    "".join(record.texts).encode("utf-8")
  except UnicodeEncodeError:
    raise record_lib.BadRecord("not_utf8", record.key) from None
  labels = record.all_labels()
  if any(type(label) is not int or label < 0 for label in labels):
    raise ValueError("a record of clip_jax whose label is not a number")
  return record


class ArrayRecords:
  """The records of ArrayRecord files, one file after the other."""

  def __init__(self, names: Sequence[str], *, sidecar: dict[str, Any]):
    found = open_files.statuses(names)  # Before they are copied.
    opener = open_files.Copied(names, _open_reader)
    self._files = open_files.Pool(names, opener=opener, found=found)
    counts = [entry["records"] for entry in sidecar.get("files", ())]
    if not counts:
      with concurrent.futures.ThreadPoolExecutor(_OPEN_THREADS) as pool:
        counts = [x.num_records() for x in pool.map(opener, names)]
    self._ends = np.cumsum(counts)
    if not len(self):
      raise errors.UserError(f"{names[0]!r} holds no records.")
    self.account = account_lib.of_copy(sidecar)
    self.class_names = _as_tuple(sidecar.get("class_names"))
    self.templates = _as_tuple(sidecar.get("templates"))
    digest = hashlib.sha256(repr((self.class_names, self.templates)).encode())
    for name, count in zip(names, counts, strict=True):
      size, _ = found[name]
      line = f"{os.path.basename(name)} {count} {size}\n"
      digest.update(line.encode("utf-8", "surrogateescape"))
    self.fingerprint = digest.hexdigest()
    self._check_format()

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> record_lib.Record:
    if not 0 <= index < len(self):
      raise IndexError(index)
    number = int(np.searchsorted(self._ends, index, side="right"))
    position = index - (int(self._ends[number - 1]) if number else 0)
    name = f"{os.path.basename(self._files.paths[number])}[{position}]"
    reader = self._files.get(number)
    # It may be written anew where it lies; an open copy stays what it is.
    if not buckets.is_address(self._files.paths[number]):
      self._files.check(number)
    try:
      (data,) = reader.read([position])
      record = decode(data, path=self._files.paths[number])
    except (RuntimeError, ValueError, struct.error, errors.UserError):
      raise record_lib.BadRecord("damaged_record", name) from None
    if self.class_names is not None:
      for label in record.all_labels():
        captions_lib.check_label(
          label, key=record.key, classes=len(self.class_names)
        )
    return record

  def _check_format(self) -> None:
    try:
      (data,) = self._files.get(0).read([0])
    except RuntimeError:
      return  # Damaged: `__getitem__` says so.
    if not data.startswith(_MAGIC):
      raise errors.UserError(
        f"{self._files.paths[0]!r} holds other records than clip_jax's. Read"
        " the files of TFDS with tfds:NAME/SPLIT?data_dir=DIR, and make ours"
        " with `clip-jax data prepare`."
      )


def open_array_record(path: str, options: dict[str, str]) -> ArrayRecords:
  """Opens a prepared directory, a file, a glob or braces."""
  assert not options
  sidecar_path = os.path.join(places.expanded(path), SIDECAR)
  if not places.is_file(sidecar_path):
    names = globs.find_files(path, suffix=SUFFIX)
    return _open(path, names, {})
  sidecar = read_sidecar(sidecar_path)
  directory = os.path.dirname(sidecar_path)
  names = [os.path.join(directory, each["name"]) for each in sidecar["files"]]
  found_sizes = open_files.statuses(names)
  for name, entry in zip(names, sidecar["files"], strict=True):
    size, _ = found_sizes[name]
    if size != entry["bytes"]:
      found = "is missing" if size < 0 else f"has {size} bytes"
      shown = terminal.escaped(name, limit=200)
      raise errors.UserError(
        f"'{shown}' {found}; {SIDECAR} says {entry['bytes']} bytes. Copy it "
        "again, or prepare the data again."
      )
  return _open(path, names, sidecar)


def _open(
  path: str, names: Sequence[str], sidecar: dict[str, Any]
) -> ArrayRecords:
  source = ArrayRecords(names, sidecar=sidecar)
  for name in globs.unread(path, names, like=(SUFFIX,)):
    source.account.left_out.add(name)
  return source


def read_sidecar(path: str | os.PathLike) -> dict[str, Any]:
  """Returns the checked content of a `dataset.json`.

  Raises:
    UserError: it is damaged, or of another version.
  """
  sidecar = json_text.read(path)
  if sidecar.get("format") != FORMAT or sidecar.get("version") != VERSION:
    raise errors.UserError(
      f"{path} has format {sidecar.get('format')!r:.60}, version "
      f"{sidecar.get('version')!r:.60}; this clip_jax reads {FORMAT!r}, "
      f"version {VERSION}. Prepare the data again."
    )
  for name in ("class_names", "templates"):
    if not _are_texts(sidecar.get(name, [])):
      raise _damaged_sidecar(path, name)
  for name in ("source", "bad"):
    if not isinstance(sidecar.get(name, {}), dict):
      raise _damaged_sidecar(path, name)
  files = sidecar.get("files")
  if (
    not isinstance(files, list)
    or not files
    or not all(map(_is_file_entry, files))
  ):
    raise _damaged_sidecar(path, "files")
  return sidecar


def _are_texts(names: Any) -> bool:
  return names is None or (
    isinstance(names, list) and all(isinstance(name, str) for name in names)
  )


def _is_file_entry(entry: Any) -> bool:
  """Whether it is a plain name, never a path elsewhere, with its sizes."""
  return (
    isinstance(entry, dict)
    and isinstance(name := entry.get("name"), str)
    and os.path.basename(name) == name
    and "\0" not in name
    and all(
      type(entry.get(size)) is int and entry[size] >= 0
      for size in ("records", "bytes")
    )
    and entry["records"] <= entry["bytes"]
  )


def _damaged_sidecar(path: str | os.PathLike, name: str) -> errors.UserError:
  return errors.UserError(
    f"{path} is damaged: its {name} are not what `clip-jax data prepare` "
    "writes. Copy it again, or prepare the data again."
  )


class Writer:
  """Writes a new file, in which each record is a chunk by itself."""

  def __init__(self, path: str):
    """Opens the file; this and the rest raise OSError where a write fails."""
    self._path = path
    with self._os_error():
      self._writer = array_record_module.ArrayRecordWriter(path, "group_size:1")

  def write(self, data: bytes) -> None:
    """Adds a record."""
    with self._os_error():
      self._writer.write(data)

  def close(self) -> None:
    """Ends the file."""
    with self._os_error():
      self._writer.close()

  @contextlib.contextmanager
  def _os_error(self) -> Iterator[None]:
    try:
      yield
    except RuntimeError as error:
      # "write() failed: No space left on device; writing PATH; at byte 512".
      failed = re.search(r"\(\) failed: ([^;]+)", str(error))
      if failed is None:
        raise
      codes = {os.strerror(code): code for code in errno.errorcode}
      code = codes.get(failed[1], errno.EIO)
      raise OSError(code, failed[1], self._path) from error


def _open_reader(path: str, *, copy: pathlib.Path | None) -> Any:
  # For random access: do not read ahead of the record.
  place = path if copy is None else str(copy)
  # The library would wait at a pipe for ever; what is missing it tells itself.
  with contextlib.suppress(OSError):
    regular_files.open_regular(place).close()
  reader = array_record_module.ArrayRecordReader(
    place, options="readahead_buffer_size:0", file_reader_buffer_size=32_768
  )
  if not reader.ok():
    try:
      reader.read([0])
    except RuntimeError as error:
      said = str(error).replace(place, path)
      raise errors.UserError(
        f"{path!r} is not a whole ArrayRecord file: {said}. Copy it again, or "
        "prepare the data again."
      ) from error
  return reader


def _as_tuple(names: list[str] | None) -> tuple[str, ...] | None:
  return None if names is None else tuple(names)
