"""Results of examining records: arrays, and the files that store them."""

import collections
import dataclasses
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax import errors, whole_files

_SUFFIX = ".found"
_GOOD = -1


@dataclasses.dataclass(frozen=True)
class Found:
  """The results for the slots from `start` up to `stop`.

  Attributes:
    start: the first slot.
    stop: the slot after the last.
    columns: by name an array (slots, …); zeros where a record is bad.
    lengths: by name how many numbers each slot has in `values`, int64 (slots,).
    values: by name these numbers, one slot after the other.
    reasons: of each slot the position in `words` of what is wrong with it, -1
      where it is good, int32 (slots,).
    words: the reasons.
  """

  start: int
  stop: int
  columns: dict[str, np.ndarray]
  lengths: dict[str, np.ndarray]
  values: dict[str, np.ndarray]
  reasons: np.ndarray
  words: tuple[str, ...] = ()

  @property
  def good(self) -> np.ndarray:
    """Whether each slot holds a usable record, bool (slots,)."""
    return self.reasons == _GOOD

  def bad(self) -> dict[str, int]:
    """Returns the number of bad slots by reason, the first met first."""
    numbers, first, counts = np.unique(
      self.reasons[~self.good], return_index=True, return_counts=True
    )
    return {self.words[numbers[i]]: int(counts[i]) for i in np.argsort(first)}


def joined(parts: Iterable[Found]) -> Found:
  """Returns parts that follow each other, in any order, as one."""
  parts = sorted(parts, key=lambda part: part.start)
  first = parts[0]
  words = tuple(sorted({word for part in parts for word in part.words}))
  reasons = []
  for part in parts:
    # The last entry is that of good slots, which have -1.
    new = np.array([*map(words.index, part.words), _GOOD], np.int32)
    reasons.append(new[part.reasons])

  def all_of(kind: str) -> dict[str, np.ndarray]:
    return {
      name: np.concatenate([getattr(part, kind)[name] for part in parts])
      for name in getattr(first, kind)
    }

  return Found(
    first.start,
    parts[-1].stop,
    columns=all_of("columns"),
    lengths=all_of("lengths"),
    values=all_of("values"),
    reasons=np.concatenate(reasons),
    words=words,
  )


def collected(
  start: int,
  rows: Iterable[Mapping[str, Any] | str],
  *,
  columns: Mapping[str, np.dtype],
  ragged: Mapping[str, np.dtype],
) -> Found:
  """Returns the findings about each slot as arrays.

  Args:
    start: the first slot.
    rows: for each slot a value for each name, or what is wrong with it.
    columns: see `Examine`.
    ragged: see `Examine`.
  """
  rows = list(rows)
  arrays = {name: np.zeros(len(rows), dtype) for name, dtype in columns.items()}
  lengths = {name: np.zeros(len(rows), np.int64) for name in ragged}
  values: dict[str, list] = {name: [] for name in ragged}
  reasons = np.full(len(rows), _GOOD, np.int32)
  words: dict[str, int] = {}
  for i, said in enumerate(rows):
    if isinstance(said, str):
      reasons[i] = words.setdefault(said, len(words))
      continue
    for name, column in arrays.items():
      column[i] = said[name]
    for name, several in values.items():
      several.extend(said[name])
      lengths[name][i] = len(said[name])
  return Found(
    start,
    start + len(rows),
    columns=arrays,
    lengths=lengths,
    values={name: np.array(values[name], ragged[name]) for name in ragged},
    reasons=reasons,
    words=tuple(words),
  )


class Shelf:
  """Keeps what was found in a directory, a file for each range."""

  def __init__(self, directory: str | os.PathLike, digest: bytes):
    """Makes the directory where it is missing.

    Args:
      directory: for such files only; several jobs may share it.
      digest: of what the answers depend on; files of others are passed over.
    """
    self.directory = pathlib.Path(directory)
    self._digest = digest
    self.directory.mkdir(parents=True, exist_ok=True)

  def put(self, found: Found) -> None:
    """Writes a file, whole or not at all."""
    payload = io.BytesIO()
    arrays = {
      f"{kind}.{name}": array
      for kind in ("columns", "lengths", "values")
      for name, array in getattr(found, kind).items()
    }
    words = json.dumps(found.words).encode()
    np.savez(
      payload,
      range=np.array([found.start, found.stop], np.int64),
      words=np.frombuffer(words, np.uint8),
      reasons=found.reasons,
      **arrays,
    )
    name = f"{self._digest.hex()[:12]}-{found.start}-{found.stop}"
    data = payload.getvalue()
    path = self.directory / (name + _SUFFIX)
    whole_files.write(path, self._sealed(data) + data)

  def _sealed(self, data: bytes) -> bytes:
    return hashlib.sha256(self._digest + data).digest()

  def slots(self) -> int:
    """Returns for how many slots there are files, by their names."""
    ranges = (path.stem.split("-")[1:] for path in self._files())
    return sum(int(stop) - int(start) for start, stop in ranges)

  def _files(self) -> list[pathlib.Path]:
    mine = f"{self._digest.hex()[:12]}-*-*{_SUFFIX}"
    return sorted(self.directory.glob(mine))

  def parts(self, slots: int) -> list[Found]:
    """Returns the parts in order, without damaged and foreign files.

    Args:
      slots: of the source.
    """
    found: list[Found] = []
    for path in self._files():
      whole = path.read_bytes()
      seal, data = whole[: len(self._digest)], whole[len(self._digest) :]
      if seal != self._sealed(data):
        path.unlink()
        continue
      found.append(_unpacked(data))
    found.sort(key=lambda part: (part.start, -part.stop))
    kept: list[Found] = []
    for part in found:
      if part.start >= (kept[-1].stop if kept else 0) and part.stop <= slots:
        kept.append(part)
    return kept


def _unpacked(data: bytes) -> Found:
  kinds: dict[str, dict[str, np.ndarray]] = collections.defaultdict(dict)
  with np.load(io.BytesIO(data), allow_pickle=False) as file:
    start, stop = file["range"].tolist()
    words = tuple(json.loads(file["words"].tobytes()))
    reasons = file["reasons"]
    for entry in file.files:
      kind, _, name = entry.partition(".")
      if name:
        kinds[kind][name] = file[entry]
  return Found(
    start,
    stop,
    columns=kinds["columns"],
    lengths=kinds["lengths"],
    values=kinds["values"],
    reasons=reasons,
    words=words,
  )


def none_stays(said: Mapping[str, Any], advice: str = "") -> errors.UserError:
  """Returns the error where all `pairs` are `dropped`, as `said` has them."""
  dropped = ", ".join(f"{n} {why}" for why, n in said["dropped"].items())
  pairs = said["pairs"]
  stays = f"None of the {pairs} pairs stays"
  if pairs == 1:
    stays = "The only pair does not stay"
  error = errors.UserError(
    f"{stays}; dropped: {dropped}.{advice and f' {advice}'}"
  )
  error.payload = said
  return error


def gaps(
  parts: Sequence[Found], slots: int, *, length: int
) -> list[tuple[int, int]]:
  """Returns the ranges, of at most `length`, that no part has.

  Args:
    parts: in order; none begins before the one before it ends.
    slots: of the source.
    length: of a range.
  """
  edges = [0, *(edge for p in parts for edge in (p.start, p.stop)), slots]
  return [
    (start, min(start + length, end))
    for begin, end in zip(edges[::2], edges[1::2], strict=True)
    for start in range(begin, end, length)
  ]


def with_bad(found: Found, slots: np.ndarray, other: Found) -> Found:
  """Returns `found` with those slots bad that are bad in `other`.

  Args:
    found: of all slots.
    slots: those that `other` is about, int64 (n,).
    other: what was found later, of n slots.
  """
  words = tuple(dict.fromkeys([*found.words, *other.words]))
  new = np.array([*map(words.index, other.words), _GOOD], np.int32)
  reasons = found.reasons.copy()
  reasons[slots[~other.good]] = new[other.reasons[~other.good]]
  return dataclasses.replace(found, reasons=reasons, words=words)
