"""The clock cycles that a TPU's compiler estimates for a compiled program.

It writes them beside each operation, exchanges aside; its own sum takes the
body of a loop once, however often it runs. Nothing else is read of the text.
"""

import functools
import re

# Strings may hold anything; these characters in them would steer the reading.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_STEERING = str.maketrans(dict.fromkeys("\n\r{}()", "_"))
_COMPUTATION = re.compile(
  r"^(ENTRY )?%?([\w.\-]+) \(.*?\{\s*$(.*?)^\}", re.MULTILINE | re.DOTALL
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CALL = re.compile(r" (?:call|async-start)\(.*(?:calls|to_apply)=%?([\w.\-]+)")
_BOUND = re.compile(r" = s32\[\]\S* constant\((\d+)\)")


def count(text: str) -> int:
  """Counts the cycles of one device, loops as often as they run.

  Args:
    text: from `compiled.as_text()`.

  Raises:
    ValueError: it has no cycles, or nobody knows how often a part of it runs.
  """
  text = _STRING.sub(lambda match: match[0].translate(_STEERING), text)
  computations, entry = {}, ""
  for first, name, body in _COMPUTATION.findall(text):
    computations[name] = body
    entry = name if first else entry
  if " conditional(" in text:
    raise ValueError("the program has conditional parts")

  def length(condition: str) -> int:
    """Returns the bound of a scan, whose counter goes up from 0 by 1."""
    bounds = set(_BOUND.findall(computations[condition]))
    if len(bounds) != 1:
      raise ValueError(f"the length of the loop {condition} is not known")
    return int(*bounds)

  @functools.cache
  def run(name: str) -> int:
    body = computations[name]
    total = sum(map(int, _CYCLES.findall(body)))
    for condition, inner in _WHILE.findall(body):
      turns = length(condition)
      total += turns * run(inner) + (turns + 1) * run(condition)
    return total + sum(map(run, _CALL.findall(body)))

  if total := run(entry):
    return total
  raise ValueError("the compiler gives no cycles")
