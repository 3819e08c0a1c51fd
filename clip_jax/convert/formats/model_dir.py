"""Reads and writes our own model directory, the format "clip-jax".

It holds all that a model needs, so that loading needs no network:

    clip_jax.json         the complete description, how the model is run, and
                          where it came from
    weights.safetensors   our arrays by path, in the source's dtypes
    extras.safetensors    other tensors of the source, to write them back
    …                     the tokenizer's files, under their own names
"""

import dataclasses
import pathlib
import types
import typing
from typing import Any

import numpy as np

from clip_jax import errors, json_text
from clip_jax.convert import config_file, engine, portable
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import family
from clip_jax.convert.engine.format import Format
from clip_jax.convert.files import datafile, safetensors_file
from clip_jax.convert.tensor import Tensor
from clip_jax.models import paths, variants
from clip_jax.tokenizer import tokenizer_file as tokenizer_files

NAME = "clip-jax"
DESCRIPTION = "clip_jax.json"
WEIGHTS = "weights.safetensors"
EXTRAS = "extras.safetensors"
VERSION = 2
# In older versions the description also said how the towers are run.
_READ = (1, 2)
_FIELDS = {
  "version": int,
  **dict.fromkeys(("spec", "source", "layer_dtypes", "files"), dict),
}
# The parts of "source" that writers read, if they are there.
_SOURCE = {
  "format": str,
  **dict.fromkeys(("dialect", "files", "resized"), dict),
}
# The types of JSON that do for those of a tower's fields; a tuple is a list.
_JSON = {bool: int, int: int, float: (int, float), str: str}
# A field that older descriptions lack, and that follows from the others.
_DERIVED = {"probabilities"}
# Fields that older descriptions lack, with their value, by the tower's kind.
_ADDED = {"bert": {"normalize": False}}
# Errors that an invalid description may raise while its model is made.
_MODEL_ERRORS = (
  ArithmeticError,
  AttributeError,
  KeyError,
  TypeError,
  ValueError,
)


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` is a model directory."""
  return (path / DESCRIPTION).is_file()


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Returns the model of a model directory.

  Raises:
    UserError: a part is missing, damaged or of a newer version.
  """
  described = _read_description(path / DESCRIPTION)
  weights, extras = path / WEIGHTS, path / EXTRAS
  digests = described["files"]
  names = sorted(digests.keys() - {WEIGHTS, EXTRAS})
  files = {name: _read_file(path, name) for name in names}
  if WEIGHTS not in digests or not weights.is_file():
    raise _damaged(f"{path} has no {WEIGHTS}")
  if not options.headers_only:
    _check_digests(path, digests)
  tensors = safetensors_file.read(weights).tensors
  spec, execution = _check_complete(
    described, path / DESCRIPTION, count=len(tensors)
  )
  report = report_lib.Report(NAME)
  leaves = _leaves(tensors, spec, described["layer_dtypes"], report, path)
  return portable.Portable(
    spec=spec,
    leaves=leaves,
    report=report,
    extras=safetensors_file.read(extras).tensors if EXTRAS in digests else {},
    files=files,
    source=described["source"],
    execution=execution,
  )


def _damaged(what: str) -> errors.DamagedError:
  return errors.DamagedError(f"{what}; convert the model again.")


def _read_description(path: pathlib.Path) -> dict[str, Any]:
  with datafile.checked(path, "a JSON file"):
    described = json_text.read(path)
  if (version := described.get("version")) not in _READ:
    raise errors.UserError(
      f"{path} is of version {version}; this clip_jax reads 1 to {VERSION}. "
      "Install the clip_jax that wrote it, or convert the model again."
    )
  _check_types(described, _FIELDS, str(path))
  given = {x: kind for x, kind in _SOURCE.items() if x in described["source"]}
  _check_types(described["source"], given, f"{path}, source")
  return described


def _check_types(values: dict[str, Any], kinds: dict, where: str) -> None:
  for field, kind in kinds.items():
    if not isinstance(values.get(field), kind):
      raise _damaged(
        f"{where}: {field} must be of the type {kind.__name__}, got "
        f"{values.get(field)!r:.60}"
      )


def _check_digests(path: pathlib.Path, digests: dict[str, Any]) -> None:
  for name, digest in digests.items():
    if not (path / name).is_file():
      raise _damaged(f"{path} lacks {name}")
    if portable.digests([path / name])[name] != digest:
      raise _damaged(
        f"{path / name} is not the file that was written: its sha256 differs "
        f"from the one in {DESCRIPTION}"
      )


def _check_complete(
  described: dict[str, Any], path: pathlib.Path, *, count: int
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns description and execution; raises if a field is missing.

  Args:
    described: the content of the file.
    path: path of the file.
    count: number of tensors; each block of a ResNet has some.
  """
  spec = described["spec"]
  parts = engine.towers(spec)
  if not parts:
    raise _damaged(f"{path} describes no tower")
  try:
    resolved = family.as_json(engine.resolve(spec))
    if (blocks := sum(resolved.get("image", {}).get("depths", ()))) > count:
      raise _damaged(
        f"{path} describes {blocks} blocks of a ResNet, and {WEIGHTS} has "
        f"{count} tensors"
      )
    engine.leaf_shapes(resolved)
    module = variants.create_model(
      engine.completed(spec), execution=described.get("execution")
    )
  except errors.UserError:
    raise
  except _MODEL_ERRORS as error:
    raise _damaged(
      f"{path}: the description makes no model ({error!r:.200})"
    ) from None
  for part in parts:
    for field, value in resolved[part].items():
      if not _is_of_field(value, part, resolved[part]["kind"], field):
        raise _damaged(f"{path}: {part}.{field} cannot be {value!r:.60}")
    known = _ADDED.get(spec[part]["kind"], {})
    spec = {**spec, part: {**known, **spec[part]}}
  for part in (None, *parts):
    got, want = (x if part is None else x[part] for x in (spec, resolved))
    if missing := sorted(want.keys() - got.keys() - _DERIVED):
      raise errors.UserError(
        f"{path}: the {part or 'model'}'s {', '.join(missing)} must be given; "
        "nothing about a converted model is a default. Convert it again."
      )
  return resolved, variants.execution(module)


def _is_of_field(value: Any, part: str, kind: str, field: str) -> bool:
  """Whether a value from JSON has the type of a tower's field."""
  fields = dataclasses.fields(variants.TOWERS[part][kind])
  hint = {x.name: x.type for x in fields}.get(field, str)  # The kind is text.
  union = isinstance(hint, types.UnionType)
  hints = typing.get_args(hint) if union else (hint,)
  return any(
    value is None if x is type(None) else isinstance(value, _JSON.get(x, list))
    for x in hints
  )


def _leaves(tensors, spec, layer_dtypes, report, path):
  entries = [
    engine.Entry(place, (engine.Slot(place),))
    for place in engine.leaf_shapes(spec)
  ]
  leaves, _ = engine.to_ours(
    entries, tensors, spec, report=report, name=str(path)
  )
  for place, kinds in layer_dtypes.items():
    if not _are_dtypes(kinds, place, leaves.get(place)):
      raise _damaged(
        f"{path / DESCRIPTION}: layer_dtypes has {kinds!r:.100} for "
        f"{place!r:.100}, which are not the dtypes of its layers"
      )
    layers = tuple(map(np.dtype, kinds))
    leaves[place] = dataclasses.replace(leaves[place], layer_dtypes=layers)
  return leaves


def _are_dtypes(kinds: Any, place: str, leaf: Tensor | None) -> bool:
  """Whether `kinds` can be the dtypes of a leaf's layers: it holds them all."""
  return (
    leaf is not None
    and paths.is_stacked(place)
    and isinstance(kinds, list)
    and len(kinds) == leaf.shape[0]
    and all(kind in engine.FLOATS for kind in kinds)
    and engine.common_dtype(map(np.dtype, kinds)) == leaf.dtype
  )


def _read_file(path: pathlib.Path, name: str) -> bytes:
  if name in ("", ".", "..") or pathlib.PurePath(name).name != name:
    raise _damaged(
      f"{path / DESCRIPTION} names the file {name!r:.100}, which is not in its "
      "directory"
    )
  file = tokenizer_files.find(name, directory=path)
  if file is None:
    raise _damaged(f"{path} lacks {name}")
  return file.read()


def write(model: portable.Portable, destination: pathlib.Path) -> None:
  """Writes a model directory."""
  destination.mkdir(parents=True, exist_ok=True)
  taken = {DESCRIPTION, WEIGHTS, EXTRAS} & model.files.keys()
  assert not taken, taken
  written = [WEIGHTS, *model.files, *([EXTRAS] if model.extras else [])]
  safetensors_file.write(destination / WEIGHTS, model.leaves)
  if model.extras:
    safetensors_file.write(destination / EXTRAS, model.extras)
  for name, data in model.files.items():
    (destination / name).write_bytes(data)
  described = {
    "version": VERSION,
    "spec": model.spec,
    "execution": model.execution,
    "source": model.source,
    "layer_dtypes": {
      path: [dtype.name for dtype in leaf.layer_dtypes]
      for path, leaf in model.leaves.items()
      if leaf.layer_dtypes
    },
    "files": portable.digests(destination / name for name in written),
  }
  config_file.write(destination / DESCRIPTION, described)


FORMAT = Format(NAME, read, recognise=recognise, write=write)
