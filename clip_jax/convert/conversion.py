"""From any format to any other, by way of our own tree, and checked.

What is written is read back and compared bit by bit with what was read before
it takes its name: a conversion either is exact or leaves nothing behind.
"""

import dataclasses
import importlib
import json
import os
import pathlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.convert import (
  config_file,
  destinations,
  engine,
  hub,
  interpolation,
  portable,
)
from clip_jax.convert import report as report_lib
from clip_jax.convert.portable import Options, Portable

# Formats by name in the order in which a path is tried; a directory can look
# like several, and the first says more about the model.
FORMATS = {
  "clip-jax": "clip_jax.convert.model_dir",
  "workdir": "clip_jax.convert.workdir",
  "openai": "clip_jax.convert.openai",
  "open-clip": "clip_jax.convert.open_clip",
  "big-vision": "clip_jax.convert.big_vision",
  "borisdayma": "clip_jax.convert.borisdayma",
  "flax-clip": "clip_jax.convert.flax_clip",
  "sentence-transformers": "clip_jax.convert.sentence_transformers",
  "huggingface": "clip_jax.convert.huggingface",
  "bert": "clip_jax.convert.bert",
  "timm": "clip_jax.convert.timm",
}
_SHOWN = 5
_ACCEPTED = (
  "a workdir of `clip-jax train` (a directory with config.json and "
  "checkpoints/), or a checkpoint in one of the formats "
  + ", ".join(name for name in FORMATS if name != "workdir")
)

# Called with the number of arrays done and of all.
Progress = Callable[[int, int], None]


def format_module(name: str) -> ModuleType:
  """Returns the module of a format.

  Raises:
    UserError: there is no such format.
  """
  if name not in FORMATS:
    raise errors.unknown("format", name, FORMATS)
  return importlib.import_module(FORMATS[name])


def targets() -> list[str]:
  """Returns the names of the formats that can be written."""
  return [name for name in FORMATS if hasattr(format_module(name), "write")]


# A directory's own description: where it is damaged, that is the news.
_DESCRIPTIONS = ("config.json",)


def recognise(path: pathlib.Path) -> str:
  """Returns the name of the format that `path` is in.

  Raises:
    UserError: there is nothing, or nothing that any format knows.
  """
  if not path.exists():
    raise errors.UserError(
      f"Model {str(path)!r} does not exist; give {_ACCEPTED}."
    )
  for name in FORMATS:
    if format_module(name).recognise(path):
      return name
  if path.is_dir():
    found = sorted(entry.name for entry in path.iterdir())
    shown = ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
    for name in _DESCRIPTIONS:
      if (path / name).exists():
        config_file.read(path / name)  # Raises where it cannot be read.
    raise errors.UserError(
      f"Model {str(path)!r} is in no known format (found: "
      f"{shown or 'nothing'}); give {_ACCEPTED}."
    )
  raise errors.UserError(
    f"Model {str(path)!r} is a file in no known format, judged by its name; "
    f"give {_ACCEPTED}, or name the format with --from."
  )


def open_model(
  source: str | os.PathLike,
  *,
  source_format: str | None = None,
  options: Options | None = None,
) -> Portable:
  """Reads the model at `source`; its arrays are read when they are used.

  Args:
    source: a file or a directory in any of `FORMATS`.
    source_format: one of `FORMATS`; None finds it out.
    options: what the source does not say by itself.

  Raises:
    UserError: the model cannot be read exactly.
    AmbiguousError: it has several meanings, and no option says which.
  """
  options = options or Options()
  address = os.fspath(source)
  if hub.is_address(address):
    path = hub.download(address)
  else:
    path = pathlib.Path(address).expanduser()
  name = source_format or recognise(path)
  model = format_module(name).read(path, options)
  if hub.is_address(address):
    pinned = hub.pinned(address, path)
    model = dataclasses.replace(
      model, source={**model.source, "address": pinned}
    )
  if options.image_size is not None:
    from clip_jax.convert import positions

    model = positions.resize(model, options.image_size, options.resize_method)
  if options.interpolate is not None:
    first = open_first(path, options.interpolate_with)
    model = interpolation.interpolate(model, first, options.interpolate)
  _warn_of_unused(options, model)
  return model


def open_first(path: str | os.PathLike, other: str | None = None) -> Portable:
  """Returns the model that a fine-tuning began with.

  Args:
    path: a workdir of `clip-jax train`; any model where `other` is given.
    other: the model, where it is not where it was, or `path` does not say it.

  Raises:
    UserError: it is not known, gone, or not what it was.
  """
  if other is not None:
    return open_model(other)
  address = interpolation.first_address(path)
  try:
    first = open_model(address)
  except errors.UserError as error:
    raise errors.UserError(
      f"Cannot open the model that {path} was fine-tuned from: {error} Say "
      "where it lies now with --with MODEL."
    ) from None
  interpolation.check_unchanged(first, path)
  return first


# What a flag settles, by the ends of the fields' names.
_SETTLES = {
  "heads": (".heads",),
  "pooling": ("text.pooling",),
  "tokenizer": ("tokenizer",),
  "preprocess": ("image_mean", "image_std", "preprocess", "resize", "crop"),
}


def _warn_of_unused(options: Options, model: Portable) -> None:
  """Says which flags changed nothing: the source speaks for itself."""
  told = [
    field
    for field, entry in model.report.inferred.items()
    if entry["source"] == "flag"
  ]
  unused = [
    f"--{name}"
    for name, ends in _SETTLES.items()
    if getattr(options, name) is not None
    and not any(end in field for field in told for end in ends)
  ]
  resized = model.report.facts.get("resized", {})
  if options.old_grid and list(options.old_grid) != resized.get("old_grid"):
    unused.append("--old-grid")
  if unused:
    model.report.warnings.append(
      f"{' and '.join(unused)} changed nothing: the source says it by itself."
    )


def convert(
  source: str | os.PathLike,
  destination: str | os.PathLike,
  *,
  to: str,
  source_format: str | None = None,
  options: Options | None = None,
  overwrite: bool = False,
  progress: Progress | None = None,
) -> report_lib.Report:
  """Writes the model at `source` to `destination` in the format `to`.

  Args:
    source: a file or a directory in any of `FORMATS`.
    destination: a new file or directory.
    to: one of `targets()`.
    source_format: as in `open_model`.
    options: as in `open_model`; `headers_only` checks all that can be without
      the data, and writes nothing.
    overwrite: replace what is at `destination`, once the new is complete.
    progress: told how many arrays have been checked.

  Returns:
    The account of the conversion.

  Raises:
    UserError: `to` cannot hold the model, the source is damaged, or something
      is at `destination`.
  """
  options = options or Options()
  target = format_module(to)
  if not hasattr(target, "write"):
    raise errors.unknown("target format", to, targets())
  # "." and ".." have no name that a directory could take.
  destination = pathlib.Path(destination).expanduser().resolve()
  _check_free(os.fspath(source), destination, overwrite)
  model = open_model(source, source_format=source_format, options=options)
  if to != "clip-jax" and len(parts := engine.towers(model.spec)) == 1:
    raise errors.UserError(
      f"{source} holds the {parts[0]} tower alone: it converts to clip-jax "
      "only, and serves as one half of a model in a config (init.image, "
      "init.text)."
    )
  model = _without_useless_bias(model, target, options)
  if not hasattr(target, "gives_back") or not target.gives_back(model):
    portable.refuse(to, target.refusals(model.spec))
  report = dataclasses.replace(model.report, target_format=to)
  if options.headers_only:
    return report
  with destinations.new(destination, overwrite) as partial:
    target.write(model, partial, options)
    _check_written(model, partial, target, options, report, progress)
    files = sorted(partial.rglob("*")) if partial.is_dir() else [partial]
    digests = portable.digests(path for path in files if path.is_file())
    if not partial.is_dir():
      digests = {destination.name: digests[partial.name]}
  report.facts["sha256_source"] = model.source.get("files", {})
  report.facts["sha256_target"] = digests
  return report


def _without_useless_bias(model, target, options) -> Portable:
  """Drops a logit bias that the target has no place for, where that is right.

  A bias of 0 adds nothing; any other only goes when a user says so, for
  probabilities of single pairs change (similarities do not).
  """
  if model.spec.get("init_logit_bias") is None:
    return model
  bare = {**model.spec, "init_logit_bias": None}
  if not target.refusals(model.spec) or target.refusals(bare):
    return model
  path = "params/logit_bias"
  bias = float(model.leaves[path].read())
  if bias != 0 and not options.drop_logit_bias:
    raise errors.UserError(
      f"The format {target.NAME!r} has no place for the logit bias, {bias:g}. "
      "Give --drop-logit-bias to leave it out: rankings and softmax "
      "probabilities stay, the sigmoid probability of a pair does not."
    )
  model.report.warnings.append(f"The logit bias, {bias:g}, is left out.")
  leaves = {k: v for k, v in model.leaves.items() if k != path}
  return dataclasses.replace(model, spec=bare, leaves=leaves)


def _check_free(
  source: str, destination: pathlib.Path, overwrite: bool
) -> None:
  """Raises UserError unless the conversion may write to `destination`."""
  if not hub.is_address(source):
    path = pathlib.Path(source).expanduser().resolve()
    if path == destination or destination in path.parents:
      raise errors.UserError(
        f"{destination} is or holds the source, {source}; give another "
        "destination."
      )
  if not destination.exists():
    return
  if destination.is_dir() and not any(destination.iterdir()):
    return
  if not overwrite:
    raise errors.UserError(
      f"{destination} exists; give another destination, or --overwrite to "
      "replace it."
    )
  try:
    found = recognise(destination)
  except errors.UserError:
    raise errors.UserError(
      f"{destination} is no model, so --overwrite does not replace it; remove "
      "it yourself, or give another destination."
    ) from None
  if found == "workdir":
    raise errors.UserError(
      f"{destination} is the workdir of a training, which --overwrite does not "
      "replace: its checkpoints would be lost. Give another destination."
    )


def _check_written(model, partial, target, options, report, progress) -> None:
  """Reads the new checkpoint and compares every number with the source's."""
  # A format that does not say all of a model is told the rest again.
  told = getattr(target, "told", lambda _: Options())(model.spec)
  again = target.read(partial, told)
  _check_described(model.spec, again.spec, target.NAME)
  written = again.leaves
  assert written.keys() == model.leaves.keys()
  for done, (path, leaf) in enumerate(model.leaves.items()):
    if progress:
      progress(done, len(model.leaves))
    zeros = True
    layers = (None,)
    if "/blocks/" in path:
      layers = range(leaf.shape[0])
    for layer in layers:
      want, got = leaf.part(layer), written[path].part(layer)
      if not _same_bits(want, got):
        raise errors.UserError(
          f"{path} (layer {layer}) did not come back as it was written; the "
          "disk or the memory may be failing. Nothing was kept."
        )
      if portable.find_nonfinite(want):
        raise errors.UserError(
          f"The source holds NaN or infinity in what becomes {path}"
          f"{'' if layer is None else f', layer {layer}'}: it is damaged, or "
          "its training had failed. Nothing was written."
        )
      zeros = zeros and not want.any()
    if zeros and path.endswith(("/kernel", "/embedding")):
      report.warnings.append(f"{path} is all zeros.")
  if progress:
    progress(len(model.leaves), len(model.leaves))


# What a format may say less exactly than we do, or not at all; each writer
# refuses or warns of what it loses.
_ELSEWHERE = frozenset(
  (
    "scan",
    "unroll",
    "remat",
    "patch_dropout",
    "init_logit_scale",
    "max_logit_scale",
    "pooling",
    "eos_id",
    "class_position",
  )
)


def _check_described(wanted, found, target: str) -> None:
  """Raises UserError where a tower, read back, means something else."""
  for part in engine.towers(wanted):
    got = _plain_fields(found[part])
    for field, value in _plain_fields(wanted[part]).items():
      if field in _ELSEWHERE or got.get(field) == value:
        continue
      raise errors.UserError(
        f"{part}.{field} is {value!r} in the source and came back from the "
        f"format {target!r} as {got.get(field)!r}: the format cannot hold this "
        "model. Nothing was written."
      )


def _plain_fields(tower: dict[str, Any]) -> dict[str, Any]:
  """Returns a tower's fields as JSON gives them back, sizes worked out."""
  fields = json.loads(json.dumps(tower))
  if "mlp_dim" in fields and fields["mlp_dim"] is None:
    fields["mlp_dim"] = 4 * fields["width"]
  return fields


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
  if a.shape != b.shape:
    return False
  if a.dtype != b.dtype:  # Stacked with layers of a wider dtype.
    a, b = a.astype(np.float64), b.astype(np.float64)
  a, b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
  return np.array_equal(a, b)
