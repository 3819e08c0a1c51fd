"""The exchanges between devices that a compiled program asks for."""

import dataclasses
import itertools
import math
import re

import numpy as np

from clip_jax.plan import hlo

KINDS = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-broadcast",
  "collective-permute",
  "ragged-all-to-all",
  "reduce-scatter",
)
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})?\}")
_IOTA = re.compile(
  r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
)
_MESH = re.compile(r"replica_groups=@?mesh\[([^\]]*)\] ?\{([^}]*)\}")
_MESH_DEVICES = re.compile(r"device_ids=\(\[([\d,]+)\]\)")
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_PAIRS = re.compile(r"source_target_pairs=\{(\{[\d,{} ]*\})?\}")
_NUMBERS = re.compile(r"\{([\d, ]+)\}")
# Spread over several fusions; the first of them stands for all.
_CHAIN = re.compile(r'chain_id="')
_CHAIN_STARTS = "AsyncCollectiveStart"


@dataclasses.dataclass(frozen=True)
class Collective:
  """One exchange.

  Attributes:
    kind: one of `KINDS`.
    bytes: of the larger of what one device gives and gets.
    groups: the devices' numbers in the program, by group; for a permutation
      the pairs (from, to). Empty for one group of all.
  """

  kind: str
  bytes: int
  groups: tuple[tuple[int, ...], ...]


def read(
  computation: hlo.Computation, instruction: hlo.Instruction, devices: int
) -> Collective | None:
  """Returns the exchange that an instruction starts; None for anything else.

  Args:
    computation: that it stands in.
    instruction: any.
    devices: of the whole program.
  """
  kind = instruction.opcode.removesuffix("-start")
  if kind not in KINDS or not _counts(computation, instruction):
    return None
  if kind == "collective-permute":
    groups = _pairs(instruction.attributes)
  else:
    groups = _groups(instruction.attributes)
  size = len(groups[0]) if groups else devices
  given = sum(x.bytes for x in computation.operand_shapes(instruction))
  if kind == "all-gather":
    given *= size
  elif kind == "all-reduce":
    # A sum of narrow numbers may be made in wide ones.
    given = max(given, sum(x.bytes for x in instruction.shapes))
    if "all-reduce-scatter" in computation.name:
      # One fused operation: a device keeps but its part of the sum.
      kind = "reduce-scatter"
  if size < 2:
    return None
  return Collective(kind, given, groups)


def _counts(computation, instruction) -> bool:
  if not _CHAIN.search(instruction.attributes):
    return True
  return any(
    other.target == _CHAIN_STARTS for other in computation.instructions.values()
  )


def _groups(attributes: str) -> tuple[tuple[int, ...], ...]:
  if found := _LISTED.search(attributes):
    return _listed(found[1] or "")
  if found := _IOTA.search(attributes):
    groups, source, order = (_integers(x or "") for x in found.groups())
    devices = np.arange(math.prod(source)).reshape(source)
    if order:
      devices = devices.transpose(order)
    return _rows(devices.reshape(-1, groups[-1]))
  if found := _MESH.search(attributes):
    return _mesh_groups(attributes, found[1], found[2])
  return ()


def _mesh_groups(attributes, axes, spanned) -> tuple[tuple[int, ...], ...]:
  """Reads groups along named axes of a mesh."""
  sizes = {name: int(size) for name, size in _AXIS.findall(axes)}
  names = re.findall(r"'([^']+)'", spanned)
  if not set(names) <= sizes.keys():
    return ()
  devices = np.arange(math.prod(sizes.values()))
  if found := _MESH_DEVICES.search(attributes):
    devices = np.asarray(_integers(found[1]))
  devices = devices.reshape(tuple(sizes.values()))
  inner = [list(sizes).index(name) for name in names]
  outer = [axis for axis in range(len(sizes)) if axis not in inner]
  size = math.prod(devices.shape[axis] for axis in inner)
  return _rows(devices.transpose(outer + inner).reshape(-1, size))


def _pairs(attributes: str) -> tuple[tuple[int, ...], ...]:
  found = _PAIRS.search(attributes)
  return _listed(found[1] or "") if found else ()


def _listed(text: str) -> tuple[tuple[int, ...], ...]:
  return tuple(tuple(_integers(group)) for group in _NUMBERS.findall(text))


def _integers(text: str) -> list[int]:
  return [int(number) for number in text.split(",") if number.strip()]


def _rows(array) -> tuple[tuple[int, ...], ...]:
  return tuple(tuple(int(n) for n in row) for row in array)


def summary(times: dict[Collective, int]) -> dict[str, dict[str, int]]:
  """Returns {kind: {"count", "bytes"}} of one step on one device."""
  found: dict[str, dict[str, int]] = {}
  ordered = sorted(times.items(), key=lambda item: item[0].kind)
  for kind, entries in itertools.groupby(ordered, key=lambda x: x[0].kind):
    entries = list(entries)
    found[kind] = {
      "count": sum(count for _, count in entries),
      "bytes": sum(entry.bytes * count for entry, count in entries),
    }
  return found
