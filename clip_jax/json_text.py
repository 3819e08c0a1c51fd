"""Reads JSON from untrusted files, with limits on its size and depth.

Any bytes give either a value of the wanted type or a `JsonError`.
"""

import ast
import hashlib
import json
import os
import warnings
from typing import Any

from clip_jax import errors, regular_files

# No valid file is nested deeper, so that values may be walked recursively.
MAX_DEPTH = 100
MAX_BYTES = 2**28
# Integers of more digits become floats: none of them is a count or a size, and
# Python raises an error beyond 4,300 digits.
_MAX_DIGITS = 20
AGAIN = "; fetch or make it again."
_SEAL = "sha256"
_MOST_TYPED = 10_000  # Characters.


class JsonError(errors.UserError):
  """Text that is not valid JSON, or not of the expected type.

  Attributes:
    reason: "not_utf8" or "bad_json".
  """

  def __init__(self, message: str, *, reason: str = "bad_json"):
    super().__init__(message)
    self.reason = reason


_NAMES = {dict: "object", list: "list", str: "text"}


def _integer(digits: str) -> int | float:
  return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  made = dict(pairs)
  if len(made) != len(pairs):
    names = [name for name, _ in pairs]
    twice = next(n for n in names if names.count(n) > 1)
    raise ValueError(f"the key {twice!r:.100} occurs twice")
  return made


def _refuse_constant(name: str):
  raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_int=_integer)
_STRICT_DECODER = json.JSONDecoder(
  parse_int=_integer,
  parse_constant=_refuse_constant,
  object_pairs_hook=_unique,
)


def parse(
  text: bytes | str,
  *,
  what: str = "The text",
  kind: type | tuple[type, ...] = dict,
  strict: bool = False,
) -> Any:
  """Returns the value of a JSON text, which must be of the type `kind`.

  A byte order mark is skipped. NaN and infinities are read as floats, and
  integers of more than 20 digits as the nearest float.

  Args:
    text: JSON text; UTF-8 if it is bytes.
    what: name of the text, with which messages begin.
    kind: expected type of the value.
    strict: whether a key that occurs twice in an object, or NaN, is an error.

  Raises:
    JsonError: it is not valid JSON, is nested too deeply or of another type.
  """
  try:
    if isinstance(text, bytes):
      text = text.decode("utf-8")
    decoder = _STRICT_DECODER if strict else _DECODER
    value = decoder.decode(text.removeprefix("\ufeff"))
  except UnicodeDecodeError as error:
    raise JsonError(
      f"{what} is no UTF-8 ({error}); save it as UTF-8.",
      reason="not_utf8",
    ) from None
  except RecursionError:
    raise _too_deep(what) from None
  except ValueError as error:
    raise JsonError(f"{what} is no valid JSON ({error}){AGAIN}") from None
  if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
    raise _too_deep(what)
  if not isinstance(value, kind):
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names = " or ".join(_NAMES[each] for each in kinds)
    raise JsonError(
      f"{what} must hold a JSON {names}, got {value!r:.60}{AGAIN}"
    )
  return value


def of_python(text: str) -> str | None:
  """Returns the JSON for a value that is spelled as in Python; None for others.

  Such are True, (0.5, 0.5), .5 and {'a': 1}. The text is one that somebody
  wrote, not one of a file.
  """
  if len(text) > _MOST_TYPED:
    return None
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # Of a backslash in it.
      value = ast.literal_eval(text.strip())
    return None if isinstance(value, str) else json.dumps(value)
  except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError):
    return None


def read(
  path: str | os.PathLike,
  *,
  kind: type | tuple[type, ...] = dict,
  max_bytes: int = MAX_BYTES,
  strict: bool = False,
) -> Any:
  """Returns the value in a JSON file; see `parse`.

  Raises:
    JsonError: the content is not valid, or is too large.
    OSError: the file cannot be read.
    NotRegularError: it is not a regular file.
  """
  data = regular_files.read_regular(path, limit=max_bytes)
  if len(data) > max_bytes:
    raise JsonError(
      f"{os.fspath(path)} has more than the {max_bytes:,} bytes allowed{AGAIN}"
    )
  if data.startswith(regular_files.LFS):
    raise JsonError(
      f"{os.fspath(path)} is a pointer of Git LFS; get the file by `git lfs "
      "pull`."
    )
  return parse(data, what=os.fspath(path), kind=kind, strict=strict)


def seal(content: dict[str, Any]) -> dict[str, Any]:
  """Returns a copy of `content`, as JSON has it, with its checksum added."""
  content = json.loads(json.dumps(content))
  return {**content, _SEAL: _sha256(content)}


def unseal(content: dict[str, Any]) -> dict[str, Any]:
  """Returns `content` without the checksum that `seal` added.

  Raises:
    ValueError: the checksum is wrong: it is damaged, or was changed by hand.
  """
  opened = {name: value for name, value in content.items() if name != _SEAL}
  if content.get(_SEAL) != _sha256(opened):
    raise ValueError("it is damaged: its checksum is wrong")
  return opened


def _sha256(content: dict[str, Any]) -> str:
  text = json.dumps(content, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def _is_deep(value: Any) -> bool:
  level = [value]
  for _ in range(MAX_DEPTH):
    level = [
      inner
      for outer in level
      for inner in (outer.values() if isinstance(outer, dict) else outer)
      if isinstance(inner, dict | list)
    ]
    if not level:
      return False
  return True


def _too_deep(what: str) -> JsonError:
  return JsonError(
    f"{what} nests more than {MAX_DEPTH} levels of JSON: beyond the limit of "
    f"recursion{AGAIN}"
  )
