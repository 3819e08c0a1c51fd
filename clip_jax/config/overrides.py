"""Applies the fields that are set on the command line to a config."""

from typing import Any

import ml_collections

from clip_jax import errors, json_text
from clip_jax.config import schema, unknown_fields

# Two fields for the length of a run, of which exactly one is given.
_LENGTHS = {"steps": "epochs", "epochs": "steps"}

_OF_PYTHON = {"True": "true", "False": "false", "None": "null"}
# The names of fields in open dictionaries, for messages that list all fields.
_OPEN_FIELDS = ("evals.NAME.*", "model_overrides.*")


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
  node: Any = config
  if not text and path in schema.OPEN:
    config[path] = ml_collections.ConfigDict()
    return
  if not text and parents == ["evals"]:
    if leaf not in node.evals:
      raise errors.unknown("evaluation", leaf, node.evals)
    del node.evals[leaf]
    return
  if parents and parents[0] in schema.OPEN:
    _set_open(config, path, text)
    return
  if path not in schema.SCHEMA:
    known = [*schema.SCHEMA, *_OPEN_FIELDS]
    raise unknown_fields.error(path, text, known=known)
  for parent in parents:
    node = node[parent]
  node[leaf] = _parse(path, text, schema.SCHEMA[path].type)
  # An override of one length removes the other, also if the file has set it.
  if path in _LENGTHS:
    config[_LENGTHS[path]] = None


def _set_open(config: ml_collections.ConfigDict, path: str, text: str) -> None:
  """Sets a field of `evals`, a text, or of `model_overrides`, of JSON."""
  *parents, leaf = path.split(".")
  value = text if parents[0] == "evals" else _parse_json(path, text)
  node: Any = config
  try:
    for parent in parents:
      if parent not in node:
        node[parent] = ml_collections.ConfigDict()
      node = node[parent]
      if not isinstance(node, ml_collections.ConfigDict):
        raise errors.UserError(
          f"config.{path} cannot be set: {parent} holds {node!r:.100}, and no "
          "fields."
        )
    node[leaf] = value
  except TypeError:  # The config file has set it to another type.
    raise errors.UserError(
      f"config.{path} takes {type(node[leaf]).__name__}, got {text!r}."
    ) from None


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
      f"{_what_to_write(path, text)}"
    ) from None


def _what_to_write(path: str, text: str) -> str:
  """Returns a sentence for a field of a number that got something else."""
  field = schema.SCHEMA[path]
  if text.casefold() in ("none", "null") and field.default is None:
    return " Leave it out."
  return f" It is one number ({field.help})."


def _parse_json(path: str, text: str) -> Any:
  """Returns the value of JSON text, or the text itself if it is not JSON."""
  # True, False and None mean the same in Python; they name nothing else.
  text = _OF_PYTHON.get(text, text)
  try:
    return json_text.parse(text, kind=object)
  except json_text.JsonError:
    pass
  if (spelled := json_text.of_python(text)) is not None:
    raise errors.UserError(
      f"config.{path} takes JSON: write {spelled} in place of {text!r}."
    )
  return text
