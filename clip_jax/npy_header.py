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
_LENGTH = "(?:0|[1-9][0-9]*)L?"  # Python 2 wrote its long integers with an L.


def _pattern(text: str) -> re.Pattern[str]:
  """Compiles a pattern in which S stands for spaces and N for a length."""
  text = text.replace("S", r"[ \t\n]*").replace("N", _LENGTH)
  return re.compile(text, re.DOTALL)


_OPENED, _CLOSED = _pattern(r"S\{"), _pattern(r"S\}S")
# A key and its value; the format lets them stand in any order.
_ITEM = _pattern(
  r"""S(?P<quote>['"])(?P<key>descr|fortran_order|shape)(?P=quote)S:S"""
  r"""(?P<value>'[^'\\]*'|"[^"\\]*"|True|False|\[.*\]"""
  r"""|\((?:SNS,)*(?:SN)?S\))S(?:,|(?=\}))"""
)
_KEYS = {"descr", "fortran_order", "shape"}
_SHAPE = _pattern(r"\(S\)|\(.*,.*\)")  # (3) is a number.
_DESCR = re.compile(r"""['"]([<>|=])?([biufV])([0-9]{1,2})['"]""")
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
  found = _items(text)
  is_fortran = {"True": True, "False": False}.get(found["fortran_order"])
  if is_fortran is None or not _SHAPE.fullmatch(found["shape"]):
    raise _unknown(text)
  descr = _DESCR.fullmatch(found["descr"])
  order, kind = (descr[1], descr[2] + descr[3]) if descr else (None, "")
  if not (kind in NUMBERS or (kind == "V2" and order != ">")):
    raise ValueError(
      f"its dtype is {found['descr'][:40]}; only numbers, truth values and "
      "bfloat16 (as two-byte voids) are read, never objects"
    )
  dtype = np.dtype((order or "=").replace("|", "=") + kind)
  lengths = found["shape"].strip("()").replace("L", "").split(",")
  shape = tuple(int(length) for length in lengths if length.strip())
  return shape, dtype, is_fortran


def _items(text: str) -> dict[str, str]:
  """Returns the values of a header by their keys, as they are spelled."""
  found: dict[str, str] = {}
  opened = _OPENED.match(text)
  end = opened.end() if opened else 0
  while item := _ITEM.match(text, end):
    found[item["key"]] = item["value"]
    end = item.end()
  if not opened or found.keys() != _KEYS or not _CLOSED.fullmatch(text, end):
    raise _unknown(text)
  return found


def _unknown(text: str) -> ValueError:
  return ValueError(f"its header is not numpy's: {text[:80]!r}")


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
