"""The schema of a run: every knob with its default, its unit and its check.

A config is a locked `ml_collections.ConfigDict` made by `default_config`. A
config file is Python with a function `get_config()` that changes what it
needs; `load` reads one, applies overrides and checks the result.
"""

import dataclasses
import json
import pathlib
import re
import runpy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from clip_jax import errors

PRECISIONS = ("bfloat16", "float32", "float64")
LOSS_KINDS = ("sigmoid", "softmax")
LOSS_METHODS = ("auto", "dense", "gathered")
CAPTION_CHOICES = ("random", "first")
EVAL_TASKS = ("zero_shot", "retrieval")

# A check returns what is wanted where the value is not allowed, else None.
Check = Callable[[Any], str | None]


def _at_least(low: float) -> Check:
  return lambda value: None if value >= low else f"at least {low}"


def _between(low: float, high: float) -> Check:
  wanted = f"between {low} and {high}"
  return lambda value: None if low <= value <= high else wanted


def _one_of(names: Sequence[str]) -> Check:
  wanted = "one of " + ", ".join(names)
  return lambda value: None if value in names else wanted


def _axis_size(value: int) -> str | None:
  return None if value == -1 or value >= 1 else "-1 (all the rest) or >= 1"


def _positive(value: float) -> str | None:
  return None if value > 0 else "more than 0"


def _anything(value: Any) -> None:
  del value


def _not_empty(value: str) -> str | None:
  return None if value else "a name or an address, not an empty text"


def _address(value: str) -> str | None:
  return None if value else "set: --config.data.train=ADDRESS"


@dataclasses.dataclass(frozen=True)
class Field:
  """One knob: its type, its default (None: worked out), check and meaning."""

  type: type
  default: Any
  check: Check
  help: str


SCHEMA: dict[str, Field] = {
  "model": Field(
    str, "ViT-B-32", _not_empty, "name of the model; `clip-jax models` lists"
  ),
  "batch_size": Field(
    int, 32_768, _at_least(1), "pairs in the global batch (paper, Table 18)"
  ),
  "steps": Field(int, None, _at_least(1), "length in updates; or give epochs"),
  "epochs": Field(
    float, None, _positive, "length in passes over data.train; or give steps"
  ),
  "seed": Field(
    int, 0, _between(0, 2**31 - 1), "seed of parameters, order and crops"
  ),
  "precision": Field(
    str,
    "bfloat16",
    _one_of(PRECISIONS),
    "compute type; parameters, logits and loss stay float32 (or float64)",
  ),
  "init.model": Field(
    str, "", _anything, "a model to begin with, in any format; empty: none"
  ),
  "init.image": Field(
    str, "", _anything, "a checkpoint whose image tower to begin with"
  ),
  "init.text": Field(
    str, "", _anything, "a checkpoint whose text tower to begin with"
  ),
  "data.train": Field(str, "", _address, "DATA address of the pairs"),
  "data.workers": Field(
    int, 0, _at_least(0), "loader processes; 0 loads in threads only"
  ),
  "data.threads": Field(int, 4, _at_least(1), "loader threads a process"),
  "data.max_bad_fraction": Field(
    float, 0.01, _between(0, 1), "share of bad records that stops the run"
  ),
  "data.resize_ratio": Field(
    float,
    1.0,
    _between(1, 4),
    "shortest side before the random crop, over the image size",
  ),
  "data.caption": Field(
    str, "random", _one_of(CAPTION_CHOICES), "which caption of an image"
  ),
  "eval_every_steps": Field(
    int, 0, _at_least(0), "updates between evaluations; 0: only at the end"
  ),
  "optim.peak_lr": Field(
    float, 5e-4, _positive, "learning rate after warm-up (paper, Table 20)"
  ),
  "optim.warmup_steps": Field(
    int, 2000, _at_least(0), "updates of linear warm-up (paper, Table 18)"
  ),
  "optim.weight_decay": Field(
    float, 0.2, _at_least(0), "decoupled, on matrices (paper, Table 18)"
  ),
  "optim.beta1": Field(float, 0.9, _between(0, 1), "Adam's beta1"),
  "optim.beta2": Field(
    float, None, _between(0, 1), "Adam's beta2; paper: ViT 0.98, ResNet 0.999"
  ),
  "optim.epsilon": Field(
    float, None, _positive, "Adam's epsilon; paper: ViT 1e-6, ResNet 1e-8"
  ),
  "optim.clip_norm": Field(
    float, 1.0, _at_least(0), "largest global gradient norm; 0: no clipping"
  ),
  "optim.frozen": Field(
    str,
    "",
    _anything,
    "regular expression: parameters that stay as they are; empty: none",
  ),
  "loss.kind": Field(
    str, "softmax", _one_of(LOSS_KINDS), "contrastive objective"
  ),
  "loss.method": Field(
    str, "auto", _one_of(LOSS_METHODS), "how the global logits are made"
  ),
  "mesh.data": Field(int, -1, _axis_size, "devices that split the batch"),
  "mesh.fsdp": Field(
    int, 1, _axis_size, "devices that split batch, parameters and optimizer"
  ),
  "checkpoint.every_steps": Field(
    int, 1000, _at_least(1), "updates between checkpoints"
  ),
  "checkpoint.keep": Field(int, 3, _at_least(1), "newest checkpoints kept"),
  "log_every_steps": Field(int, 50, _at_least(1), "updates between log lines"),
  "report": Field(
    str, "", _anything, "DATA address that report.png shows; empty: no report"
  ),
}

# The fields of one entry of `config.evals`.
EVAL_SCHEMA: dict[str, Field] = {
  "task": Field(str, "zero_shot", _one_of(EVAL_TASKS), "what is measured"),
  "data": Field(str, "", _not_empty, "DATA address"),
  "labels": Field(
    str, "", _anything, "comma-separated or a file; empty: the data's own"
  ),
  "templates": Field(
    str, "", _anything, "a template or a file; empty: the data's own"
  ),
}

# Two ways to say how long a run is, of which one is given.
_LENGTHS = {"steps": "epochs", "epochs": "steps"}

# Open dictionaries: names are the user's own, so no lock guards them.
_OPEN = ("model_overrides", "evals")
# How fields in them are named where all are listed.
_OPEN_FIELDS = ("evals.NAME.*", "model_overrides.*")


def default_config() -> ml_collections.ConfigDict:
  """Returns the defaults: the paper's recipe, without data."""
  tree: dict[str, Any] = {name: {} for name in _OPEN}
  for path, field in SCHEMA.items():
    *parents, leaf = path.split(".")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = (
      config_dict.placeholder(field.type)
      if field.default is None
      else field.default
    )
  config = ml_collections.ConfigDict(tree)
  config.lock()
  for name in _OPEN:
    config[name].unlock()
  return config


def load(
  path: str | pathlib.Path, overrides: Sequence[str] = ()
) -> ml_collections.ConfigDict:
  """Returns the checked config of the file `path` with `overrides` on top.

  Args:
    path: a Python file that defines `get_config()`.
    overrides: texts such as "optim.peak_lr=1e-3".

  Raises:
    UserError: the file cannot be read, or a field is unknown or not allowed.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise errors.UserError(
      f"Config file {str(path)!r} does not exist; check the path, or take one "
      "of configs/."
    )
  try:
    config = runpy.run_path(str(path))["get_config"]()
  except KeyError as error:
    if error.args == ("get_config",):
      raise errors.UserError(
        f"{path} defines no get_config(); see configs/demo.py."
      ) from None
    raise errors.UserError(f"{path}: {error.args[0]}") from None
  except Exception as error:  # Whatever a user's file raises is theirs to mend.
    raise _file_error(path, error) from None
  if not isinstance(config, ml_collections.ConfigDict):
    raise errors.UserError(
      f"{path}: get_config() returned {type(config).__name__}; start from "
      "clip_jax.config.default_config()."
    )
  for override in overrides:
    apply_override(config, override)
  return check(config)


def _file_error(path: pathlib.Path, error: Exception) -> errors.UserError:
  """Returns what went wrong in a config file, in one line."""
  line = getattr(error, "lineno", None) or _line_in(error, str(path))
  locked = re.match(r"""'?Key "(\w+)" does not exist and cannot""", str(error))
  if locked:
    names = {name for field in SCHEMA for name in field.split(".")}
    message = str(errors.unknown("config field", locked[1], names))
  else:
    first = (str(error).splitlines() or [""])[0]
    message = f"{type(error).__name__}: {first}"
  return errors.UserError(f"{path}, line {line}: {message}")


def _line_in(error: BaseException, path: str) -> int | str:
  """Returns the last line of the file `path` in the error's traceback."""
  line, traceback = "?", error.__traceback__
  while traceback is not None:
    if traceback.tb_frame.f_code.co_filename == path:
      line = traceback.tb_lineno
    traceback = traceback.tb_next
  return line


def apply_override(config: ml_collections.ConfigDict, override: str) -> None:
  """Sets one field in place from a text such as "optim.peak_lr=1e-3".

  "evals=" removes all evaluations, "evals.NAME=" one of them.
  """
  path, equals, text = override.partition("=")
  if not equals:
    raise errors.UserError(
      f"Override {override!r} has no value; write --config.{path}=VALUE."
    )
  *parents, leaf = path.split(".")
  node = config
  if not text and path in _OPEN:
    config[path] = ml_collections.ConfigDict()
    return
  if not text and parents == ["evals"]:
    if leaf not in config.evals:
      raise errors.unknown("evaluation", leaf, config.evals)
    del config.evals[leaf]
    return
  if parents[:1] == ["evals"] or parents[:1] == ["model_overrides"]:
    for parent in parents:
      if parent not in node:
        node[parent] = ml_collections.ConfigDict()
      node = node[parent]
    is_eval = parents[0] == "evals"
    try:
      node[leaf] = text if is_eval else _parse_json(text)
    except TypeError:  # Set before, by the config file, to another type.
      raise errors.UserError(
        f"config.{path} takes {type(node[leaf]).__name__}, got {text!r}."
      ) from None
    return
  if path not in SCHEMA:
    raise errors.unknown("config field", path, [*SCHEMA, *_OPEN_FIELDS])
  for parent in parents:
    node = node[parent]
  node[leaf] = _parse(path, text, SCHEMA[path].type)
  # What is typed last decides, also over the file.
  if path in _LENGTHS:
    config[_LENGTHS[path]] = None


def _parse(path: str, text: str, kind: type) -> Any:
  try:
    if kind is int:
      number = float(text) if "e" in text.lower() else int(text)
      if number != int(number):
        raise ValueError
      return int(number)
    return kind(text)
  except (ValueError, OverflowError):  # Overflow: an infinite integer.
    raise errors.UserError(
      f"config.{path} takes {kind.__name__}, got {text!r}."
    ) from None


def _parse_json(text: str) -> Any:
  """Returns numbers, booleans and lists as such, anything else as a text."""
  try:
    return json.loads(text)
  except json.JSONDecodeError:
    return text


def check(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns `config` if every field is known and allowed.

  Raises:
    UserError: names the first field that is not, what it got and what it may
      be.
  """
  flat = _flatten({k: v for k, v in config.to_dict().items() if k not in _OPEN})
  for path, value in flat.items():
    if path not in SCHEMA:
      raise errors.unknown("config field", path, SCHEMA)
    _check_field(path, value, SCHEMA[path])
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
      if key not in EVAL_SCHEMA:
        raise errors.unknown(f"field of evals.{name}", key, EVAL_SCHEMA)
    for key, value in evaluation(config, name).items():
      _check_field(f"evals.{name}.{key}", value, EVAL_SCHEMA[key])
  return config


def _check_field(path: str, value: Any, field: Field) -> None:
  if value is None and field.default is None:
    return
  accepts = (int, float) if field.type is float else field.type
  if not isinstance(value, accepts) or isinstance(value, bool):
    raise errors.UserError(
      f"config.{path} takes {field.type.__name__}, got {value!r}."
    )
  wanted = field.check(value)
  if wanted is not None:
    raise errors.UserError(
      f"config.{path}={value!r} is not allowed ({field.help}); it must be "
      f"{wanted}."
    )


def evaluation(config: ml_collections.ConfigDict, name: str) -> dict[str, Any]:
  """Returns the entry `name` of `config.evals` with its defaults filled in."""
  defaults = {key: field.default for key, field in EVAL_SCHEMA.items()}
  return defaults | dict(config.evals[name])


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  flat = {}
  for key, value in tree.items():
    path = prefix + key
    if isinstance(value, Mapping):
      flat |= _flatten(value, path + ".")
    else:
      flat[path] = value
  return flat


def to_json(config: ml_collections.ConfigDict) -> str:
  """Returns `config` as JSON that `from_json` reads back."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> ml_collections.ConfigDict:
  """Returns the checked config that `to_json` wrote.

  Raises:
    UserError: not JSON, or a field is unknown or not allowed.
  """
  try:
    tree = json.loads(text)
  except json.JSONDecodeError as error:
    raise errors.UserError(f"The config is no valid JSON: {error}.") from None
  if not isinstance(tree, dict):
    raise errors.UserError("The config is no JSON object.")
  config = default_config()
  for name in _OPEN:
    config[name] = ml_collections.ConfigDict(tree.pop(name, {}))
  for path, value in _flatten(tree).items():
    if path not in SCHEMA:
      raise errors.unknown("config field", path, SCHEMA)
    *parents, leaf = path.split(".")
    node = config
    for parent in parents:
      node = node[parent]
    if value is not None:
      _check_field(path, value, SCHEMA[path])
      node[leaf] = value
  return check(config)


def differences(
  old: ml_collections.ConfigDict, new: ml_collections.ConfigDict
) -> dict[str, tuple[Any, Any]]:
  """Returns {field: (old value, new value)} of the fields that differ."""
  before, after = _flatten(old.to_dict()), _flatten(new.to_dict())
  paths = sorted(before.keys() | after.keys())
  return {
    path: (before.get(path), after.get(path))
    for path in paths
    if before.get(path) != after.get(path)
  }
