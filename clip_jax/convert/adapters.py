"""Directories of adapters, as peft and diffusers save them: no whole models."""

import os
import pathlib

from clip_jax import errors
from clip_jax.convert import config_file
from clip_jax.convert.files import wrappers

_CONFIG = "adapter_config.json"
_NAMES = (
  *(_CONFIG, "adapter_model.safetensors", "adapter_model.bin"),
  *("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin"),
)


def refuse(directory: pathlib.Path) -> None:
  """Raises UserError if a directory holds adapters, or one below it does.

  One below does not count where `directory` has files of its own: several
  adapters of a model lie in directories by their names.
  """
  found = _file(directory)
  if found is None and directory.is_dir():
    entries = [x for x in directory.iterdir() if not x.name.startswith(".")]
    if all(map(os.path.isdir, entries)):
      found = next(filter(None, map(_file, sorted(entries))), None)
  if found is None:
    return
  base = config_file.peek(found.parent / _CONFIG).get("base_model_name_or_path")
  of = f" of {base!r:.100}" if isinstance(base, str) else ""
  raise errors.UserError(
    f"Model {str(directory)!r} holds LoRA adapters{of} "
    f"({found.relative_to(directory)}), not a whole model. {wrappers.MERGE}"
  )


def _file(directory: pathlib.Path) -> pathlib.Path | None:
  paths = (directory / name for name in _NAMES)
  return next(filter(os.path.isfile, paths), None)
