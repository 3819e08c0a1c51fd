"""HuggingFace's directories of models of two towers, and of a tower alone.

config.json says which of the families of `huggingface_config` it is. Weights
come as safetensors or PyTorch files, whole or in shards; they go out as
safetensors.
"""

import json
import pathlib
from collections.abc import Collection, Sized
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.convert import engine, portable, tokenizer_files, weights_file
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine.format import Format
from clip_jax.convert.formats import huggingface_config as config_lib
from clip_jax.convert.formats import huggingface_images as images
from clip_jax.convert.formats import huggingface_siglip
from clip_jax.convert.formats import huggingface_tokenizer as tokenizer
from clip_jax.convert.formats import huggingface_weights as weights
from clip_jax.convert.formats.huggingface_family import (
  PREFIXES,
  HuggingFaceFamily,
)

NAME = "huggingface"
IGNORED = (r"(^|\.)position_ids$",)
# What follows a tower alone: a projection, or BERT's pooler, which the tower's
# features precede.
_AFTER_TOWER = (
  r"^(visual|text)_projection\.weight$",
  r"^(text_model\.)?head\.(weight|bias)$",
  r"^(text_model\.)?pooler\.dense\.(weight|bias)$",
)


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` is a directory of such a model, or of a relative of one."""
  kind = config_lib.model_type(path)
  return kind is not None and (
    kind in config_lib.MODEL_TYPES or "clip" in kind.lower()
  )


def knows(names: Collection[str]) -> bool:
  """Whether these are names of such a model."""
  return any(name.startswith(tuple(PREFIXES.values())) for name in names)


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Reads a directory, or a bare file of weights whose config is told.

  Raises:
    UserError: it is damaged, or holds a model that is not known.
    AmbiguousError: a bare file, and its config was not told.
  """
  report = report_lib.Report(NAME)
  if path.is_dir():
    config = read_config(path, options, report)
    file = weights.require(path)
  else:
    path, file = _config_directory(path, options, report), path
    config = read_config(path, options, report)
  tensors = weights_file.read(file, options, report).tensors
  spec = describe(path, config)
  check_depths(spec, tensors, f"{path}: {file.name}")
  dialect = _dialect(config, tensors)
  ignored = IGNORED + (_AFTER_TOWER if config.tower else ())
  model = portable.assemble(
    config.family.entries(spec, _variables(spec, dialect)),
    tensors,
    spec,
    report=report,
    name=str(path),
    options=options,
    configs=[path / config_lib.FILE],
    weights=weights.files(file),
    ignored=ignored,
    files=tokenizer_files.carry(path) if "text" in spec else {},
    dialect={**dialect, "weights": file.name},
  )
  after = [name for name in model.extras if "position_ids" not in name]
  if after:
    report.warnings.append(
      f"{', '.join(after)} come after the {config.tower} tower and are "
      "no part of it; they are kept aside."
    )
  return model


def _config_directory(file, options, report) -> pathlib.Path:
  """Returns the directory of a bare file's config."""
  if options.config is None:
    hint = ""
    if (file.parent / config_lib.FILE).is_file():
      hint = f" Its directory, {file.parent}, has one: give that."
    raise errors.AmbiguousError(
      f"{file} holds weights under HuggingFace's names without their "
      f"config.{hint}",
      flags=f"--config {config_lib.FILE}",
    )
  config = pathlib.Path(options.config).expanduser()
  directory = config if config.is_dir() else config.parent
  if not (directory / config_lib.FILE).is_file():
    raise errors.UserError(
      f"--config {options.config}: weights under HuggingFace's names take a "
      f"{config_lib.FILE}, with its tokenizer beside it."
    )
  report.infer("config", str(directory / config_lib.FILE), "flag")
  return directory


def read_config(
  path: pathlib.Path, options: portable.Options, report: report_lib.Report
) -> config_lib.Config:
  """Reads the config of a directory, with what a user says instead of it."""
  return config_lib.read(path, report, {"activation": options.activation})


def describe(path: pathlib.Path, config: config_lib.Config) -> dict[str, Any]:
  """Returns the whole description of a directory's model."""
  spec = config.family.describe(config.source)
  family, report = config.family, config.source.report
  if "image" in spec:
    spec |= images.describe(path, family.processor, spec["image"], report)
  if "text" in spec:
    files = tokenizer_files.carry(path)
    spec["tokenizer"] = family.tokenizer(files, spec["text"], report)
  return engine.resolve(spec)


def check_depths(spec: dict[str, Any], tensors: Sized, name: str) -> None:
  """Raises UserError before anything is as large as a config says.

  Args:
    spec: the description.
    tensors: of the file.
    name: what messages call the file.
  """
  for part in engine.towers(spec):
    depth = spec[part]["depth"]
    if depth > len(tensors):
      raise errors.UserError(
        f"{name} has {len(tensors)} tensors, and num_hidden_layers={depth} of "
        f"the {part} tower is more than that."
      )


def _dialect(config, tensors) -> dict[str, Any]:
  found = {}
  if config.family.name == "siglip2" and config.tower != "text":
    found["naflex"] = True
  if config.tower:
    # transformers 5 saves a tower without the prefix that 4 gave it.
    prefix = PREFIXES[config.tower]
    has_prefix = any(name.startswith(prefix) for name in tensors)
    found["prefix"] = prefix if has_prefix else ""
  return found


def _variables(spec, dialect) -> dict[str, Any]:
  """Returns the variables of a tower's names that is alone."""
  prefix = dialect.get("prefix")
  return {} if prefix is None else {engine.towers(spec)[0]: prefix}


def refusals(spec: dict[str, Any]) -> list[str]:
  """Returns what of a description no family here holds."""
  return _family(spec).refusals(spec) + images.refusals(spec)


def _family(spec: dict[str, Any]) -> HuggingFaceFamily:
  """Returns the family that holds a description, or lacks the least of it.

  To lack a kind of tower is more than to lack any number of its fields.
  """

  def lacks(family):
    fields = [problem.partition("=")[0] for problem in family.refusals(spec)]
    return sum(field.endswith(".kind") for field in fields), len(fields)

  return min(config_lib.FAMILIES.values(), key=lacks)


def write(
  model: portable.Portable, destination: pathlib.Path, options: portable.Options
) -> None:
  """Writes a directory for `from_pretrained`."""
  del options
  spec = model.spec
  portable.refuse(NAME, refusals(spec))
  dialect = model.dialect(NAME)
  naflex = dialect.get("naflex", False)
  family = huggingface_siglip.SIGLIP2 if naflex else _family(spec)
  tensors = engine.to_theirs(family.entries(spec), model.leaves)
  if model.source.get("format") == NAME:
    tensors |= _fitting(model.extras, spec)
  config = {**family.config(spec), "dtype": _dtype(tensors).name}
  warnings = model.report.warnings
  if (source := dialect.get("weights", "")).startswith(weights.TORCH):
    warnings.append(f"{source} becomes {weights.WEIGHTS}: the same tensors.")
  warnings += images.deviations(spec)
  destination.mkdir(parents=True, exist_ok=True)
  weights.write(destination, tensors)
  _write_json(destination / config_lib.FILE, config)
  _write_json(
    destination / images.FILE, images.settings(spec, family.processor)
  )
  files = tokenizer.files_for(spec, model.files, model.report)
  for name, data in files.items():
    (destination / name).write_bytes(data)


def _fitting(extras, spec) -> dict[str, Any]:
  """Returns the ignored tensors of the source that fit the model as it is.

  Positions' ids do not after a resize; transformers makes its own.
  """
  positions = {"text": spec["text"]["context_length"]}
  image = spec["image"]
  grid = image["image_size"] // image["patch_size"]
  positions["vision"] = grid * grid + int(image["class_token"])
  return {
    name: tensor
    for name, tensor in extras.items()
    if "position_ids" not in name
    or tensor.shape[-1:] == (positions.get(name.split("_")[0]),)
  }


def _dtype(tensors) -> np.dtype:
  """Returns the dtype to load in: the one that holds every parameter."""
  kinds = {
    tensor.dtype
    for name, tensor in tensors.items()
    if not name.endswith("position_ids")
  }
  return kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", "utf-8")


FORMAT = Format(
  NAME,
  read,
  recognise=recognise,
  knows=knows,
  write=write,
  refusals=refusals,
)
