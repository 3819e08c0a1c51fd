"""Opens models: finds them, recognises their format, applies options."""

import os
import pathlib
from collections.abc import Callable
from typing import TypeVar

from clip_jax import buckets, errors
from clip_jax.convert import (
  adapters,
  bucket_models,
  config_file,
  context,
  hub,
  interpolation,
  missing_model,
  models_below,
  positions,
  weights_file,
)
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine.format import Format
from clip_jax.convert.formats.table import FORMATS
from clip_jax.convert.portable import Options, Portable

# Files that describe a directory. If one is damaged, the error says so instead
# of "in no known format".
_DESCRIPTION = "config.json"
_SHOWN = 5
_Result = TypeVar("_Result")
_ACCEPTED = (
  "a workdir of `clip-jax train` (a directory with config.json and "
  f"checkpoints/), {hub.PREFIX}ORG/NAME, or a checkpoint in one of the formats "
  + ", ".join(name for name in FORMATS if name != "workdir")
)


def find_format(name: str) -> Format:
  """Returns a format by its name.

  Raises:
    UserError: there is no such format.
  """
  errors.check_known("format", name, FORMATS)
  return FORMATS[name]


def recognise(path: pathlib.Path, options: Options | None = None) -> str:
  """Returns the name of the format of `path`.

  Args:
    path: a directory, or a file of weights.
    options: options for a file of weights.

  Raises:
    UserError: `path` is in no known format.
    AmbiguousError: a file holds several models.
  """
  if path.is_dir():
    return _recognise_directory(path)
  if not weights_file.is_known(path):
    raise errors.UserError(
      f"Model {str(path)!r} is a file in no known format, judged by its name "
      f"and its first bytes; give {_ACCEPTED}. Files of weights end in "
      f"{', '.join(weights_file.SUFFIXES)}.{_above(path)}"
    )
  return _recognise_file(path, options or Options())


def _recognise_directory(path: pathlib.Path) -> str:
  adapters.refuse(path)
  for name, known in FORMATS.items():
    if known.recognise(path):
      return name
  found = sorted(entry.name for entry in path.iterdir())
  shown = report_lib.shown(found, _SHOWN)
  if (path / _DESCRIPTION).exists():
    config_file.read(path / _DESCRIPTION)  # Raises where it cannot be read.
  hint = models_below.hint(path, _is_model) or _above(path)
  raise errors.UserError(
    f"Model {str(path)!r} is in no known format (found: "
    f"{shown or 'nothing'}); give {_ACCEPTED}.{hint}"
  )


def _is_model(path: pathlib.Path) -> bool:
  try:
    return any(known.recognise(path) for known in FORMATS.values())
  except errors.UserError:  # It has several configs.
    return False


def _above(path: pathlib.Path) -> str:
  """Returns a hint where `path` is a part of a model's directory."""
  for parent in path.absolute().parents[:3]:
    if _is_model(parent):
      return f" It lies in the model {str(parent)!r}: give that."
  return ""


def _recognise_file(path: pathlib.Path, options: Options) -> str:
  """Returns the format whose tensor names a file has."""
  tensors = weights_file.read(path, options, report_lib.Report("")).tensors
  for name, known in FORMATS.items():
    if known.recognise_names(tensors):
      # OpenAI's names say less than a config, which open_clip's models have.
      return "open-clip" if name == "openai" and options.config else name
  shown = ", ".join(list(tensors)[:_SHOWN]) or "nothing"
  hint = ""
  if (path.parent / _DESCRIPTION).exists():
    hint = f" {path.parent} has a config: give that directory."
  raise errors.UserError(
    f"{path} holds no model under names that are known (OpenAI's, OpenCLIP's, "
    f"HuggingFace's, timm's, BERT's or big_vision's); it has {shown}, … .{hint}"
  )


def is_remote(address: str) -> bool:
  """Whether a model is on the Hub or in a bucket."""
  return hub.is_address(address) or buckets.is_address(address)


def find(address: str) -> pathlib.Path:
  """Returns the path of a model; of one on the Hub or in a bucket, of a copy.

  A file of weights without a config is a model by itself, also where it lies in
  a repository of the Hub.

  Args:
    address: of the model.

  Raises:
    UserError: there is no such model, or it cannot be downloaded.
  """
  return read(address, lambda path: path)


def read(
  address: str,
  act: Callable[[pathlib.Path], _Result],
  *,
  step: int | None = None,
) -> _Result:
  """Returns what `act` makes of the path that `find` returns.

  Args:
    address: of the model.
    act: called again, with an older checkpoint in the copy of a workdir, where
      it raises `NoGoodCheckpointError`.
    step: the checkpoint of a workdir that is to be read; None for the newest.

  Raises:
    UserError: as `find` and `act` do.
  """
  if buckets.is_address(address):
    return bucket_models.read(address, act, step=step)
  return act(_find_file(address))


def _find_file(address: str) -> pathlib.Path:
  if not hub.is_address(address):
    if not address:
      raise errors.UserError(f"MODEL is empty; give {_ACCEPTED}.")
    errors.check_model("MODEL", address)
    path = pathlib.Path(os.path.expanduser(address))
    if not os.path.exists(path):  # Path.exists raises on names that are long.
      raise missing_model.error(path, _ACCEPTED)
    return path
  path = hub.download(address)
  weights = [file for file in path.iterdir() if weights_file.is_one(file)]
  alone = len(weights) == 1 and not any(path.glob("*.json"))
  return weights[0] if alone else path


def open_model(
  source: str | os.PathLike,
  *,
  source_format: str | None = None,
  options: Options | None = None,
) -> Portable:
  """Returns the model at `source`; its arrays are read when they are used.

  Args:
    source: a file or a directory in any of `FORMATS`.
    source_format: one of `FORMATS`; None recognises it.
    options: what the source does not say itself.

  Raises:
    UserError: the model cannot be read exactly.
    AmbiguousError: it has several possible meanings, and no option chooses one.
  """
  options = options or Options()
  address = os.fspath(source)

  def read_it(path: pathlib.Path) -> tuple[pathlib.Path, Portable]:
    name = recognise(path, options) if source_format is None else source_format
    return path, _read_by(find_format(name), path, options)

  path, model = read(address, read_it)
  if hub.is_address(address):
    snapshot = path.parent if path.is_file() else path
    model = model.changed("address", hub.pinned(address, snapshot))
  elif buckets.is_address(address):
    model = model.changed("address", address)
  if options.interpolate is not None:
    first = open_first(path, options.interpolate_with)
    model = interpolation.interpolate(model, first, options.interpolate)
  if options.image_size is not None:
    model = positions.resize(model, options.image_size, options.resize_method)
  if options.context_length is not None:
    model = context.resize(model, options.context_length)
  _warn_of_unused(options, model)
  return model


def _read_by(known: Format, path: pathlib.Path, options: Options) -> Portable:
  try:
    return known.read(path, options)
  except errors.AmbiguousError as error:
    if known.tower is None:
      raise
    # Before anybody converts it for a purpose that needs the other one.
    alone = f"It is a model of {known.name}, which has the {known.tower} tower"
    ambiguous = errors.AmbiguousError(
      f"{error.problem} {alone} alone.", flags=error.flags
    )
    ambiguous.tower = known.tower
    raise ambiguous from None


def open_first(path: str | os.PathLike, other: str | None = None) -> Portable:
  """Returns the model that a fine-tuning run started from.

  Args:
    path: a workdir of `clip-jax train`; any model if `other` is given.
    other: the model, if it has moved or if `path` does not say it.

  Raises:
    UserError: it is not known, does not exist, or has changed since.
  """
  if other is not None:
    return open_model(other)
  where = os.fspath(path)
  if buckets.is_address(where):
    return read(where, _open_first_of)
  return _open_first_of(path)


def _open_first_of(path: str | os.PathLike) -> Portable:
  address = interpolation.first_address(path)
  try:
    first = open_model(address)
  except errors.UserError as error:
    raise errors.UserError(
      f"Cannot open the model that {path} was fine-tuned from: {error} Give "
      "its path now by --with MODEL."
    ) from None
  interpolation.check_unchanged(first, path)
  return first


# The fields that a flag sets, by parts of their names.
_SETTLES = {
  "activation": ("activation",),
  "config": ("config",),
  "heads": (".heads",),
  "pooling": ("text.pooling",),
  "tokenizer": ("tokenizer",),
  "preprocess": ("image_mean", "image_std", "preprocess", "resize", "crop"),
}


def _warn_of_unused(options: Options, model: Portable) -> None:
  """Warns of flags without effect, since the source says the same itself."""
  flagged = [
    field
    for field, entry in model.report.inferred.items()
    if entry["source"] == "flag"
  ]
  unused = [
    f"--{name}"
    for name, ends in _SETTLES.items()
    if getattr(options, name) is not None
    and not any(end in field for field in flagged for end in ends)
  ]
  taken = [layer.strip(".") for layer in model.report.stripped]
  if options.weights is not None and options.weights not in taken:
    unused.append("--weights")
  resized = model.report.facts.get("resized", {})
  if options.old_grid and list(options.old_grid) != resized.get("old_grid"):
    unused.append("--old-grid")
  if unused:
    model.report.warnings.append(
      f"{' and '.join(unused)} changed nothing: the source says it by itself."
    )
