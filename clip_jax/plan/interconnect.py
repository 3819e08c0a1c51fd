"""A model of how long collectives take on the network between chips.

The compiler's estimates have no network: they count a collective as traffic to
the chip's memory. In this model every chip has a link in both directions along
each axis, and an axis is a ring or a line. Gathers and reductions use all axes
that their group spans at once, and both directions of a ring; a permutation is
routed one axis after the other, and its time is that of the link with the most
traffic. Nothing else uses the links. These are estimates, not measurements.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator

from clip_jax.plan import collectives

# "About one microsecond per hop": Austin et al. 2025, "How to scale your
# model", chapter 2; no figure of Google's own is published.
HOP_SECONDS = 1e-6

# How often the data pass over the links, relative to an all-gather.
_PASSES = {
  "all-gather": 1,
  "all-reduce": 2,  # A reduction that scatters, then a gather.
  "reduce-scatter": 1,
}


@dataclasses.dataclass(frozen=True)
class Network:
  """The network between a program's devices, and their places in it.

  Attributes:
    coordinates: coordinates of each device, by its number in the program.
    shape: number of chips along each axis.
    wrap: whether each axis is a ring.
    link_bandwidth: bytes a second over one link in one direction.
  """

  coordinates: tuple[tuple[int, ...], ...]
  shape: tuple[int, ...]
  wrap: tuple[bool, ...]
  link_bandwidth: float

  def seconds(self, exchange: collectives.Collective) -> float:
    """Returns the estimated seconds of one collective that runs alone."""
    groups = exchange.groups or (tuple(range(len(self.coordinates))),)
    if exchange.kind == "collective-permute":
      return self._permute(exchange.bytes, groups)
    return max(
      self._group(exchange.kind, exchange.bytes, spans)
      for spans in {self._spans(group) for group in groups}
    )

  def _spans(self, group: tuple[int, ...]) -> tuple[tuple[int, bool], ...]:
    """Returns (length, whether a ring) of each axis that a group spans."""
    spans = []
    for axis, side in enumerate(self.shape):
      places = {self.coordinates[device][axis] for device in group}
      if len(places) > 1:
        ring = self.wrap[axis] and len(places) == side
        length = side if ring else max(places) - min(places) + 1
        spans.append((length, ring))
    return tuple(spans)

  def _group(self, kind: str, size: int, spans) -> float:
    """Returns the seconds of a gather or reduction over these axes."""
    if not spans:  # Devices of one chip.
      return 0.0
    hops = sum(n // 2 if ring else n - 1 for n, ring in spans)
    members = math.prod(n for n, _ in spans)
    links = sum(2 if ring else 1 for _, ring in spans)
    crossing = size * (members - 1) / members
    return _PASSES[kind] * (
      crossing / (links * self.link_bandwidth) + hops * HOP_SECONDS
    )

  def _permute(self, size: int, pairs) -> float:
    """Returns the seconds of a permutation: busiest link and longest route."""
    load: collections.Counter = collections.Counter()
    longest = 0
    for source, target in pairs:
      links = list(self._route(source, target))
      load.update(links)
      longest = max(longest, len(links))
    fullest = max(load.values(), default=0)
    return size * fullest / self.link_bandwidth + longest * HOP_SECONDS

  def _route(self, source: int, target: int) -> Iterator[tuple]:
    """Yields the links from one device to another, axis after axis."""
    here, there = list(self.coordinates[source]), self.coordinates[target]
    for axis, side in enumerate(self.shape):
      forward = (there[axis] - here[axis]) % side
      backward = side - forward if forward else 0
      if self.wrap[axis]:
        step = 1 if forward <= backward else -1
      else:
        step = 1 if there[axis] > here[axis] else -1
      while here[axis] != there[axis]:
        yield (*here, axis, step)
        here[axis] = (here[axis] + step) % side
