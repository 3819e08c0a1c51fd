"""The clock cycles that a TPU's compiler estimates for a compiled program.

The compiler writes them beside each operation, except collectives; its own sum
counts the body of a loop only once. Nothing else of the text is read.
"""

import functools
import re

# Strings may hold any text; in them these characters would mislead the parser.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SYNTAX = str.maketrans(dict.fromkeys("\n\r{}()", "_"))
_COMPUTATION = re.compile(
  r"^(ENTRY )?%?([\w.\-]+) \(.*?\{\s*$(.*?)^\}", re.MULTILINE | re.DOTALL
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CALL = re.compile(r" (?:call|async-start)\(.*(?:calls|to_apply)=%?([\w.\-]+)")
_BOUND = re.compile(r" = s32\[\]\S* constant\((\d+)\)")


def count(text: str) -> int:
  """Returns the cycles of one device; loop bodies count as often as they run.

  Args:
    text: the program's text, from `compiled.as_text()`.

  Raises:
    ValueError: it has no cycles, or the number of runs of a part is unknown.
  """
  text = _STRING.sub(lambda match: match[0].translate(_SYNTAX), text)
  computations, entry = {}, ""
  for first, name, body in _COMPUTATION.findall(text):
    computations[name] = body
    entry = name if first else entry
  if " conditional(" in text:
    raise ValueError("the program has conditional parts")

  def length(condition: str) -> int:
    """Returns the number of turns of a scan, which counts up from 0 by 1."""
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
