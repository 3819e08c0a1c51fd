"""The index of a WebDataset tar shard: its members, put together to samples."""

import array
import dataclasses
import os
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from clip_jax import errors, json_text, places
from clip_jax.data import account as account_lib
from clip_jax.data import record as record_lib
from clip_jax.data.sources import (
  grouping,
  kept_index,
  naming,
  open_files,
  strings,
  tar,
)
from clip_jax.data.sources.naming import IMAGE, JSON, LABEL, TEXT, UNREAD_IMAGE

_PARTS = (IMAGE, TEXT, JSON, LABEL)
MISSING = -1
_SIZES = "sizes.json"


@dataclasses.dataclass
class _Sample:
  """The parts of one slot, collected so far."""

  key: str
  parts: dict[int, tuple[int, int]] = dataclasses.field(default_factory=dict)
  fields: set[str] = dataclasses.field(default_factory=set)
  unread: list[str] = dataclasses.field(default_factory=list)  # Images.
  problem: str = ""

  def add(self, part: naming.Part, member: tar.Member) -> None:
    self.fields.add(part.field)
    if part.kind == UNREAD_IMAGE:
      self.unread.append(member.name)
      return
    if part.kind in self.parts:
      several = "several_images" if part.kind == IMAGE else "several_captions"
      self.problem = self.problem or several
    self.parts[part.kind] = (member.offset, member.size)
    self.problem = self.problem or member.problem

  def close(self) -> str:
    """Returns the reason why the sample is bad, or ""."""
    if self.problem:
      return self.problem
    if IMAGE not in self.parts:
      return "unsupported_image" if self.unread else "missing_image"
    if not self.parts.keys() & {TEXT, JSON, LABEL}:
      return "missing_caption"
    return ""


@dataclasses.dataclass(frozen=True)
class Shard:
  """The index of one shard: slot -> where its parts are."""

  keys: strings.Strings
  bounds: np.ndarray  # (slots, 4 parts, offset and size)
  problems: dict[int, str]
  sites: tuple[tuple[int, tar.Damage], ...]  # Slots before, and a damage.
  left_out: account_lib.LeftOut
  unread: account_lib.LeftOut  # Images that make a slot bad.
  members: int
  size: int
  stated: int | None = None  # Slots that it should have.


def join(shards: Sequence[Shard]) -> kept_index.Index:
  """Returns the content of shards, but for `stated`, as `split` reads it."""
  buffers = [shard.keys.buffers for shard in shards]
  reasons = sorted({r for shard in shards for r in shard.problems.values()})
  codes = {reason: code for code, reason in enumerate(reasons)}
  problems = [
    (slot, codes[reason])
    for shard in shards
    for slot, reason in shard.problems.items()
  ]
  arrays = {
    "key_ends": _joined([ends for ends, _ in buffers]),
    "keys": _joined([np.frombuffer(keys, np.uint8) for _, keys in buffers]),
    "bounds": _joined([shard.bounds for shard in shards]),
    "problems": np.array(problems, np.int64).reshape(-1, 2),
  }
  facts = [
    {
      "slots": len(shard.keys),
      "problems": len(shard.problems),
      "sites": shard.sites,
      "left_out": shard.left_out.as_json(),
      "unread": shard.unread.as_json(),
      "members": shard.members,
      "size": shard.size,
    }
    for shard in shards
  ]
  return kept_index.Index(arrays, {"reasons": reasons, "shards": facts})


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
  """Returns one array; that of a single shard is not copied."""
  return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def split(
  index: kept_index.Index, stated: Iterable[int | None]
) -> Iterator[Shard]:
  """Yields the shards that were joined, with the numbers that are stated."""
  slot = key = problem = 0
  reasons = index.facts["reasons"]
  for facts, count in zip(index.facts["shards"], stated, strict=True):
    here = slice(slot, slot + facts["slots"])
    ends = index.arrays["key_ends"][here]
    keys = index.arrays["keys"][key : key + int(ends[-1]) if len(ends) else key]
    own = index.arrays["problems"][problem : problem + facts["problems"]]
    slot, key, problem = here.stop, key + len(keys), problem + len(own)
    yield Shard(
      strings.Strings.of_buffers(ends, keys),
      index.arrays["bounds"][here],
      {at: reasons[code] for at, code in own.tolist()},
      tuple((at, tar.Damage(*damage)) for at, damage in facts["sites"]),
      account_lib.LeftOut.from_json(facts["left_out"]),
      account_lib.LeftOut.from_json(facts["unread"]),
      members=facts["members"],
      size=facts["size"],
      stated=count,
    )


def index_shard(path: str, *, labels: Container[str] = ()) -> Shard:
  """Scans the tar file at `path` and groups its members into slots.

  Where the members of each sample stand together and have one dot in their
  names, as nearly everywhere, a sample is closed when the next one begins, and
  takes few bytes from then on.

  Args:
    path: of the tar file.
    labels: suffixes of labels besides "cls".
  """
  try:
    items = ((item, _plain_part(item, labels)) for item in tar.scan(path))
    return _grouped(path, items, in_a_row=True)
  except _IrregularError:
    pass
  found = list(tar.scan(path))
  names = [item.name for item in found if isinstance(item, tar.Member)]
  names = [name.removeprefix("./") for name in names]
  parts = iter(naming.split_all(names, labels=labels))
  items = (
    (item, next(parts) if isinstance(item, tar.Member) else None)
    for item in found
  )
  return _grouped(path, items, in_a_row=False)


class _IrregularError(Exception):
  """A shard whose samples are known only when all members are."""


def _plain_part(
  item: tar.Member | tar.Damage, labels: Container[str]
) -> naming.Part | None:
  """Returns the part that a member is by its name alone."""
  if isinstance(item, tar.Damage):
    return None
  part = naming.split(item.name.removeprefix("./"), labels=labels)
  if part is not None and naming.is_dotted(part.key):
    raise _IrregularError
  return part


def _grouped(
  path: str,
  items: Iterable[tuple[tar.Member | tar.Damage, naming.Part | None]],
  *,
  in_a_row: bool,
) -> Shard:
  grouper = _Grouper(in_a_row=in_a_row)
  for item, part in items:
    if isinstance(item, tar.Damage):
      grouper.add_damage(item)
    elif part is None:
      grouper.left_out.add(item.name)
    else:
      grouper.add(part, item)
  return grouper.finish(max(0, open_files.status(path)[0]))  # -1: a dead link.


def stated_counts(paths: Sequence[str]) -> list[int | None]:
  """Returns the number of records that each shard should have, or None.

  A file beside a shard tells it, or one for all shards of a folder.
  """
  folders = list({os.path.dirname(path): None for path in paths})
  tables = [os.path.join(folder, _SIZES) for folder in folders]
  sizes = dict(zip(folders, places.of_each(_beside, tables), strict=True))
  stems = [os.path.splitext(path)[0] for path in paths]
  told = places.of_each(_beside, [f"{stem}_stats.json" for stem in stems])
  return [
    _count(own, "successes", _count(sizes[folder], name))
    for own, (folder, name) in zip(told, map(os.path.split, paths), strict=True)
  ]


def _count(
  told: dict[str, Any], field: str, otherwise: int | None = None
) -> int | None:
  count = told.get(field)
  return count if type(count) is int else otherwise


def _beside(path: str) -> dict[str, Any]:
  """Returns the object in a JSON file; {} if it is not one."""
  try:
    return json_text.read(path)
  except errors.UnreachableError:
    raise
  except (OSError, errors.UserError):
    return {}  # Any other content says nothing of shards.


class _Grouper:
  """Puts the members of one shard together to samples."""

  def __init__(self, *, in_a_row: bool):
    """Begins empty.

    Args:
      in_a_row: whether to take the members of a sample to stand together, or
        raise _IrregularError, at the end at the latest.
    """
    self.left_out = account_lib.LeftOut()
    self._in_a_row = in_a_row
    self._slots = 0
    self._open: list[_Sample] = []  # Those behind the closed ones.
    self._by_key: dict[str, _Sample] = {}
    self._run: _Sample | None = None
    # Samples next to a damage: what they lack may have been there.
    self._touched: dict[int, str] = {}
    self._sites: list[tuple[int, tar.Damage]] = []
    # Of closed samples.
    self._keys, self._ends = bytearray(), array.array("q")
    self._bounds = array.array("q")
    self._problems: dict[int, str] = {}
    self._unread = account_lib.LeftOut()  # Of samples without an image.
    self._members = 0

  def add_damage(self, damage: tar.Damage) -> None:
    self._sites.append((self._slots, damage))
    lost_header = damage.reason not in ("truncated", "no_end_marker")
    for slot in (self._slots - 1, self._slots):
      self._touched[slot] = "damaged_header" if lost_header else "truncated"

  def add(self, part: naming.Part, member: tar.Member) -> None:
    sample = self._sample_for(part)
    sample.add(part, member)
    self._run = sample

  def _sample_for(self, part: naming.Part) -> _Sample:
    run = self._run
    if self._in_a_row:
      if run is None or run.key != part.key:
        self._close()
        return self._new(part.key)
      if part.field in run.fields:
        raise _IrregularError
      return run
    known = self._by_key.get(part.key)
    if known is None:
      return self._new(part.key)
    if part.field in known.fields:
      again = self._new(part.key)  # From here on, it collects parts.
      again.problem = again.problem or "duplicate_key"
      return again
    if known is not run:
      known.problem = known.problem or "parts_not_adjacent"
    return known

  def _new(self, key: str) -> _Sample:
    sample = _Sample(key)
    if record_lib.is_unsafe(key):
      sample.problem = "unsafe_name"
    self._slots += 1
    self._open.append(sample)
    if not self._in_a_row:
      self._by_key[key] = sample
    return sample

  def _close(self) -> None:
    """Stores the open samples in arrays."""
    for sample in self._open:
      slot = len(self._ends)
      bounds = [MISSING] * (2 * len(_PARTS))
      for part, bound in sample.parts.items():
        bounds[2 * part : 2 * part + 2] = bound
      self._bounds.extend(bounds)
      self._keys += strings.encode(sample.key)
      self._ends.append(len(self._keys))
      problem = sample.close()
      if problem.startswith("missing") and slot in self._touched:
        problem = self._touched[slot]
      if problem:
        self._problems[slot] = problem
      counts = self.left_out if IMAGE in sample.parts else self._unread
      for name in sample.unread:
        counts.add(name)
      self._members += len(sample.fields)
    self._open.clear()

  def finish(self, size: int) -> Shard:
    self._close()
    ends = np.frombuffer(self._ends, np.int64)
    keys = np.frombuffer(self._keys, np.uint8)
    if self._in_a_row and not grouping.are_different(keys, ends):
      raise _IrregularError
    bounds = np.frombuffer(self._bounds, np.int64)
    return Shard(
      strings.Strings.of_buffers(ends, keys),
      bounds.reshape(len(ends), len(_PARTS), 2),
      self._problems,
      tuple(self._sites),
      self.left_out,
      self._unread,
      members=self._members,
      size=size,
    )
