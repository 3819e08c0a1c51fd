"""How long a step takes: two ends between which the truth may lie.

One end is the roofline: matrix products at the chip's peak, traffic at its
memory's bandwidth, exchanges on the network, all at the same time. The other is
what the compiler's own cycles add up to, and the exchanges after them. Neither
has been measured on a chip.
"""

import dataclasses

from clip_jax.plan import hardware, interconnect, walk


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of one step, by what takes them.

  Attributes:
    compute_seconds: of the matrix products at the chip's peak.
    memory_seconds: of the traffic at the memory's bandwidth.
    compiler_seconds: of the compiler's cycles; None where it has none.
    exchange_seconds: of the exchanges, by kind.
    step_seconds: the two ends, low and high.
  """

  compute_seconds: float
  memory_seconds: float
  compiler_seconds: float | None
  exchange_seconds: dict[str, float]
  step_seconds: tuple[float, float]


def estimate(
  totals: walk.Totals,
  *,
  chip: hardware.Chip,
  network: interconnect.Network,
  least_flops: float = 0,
) -> Estimate | None:
  """Estimates a step.

  Args:
    totals: of one device.
    chip: that it is.
    network: between the devices.
    least_flops: of one device, for programs whose operations are hidden.

  Returns:
    None where the compiler gives no cycles: one end alone is no bracket.
  """
  if not totals.cycles:
    return None
  compute = max(totals.flops, least_flops) / chip.peak_flops
  memory = totals.moved_bytes / chip.memory_bandwidth
  by_compiler = totals.cycles / chip.clock_hertz
  exchange = interconnect.seconds(network, totals.collectives)
  exchanged = sum(exchange.values())
  ends = (max(compute, memory, exchanged), by_compiler + exchanged)
  return Estimate(
    compute_seconds=compute,
    memory_seconds=memory,
    compiler_seconds=by_compiler,
    exchange_seconds=exchange,
    step_seconds=(min(ends), max(ends)),
  )
