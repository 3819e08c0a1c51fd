"""Writes the pickle of a state dict, as torch.save would."""

import math
import pickle
from collections.abc import Mapping

import numpy as np

from clip_jax import errors
from clip_jax.convert.files import torch_names

# Opcodes of pickle protocol 2.
_START = b"\x80\x02"
_MARK, _TUPLE, _REDUCE, _SETITEMS, _STOP = b"(", b"t", b"R", b"u", b"."
_EMPTY_TUPLE, _PERSISTENT = b")", b"Q"

_STORAGE_OF = {x: kind for kind, x in torch_names.STORAGES.items() if x}
_TYPE_OF = {name: kind for kind, name in torch_names.TYPED.items()}


def dump(state: Mapping[str, tuple[str, str, tuple[int, ...]]]) -> bytes:
  """Returns the pickle of an OrderedDict of tensors.

  Args:
    state: storage key, dtype and shape of each tensor, by name.
  """
  parts = [_START, _ordered_dict(), _MARK]
  for name, (key, dtype, shape) in state.items():
    parts += [_value(name), _tensor(key, dtype, shape)]
  return b"".join([*parts, _SETITEMS, _STOP])


def _tensor(key: str, dtype: str, shape: tuple[int, ...]) -> bytes:
  count = math.prod(shape)
  stride = [
    math.prod(max(length, 1) for length in shape[axis:])
    for axis in range(1, len(shape) + 1)
  ]
  if dtype in _STORAGE_OF:
    function, last = torch_names.REBUILD, b""
    storage = _storage(_STORAGE_OF[dtype], key, count)
  elif dtype in _TYPE_OF:
    function, last = torch_names.REBUILD_TYPED, _name(_TYPE_OF[dtype])
    size = count * np.dtype(dtype).itemsize
    storage = _storage(torch_names.UNTYPED_STORAGE, key, size)
  else:
    raise errors.unknown("dtype for PyTorch", dtype, _STORAGE_OF | _TYPE_OF)
  # No gradient is required, and there are no hooks.
  view = [_value(x) for x in (0, tuple(shape), tuple(stride), False)]
  parts = [*view, _ordered_dict(), last]
  parts = [_name(function), _MARK, storage, *parts, _TUPLE, _REDUCE]
  return b"".join(parts)


def _storage(kind: str, key: str, count: int) -> bytes:
  parts = [_value("storage"), _name(kind), *map(_value, (key, "cpu", count))]
  return b"".join([_MARK, *parts, _TUPLE, _PERSISTENT])


def _ordered_dict() -> bytes:
  return _name("collections.OrderedDict") + _EMPTY_TUPLE + _REDUCE


def _name(name: str) -> bytes:
  module, _, attribute = name.rpartition(".")
  return f"c{module}\n{attribute}\n".encode()


def _value(value: str | int | tuple[int, ...]) -> bytes:
  return pickle.dumps(value, protocol=2)[len(_START) : -len(_STOP)]
