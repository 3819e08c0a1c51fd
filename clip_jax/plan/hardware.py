"""Published figures of the chips that a run can be planned for."""

import dataclasses
import math

from clip_jax.train import metric_log

GIB = 2**30
GB = 10**9
# Larger slices of v4 and v5p are made of cubes with this side.
CUBE = 4
# docs.cloud.google.com/tpu/docs/v5e and v6e; v4 and v5p, and kubernetes-engine/
# docs/concepts/plan-tpus. The largest job on a v5p is 16x16x24; a v4's pod has
# 4096 chips (Jouppi et al. 2023, "TPU v4").
_FLAT = (
  *((1, 1), (2, 2), (2, 4), (4, 4)),
  *((4, 8), (8, 8), (8, 16), (16, 16)),
)
_BELOW_CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclasses.dataclass(frozen=True)
class Chip:
  """One accelerator chip, which is one device of JAX here.

  Attributes:
    name: its name in a topology, such as "v5e".
    peak_flops: peak of dense bfloat16 products, FLOPs a second.
    memory_bytes: main memory that is available to programs.
    memory_bandwidth: bytes a second between chip and main memory.
    link_bandwidth: bytes a second over one network link in one direction.
    clock_hertz: clock rate, to turn the compiler's cycles into seconds.
    slices: the shapes of slices, except those made of cubes.
    cube_chips: the most chips in a slice made of cubes of 4 x 4 x 4, with
      sides in ascending order; 0 if the network has two dimensions.
  """

  name: str
  peak_flops: float
  memory_bytes: int
  memory_bandwidth: float
  link_bandwidth: float
  clock_hertz: float
  slices: tuple[tuple[int, ...], ...]
  cube_chips: int

  @property
  def torus_axes(self) -> int:
    """Number of dimensions of the network between chips."""
    return len(self.slices[0])

  def has_slice(self, shape: tuple[int, ...]) -> bool:
    """Whether there are slices of that shape."""
    if shape in self.slices:
      return True
    cubes = len(shape) == self.torus_axes and not any(n % CUBE for n in shape)
    ascending = tuple(sorted(shape)) == shape
    return cubes and ascending and 0 < math.prod(shape) <= self.cube_chips

  def slices_in_words(self) -> str:
    """Returns the shapes of all slices, as text."""
    words = ", ".join("x".join(map(str, shape)) for shape in self.slices)
    if self.cube_chips:
      words += (
        f", and ascending multiples of {CUBE} such as 4x4x8, up to "
        f"{self.cube_chips:,} chips"
      )
    return words


# Memory's bandwidth and the network: docs.cloud.google.com/tpu/docs/v4,
# v5e, v5p and v6e. The network's figure there is of a chip, both directions and
# all links together: 400, 1200 and 800 GB/s over 4, 6 and 4 links. For v4:
# Jouppi et al. 2023, "TPU v4", Table 4: six links of 50 GB/s.
# Memory: what libtpu 0.0.52 says is available when a program is too large; the
# chips have 32, 16, 95 and 32 GB.
# Clock: peak / (matrix units x 128 x 128 x 2), with 8, 4 and 8 units (same
# pages); 1.05 GHz for v4 is in the paper too. For v6e none is published: with
# 1.75 GHz a sum of large arrays comes to 0.86 of its memory's bandwidth by the
# compiler's cycles, next to 0.72 to 0.81 on the other chips.
_FIGURES = {
  # Name in PEAK_FLOPS, GiB, GB/s, GB/s of a link, GHz, slices, cube_chips.
  "v4": ("v4", 30.75, 1200, 50, 1.05, _BELOW_CUBES, 4096),
  "v5e": ("v5e", 15.75, 819, 50, 1.5, _FLAT, 0),
  "v5p": ("v5", 95.73, 2765, 100, 1.75, _BELOW_CUBES, 6144),
  "v6e": ("v6e", 31.24, 1638, 100, 1.75, _FLAT, 0),
}
CHIPS = {
  name: Chip(
    name=name,
    peak_flops=metric_log.PEAK_FLOPS[peak],
    memory_bytes=int(size * GIB),
    memory_bandwidth=rate * GB,
    link_bandwidth=link * GB,
    clock_hertz=clock * GB,
    slices=slices,
    cube_chips=cubes,
  )
  for name, (peak, size, rate, link, clock, slices, cubes) in _FIGURES.items()
}


def chip_of(device_kind: str) -> Chip | None:
  """Returns the chip of a `device.device_kind`; None if it is not listed."""
  kind = device_kind.lower().replace(" lite", "e")
  # A v5e before what is "TPU v5" alone, a v5p.
  known = [name for name, (part, *_) in _FIGURES.items() if part in kind]
  return CHIPS[known[0]] if known and "tpu" in kind else None
