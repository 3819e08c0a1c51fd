"""How long exchanges take on the network between the chips: our own model.

The compiler prices an exchange as traffic to the chip's memory and knows no
network. Here every chip has a link in both directions along each axis; an axis
closes to a ring or is a line. Gathers and reductions use all axes that their
group spans at once, and both directions of a ring; a permutation is routed one
axis after the other and waits for its fullest link. Nothing else shares the
links, and nothing is measured: these are estimates.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator

from clip_jax.plan import collectives

# "About one microsecond per hop": Austin et al. 2025, "How to scale your
# model", chapter 2; no figure of Google's own is published.
HOP_SECONDS = 1e-6

# How often the data pass the links, next to a gather.
_PASSES = {
  "all-gather": 1,
  "all-reduce": 2,  # A reduction that scatters, then a gather.
  "reduce-scatter": 1,
}


@dataclasses.dataclass(frozen=True)
class Network:
  """Where the devices of a program sit.

  Attributes:
    coordinates: of each device, by its number in the program.
    shape: chips along each axis.
    wrap: whether an axis closes to a ring.
    link_bandwidth: of one link in one direction, bytes a second.
  """

  coordinates: tuple[tuple[int, ...], ...]
  shape: tuple[int, ...]
  wrap: tuple[bool, ...]
  link_bandwidth: float

  def seconds(self, exchange: collectives.Collective) -> float:
    """Estimates how long one exchange takes, with the network to itself."""
    groups = exchange.groups or (tuple(range(len(self.coordinates))),)
    if exchange.kind == "collective-permute":
      return self._permute(exchange.bytes, groups)
    return max(
      self._group(exchange.kind, exchange.bytes, spans)
      for spans in {self._spans(group) for group in groups}
    )

  def _spans(self, group: tuple[int, ...]) -> tuple[tuple[int, bool], ...]:
    """Returns the length of each axis that a group spans, and if it rings."""
    spans = []
    for axis, side in enumerate(self.shape):
      places = {self.coordinates[device][axis] for device in group}
      if len(places) > 1:
        ring = self.wrap[axis] and len(places) == side
        length = side if ring else max(places) - min(places) + 1
        spans.append((length, ring))
    return tuple(spans)

  def _group(self, kind: str, size: int, spans) -> float:
    """Estimates an exchange in a group that spans these axes."""
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
    """Estimates a permutation: the fullest link and the longest way."""
    load: collections.Counter = collections.Counter()
    longest = 0
    for source, target in pairs:
      links = list(self._way(source, target))
      load.update(links)
      longest = max(longest, len(links))
    fullest = max(load.values(), default=0)
    return size * fullest / self.link_bandwidth + longest * HOP_SECONDS

  def _way(self, source: int, target: int) -> Iterator[tuple]:
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
