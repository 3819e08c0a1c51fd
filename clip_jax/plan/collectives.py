"""The collectives of a traced program, read from its jaxpr.

The compiler changes them a little: it adds all-reduces of single numbers, for
the norms of split arrays, and combines collectives of the same kind; see
`tools/bench/RESULTS.md`.
"""

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from clip_jax.models import flops

ALL_REDUCE, PERMUTE = "all-reduce", "collective-permute"
# XLA's kinds of collectives by JAX's primitives.
_KINDS = {
  "all_gather": "all-gather",
  "all_gather_invariant": "all-gather",
  "pmax": ALL_REDUCE,
  "ppermute": PERMUTE,
  "psum": ALL_REDUCE,
  "psum_invariant": ALL_REDUCE,
  "reduce_scatter": "reduce-scatter",
}


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation.

  Attributes:
    kind: XLA's name of it, such as "all-gather".
    bytes: size of one device's input or output, whichever is larger.
    groups: the devices' numbers in the mesh, by group; for a permutation the
      pairs (from, to). Empty for one group of all devices.
  """

  kind: str
  bytes: int
  groups: tuple[tuple[int, ...], ...] = ()


def read(jaxpr: Any) -> collections.Counter[Collective]:
  """Counts the collectives of one run of a program, on one device.

  Consecutive sums over the same devices count as one, since the compiler
  combines them. Mesh axes of size one are left out.

  Raises:
    ValueError: a collective is in a while loop, whose length is not known.
  """
  found: collections.Counter[Collective] = collections.Counter()
  numbered = enumerate(flops.calls(jaxpr))
  for (key, _), same in itertools.groupby(numbered, key=_group_key):
    if key is None:
      continue
    calls = [call for _, call in same]
    kind, axes, times = key
    if times is None:
      raise ValueError(f"Cannot count {kind} in a while loop: use a scan.")
    side = "outvars" if kind == "all-gather" else "invars"
    sizes = (flops.array_bytes(*getattr(x.equation, side)) for x in calls)
    groups = _groups(kind, axes, calls[0])
    found[Collective(kind, sum(sizes), groups)] += times
  return found


def _group_key(numbered: tuple[int, flops.Call]) -> tuple[Any, int]:
  """Returns (kind, axes, times) and a number that only combined sums share."""
  number, call = numbered
  kind = _KINDS.get(call.equation.primitive.name)
  if kind is None:
    return None, 0
  params = call.equation.params
  axes = params["axes"] if "axes" in params else params["axis_name"]
  axes = (axes,) if isinstance(axes, str) else tuple(axes)
  axes = tuple(axis for axis in axes if call.mesh.shape[axis] > 1)
  if not axes:
    return None, 0
  return (kind, axes, call.times), 0 if kind == ALL_REDUCE else number


def _groups(kind, axes, call) -> tuple[tuple[int, ...], ...]:
  """Returns the groups of devices, or the pairs of a permutation."""
  sizes = call.mesh.shape
  names = list(sizes)
  inner = [names.index(axis) for axis in axes]
  outer = [place for place in range(len(names)) if place not in inner]
  numbers = np.arange(call.mesh.size).reshape(tuple(sizes.values()))
  length = math.prod(sizes[axis] for axis in axes)
  groups = numbers.transpose(outer + inner).reshape(-1, length)
  if kind == PERMUTE:
    pairs = np.asarray(call.equation.params["perm"])
    groups = groups[:, pairs].reshape(-1, 2)
  return tuple(map(tuple, groups.tolist()))


def summary(
  times: dict[Collective, int],
  seconds: Callable[[Collective], float] | None = None,
) -> dict[str, dict[str, Any]]:
  """Returns {kind: {"count", "bytes", "seconds"}} of one step on one device.

  Args:
    times: how often each collective runs.
    seconds: returns the seconds that a collective takes; None if unknown.
  """
  found: dict[str, dict[str, Any]] = {}
  for exchange, count in sorted(times.items(), key=lambda item: item[0].kind):
    none = {"count": 0, "bytes": 0, "seconds": seconds and 0.0}
    entry = found.setdefault(exchange.kind, none)
    entry["count"] += count
    entry["bytes"] += exchange.bytes * count
    if seconds is not None:
      entry["seconds"] += seconds(exchange) * count
  return found
