"""Our own model directory: weights, description, tokenizer and provenance.

It holds all that a model needs, and loading it needs no network:

    clip_jax.json         the description, every field of it; where it came from
    weights.safetensors   our arrays by their paths, in their source's dtypes
    extras.safetensors    what the source held beside, for an exact way back
    …                     the tokenizer's files, under their own names
"""

import json
import pathlib
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.convert import containers, engine, portable
from clip_jax.convert import report as report_lib
from clip_jax.convert.containers import safetensors_file
from clip_jax.convert.tensor import Tensor

NAME = "clip-jax"
DESCRIPTION = "clip_jax.json"
WEIGHTS = "weights.safetensors"
EXTRAS = "extras.safetensors"
VERSION = 1
_FIELDS = ("version", "spec", "source", "weights", "layer_dtypes", "files")


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` is a model directory."""
  return (path / DESCRIPTION).is_file()


def refusals(spec: dict[str, Any]) -> list[str]:
  """Returns nothing: every model fits."""
  del spec
  return []


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Reads a model directory.

  Raises:
    UserError: a part is missing, damaged or of a newer version.
  """
  described = _read_description(path / DESCRIPTION)
  weights = path / WEIGHTS
  extras = path / EXTRAS
  if not options.headers_only:
    present = [weights, extras] if extras.exists() else [weights]
    _check_digests(path, portable.digests(present), described["weights"])
  spec = _check_complete(described["spec"], path / DESCRIPTION)
  tensors = safetensors_file.read(weights).tensors
  report = report_lib.Report(NAME)
  leaves = _leaves(tensors, spec, described["layer_dtypes"], report, path)
  return portable.Portable(
    spec=spec,
    leaves=leaves,
    report=report,
    extras=safetensors_file.read(extras).tensors if extras.exists() else {},
    files={name: _read_file(path, name) for name in described["files"]},
    source=described["source"],
  )


def _read_description(path: pathlib.Path) -> dict[str, Any]:
  try:
    described = json.loads(path.read_text("utf-8"))
  except (ValueError, RecursionError) as error:
    raise containers.DamagedError(
      f"{path} is no valid JSON ({error}); convert the model again."
    ) from None
  if not isinstance(described, dict):
    raise containers.DamagedError(f"{path} must hold a JSON object.")
  if (version := described.get("version")) != VERSION:
    raise errors.UserError(
      f"{path} is of version {version}; this clip_jax reads {VERSION}. "
      "Install the clip_jax that wrote it, or convert the model again."
    )
  missing = [field for field in _FIELDS if field not in described]
  if missing:
    raise containers.DamagedError(
      f"{path} lacks {', '.join(missing)}; convert the model again."
    )
  return described


def _check_digests(path, found, wanted) -> None:
  for name in sorted({*found, *wanted}):
    if found.get(name) != wanted.get(name):
      raise containers.DamagedError(
        f"{path / name} is not the file that was written: its sha256 differs "
        "from the one in clip_jax.json. Convert the model again."
      )


def _check_complete(spec: Any, path: pathlib.Path) -> dict[str, Any]:
  """Returns the description; a field that it leaves out is an error."""
  parts = engine.towers(spec) if isinstance(spec, dict) else ()
  if not parts:
    raise containers.DamagedError(f"{path} describes no tower.")
  resolved = plain(engine.resolve(spec))
  for part in (None, *parts):
    got, want = (x if part is None else x[part] for x in (spec, resolved))
    if missing := sorted(want.keys() - got.keys()):
      raise errors.UserError(
        f"{path}: the {part or 'model'}'s {', '.join(missing)} must be given; "
        "nothing about a converted model is a default."
      )
  return resolved


def plain(value: Any) -> Any:
  """Returns `value` as JSON gives it back: lists for tuples."""
  return json.loads(json.dumps(value))


def _leaves(tensors, spec, layer_dtypes, report, path):
  shapes = engine.leaf_shapes(spec)
  report.tensors = len(tensors)
  report.mapped = len(shapes.keys() & tensors.keys())
  report.missing = sorted(shapes.keys() - tensors.keys())
  report.unexpected = sorted(tensors.keys() - shapes.keys())
  report.shape_mismatch = [
    {"key": key, "got": list(tensors[key].shape), "want": list(shape)}
    for key, shape in shapes.items()
    if key in tensors and tensors[key].shape != shape
  ]
  if not report.exact:
    raise report_lib.MismatchError(report, name=str(path))
  return {
    key: engine.Leaf.from_tensor(
      tensors[key],
      layer_dtypes=tuple(map(np.dtype, layer_dtypes[key]))
      if key in layer_dtypes
      else None,
    )
    for key in shapes
  }


def _read_file(path: pathlib.Path, name: str) -> bytes:
  if not isinstance(name, str) or pathlib.PurePath(name).name != name:
    raise containers.DamagedError(
      f"{path / DESCRIPTION} names the file {name!r}, which is not in its "
      "directory."
    )
  return (path / name).read_bytes()


def write(
  model: portable.Portable, destination: pathlib.Path, options: portable.Options
) -> None:
  """Writes a model directory."""
  del options
  destination.mkdir(parents=True, exist_ok=True)
  taken = {DESCRIPTION, WEIGHTS, EXTRAS} & model.files.keys()
  assert not taken, taken
  written = [destination / WEIGHTS]
  safetensors_file.write(
    destination / WEIGHTS,
    {
      path: Tensor(leaf.shape, leaf.dtype, leaf.read)
      for path, leaf in model.leaves.items()
    },
  )
  if model.extras:
    written.append(destination / EXTRAS)
    safetensors_file.write(destination / EXTRAS, model.extras)
  for name, data in model.files.items():
    (destination / name).write_bytes(data)
  described = {
    "version": VERSION,
    "spec": model.spec,
    "source": model.source,
    "weights": portable.digests(written),
    "layer_dtypes": {
      path: [dtype.name for dtype in leaf.layer_dtypes]
      for path, leaf in model.leaves.items()
      if leaf.layer_dtypes
    },
    "files": sorted(model.files),
  }
  text = json.dumps(described, indent=2, allow_nan=False)
  (destination / DESCRIPTION).write_text(text + "\n", "utf-8")
