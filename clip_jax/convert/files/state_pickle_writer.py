"""Writes the pickle of a state dict, as torch.save would."""

import math
import struct
from collections.abc import Mapping

import numpy as np

from clip_jax import errors
from clip_jax.convert.files import torch_names

# Opcodes of pickle protocol 2.
_START = b"\x80\x02"
_MARK, _TUPLE, _REDUCE, _SETITEMS, _STOP = b"(", b"t", b"R", b"u", b"."
_EMPTY_TUPLE, _FALSE, _PERSISTENT = b")", b"\x89", b"Q"

_STORAGE_OF = {x: kind for kind, x in torch_names.STORAGES.items() if x}
_TYPE_OF = {name: kind for kind, name in torch_names.TYPED.items()}


def dump(state: Mapping[str, tuple[str, str, tuple[int, ...]]]) -> bytes:
  """Returns the pickle of an OrderedDict of tensors.

  Args:
    state: storage key, dtype and shape of each tensor, by name.
  """
  parts = [_START, _ordered_dict(), _MARK]
  for name, (key, dtype, shape) in state.items():
    parts += [_text(name), _tensor(key, dtype, shape)]
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
  parts = [_int(0), _ints(shape), _ints(stride), _FALSE, _ordered_dict(), last]
  parts = [_name(function), _MARK, storage, *parts, _TUPLE, _REDUCE]
  return b"".join(parts)


def _storage(kind: str, key: str, count: int) -> bytes:
  parts = [_text("storage"), _name(kind), _text(key), _text("cpu"), _int(count)]
  return b"".join([_MARK, *parts, _TUPLE, _PERSISTENT])


def _ordered_dict() -> bytes:
  return _name("collections.OrderedDict") + _EMPTY_TUPLE + _REDUCE


def _ints(numbers) -> bytes:
  return b"".join([_MARK, *map(_int, numbers), _TUPLE])


def _name(name: str) -> bytes:
  module, _, attribute = name.rpartition(".")
  return f"c{module}\n{attribute}\n".encode()


def _text(text: str) -> bytes:
  data = text.encode()
  return b"X" + struct.pack("<I", len(data)) + data


def _int(number: int) -> bytes:
  if -(2**31) <= number < 2**31:
    return b"J" + struct.pack("<i", number)
  data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
  return b"\x8a" + bytes([len(data)]) + data
