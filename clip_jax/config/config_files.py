"""Reads configs from Python files, and reads and writes them as JSON."""

import json
import pathlib
import re
import runpy
from collections.abc import Sequence
from typing import Any

import ml_collections

from clip_jax import errors, json_text
from clip_jax.config import checks, overrides, schema, unknown_fields


def load(
  path: str | pathlib.Path, changes: Sequence[str] = ()
) -> schema.Config:
  """Returns the checked config of the file `path`, with `changes` applied.

  Args:
    path: a Python file that defines `get_config()`.
    changes: texts such as "optim.peak_lr=1e-3".

  Raises:
    UserError: the file cannot be read, or a field is unknown or not allowed.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    what = "is not a file" if path.exists() else "does not exist"
    where = "" if path.is_absolute() else f" in {pathlib.Path.cwd()}"
    raise errors.UserError(
      f"Config file {str(path)!r} {what}{where}.{errors.beside(path)} Check "
      "the path, or take one of the folder configs/ of clip_jax's repository."
    )
  try:
    names = runpy.run_path(str(path))
    config = names["get_config"]() if "get_config" in names else None
  except (Exception, SystemExit) as error:  # The user's file may raise any.
    raise _file_error(path, error) from None
  if "get_config" not in names:
    raise errors.UserError(
      f"{path} defines no get_config(); see configs/demo.py."
    )
  if not isinstance(config, ml_collections.ConfigDict):
    raise errors.UserError(
      f"{path}: get_config() returned {type(config).__name__}; start from "
      "clip_jax.config.default_config()."
    )
  checks.check_names(checks.as_tree(config))
  if isinstance(config, ml_collections.FrozenConfigDict):
    # One that can be changed.
    config = ml_collections.ConfigDict(config.to_dict())
  for change in changes:
    overrides.apply_override(config, change)
  return checks.check(config)


def _file_error(
  path: pathlib.Path, error: Exception | SystemExit
) -> errors.UserError:
  """Returns an error about a config file, in one line."""
  line = getattr(error, "lineno", None) or _line_in(error, str(path))
  place = path if line is None else f"{path}, line {line}"
  locked = re.match(r"""'?Key "(\w+)" does not exist and cannot""", str(error))
  if locked:
    names = {name for field in schema.SCHEMA for name in field.split(".")}
    message = str(unknown_fields.error(locked[1], known=names))
  else:
    first = (str(error).splitlines() or [""])[0]
    message = f"{type(error).__name__}: {first}"
  return errors.UserError(f"{place}: {message}")


def _line_in(error: BaseException, path: str) -> int | None:
  """Returns the last line of the file `path` in the error's traceback."""
  line, traceback = None, error.__traceback__
  while traceback is not None:
    if traceback.tb_frame.f_code.co_filename == path:
      line = traceback.tb_lineno
    traceback = traceback.tb_next
  return line


def to_json(config: schema.Config | ml_collections.ConfigDict) -> str:
  """Returns `config` as JSON that `from_json` reads back."""
  return json.dumps(checks.as_tree(config), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> schema.Config:
  """Returns the checked config that `to_json` wrote.

  Raises:
    UserError: not JSON, or a field is unknown or not allowed.
  """
  return checks.check(_thaw(json_text.parse(text, what="The config")))


def with_overrides(
  config: schema.Config, changes: Sequence[str]
) -> schema.Config:
  """Returns `config` with changes such as "optim.peak_lr=1e-3", checked.

  Raises:
    UserError: a field is unknown or not allowed.
  """
  changed = _thaw(checks.as_tree(config))
  for change in changes:
    overrides.apply_override(changed, change)
  return checks.check(changed)


def _thaw(tree: dict[str, Any]) -> ml_collections.ConfigDict:
  """Returns a mutable config of nested dictionaries."""
  config = schema.default_config()
  for name in schema.OPEN:
    if not isinstance(open_field := tree.pop(name, {}), dict):
      raise errors.UserError(
        f"config.{name} must be a JSON object, got {open_field!r:.60}."
      )
    checked = checks.as_json(open_field, name)
    config[name] = ml_collections.ConfigDict(checked)
  for path, value in checks.flatten(tree).items():
    if path not in schema.SCHEMA:
      raise unknown_fields.error(path)
    *parents, leaf = path.split(".")
    node: Any = config
    for parent in parents:
      node = node[parent]
    if value is not None:
      checks.check_field(path, value, schema.SCHEMA[path])
      node[leaf] = value
  return config


def differences(
  old: schema.Config, new: schema.Config
) -> dict[str, tuple[Any, Any]]:
  """Returns {field: (old value, new value)} of the fields that differ."""
  before, after = (checks.flatten(checks.as_tree(x)) for x in (old, new))
  paths = sorted(before.keys() | after.keys())
  return {
    path: (before.get(path), after.get(path))
    for path in paths
    if before.get(path) != after.get(path)
  }
