"""sentence-transformers' directories around a BERT, in, as text towers."""

import pathlib
from typing import Any

from clip_jax import errors, json_text
from clip_jax.convert import bert, config_file, containers, portable
from clip_jax.convert import report as report_lib

NAME = "sentence-transformers"
MODULES = "modules.json"
_MODE = "pooling_mode_"
# Their names of poolings to ours, as flags and, since version 5, as one word.
_POOLINGS = {
  "cls_token": "cls",
  "cls": "cls",
  "mean_tokens": "mean",
  "mean": "mean",
}


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` is a directory with a list of modules."""
  return (path / MODULES).is_file()


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Reads a BERT with its pooling.

  Raises:
    UserError: it has other modules or another pooling.
  """
  report = report_lib.Report(NAME)
  transformer, pooling_directory = _modules(path)
  pooling = _pooling(pooling_directory / "config.json")
  report.infer("text.pooling", pooling, "config")
  settings_file = transformer / "sentence_bert_config.json"
  settings = config_file.Fields(
    str(settings_file),
    config_file.read(settings_file) if settings_file.exists() else {},
  )
  lower = settings.take("do_lower_case", False, kind=bool)
  length = settings.take("max_seq_length", None)
  if length is not None and length < 3:
    raise errors.UserError(
      f"{settings_file}: max_seq_length={length} leaves no room for text."
    )
  return bert.read_tower(
    transformer,
    report,
    options,
    pooling=pooling,
    context_length=length,
    cleaning="lower" if lower else None,
  )


def _modules(path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Returns the directories of the Transformer and of the pooling."""
  listed = _read_list(path / MODULES)
  kinds = [str(module.get("type", "")).split(".")[-1] for module in listed]
  if kinds != ["Transformer", "Pooling"]:
    raise errors.UserError(
      f"{path / MODULES} lists {', '.join(kinds) or 'nothing'}; only a "
      "Transformer and a Pooling are held, since a Dense or a Normalize after "
      "them is no part of a tower here."
    )
  return tuple(_inside(path, module.get("path")) for module in listed)


def _read_list(path: pathlib.Path) -> list[dict[str, Any]]:
  listed = json_text.read(path, kind=list)
  if not all(isinstance(module, dict) for module in listed):
    raise containers.DamagedError(f"{path} must hold a list of objects.")
  return listed


def _inside(path: pathlib.Path, name: Any) -> pathlib.Path:
  """Returns a subdirectory; a name that leads elsewhere is an error."""
  if not isinstance(name, str) or any(sign in name for sign in "/\\:\0"):
    name = ".."
  if name in (".", ".."):
    raise containers.DamagedError(
      f"{path / MODULES} names a directory that is not in its own."
    )
  return path / name


def _pooling(path: pathlib.Path) -> str:
  config = config_file.read(path)
  modes = [
    key.removeprefix(_MODE)
    for key, value in config.items()
    if key.startswith(_MODE) and value is True
  ]
  word = config.get("pooling_mode")
  if isinstance(word, str):
    modes.append(word)
  if len(modes) != 1 or modes[0] not in _POOLINGS:
    raise errors.UserError(
      f"{path} has the poolings {', '.join(modes) or 'none'}; exactly one of "
      "mean_tokens and cls_token is held."
    )
  return _POOLINGS[modes[0]]
