"""Indexes of data that are made in one pass, and kept in the user's cache.

An index is arrays, mapped from a file of the cache where they are kept, and
facts beside them. It is used as long as the sizes and times of the files that
it is of stay the same, and the samples of their bytes, where these are taken.
Where it cannot be kept, as in a folder that is full or read-only, it is made at
each start. Several processes may make one at a time: the last one stays.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax import buckets, errors, kept_files, places, regular_files

VERSION = 1  # Of what the arrays and facts mean; of no use after a change.
LEAST_BYTES = 2**20  # Of the files; smaller ones are as quickly read.
MOST_BYTES = 32 * 2**30  # Of all indexes.
# Files that have changed since are not trusted to keep their times: a change
# within one tick of the clock would not show.
SETTLED_SECONDS = 2.0
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_ALIGNMENT = 64
_LENGTH = struct.Struct("<q")
_Stamp = list[Any]


@dataclasses.dataclass(frozen=True)
class Index:
  """Arrays and facts; mapped from `path`, or in memory where that is None.

  Attributes:
    arrays: by name, read-only where they are mapped.
    facts: what JSON can hold.
    path: of the file.
    digest: that the file begins with: one made anew has the same.
  """

  arrays: Mapping[str, np.ndarray]
  facts: Mapping[str, Any]
  path: pathlib.Path | None = None
  digest: bytes = b""

  def __reduce__(self) -> tuple:
    # By its place while it is there; else by its content.
    if self.path is not None:
      with contextlib.suppress(OSError), self.path.open("rb") as file:
        if file.read(kept_files.DIGEST_BYTES) == self.digest:
          return _reopen, (self.path, self.digest)
    arrays = {name: np.array(array) for name, array in self.arrays.items()}
    return Index, (arrays, dict(self.facts))


def _reopen(path: pathlib.Path, digest: bytes) -> Index:
  with contextlib.suppress(OSError, ValueError):
    found = _open(path)
    if found.digest == digest:
      return found
  raise errors.UserError(
    f"{path}, an index of the data, was removed or replaced while worker "
    "processes started; start again."
  )


def keep(
  what: str,
  paths: Sequence[str],
  settings: Any,
  make: Callable[[], Index],
  *,
  sampled: bool,
) -> Index:
  """Returns the index that is kept of some files, or else makes and keeps it.

  Args:
    what: the kind of index.
    paths: of the files that it is of, in order.
    settings: that the index depends on, too; their `repr` counts.
    make: makes the index from the files.
    sampled: whether samples of the files are read and compared as well.
  """
  real = [places.real(path) for path in paths]
  key = repr((VERSION, what, real, settings)).encode("utf-8", "replace")
  path = kept_files.folder("indexes") / hashlib.sha256(key).hexdigest()
  stamp = _stamp(paths, sampled=sampled)
  with contextlib.suppress(OSError, ValueError):
    found = _open(path)
    if stamp is not None and found.facts["stamp"] == stamp:
      kept_files.note_use(path)
      return found
  started = time.time()
  made = make()
  if stamp is None or not _is_to_be_kept(stamp, started):
    return made
  if _stamp(paths, sampled=sampled) != stamp:
    return made
  facts = {**made.facts, "stamp": stamp}
  with contextlib.suppress(OSError, ValueError):
    kept_files.write(path, *_pieces(made.arrays, facts), most_bytes=MOST_BYTES)
    found = _open(path)
    if found.facts["stamp"] == stamp:
      return found
  return made


def forget(index: Index) -> None:
  """Removes a kept index that is not of the files as they are."""
  if index.path is not None:
    index.path.unlink(missing_ok=True)


def _stamp(paths: Sequence[str], *, sampled: bool) -> _Stamp | None:
  """Returns sizes and times of files; None if one is missing."""

  def of_file(path: str) -> list[Any]:
    found = places.status(path)
    # Objects are replaced, never changed, and a sample takes a request.
    is_sampled = sampled and not buckets.is_address(path)
    times = [found.size, found.changed_ns, found.moved_ns]
    return times + ([_sample(path, found.size)] if is_sampled else [])

  try:
    return places.of_each(of_file, paths)
  except (OSError, regular_files.NotRegularError):
    return None


def _sample(path: str, size: int) -> str:
  digest = hashlib.sha256()
  last = max(0, size - _SAMPLE_BYTES)
  with regular_files.open_regular(path) as file:
    for number in range(_SAMPLES):
      place = last * number // (_SAMPLES - 1)
      digest.update(os.pread(file.fileno(), _SAMPLE_BYTES, place))
  return digest.hexdigest()


def _is_to_be_kept(stamp: _Stamp, started: float) -> bool:
  newest = max((max(each[1:3]) for each in stamp), default=0)
  return (
    sum(each[0] for each in stamp) >= LEAST_BYTES
    and newest / 1e9 < started - SETTLED_SECONDS
  )


def _pieces(
  arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]
) -> Iterator[bytes | memoryview]:
  """Yields what a kept file holds: JSON after its length, then arrays."""
  shapes = {name: [a.dtype.str, *a.shape] for name, a in arrays.items()}
  head = json.dumps({"arrays": shapes, "facts": facts}).encode()
  # In the file, the arrays begin at multiples of the alignment.
  behind = kept_files.DIGEST_BYTES + _LENGTH.size + len(head)
  head += b" " * (-behind % _ALIGNMENT)
  yield _LENGTH.pack(len(head)) + head
  for array in arrays.values():
    yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    yield b"\0" * (-array.nbytes % _ALIGNMENT)


def _open(path: pathlib.Path) -> Index:
  """Returns a kept index.

  Raises:
    OSError: the file does not exist.
    ValueError: the file is not an index, or other users may write there.
  """
  content = kept_files.map_file(path)
  if content is None:
    raise ValueError("others can write there")
  (length,) = _LENGTH.unpack_from(content)
  end = _LENGTH.size + length
  head = json.loads(content[_LENGTH.size : end].tobytes())
  whole = np.frombuffer(content, np.uint8)
  arrays = {}
  for name, (kind, *shape) in head["arrays"].items():
    dtype = np.dtype(kind)
    size = dtype.itemsize * math.prod(shape)
    arrays[name] = whole[end : end + size].view(dtype).reshape(shape)
    end += size + -size % _ALIGNMENT
  # Of the bytes that are mapped; the file may have been replaced.
  digest = bytes(memoryview(content.obj)[: kept_files.DIGEST_BYTES])
  return Index(arrays, head["facts"], path, digest)
