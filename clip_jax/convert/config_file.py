"""Reads and writes JSON configs."""

import json
import pathlib
from typing import Any

from clip_jax import errors, json_text
from clip_jax.convert.files import datafile

MAX_BYTES = 1 << 22


def read(path: pathlib.Path, *, strict: bool = False) -> dict[str, Any]:
  """Returns the object in a JSON file.

  Args:
    path: path of the file.
    strict: whether a key that occurs twice in an object, or NaN, is an error.

  Raises:
    UserError: the file cannot be read, or holds no JSON object.
  """
  with datafile.checked(path, "a JSON file"):
    return json_text.read(path, max_bytes=MAX_BYTES, strict=strict)


def write(path: pathlib.Path, value: dict[str, Any]) -> None:
  """Writes an object as JSON, which has no NaN and no infinity."""
  path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", "utf-8")


def peek(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object in a JSON file; {} if there is no valid one."""
  try:
    return read(path) if path.is_file() else {}
  except errors.UserError:
    return {}


def section(config: dict[str, Any], field: str, where: str) -> dict[str, Any]:
  """Returns the object in a field of a config.

  Raises:
    UserError: the field is missing, or holds something else.
  """
  if field not in config:
    raise errors.UserError(
      f"{where} lacks {field}; fetch or make the file again."
    )
  if not isinstance(config[field], dict):
    raise errors.UserError(
      f"{where}: {field} must be a JSON object; got {config[field]!r:.100}."
    )
  return config[field]
