"""The header of numpy's `.npy` files, matched with a pattern.

numpy evaluates it as Python (`ast.literal_eval`). On Python 3.11 that fails at
random where several threads do it at once in a process that has imported JAX,
whose callback at each garbage collection lets another thread in ("AST
constructor recursion depth mismatch").
"""

import math
import re
from typing import NamedTuple

import numpy as np

MAX_BYTES = 10_000  # numpy's own limit.

_MAGIC = b"\x93NUMPY"
# Python 2 wrote its long integers with an L.
_LENGTH = r"(?:0|[1-9][0-9]*)L?"
_PATTERN = re.compile(
  r"\{S'descr':S(?P<descr>'[^'\\]*'|\[.*\]|[^'\[]{0,40}?)S,"
  r"S'fortran_order':S(?P<fortran>True|False)S,"
  r"S'shape':S\(S(?P<shape>NS,S(?:NS,S)*(?:NS)?|)\)S,?S\}S".replace(
    "S", "[ \\n]*"
  ).replace("N", _LENGTH),
  re.DOTALL,
)
_DESCR = re.compile(r"'([<>|=])?([biufV])(\d{1,2})'")
_NUMBERS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
NUMBERS = _NUMBERS | {"b1", "f2", "f4", "f8"}


class Header(NamedTuple):
  """What an array's header says.

  Attributes:
    shape: of the array.
    dtype: as stored: of numbers or truth values, or voids of two bytes.
    fortran: whether the first axis is the one that varies fastest.
    start: position of the array's first byte.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  fortran: bool
  start: int


def read(head: bytes) -> Header:
  """Returns the header of a file that begins with `head`.

  Raises:
    ValueError: it is not the header of an array of such a dtype.
  """
  if head[:6] != _MAGIC:
    raise ValueError("it does not begin as a numpy array does")
  version = tuple(head[6:8])
  if version not in ((1, 0), (2, 0), (3, 0)):
    raise ValueError(f"its format version is {version}; known: 1.0, 2.0, 3.0")
  start = 10 if version == (1, 0) else 12
  size = int.from_bytes(head[8:start], "little")
  if size > MAX_BYTES or start + size > len(head):
    raise ValueError(f"its header should have {size} bytes")
  encoding = "utf-8" if version == (3, 0) else "latin-1"
  text = head[start : start + size].decode(encoding)
  return Header(*_parse(text), start + size)


def _parse(text: str) -> tuple[tuple[int, ...], np.dtype, bool]:
  match = _PATTERN.fullmatch(text)
  if not match:
    raise ValueError(f"its header is not numpy's: {text[:80]!r}")
  descr = _DESCR.fullmatch(match["descr"])
  order, kind = (descr[1], descr[2] + descr[3]) if descr else (None, "")
  if not (kind in NUMBERS or (kind == "V2" and order != ">")):
    raise ValueError(
      f"its dtype is {match['descr'][:40]}; only numbers, truth values and "
      "bfloat16 (as two-byte voids) are read, never objects"
    )
  dtype = np.dtype((order or "=").replace("|", "=") + kind)
  lengths = match["shape"].replace("L", "").split(",")
  shape = tuple(int(length) for length in lengths if length.strip())
  return shape, dtype, match["fortran"] == "True"


def array(data: bytes) -> np.ndarray:
  """Returns the array in a file's bytes, without a copy of its data.

  Raises:
    ValueError: these are not the bytes of one array.
  """
  shape, dtype, fortran, start = read(data)
  # Before anything else: the header may claim any size.
  if math.prod(shape) * dtype.itemsize != len(data) - start:
    raise ValueError(f"its data do not have the bytes of {dtype} {shape}")
  found = np.frombuffer(data, dtype, offset=start)
  return found.reshape(shape, order="F" if fortran else "C")
