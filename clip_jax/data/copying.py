"""Writes the records of a source to ArrayRecord files, in order.

What is written of a record depends on the record and the rule alone, and where
a file ends on the sizes before, so that the bytes are the same for any number
of processes, also after an interruption: files that are whole are kept, and of
one that is not, what images were made to (begun_files.py).
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

from clip_jax import errors, json_text, preprocess, whole_files
from clip_jax.data import begun_files, processes
from clip_jax.data import record as record_lib
from clip_jax.data.sources import array_record

_VERSION = 1
_CHUNK = 32  # Records that a process copies before it answers.
_DONE = "done.json"
QUALITY = 90  # Of JPEGs, where none is given.

Item = record_lib.Record | record_lib.BadRecord


@dataclasses.dataclass(frozen=True)
class Rule:
  """How records are copied.

  Attributes:
    drop_bad: decode every image and leave bad records out.
    shortest_side: in pixels; larger images are made so small and stored as
      JPEGs, others are copied as they are. None copies all as they are.
    quality: of these JPEGs, from 1 to 100.
    limits: what is too large to be used.
  """

  drop_bad: bool = False
  shortest_side: int | None = None
  quality: int = QUALITY
  limits: preprocess.Limits = preprocess.DEFAULT_LIMITS

  def __post_init__(self) -> None:
    """Raises UserError for a size or a quality out of range."""
    if self.shortest_side is not None and self.shortest_side < 1:
      raise errors.UserError(
        f"shortest_side={self.shortest_side} must be at least 1 pixel."
      )
    if not 1 <= self.quality <= 100:
      raise errors.UserError(f"quality={self.quality} must be from 1 to 100.")

  @property
  def decodes(self) -> bool:
    """Whether images are decoded; what is made of them is then kept."""
    return self.drop_bad or self.shortest_side is not None

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields that determine the bytes of a copy, as plain data."""
    shrinks = self.shortest_side is not None
    return {
      "drop_bad": self.drop_bad,
      "max_pixels": self.limits.max_pixels,
      "shortest_side": self.shortest_side,
      "quality": self.quality if shrinks else None,
    }


@dataclasses.dataclass(frozen=True)
class _Copier:
  """Copies ranges of a source; picklable, for other processes."""

  source: record_lib.Source
  rule: Rule

  def run(self, start: int, stop: int) -> list[begun_files.Entry]:
    return [self._copied(slot) for slot in range(start, stop)]

  def _copied(self, slot: int) -> begun_files.Entry:
    rule, small = self.rule, None
    item, replaced = _read_through(self.source, slot)
    try:
      if isinstance(item, record_lib.Record):
        if rule.shortest_side is not None:
          small = preprocess.shrink(
            item.image,
            shortest_side=rule.shortest_side,
            quality=rule.quality,
            limits=rule.limits,
          )
        if small is not None:
          item = dataclasses.replace(item, image=small)
        else:
          check = (
            preprocess.decode if rule.drop_bad else preprocess.check_header
          )
          check(item.image, limits=rule.limits)
    except preprocess.ImageError as error:
      item = record_lib.BadRecord(error.reason, item.key)
    bad = item.reason if isinstance(item, record_lib.BadRecord) else ""
    data = None if bad and rule.drop_bad else array_record.encode(item)
    return begun_files.Entry(data, bad, small is not None, replaced)


def _read_through(
  source: record_lib.Source, slot: int
) -> tuple[Item, tuple[str, ...]]:
  """Returns what `read` does, and why the records are bad that it replaces."""
  if (with_replaced := getattr(source, "with_replaced", None)) is None:
    return read(source, slot), ()
  record, met = with_replaced(slot)
  return record, tuple(error.reason for error in met)


def read(source: record_lib.Source, slot: int) -> Item:
  """Returns the record of a slot, or what is wrong with it."""
  try:
    return source[slot]
  except record_lib.BadRecord as error:
    return error


def sync(path: pathlib.Path) -> None:
  """Waits until a file, or the names in a directory, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


class _Shards:
  """Files of records in a directory; those that are whole lie on a shelf.

  `done` has an entry for each: `name`, `records`, `bytes`, and of all slots up
  to its end `stop`, `bad`, `resized` and `replaced`.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    shelf: pathlib.Path,
    *,
    shard_bytes: int,
    keeps_begun: bool,
  ):
    self.done = _kept(shelf)
    self._directory, self._shelf = directory, shelf
    self._shard_bytes, self._keeps_begun = shard_bytes, keeps_begun
    last = self.done[-1] if self.done else {}
    self.slot: int = last.get("stop", 0)
    self.bad = collections.Counter(last.get("bad", {}))
    self.resized: int = last.get("resized", 0)
    self.replaced = collections.Counter(last.get("replaced", {}))
    self._writer: Any = None
    self._begun = self._begin()
    for entry in self._begun.read() if keeps_begun else ():
      self._take(entry)

  def _begin(self) -> begun_files.BegunFile:
    return begun_files.BegunFile(self._shelf / f"begun-{self.slot}")

  def add(self, entry: begun_files.Entry) -> None:
    """Takes the entry of the next slot."""
    if self._keeps_begun:
      self._begun.add(entry)
    self._take(entry)

  def _take(self, entry: begun_files.Entry) -> None:
    if entry.bad:
      self.bad[entry.bad] += 1
    self.resized += entry.resized
    self.replaced.update(entry.replaced)
    self.slot += 1
    if entry.data is not None:
      self._write(entry.data)
      if self._written >= self._shard_bytes:
        self.put_away()

  def _write(self, data: bytes) -> None:
    if self._writer is None:
      self._name = f"{len(self.done):05d}{array_record.SUFFIX}"
      self._records = self._written = 0
      path = str(self._directory / self._name)
      self._writer = array_record.Writer(path)
    self._writer.write(data)
    self._records += 1
    self._written += len(data)

  def close(self) -> None:
    """Ends the file without the shelf, where something has failed."""
    self._begun.close()
    if self._writer is not None:
      writer, self._writer = self._writer, None
      writer.close()

  def put_away(self) -> None:
    """Ends the file, if there is one; slots so far are in it."""
    if self._writer is None:
      return
    self.close()
    path = self._directory / self._name
    sync(path)
    entry = {
      "name": self._name,
      "records": self._records,
      "bytes": path.stat().st_size,
      "stop": self.slot,
      "bad": dict(self.bad),
      "resized": self.resized,
      "replaced": dict(self.replaced),
    }
    self._shelf.mkdir(parents=True, exist_ok=True)
    path.rename(self._shelf / self._name)
    self.done.append(entry)
    new = self._shelf / f"{_DONE}.new"
    sealed = json_text.seal({"done": self.done})
    with whole_files.named(new):
      new.write_text(json.dumps(sealed), "utf-8")
    new.replace(self._shelf / _DONE)
    self._begun.remove()
    self._begun = self._begin()

  def take_out(self) -> None:
    """Moves all files to the directory; the shelf is gone then."""
    for entry in self.done:
      (self._shelf / entry["name"]).rename(self._directory / entry["name"])
    shutil.rmtree(self._shelf, ignore_errors=True)


def _kept(shelf: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the entries of the first files that are there and whole.

  A list that is damaged, or was changed by hand, is none.
  """
  kept: list[dict[str, Any]] = []
  with contextlib.suppress(OSError, ValueError):
    for entry in json_text.unseal(json_text.read(shelf / _DONE))["done"]:
      if (shelf / entry["name"]).stat().st_size != entry["bytes"]:
        break
      kept.append(entry)
  return kept


def write(
  source: record_lib.Source,
  directory: pathlib.Path,
  rule: Rule,
  *,
  keep: pathlib.Path,
  shard_bytes: int,
  workers: int = 1,
  on_record: Callable[[int], None] | None = None,
) -> dict[str, Any]:
  """Writes all records of `source` to files in `directory`.

  Args:
    source: what to copy.
    directory: where to.
    rule: how.
    keep: a directory of the same disk, where files that are whole stay when
      this is interrupted, and what was made of the next one; a later call with
      the same arguments goes on there.
    shard_bytes: a new file is begun after this many.
    workers: processes that read and decode; one does so in this process.
    on_record: called with the number of records done.

  Returns:
    `records`, `bad` (their number by reason), `files`, and with a
    `rule.shortest_side` `resized`: how many images were made smaller; where
    records stand in the place of bad ones, as in the examples of a run,
    `replaced`, these bad ones by reason.

  Raises:
    Interrupted: a process was killed.
  """
  about = [
    *(_VERSION, source.fingerprint, len(source), shard_bytes, rule.to_dict()),
    preprocess.decoder(),
  ]
  digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
  shards = _Shards(
    directory,
    keep / f"copy-{digest.hexdigest()[:16]}",
    shard_bytes=shard_bytes,
    keeps_begun=rule.decodes,
  )
  ranges = [
    (start, min(start + _CHUNK, len(source)))
    for start in range(shards.slot, len(source), _CHUNK)
  ]
  job = _Copier(source, rule)
  try:
    with contextlib.closing(processes.run(job, ranges, workers=workers)) as run:
      for entry in (each for part in run for each in part):
        shards.add(entry)
        if on_record is not None:
          on_record(shards.slot)
    shards.put_away()
  finally:
    shards.close()
  shards.take_out()
  files = [
    {name: entry[name] for name in ("name", "records", "bytes")}
    for entry in shards.done
  ]
  return {
    "records": sum(entry["records"] for entry in files),
    "bad": dict(shards.bad),
    "files": files,
    **({} if rule.shortest_side is None else {"resized": shards.resized}),
    **({"replaced": dict(shards.replaced)} if shards.replaced else {}),
  }
