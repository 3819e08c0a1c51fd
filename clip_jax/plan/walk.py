"""Counts what a compiled program does in one run, loops as often as they run.

The compiler's own analysis counts the body of a loop once, adds -1 s for every
call without a cost, and prices exchanges as traffic to memory; so nothing of it
is used here but the cycles that it writes beside each operation.
"""

import collections
import dataclasses
import functools
import re

from clip_jax.plan import arithmetic, hlo, loops, traffic
from clip_jax.plan import collectives as collectives_lib

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CALLS = ("call", "async-start")


@dataclasses.dataclass(frozen=True)
class Totals:
  """What one device does in one run.

  Attributes:
    flops: of matrix products and convolutions.
    moved_bytes: between the chip and its main memory.
    cycles: that the compiler estimates, without exchanges; 0 if it does not.
    collectives: exchanges, and how often.
    unknown_loops: loops whose length is not known, counted once.
    hidden: custom calls whose operations cannot be counted.
    uncosted: custom calls for which the compiler estimates no cycles.
  """

  flops: int = 0
  moved_bytes: int = 0
  cycles: int = 0
  collectives: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  unknown_loops: frozenset[str] = frozenset()
  hidden: frozenset[str] = frozenset()
  uncosted: frozenset[str] = frozenset()

  def __add__(self, other: "Totals") -> "Totals":
    """Returns what both do, one after the other."""
    return Totals(
      flops=self.flops + other.flops,
      moved_bytes=self.moved_bytes + other.moved_bytes,
      cycles=self.cycles + other.cycles,
      collectives=self.collectives + other.collectives,
      unknown_loops=self.unknown_loops | other.unknown_loops,
      hidden=self.hidden | other.hidden,
      uncosted=self.uncosted | other.uncosted,
    )

  def __mul__(self, times: int) -> "Totals":
    """Returns what as many runs do."""
    counts = {key: n * times for key, n in self.collectives.items()}
    return dataclasses.replace(
      self,
      flops=self.flops * times,
      moved_bytes=self.moved_bytes * times,
      cycles=self.cycles * times,
      collectives=collections.Counter(counts),
    )


def walk(text: str, *, devices: int) -> Totals:
  """Counts a compiled program.

  Args:
    text: from `compiled.as_text()`.
    devices: that run it together.
  """
  walker = _Walker(hlo.parse(text), devices)
  return walker.run(walker.program.entry)


class _Walker:
  """Counts each computation once, however often it is called."""

  def __init__(self, program: hlo.Program, devices: int):
    self.program = program
    self._devices = devices
    self.run = functools.cache(self._run)
    self.fused = functools.cache(self._fused)

  def _run(self, name: str) -> Totals:
    """Counts what runs by itself: the schedule of a computation."""
    computation = self.program.computations[name]
    return _sum(
      self._instruction(computation, instruction)
      for instruction in computation.instructions.values()
    )

  def _instruction(self, computation, instruction) -> Totals:
    opcode = instruction.opcode
    if opcode == "while":
      return self._loop(computation, instruction)
    if opcode == "conditional":
      return self._branches(instruction)
    inner = Totals()
    if opcode == "fusion":
      inner = self.fused(instruction.called("calls"))
    elif opcode in _CALLS:
      called = instruction.called("calls") or instruction.called("to_apply")
      # An asynchronous operation counts by what it wraps.
      return self.run(called) if called else inner
    cycles = _CYCLES.search(instruction.attributes)
    return (
      inner
      + self._work(computation, instruction)
      + Totals(
        moved_bytes=traffic.moved_bytes(self.program, computation, instruction),
        cycles=int(cycles[1]) if cycles else 0,
      )
    )

  def _work(self, computation, instruction) -> Totals:
    """Counts what counts inside a fusion, too."""
    flops = arithmetic.flops(computation, instruction)
    exchange = collectives_lib.read(computation, instruction, self._devices)
    target = instruction.target
    return Totals(
      flops=flops or 0,
      collectives=collections.Counter({exchange: 1} if exchange else {}),
      hidden=frozenset({target} if flops is None else ()),
      uncosted=frozenset(
        {target}
        if flops is None and not _CYCLES.search(instruction.attributes)
        else ()
      ),
    )

  def _fused(self, name: str) -> Totals:
    computation = self.program.computations[name]
    total = Totals()
    for instruction in computation.instructions.values():
      total += self._work(computation, instruction)
      if instruction.opcode == "fusion":
        total += self.fused(instruction.called("calls"))
    return total

  def _loop(self, computation, loop) -> Totals:
    times = loops.trip_count(self.program, computation, loop)
    body = self.run(loop.called("body"))
    condition = self.run(loop.called("condition"))
    if times is None:
      return body + condition + Totals(unknown_loops=frozenset({loop.name}))
    return body * times + condition * (times + 1)

  def _branches(self, instruction) -> Totals:
    """Counts the dearest branch."""
    found = re.search(
      r"branch_computations=\{([^}]*)\}", instruction.attributes
    )
    if found:
      names = re.findall(r"%?([\w.\-]+)", found[1])
    else:
      names = [
        instruction.called("true_computation"),
        instruction.called("false_computation"),
      ]
    branches = [self.run(name) for name in names if name]
    return max(branches, key=lambda x: (x.flops, x.moved_bytes))


def _sum(totals) -> Totals:
  result = Totals()
  for total in totals:
    result += total
  return result
