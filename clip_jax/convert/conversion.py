"""Converts checkpoints between formats, by way of our own parameter tree.

The new checkpoint is read back and compared bit by bit with the source before
it gets its final name: a conversion is exact, or it leaves no files.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable

from clip_jax import errors
from clip_jax.convert import (
  config_file,
  context,
  destinations,
  engine,
  hub,
  interpolation,
  portable,
  positions,
  sameness,
  unknown,
  weights_file,
)
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine.format import Format
from clip_jax.convert.files import wrappers
from clip_jax.convert.formats.table import FORMATS
from clip_jax.convert.portable import Options, Portable
from clip_jax.models import paths

_SHOWN = 5
_ACCEPTED = (
  "a workdir of `clip-jax train` (a directory with config.json and "
  f"checkpoints/), {hub.PREFIX}ORG/NAME, or a checkpoint in one of the formats "
  + ", ".join(name for name in FORMATS if name != "workdir")
)

# Called with the number of arrays done and their total.
Progress = Callable[[int, int], None]


def find_format(name: str) -> Format:
  """Returns a format by its name.

  Raises:
    UserError: there is no such format.
  """
  errors.check_known("format", name, FORMATS)
  return FORMATS[name]


def targets() -> list[str]:
  """Returns the names of the formats that can be written."""
  return [name for name, known in FORMATS.items() if known.write]


# Files that describe a directory. If one is damaged, the error says so instead
# of "in no known format".
_DESCRIPTION = "config.json"
_ADAPTER = "adapter_config.json"


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
  if not weights_file.is_one(path):
    raise errors.UserError(
      f"Model {str(path)!r} is a file in no known format, judged by its name; "
      f"give {_ACCEPTED}. Files of weights end in "
      f"{', '.join(weights_file.SUFFIXES)}."
    )
  return _recognise_file(path, options or Options())


def _recognise_directory(path: pathlib.Path) -> str:
  if (path / _ADAPTER).is_file():
    base = config_file.peek(path / _ADAPTER).get("base_model_name_or_path")
    of = f" of {base!r:.100}" if isinstance(base, str) else ""
    raise errors.UserError(
      f"Model {str(path)!r} holds LoRA adapters{of} ({_ADAPTER}), not a whole "
      f"model. {wrappers.MERGE}"
    )
  for name, known in FORMATS.items():
    if known.recognise(path):
      return name
  found = sorted(entry.name for entry in path.iterdir())
  shown = ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
  if (path / _DESCRIPTION).exists():
    config_file.read(path / _DESCRIPTION)  # Raises where it cannot be read.
  files = [name for name in found if weights_file.is_one(path / name)]
  hint = f" To read {files[0]}, give its own path." if files else ""
  raise errors.UserError(
    f"Model {str(path)!r} is in no known format (found: "
    f"{shown or 'nothing'}); give {_ACCEPTED}.{hint}"
  )


def _recognise_file(path: pathlib.Path, options: Options) -> str:
  """Returns the format whose tensor names a file has."""
  tensors = weights_file.read(path, options, report_lib.Report("")).tensors
  for name, known in FORMATS.items():
    if known.knows(tensors):
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


def find(address: str) -> pathlib.Path:
  """Returns the path of a model, downloading it if it is on the Hub.

  A file of weights without a config is a model by itself, also where it lies in
  a repository of the Hub.

  Raises:
    UserError: there is no such model, or it cannot be downloaded.
  """
  if not hub.is_address(address):
    if not address:
      raise errors.UserError(f"MODEL is empty; give {_ACCEPTED}.")
    hub.check_spelling(address)
    errors.check_local("MODEL", address)
    path = pathlib.Path(os.path.expanduser(address))
    if not os.path.exists(path):  # Path.exists raises on names that are long.
      raise errors.UserError(unknown.missing(path, _ACCEPTED))
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
  path = find(address)
  name = recognise(path, options) if source_format is None else source_format
  model = find_format(name).read(path, options)
  if hub.is_address(address):
    snapshot = path.parent if path.is_file() else path
    pinned = hub.pinned(address, snapshot)
    model = dataclasses.replace(
      model, source={**model.source, "address": pinned}
    )
  if options.interpolate is not None:
    first = open_first(path, options.interpolate_with)
    model = interpolation.interpolate(model, first, options.interpolate)
  if options.image_size is not None:
    model = positions.resize(model, options.image_size, options.resize_method)
  if options.context_length is not None:
    model = context.resize(model, options.context_length)
  _warn_of_unused(options, model)
  return model


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
    options: as in `open_model`; with `headers_only`, everything that does not
      need the data is checked, and nothing is written.
    overwrite: whether to replace `destination`, once the new one is complete.
    progress: called with the number of arrays checked and their total.

  Returns:
    The report of the conversion.

  Raises:
    UserError: `to` cannot hold the model, the source is damaged, or
      `destination` exists.
  """
  options = options or Options()
  target = find_format(to)
  if not target.write:
    raise errors.unknown("target format", to, targets())
  errors.check_local("DEST", destination)
  # "." and ".." have no name that a directory could take.
  destination = pathlib.Path(os.path.expanduser(destination)).resolve()
  _check_free(os.fspath(source), destination, overwrite)
  model = open_model(source, source_format=source_format, options=options)
  if to != "clip-jax" and len(parts := engine.towers(model.spec)) == 1:
    raise errors.UserError(
      f"{source} holds the {parts[0]} tower alone: it converts to clip-jax "
      "only, and serves as one half of a model in a config (init.image, "
      "init.text)."
    )
  model = _without_useless_bias(model, target, options)
  if options.drop_logit_bias and model.spec.get("init_logit_bias") is not None:
    model.report.warnings.append(
      f"--drop-logit-bias changed nothing: the format {to!r} has a place for "
      "the logit bias."
    )
  if not target.gives_back(model):
    portable.refuse(to, target.refusals(model.spec))
  report = dataclasses.replace(model.report, target_format=to)
  if options.headers_only:
    return report
  with destinations.new(destination, overwrite) as partial:
    target.write(model, partial, options)
    _check_written(model, partial, target, report, progress)
    files = sorted(partial.rglob("*")) if partial.is_dir() else [partial]
    digests = portable.digests(path for path in files if path.is_file())
    if not partial.is_dir():
      digests = {destination.name: digests[partial.name]}
  report.facts["sha256_source"] = model.source.get("files", {})
  report.facts["sha256_target"] = digests
  return report


def _without_useless_bias(model, target, options) -> Portable:
  """Returns the model without its logit bias, if the target cannot hold it.

  A bias of 0 has no effect; any other is dropped only if the user asks for it,
  since the sigmoid probabilities of pairs change (similarities do not).
  """
  if model.spec.get("init_logit_bias") is None:
    return model
  bare = {**model.spec, "init_logit_bias": None, "probabilities": "softmax"}
  if not target.refusals(model.spec) or target.refusals(bare):
    return model
  path = "params/logit_bias"
  bias = float(model.leaves[path].read())
  if bias != 0 and not options.drop_logit_bias:
    raise errors.UserError(
      f"The format {target.name!r} has no place for the logit bias, {bias:g}. "
      "Give --drop-logit-bias to leave it out: rankings and softmax "
      "probabilities stay the same, sigmoid probabilities of pairs do not."
    )
  model.report.warnings.append(f"The logit bias, {bias:g}, is left out.")
  leaves = {k: v for k, v in model.leaves.items() if k != path}
  return dataclasses.replace(model, spec=bare, leaves=leaves)


def _check_free(
  source: str, destination: pathlib.Path, overwrite: bool
) -> None:
  """Raises UserError unless the conversion may write to `destination`."""
  if not hub.is_address(source):
    path = pathlib.Path(os.path.expanduser(source)).resolve()
    if path == destination or destination in path.parents:
      raise errors.UserError(
        f"{destination} is or holds the source, {source}; give another "
        "destination."
      )
  is_empty = destination.is_dir() and not any(destination.iterdir())
  if is_empty or not destination.exists():
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


def _check_written(model, partial, target, report, progress) -> None:
  """Reads the new checkpoint and compares every number with the source's."""
  # If the format cannot say everything of a model, options say the rest again.
  again = target.read(partial, target.told(model.spec))
  sameness.check_described(model.spec, again.spec, target.name)
  kinds = [spec.get("probabilities") for spec in (model.spec, again.spec)]
  if kinds[0] != kinds[1]:
    report.warnings.append(
      f"The model was trained for {kinds[0]} probabilities; programs that read "
      f"the format {target.name!r} take it for a model with {kinds[1]} ones."
    )
  written = again.leaves
  assert written.keys() == model.leaves.keys()
  for done, (path, leaf) in enumerate(model.leaves.items()):
    if progress:
      progress(done, len(model.leaves))
    zeros = True
    stacked = paths.is_stacked(path)
    for layer in range(leaf.shape[0]) if stacked else (None,):
      want, got = leaf.part(layer), written[path].part(layer)
      if not sameness.same_bits(want, got):
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
