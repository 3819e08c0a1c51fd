"""Checks that a config's fields are known and that their values are allowed."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from clip_jax import errors
from clip_jax.config import schema, unknown_fields

_MAX_INTEGER = 2**53  # Larger integers are not exact as floats.
# What other trainers call a value.
_MEANT = {
  **dict.fromkeys(("amp", "amp_bf16", "amp_bfloat16", "bf16"), "bfloat16"),
  **dict.fromkeys(("pure_bf16", "fp16", "pure_fp16", "amp_fp16"), "bfloat16"),
  "fp32": "float32",
  "siglip": "sigmoid",
  **dict.fromkeys(("const", "constant_with_warmup"), "constant"),
  **dict.fromkeys(("const-cooldown", "warmup_stable_decay"), "constant"),
  "inverse_sqrt": "rsqrt",
}
# The field that such a value needs beside it.
_BESIDE = {
  **dict.fromkeys(
    ("const-cooldown", "warmup_stable_decay"), "optim.cooldown_steps"
  ),
  "inverse_sqrt": "optim.rsqrt_steps",
}


def check(config: schema.Config | ml_collections.ConfigDict) -> schema.Config:
  """Returns `config`, frozen, if every field is known and allowed.

  Raises:
    UserError: a field is unknown, missing or not allowed; the message names the
      first one, its value and the allowed values.
  """
  tree = as_tree(config)
  check_names(tree)
  for path, value in flatten(tree, leave=schema.OPEN).items():
    check_field(path, value, schema.SCHEMA[path])
  for name in schema.OPEN:
    tree[name] = as_json(tree[name], name)
  steps, epochs = tree["steps"], tree["epochs"]
  if (steps is None) == (epochs is None):
    raise errors.UserError(
      f"Give exactly one of steps and epochs; got steps={steps} and "
      f"epochs={epochs}."
    )
  _check_augment(schema.Augment(**tree["augment"]), tree["data"])
  _check_schedule(schema.Optim(**tree["optim"]))
  _check_objective(schema.Objective(**tree["objective"]))
  for name, entry in tree["evals"].items():
    if not isinstance(entry, Mapping):
      raise errors.UserError(
        f"config.evals.{name} must be a dict with task and data, got {entry!r}."
      )
    for key in entry:
      if key not in schema.EVAL_SCHEMA:
        raise errors.unknown(f"field of evals.{name}", key, schema.EVAL_SCHEMA)
    for key, value in vars(schema.Evaluation(**entry)).items():
      check_field(f"evals.{name}.{key}", value, schema.EVAL_SCHEMA[key])
  return schema.freeze(tree)


def check_names(tree: Mapping[str, Any]) -> None:
  """Raises UserError unless a config has all fields, and no others."""
  flat = flatten(tree, leave=schema.OPEN)
  for path, value in flat.items():
    if path not in schema.SCHEMA:
      raise unknown_fields.error(path, str(value))
  if missing := [path for path in schema.SCHEMA if path not in flat]:
    raise errors.UserError(
      f"The config has no field {missing[0]!r}; start from "
      "clip_jax.config.default_config()."
    )
  for name in schema.OPEN:
    if not isinstance(tree.get(name), Mapping):
      raise errors.UserError(
        f"config.{name} must be a dict, got {tree.get(name)!r}."
      )
    as_json(tree[name], name)


def _check_augment(augment: schema.Augment, data: Mapping[str, Any]) -> None:
  """Raises UserError where a field would have no effect."""
  plain = schema.Augment()
  if augment.scale < 1 < data["resize_ratio"]:
    raise errors.UserError(
      f"augment.scale={augment.scale:g} and data.resize_ratio="
      f"{data['resize_ratio']:g} both choose the random crop; leave one at 1."
    )
  if augment.scale == 1 and augment.ratio != plain.ratio:
    raise errors.UserError(
      f"augment.ratio={augment.ratio:g} has no effect where augment.scale is "
      "1; give both, or leave it out."
    )
  colours = ("brightness", "contrast", "saturation", "hue")
  if augment.jitter_prob != plain.jitter_prob and not any(
    getattr(augment, name) for name in colours
  ):
    raise errors.UserError(
      f"augment.jitter_prob={augment.jitter_prob:g} has no effect without one "
      f"of {', '.join(colours)}; give it, or leave it out."
    )


def _check_schedule(optim: schema.Optim) -> None:
  """Raises UserError where a field would have no effect."""
  if (
    optim.schedule != "rsqrt"
    and optim.rsqrt_steps != schema.Optim().rsqrt_steps
  ):
    raise errors.UserError(
      f"optim.rsqrt_steps={optim.rsqrt_steps} has no effect where "
      f"optim.schedule is {optim.schedule}; give optim.schedule=rsqrt, or "
      "leave it out."
    )


def _check_objective(objective: schema.Objective) -> None:
  """Raises UserError where a field would have no effect."""
  captions = objective.kind == "lm" or objective.captioning_weight
  if objective.depth is not None and not captions:
    raise errors.UserError(
      f"objective.depth={objective.depth} has no effect without a captioner; "
      "give objective.captioning_weight, or objective.kind=lm, or leave it out."
    )


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
    meant = _MEANT.get(value) if isinstance(value, str) else None
    fits = meant is not None and field.check(meant) is None
    more = f" with {_BESIDE[value]}" if value in _BESIDE else ""
    hint = f" {value!r} elsewhere is {meant!r}{more} here." if fits else ""
    raise errors.UserError(
      f"config.{path}={value!r} is not allowed ({field.help}); it must be "
      f"{wanted}.{hint}"
    )


def as_tree(config: schema.Config | ml_collections.ConfigDict) -> dict:
  """Returns the fields of a config as new nested dictionaries."""
  if isinstance(config, schema.Config):
    return dataclasses.asdict(config)
  return config.to_dict()


def flatten(
  tree: Mapping[str, Any], prefix: str = "", *, leave: Sequence[str] = ()
) -> dict[str, Any]:
  """Returns the leaves of `tree` by "."-joined path, except below `leave`."""
  flat = {}
  for key, value in tree.items():
    path = f"{prefix}{key}"
    if path in leave:
      continue
    if isinstance(value, Mapping):
      flat |= flatten(value, path + ".")
    else:
      flat[path] = value
  return flat


def as_json(value: Any, path: str) -> Any:
  """Returns a value of an open field with the types that JSON gives it.

  A run keeps its config as JSON, and compares it with that when it resumes.
  """
  if isinstance(value, Mapping) and all(map(_is_name, value)):
    return {key: as_json(x, f"{path}.{key}") for key, x in value.items()}
  if isinstance(value, list | tuple):
    return [as_json(each, path) for each in value]
  if value is None or isinstance(value, str | int):
    return value
  if isinstance(value, float) and math.isfinite(value):
    return value
  raise errors.UserError(
    f"config.{path} takes what JSON can hold: finite numbers, texts, lists and "
    f"dicts whose keys are names; got {value!r:.100}."
  )


def _is_name(key: Any) -> bool:
  # ConfigDict takes no dots, and keeps Python's own __names__ to itself.
  return isinstance(key, str) and bool(re.fullmatch(r"(?!__)[^.]+", key, re.S))
