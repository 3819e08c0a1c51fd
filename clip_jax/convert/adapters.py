"""Directories of adapters, as peft and diffusers save them: no whole models."""

import os
import pathlib

from clip_jax import errors
from clip_jax.convert import config_file, weights_file
from clip_jax.convert.files import wrappers

_CONFIG = "adapter_config.json"
_NAMES = (
  *(_CONFIG, "adapter_model.safetensors", "adapter_model.bin"),
  *("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"),
)


def refuse(directory: pathlib.Path) -> None:
  """Raises UserError if a directory holds adapters, or one below it does.

  Those below count where nothing else is there: several adapters of a model lie
  in directories by their names.
  """
  found = _file(directory)
  if found is None and directory.is_dir():
    entries = [x for x in directory.iterdir() if not x.name.startswith(".")]
    below = [_file(entry) for entry in sorted(entries)]
    found = below[0] if below and all(below) else None
  if found is None:
    return
  base = config_file.peek(found.parent / _CONFIG).get("base_model_name_or_path")
  of = f" of {base!r:.100}" if isinstance(base, str) else ""
  raise errors.UserError(
    f"Model {str(directory)!r} holds LoRA adapters{of} "
    f"({found.relative_to(directory)}), not a whole model. {wrappers.MERGE}"
  )


def _file(directory: pathlib.Path) -> pathlib.Path | None:
  """Returns what shows that a directory holds adapters; None if it does not.

  Without their config they may lie beside the model that they are of.
  """
  paths = (directory / name for name in _NAMES)
  found = next(filter(os.path.isfile, paths), None)
  if found is None or found.name == _CONFIG:
    return found
  return None if any(map(_is_other, directory.iterdir())) else found


def _is_other(path: pathlib.Path) -> bool:
  return path.name not in _NAMES and weights_file.is_one(path)
