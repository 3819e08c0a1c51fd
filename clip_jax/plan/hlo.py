"""Reads a compiled program: the text that `compiled.as_text()` gives.

Only what counting needs: computations, instructions, shapes with their layout,
attributes as text. Metadata may hold anything in its strings, line breaks and
braces too; these are blanked out before lines are told apart.
"""

import dataclasses
import functools
import math
import re

# Bits of an element by the type's name. Tokens and opaque values take none.
_BITS = {
  "pred": 8,
  **{f"{sign}{bits}": bits for sign in "su" for bits in (2, 4, 8, 16, 32, 64)},
  **{"bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128},
}
_FLOAT8 = re.compile(r"f(4|6|8)e\d")

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_STEERING = str.maketrans({c: "_" for c in "\n\r{}()"})
_HEADER = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{\s*$")
_ASSIGNMENT = re.compile(r"\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = ")
_OPCODE = re.compile(r"\s*(?P<opcode>[\w\-]+)\(")
_SHAPE = re.compile(r"(\w+)\[([\d,<= ]*)\](?:\{([^{}]*)\})?")
_BRACKETS = re.compile(r"[()]")
_OPERAND = re.compile(r"%([\w.\-]+)")
_TILE = re.compile(r"T\(([\d,*]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")

HBM = 0  # The memory space of a layout that names none.


@dataclasses.dataclass(frozen=True)
class Shape:
  """One array's type, dimensions and layout.

  Attributes:
    dtype: as the compiler writes it, such as "bf16".
    dims: sizes of the dimensions.
    order: dimensions from the fastest to the slowest; () if not told.
    tile: of the fastest dimensions, slowest first; () without tiles.
    space: memory space; `HBM` is the chip's main memory.
  """

  dtype: str
  dims: tuple[int, ...]
  order: tuple[int, ...] = ()
  tile: tuple[int, ...] = ()
  space: int = HBM

  @property
  def elements(self) -> int:
    """Counts the numbers."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> int:
    """Returns the size without padding."""
    return math.ceil(self.elements * _bits(self.dtype) / 8)

  @property
  def padded_bytes(self) -> int:
    """Returns the size in memory, where tiles are whole."""
    order = self.order or tuple(reversed(range(len(self.dims))))
    physical = [self.dims[axis] for axis in reversed(order)]
    places = range(len(physical) - 1, -1, -1)
    for place, tile in zip(places, reversed(self.tile), strict=False):
      physical[place] = math.ceil(physical[place] / tile) * tile
    return math.ceil(math.prod(physical) * _bits(self.dtype) / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One operation.

  Attributes:
    name: unique in its computation.
    opcode: such as "fusion".
    shapes: of the results; a tuple's are flattened.
    operands: names of the arguments.
    literal: what stands between the brackets, as text.
    attributes: what follows them, as text.
    root: whether its result is the computation's.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  literal: str
  attributes: str
  root: bool

  def called(self, attribute: str) -> str | None:
    """Returns the computation that an attribute, such as "body", names."""
    found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
    return found and found[1]

  def sizes(self, attribute: str) -> tuple[int, ...]:
    """Returns the numbers of an attribute such as "dimensions={0,1}"."""
    found = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", self.attributes)
    return tuple(map(int, filter(None, found[1].split(",")))) if found else ()

  def number(self, attribute: str, default: int) -> int:
    """Returns the number of an attribute such as "index=3"."""
    found = re.search(rf"\b{attribute}=(\d+)", self.attributes)
    return int(found[1]) if found else default

  @functools.cached_property
  def target(self) -> str:
    """Returns the function that a custom call names; "" for anything else."""
    found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
    return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
  """Instructions in order, by name, with the one whose result counts."""

  name: str
  instructions: dict[str, Instruction]

  @functools.cached_property
  def root(self) -> Instruction:
    """Returns the instruction whose result is the computation's."""
    instructions = list(self.instructions.values())
    return next((x for x in instructions if x.root), instructions[-1])

  @functools.cached_property
  def parameters(self) -> dict[str, int]:
    """Returns each parameter's number by its name."""
    return {
      name: int(x.literal)
      for name, x in self.instructions.items()
      if x.opcode == "parameter"
    }

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """Returns the instructions that use each result."""
    users: dict[str, list[Instruction]] = {}
    for instruction in self.instructions.values():
      for operand in dict.fromkeys(instruction.operands):
        users.setdefault(operand, []).append(instruction)
    return users

  def operand(self, instruction: Instruction, number: int) -> Instruction:
    """Returns what makes one argument of an instruction."""
    return self.instructions[instruction.operands[number]]

  def operand_shapes(self, instruction: Instruction) -> list[Shape]:
    """Returns the shapes of all arguments; tuples are flattened."""
    return [
      shape
      for name in instruction.operands
      if name in self.instructions
      for shape in self.instructions[name].shapes
    ]


@dataclasses.dataclass(frozen=True)
class Program:
  """All computations of a module, and the name of the first to run."""

  computations: dict[str, Computation]
  entry: str


def parse(text: str) -> Program:
  """Reads a module.

  Args:
    text: from `compiled.as_text()`.

  Raises:
    ValueError: it has no entry computation.
  """
  lines = iter(_STRING.sub(_blank, text).splitlines())
  computations, entry = {}, None
  for line in lines:
    header = _HEADER.match(line)
    if not header or line.startswith(" "):
      continue
    name = header["name"]
    computations[name] = Computation(name, _instructions(lines))
    if header["entry"]:
      entry = name
  if entry is None:
    raise ValueError("The program's text has no ENTRY computation.")
  return Program(computations, entry)


def shapes(text: str) -> tuple[Shape, ...]:
  """Returns the shapes that stand in a text, in order."""
  return tuple(
    _shape(dtype, dims, layout) for dtype, dims, layout in _SHAPE.findall(text)
  )


@functools.lru_cache(maxsize=4096)
def _shape(dtype: str, dims: str, layout: str) -> Shape:
  order, _, rest = layout.partition(":")
  tile, space = _TILE.search(rest), _SPACE.search(rest)
  return Shape(
    dtype=dtype,
    # A bounded dynamic dimension, "<=8", counts as its bound.
    dims=tuple(int(n.strip(" <=")) for n in dims.split(",") if n.strip()),
    order=tuple(int(n) for n in order.split(",") if n.strip().isdecimal()),
    tile=tuple(
      1 if n == "*" else int(n) for n in (tile[1].split(",") if tile else ())
    ),
    space=int(space[1]) if space else HBM,
  )


def _bits(dtype: str) -> int:
  if found := _FLOAT8.match(dtype):
    return int(found[1])
  return _BITS.get(dtype, 0)


def _blank(match: re.Match) -> str:
  """Takes out of a string what would steer the reading of lines."""
  return match[0].translate(_STEERING)


def _instructions(lines) -> dict[str, Instruction]:
  """Reads up to the brace that closes a computation."""
  found = {}
  for line in lines:
    if line.startswith("}"):
      break
    instruction = _instruction(line)
    if instruction is not None:
      found[instruction.name] = instruction
  return found


def _instruction(line: str) -> Instruction | None:
  head = _ASSIGNMENT.match(line)
  if not head:
    return None
  start = head.end()
  if line.startswith("(", start):
    end = _closing(line, start) + 1
  else:
    end = line.index(" ", start)
  opcode = _OPCODE.match(line, end)
  if not opcode:
    return None
  closing = _closing(line, opcode.end() - 1)
  literal = line[opcode.end() : closing]
  return Instruction(
    name=head["name"],
    opcode=opcode["opcode"],
    shapes=shapes(line[start:end]),
    operands=tuple(_OPERAND.findall(literal)),
    literal=literal,
    attributes=line[closing + 1 :],
    root=bool(head["root"]),
  )


def _closing(line: str, start: int) -> int:
  """Returns where the bracket that opens at `start` closes."""
  depth = 0
  for match in _BRACKETS.finditer(line, start):
    depth += 1 if match[0] == "(" else -1
    if depth == 0:
      return match.start()
  return len(line)
