"""Whether a config's fields are known and allowed."""

import math
from collections.abc import Mapping
from typing import Any

import ml_collections

from clip_jax import errors
from clip_jax.config import schema

_MAX_INTEGER = 2**53  # Beyond it a float of JSON or of numpy is inexact.


def check(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns `config` if every field is known and allowed.

  Raises:
    UserError: names the first field that is not, what it got and what it may
      be.
  """
  flat = flatten(
    {k: v for k, v in config.to_dict().items() if k not in schema.OPEN}
  )
  for path, value in flat.items():
    if path not in schema.SCHEMA:
      raise errors.unknown("config field", path, schema.SCHEMA)
    check_field(path, value, schema.SCHEMA[path])
  if (config.steps is None) == (config.epochs is None):
    raise errors.UserError(
      f"Give exactly one of steps and epochs; got steps={config.steps} and "
      f"epochs={config.epochs}."
    )
  for name, entry in config.evals.items():
    if not isinstance(entry, Mapping | ml_collections.ConfigDict):
      raise errors.UserError(
        f"config.evals.{name} must be a dict with task and data, got {entry!r}."
      )
    for key in entry:
      if key not in schema.EVAL_SCHEMA:
        raise errors.unknown(f"field of evals.{name}", key, schema.EVAL_SCHEMA)
    for key, value in evaluation(config, name).items():
      check_field(f"evals.{name}.{key}", value, schema.EVAL_SCHEMA[key])
  return config


def check_field(path: str, value: Any, field: schema.Field) -> None:
  """Raises UserError unless `value` is allowed for the field at `path`."""
  if value is None and field.default is None:
    return
  accepts = (int, float) if field.type is float else field.type
  if not isinstance(value, accepts) or isinstance(value, bool):
    raise errors.UserError(
      f"config.{path} takes {field.type.__name__}, got {value!r}."
    )
  if isinstance(value, float) and not math.isfinite(value):
    wanted = "a finite number"
  elif isinstance(value, int) and abs(value) >= _MAX_INTEGER:
    wanted = f"less than {_MAX_INTEGER:,}"
  else:
    wanted = field.check(value)
  if wanted is not None:
    raise errors.UserError(
      f"config.{path}={value!r} is not allowed ({field.help}); it must be "
      f"{wanted}."
    )


def evaluation(config: ml_collections.ConfigDict, name: str) -> dict[str, Any]:
  """Returns the entry `name` of `config.evals` with its defaults filled in."""
  defaults = {key: field.default for key, field in schema.EVAL_SCHEMA.items()}
  return defaults | dict(config.evals[name])


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns the leaves of `tree` by their "."-joined paths."""
  flat = {}
  for key, value in tree.items():
    path = prefix + key
    if isinstance(value, Mapping):
      flat |= flatten(value, path + ".")
    else:
      flat[path] = value
  return flat
