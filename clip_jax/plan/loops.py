"""How often the loops of a compiled program run.

The compiler writes the count beside a loop where it knows it; otherwise it is
worked out from the counter: where it starts, its step and the bound.
"""

import dataclasses
import math
import operator
import re

from clip_jax.plan import hlo

_KNOWN = re.compile(r'"?known_trip_count"?:\{"?n"?:"?(\d+)')
_DIRECTION = re.compile(r"direction=(\w+)")
_COMPARISONS = {
  "LT": operator.lt,
  "LE": operator.le,
  "GT": operator.gt,
  "GE": operator.ge,
  "NE": operator.ne,
}
_SWAPPED = {"LT": "GT", "LE": "GE", "GT": "LT", "GE": "LE", "NE": "NE"}
# What hands on its argument's value.
_SAME = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start")


@dataclasses.dataclass(frozen=True)
class _Value:
  """A whole number, or the loop's variable `index` plus one."""

  number: int
  index: int | None = None


def trip_count(
  program: hlo.Program, computation: hlo.Computation, loop: hlo.Instruction
) -> int | None:
  """Returns how often the body of `loop` runs; None where it cannot be told.

  Args:
    program: the whole.
    computation: that the loop stands in.
    loop: a "while" instruction.
  """
  if found := _KNOWN.search(loop.attributes):
    return int(found[1])
  condition = program.computations[loop.called("condition")]
  body = program.computations[loop.called("body")]
  bounds = _bounds(program, condition)
  if bounds is None:
    return None
  variable, direction, bound = bounds
  start = _initial(computation, loop, variable.index)
  step = _step(program, body, variable.index)
  if start is None or not step:
    return None
  return _count(start + variable.number, step, direction, bound)


def _count(start: int, step: int, direction: str, bound: int) -> int | None:
  if not _COMPARISONS[direction](start, bound):
    return 0
  distance = bound - start
  if direction in ("LE", "GE"):
    distance += 1 if step > 0 else -1
  # Away from the bound it never ends; past it, "not equal" never does.
  if distance * step <= 0 or (direction == "NE" and distance % step):
    return None
  return math.ceil(distance / step)


def _bounds(program, condition) -> tuple[_Value, str, int] | None:
  """Returns the variable, the comparison and its bound."""
  compared = _find_comparison(program, condition, {})
  if compared is None:
    return None
  left, right, direction = compared
  if left is None or right is None or direction not in _COMPARISONS:
    return None
  if left.index is None and right.index is not None:
    left, right, direction = right, left, _SWAPPED[direction]
  if left.index is None or right.index is not None:
    return None
  return left, direction, right.number


def _find_comparison(program, computation, arguments):
  root = computation.root
  while root.opcode in _SAME:
    root = computation.operand(root, 0)
  if root.opcode == "fusion":
    inner = program.computations[root.called("calls")]
    values = _arguments(program, computation, root, inner, arguments)
    return _find_comparison(program, inner, values)
  if root.opcode != "compare":
    return None
  left, right = (
    _value(program, computation, name, arguments) for name in root.operands
  )
  direction = _DIRECTION.search(root.attributes)
  return left, right, direction and direction[1]


def _arguments(program, computation, caller, inner, arguments):
  """Returns the values of the parameters of what `caller` calls, by name."""
  return {
    name: _value(program, computation, caller.operands[number], arguments)
    for name, number in inner.parameters.items()
  }


def _value(program, computation, name, arguments) -> _Value | None:
  """Returns what a result is, as far as it is a loop's counter."""
  if name in arguments:
    return arguments[name]
  instruction = computation.instructions.get(name)
  if instruction is None:
    return None
  opcode = instruction.opcode
  if opcode == "constant":
    try:
      return _Value(int(instruction.literal))
    except ValueError:
      return None
  if opcode in _SAME:
    return _value(program, computation, instruction.operands[0], arguments)
  if opcode == "get-tuple-element":
    source = computation.operand(instruction, 0)
    if source.opcode == "parameter":
      return _Value(0, instruction.number("index", 0))
    return None
  if opcode in ("add", "subtract"):
    left, right = (
      _value(program, computation, operand, arguments)
      for operand in instruction.operands
    )
    return _sum(left, right, 1 if opcode == "add" else -1)
  if opcode == "fusion":
    inner = program.computations[instruction.called("calls")]
    values = _arguments(program, computation, instruction, inner, arguments)
    return _value(program, inner, inner.root.name, values)
  return None


def _sum(left: _Value | None, right: _Value | None, sign: int) -> _Value | None:
  if left is None or right is None:
    return None
  if right.index is not None:
    if left.index is not None or sign < 0:
      return None
    left, right = right, left
  return _Value(left.number + sign * right.number, left.index)


def _initial(computation, loop, index: int) -> int | None:
  """Returns where the loop's variable starts."""
  start = computation.operand(loop, 0)
  while start.opcode in _SAME:
    start = computation.operand(start, 0)
  if start.opcode != "tuple":
    return None
  source = computation.operand(start, index)
  while source.opcode in _SAME:
    source = computation.operand(source, 0)
  if source.opcode != "constant":
    return None
  try:
    return int(source.literal)
  except ValueError:
    return None


def _step(program, body, index: int) -> int | None:
  """Returns what one round adds to the loop's variable."""
  root = body.root
  if root.opcode != "tuple":
    return None
  value = _value(program, body, root.operands[index], {})
  if value is None or value.index != index:
    return None
  return value.number
