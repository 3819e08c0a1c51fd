"""Reads the pickle inside of a torch file, without calling anything in it.

`pickle.Unpickler` with our own `find_class` would not be safe: before it calls
any hook, it allocates a memo of the size that the file says, and hashes all
keys of dicts (a tuple nested a million deep crashes the process). This reader
knows only the opcodes and the few names that a state dict needs. It builds only
dicts, lists, tuples, numbers and descriptions of tensors, skips what training
programs save beside the weights, and rejects everything else by name.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable, Iterator
from typing import Any

from clip_jax.convert.files import torch_names

_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}

# A tensor needs about 40 opcodes; a large training state has 10,000 tensors.
MAX_OPCODES = 500_000
MAX_INT_BYTES = 16


class RefusedError(ValueError):
  """A pickle that needs more than tensors; the message says what."""


@dataclasses.dataclass(frozen=True)
class Global:
  """A name of a Python object in the pickle; it is never imported."""

  name: str


@dataclasses.dataclass(frozen=True)
class Storage:
  """A flat array in an entry of the archive."""

  key: str
  dtype: str | None  # None: bytes without a type.
  count: int  # In elements.


@dataclasses.dataclass(frozen=True)
class View:
  """A tensor: a strided view of a storage, in elements."""

  storage: Storage
  dtype: str
  offset: int
  shape: tuple[int, ...]
  stride: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Inert:
  """Stands for an object that is not part of a model, and was not built."""

  name: str


class Module(dict):
  """The attributes of an inert object of a TorchScript archive."""


def load(data: bytes, *, torchscript: bool = False) -> Any:
  """Returns the value of a pickle, made of dicts, lists, tuples and `View`s.

  Args:
    data: the whole pickle.
    torchscript: whether objects of the classes `__torch__.*` are allowed.

  Raises:
    RefusedError: it needs an opcode or a name that no state dict needs.
    ValueError: it is not a well-formed pickle.
  """
  machine = _Machine(torchscript)
  for opcode, argument, position in _opcodes(data):
    try:
      _STEPS[opcode](machine, argument)
    except IndexError:
      raise ValueError(
        f"the pickle takes what is not there, at byte {position}"
      ) from None
  if position + 1 != len(data):
    raise ValueError("the pickle has bytes after its end")
  if len(machine.stack) != 1 or machine.marks:
    raise ValueError("the pickle does not end with one value")
  return machine.stack[0]


def _opcodes(data: bytes) -> Iterator[tuple[str, Any, int]]:
  """Yields (name, argument, position) of opcodes, up to the STOP opcode.

  `pickletools.genops` is not used, since it decodes the argument of an opcode
  before the opcode can be rejected.
  """
  stream = io.BytesIO(data)
  for _ in range(MAX_OPCODES):
    position = stream.tell()
    opcode = _OPCODES.get(stream.read(1).decode("latin-1"))
    if opcode is None:
      raise ValueError(f"the pickle has no opcode at byte {position}")
    if opcode.name not in _STEPS:
      raise RefusedError(f"the pickle opcode {opcode.name}")
    if opcode.name == "GLOBAL":
      # pickletools would decode escapes here; unpicklers do not.
      argument = [stream.readline(), stream.readline()]
    else:
      argument = opcode.arg.reader(stream) if opcode.arg else None
    yield opcode.name, argument, position
    if opcode.name == "STOP":
      return
  raise ValueError(f"the pickle has more than {MAX_OPCODES} steps")


class _Machine:
  """A pickle machine: a stack, a memo, and a method per kind of opcode."""

  def __init__(self, torchscript: bool):
    self.torchscript = torchscript
    self.stack: list[Any] = []
    self.marks: list[list[Any]] = []
    self.memo: dict[int, Any] = {}

  def push(self, value: Any) -> None:
    self.stack.append(value)

  def push_int(self, value: int) -> None:
    if value.bit_length() > 8 * MAX_INT_BYTES:
      raise ValueError(f"the pickle has a number of {value.bit_length()} bits")
    self.push(value)

  def mark(self, _) -> None:
    self.marks.append(self.stack)
    self.stack = []

  def pop_mark(self) -> list[Any]:
    items = self.stack
    self.stack = self.marks.pop()
    return items

  def pop(self, count: int) -> list[Any]:
    if len(self.stack) < count:
      raise IndexError
    items = self.stack[-count:]
    del self.stack[-count:]
    return items

  def put(self, index: int) -> None:
    if not 0 <= index <= MAX_OPCODES:
      raise ValueError(f"the pickle has the memo entry {index}")
    self.memo[index] = self.stack[-1]

  def get(self, index: int) -> None:
    if index not in self.memo:
      raise IndexError
    self.push(self.memo[index])

  def append(self, items: list[Any]) -> None:
    target = self.stack[-1]
    if type(target) is not list:
      raise ValueError("the pickle appends to what is no list")
    target.extend(items)

  def set_items(self, items: list[Any]) -> None:
    target = self.stack[-1]
    if type(target) is not dict or len(items) % 2:
      raise ValueError("the pickle sets items of what is no dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
      # Keys of other types are not hashed: see the module's docstring.
      if type(key) not in (str, int):
        raise ValueError(f"the pickle has a {type(key).__name__} as a key")
      if key in target:
        raise ValueError(f"the pickle has the key {key!r:.100} twice")
      target[key] = value

  def name(self, module: Any, attribute: Any) -> None:
    if type(module) is not str or type(attribute) is not str:
      raise ValueError("the pickle names an object by what is no text")
    name = f"{module}.{attribute}"
    allowed = name in torch_names.NAMES or (
      self.torchscript and name.startswith("__torch__.")
    )
    if not allowed:
      raise RefusedError(f"the Python object {name[:200]!r}")
    self.push(Global(name))

  def new(self, _) -> None:
    made, arguments = self.pop(2)
    if _is_inert(made):
      self.push(Inert(made.name))
    elif _is_class(made) and arguments == ():
      self.push(Module())
    else:
      raise ValueError("the pickle makes an object of what is no class")

  def build(self, _) -> None:
    (state,) = self.pop(1)
    target = self.stack[-1]
    if type(target) is Inert:
      return
    # For a dict: an OrderedDict's `_metadata`, which is not needed.
    if type(state) is not dict or type(target) not in (Module, dict):
      raise ValueError("the pickle gives a state to what can have none")
    if type(target) is Module:
      target.clear()
      target.update(state)

  def reduce(self, _) -> None:
    made, arguments = self.pop(2)
    if type(made) is not Global or type(arguments) is not tuple:
      raise ValueError("the pickle calls what is no name")
    if _is_inert(made):
      self.push(Inert(made.name))
      return
    if made.name not in _CALLS:
      raise ValueError(f"the pickle calls {made.name[:100]!r}")
    try:
      self.push(_CALLS[made.name](*arguments))
    except TypeError:
      what = f"the pickle gives {made.name} {len(arguments)} arguments"
      raise ValueError(what) from None

  def persistent(self, _) -> None:
    (found,) = self.pop(1)
    types = [type(part) for part in found] if type(found) is tuple else []
    if types != [str, Global, str, str, int] or found[0] != "storage":
      raise ValueError("the pickle refers to what is no storage")
    _, kind, key, _, count = found
    if count < 0 or kind.name not in torch_names.STORAGES:
      raise ValueError(f"{kind.name[:100]!r} of {count} is no storage")
    self.push(Storage(key, torch_names.STORAGES[kind.name], count))


def _is_class(value: Any) -> bool:
  return type(value) is Global and value.name.startswith("__torch__.")


def _is_inert(value: Any) -> bool:
  return type(value) is Global and value.name in torch_names.INERT


def _rebuild(storage, offset, shape, stride, grad, hooks, metadata=None):
  """Returns the view of a storage that has a type."""
  del grad, hooks, metadata
  if type(storage) is not Storage or storage.dtype is None:
    raise ValueError("a tensor's storage has no type")
  return _view(storage, storage.dtype, offset, shape, stride)


def _rebuild_typed(
  storage, offset, shape, stride, grad, hooks, dtype, metadata=None
):
  """Returns the view of a storage of bytes, with a type of its own."""
  del grad, hooks, metadata
  if type(dtype) is not Global or dtype.name not in torch_names.TYPED:
    raise ValueError("a tensor's dtype is none")
  if type(storage) is not Storage or storage.dtype is not None:
    raise ValueError("a tensor's storage has a type of its own")
  return _view(storage, torch_names.TYPED[dtype.name], offset, shape, stride)


def _view(storage, dtype, offset, shape, stride) -> View:
  for numbers in (shape, stride, (offset,)):
    if type(numbers) is not tuple or any(type(n) is not int for n in numbers):
      raise ValueError("a tensor's shape or place is not made of numbers")
  if len(shape) != len(stride):
    raise ValueError(f"a tensor has {len(shape)} axes, {len(stride)} strides")
  return View(storage, dtype, offset, shape, stride)


def _parameter(view, requires_grad, hooks) -> View:
  del requires_grad, hooks
  if type(view) is not View:
    raise ValueError("the pickle describes a parameter wrongly")
  return view


_CALLS: dict[str, Callable[..., Any]] = {
  torch_names.ORDERED_DICT: lambda: {},
  torch_names.REBUILD: _rebuild,
  torch_names.REBUILD_TYPED: _rebuild_typed,
  torch_names.PARAMETER: _parameter,
}


def _protocol(machine: _Machine, version: int) -> None:
  if not 2 <= version <= 5:
    raise ValueError(f"the pickle has protocol {version}")


_VALUES = ("NONE", "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE")
_VALUES += ("SHORT_BINUNICODE", "BINUNICODE8")  # None is NONE's argument.
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
  "PROTO": _protocol,
  **dict.fromkeys(("FRAME", "STOP"), lambda machine, _: None),
  **dict.fromkeys(_VALUES, _Machine.push),
  **dict.fromkeys(("LONG1", "LONG4"), _Machine.push_int),
  "NEWTRUE": lambda machine, _: machine.push(True),
  "NEWFALSE": lambda machine, _: machine.push(False),
  "EMPTY_DICT": lambda machine, _: machine.push({}),
  "EMPTY_LIST": lambda machine, _: machine.push([]),
  "EMPTY_TUPLE": lambda machine, _: machine.push(()),
  "MARK": _Machine.mark,
  "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
  "TUPLE1": lambda machine, _: machine.push(tuple(machine.pop(1))),
  "TUPLE2": lambda machine, _: machine.push(tuple(machine.pop(2))),
  "TUPLE3": lambda machine, _: machine.push(tuple(machine.pop(3))),
  "LIST": lambda machine, _: machine.push(machine.pop_mark()),
  "APPEND": lambda machine, _: machine.append(machine.pop(1)),
  "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
  "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
  "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
  **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
  "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
  **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
  "GLOBAL": lambda machine, lines: machine.name(*map(_line, lines)),
  "STACK_GLOBAL": lambda machine, _: machine.name(*machine.pop(2)),
  "REDUCE": _Machine.reduce,
  "NEWOBJ": _Machine.new,
  "BUILD": _Machine.build,
  "BINPERSID": _Machine.persistent,
}


def _line(line: bytes) -> str:
  if not line.endswith(b"\n"):
    raise ValueError("the pickle ends in a name")
  return line[:-1].decode("utf-8")
