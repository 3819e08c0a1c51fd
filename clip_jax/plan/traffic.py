"""Bytes that one compiled instruction moves to and from the main memory."""

from clip_jax.plan import hlo

# What moves nothing, or is counted where it starts or in what it calls.
_FREE = {
  "add-dependency",
  "after-all",
  "async-update",
  "bitcast",
  "call",
  "conditional",
  "constant",
  "get-tuple-element",
  "parameter",
  "partition-id",
  "replica-id",
  "tuple",
  "while",
}
_FREE_CALLS = {
  "AllocateBuffer",
  "AssumeGatherIndicesInBound",
  "AsyncCollectiveDone",
  "AsyncCollectiveStart",
  "ConcatBitcast",
  "Sharding",
}
# These read no more of their first argument than they give.
_SLICES = {"dynamic-slice", "gather", "slice"}
# These write no more of their first argument than the change: its number.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}


def moved_bytes(
  program: hlo.Program,
  computation: hlo.Computation,
  instruction: hlo.Instruction,
) -> int:
  """Returns the bytes read and written by one instruction of the schedule.

  A fusion reads its arguments and writes its results once; of a stack that it
  slices or updates in place it moves one slice. On-chip memory is free.
  """
  opcode = instruction.opcode
  if opcode in _FREE or opcode.endswith("-done"):
    return 0
  if opcode == "custom-call" and instruction.target in _FREE_CALLS:
    return 0
  if opcode == "fusion":
    inner = program.computations[instruction.called("calls")]
    return _fusion(computation, instruction, inner)
  read = computation.operand_shapes(instruction)
  if opcode in _SLICES or opcode == "slice-start":
    # An asynchronous one gives its argument, too, and the result second.
    part = instruction.shapes[opcode == "slice-start"]
    source = computation.operand(instruction, 0).shapes[0]
    return part.padded_bytes * (source.space == hlo.HBM) + _total([part])
  if opcode in _UPDATES:
    change = computation.operand(instruction, _UPDATES[opcode])
    return 2 * _total(change.shapes)
  if opcode == "copy-start":
    return _total(read) + _total(instruction.shapes[:1])
  if opcode.endswith("-start"):  # The results stand behind the arguments.
    return _total(read) + _total(instruction.shapes[len(read) :])
  return _total(read) + _total(instruction.shapes)


def _total(shapes) -> int:
  """Sums what lies in the main memory."""
  return sum(shape.padded_bytes for shape in shapes if shape.space == hlo.HBM)


def _fusion(computation, instruction, inner) -> int:
  by_number = {number: name for name, number in inner.parameters.items()}
  moved = 0
  for number, operand in enumerate(instruction.operands):
    shapes = computation.instructions[operand].shapes
    if number in by_number and _total(shapes):
      moved += _read(inner, by_number[number], _total(shapes))
  root = inner.root
  results = (
    [inner.instructions[name] for name in root.operands]
    if root.opcode == "tuple"
    else [root]
  )
  for result, shape in zip(results, instruction.shapes, strict=False):
    moved += _written(inner, result, _total([shape]))
  return moved


def _read(inner, name: str, whole: int) -> int:
  """Returns what a fusion reads of one argument, by its name inside."""
  part = 0
  for user in inner.users.get(name, []):
    first = user.operands[0] == name
    if user.opcode == "bitcast":
      part += _read(inner, user.name, whole)
    elif user.opcode in _SLICES and first:
      part += sum(shape.padded_bytes for shape in user.shapes)
    elif not (user.opcode in _UPDATES and first):
      return whole
  return min(part, whole)


def _written(inner, result, whole: int) -> int:
  """Returns what a fusion writes of one result."""
  while result.opcode == "bitcast":
    result = inner.operand(result, 0)
  if result.opcode not in _UPDATES:
    return whole
  change = inner.operand(result, _UPDATES[result.opcode])
  return min(whole, sum(shape.padded_bytes for shape in change.shapes))
