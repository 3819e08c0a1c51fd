"""HuggingFace's directories of models of two towers, and of a tower alone.

config.json says which of `FAMILIES` it is. Weights come as safetensors or
PyTorch files, whole or in shards; they go out as safetensors.
"""

import dataclasses
import json
import pathlib
from collections.abc import Collection, Sized
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax.convert import (
  config_file,
  engine,
  portable,
  tokenizer_files,
  weights_file,
)
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import fields
from clip_jax.convert.engine.format import Format
from clip_jax.convert.formats import (
  huggingface_chinese_clip,
  huggingface_clip,
  huggingface_siglip,
)
from clip_jax.convert.formats import huggingface_images as images
from clip_jax.convert.formats import huggingface_tokenizer as tokenizer
from clip_jax.convert.formats import huggingface_weights as weights
from clip_jax.convert.formats.huggingface_family import (
  PREFIXES,
  HuggingFaceFamily,
)

NAME = "huggingface"
CONFIG = "config.json"
FAMILIES: dict[str, HuggingFaceFamily] = {
  family.name: family
  for family in (
    huggingface_clip.CLIP,
    huggingface_clip.METACLIP_2,
    huggingface_chinese_clip.CHINESE_CLIP,
    huggingface_siglip.SIGLIP,
    huggingface_siglip.SIGLIP2,
  )
}
_SECTIONS = {"image": "vision_config", "text": "text_config"}

# `model_type` -> the family, and the tower if it is one alone.
MODEL_TYPES: dict[str, tuple[HuggingFaceFamily, str | None]] = {
  f"{name}{suffix}": (family, tower)
  for name, family in FAMILIES.items()
  for suffix, tower in (
    ("", None),
    ("_text_model", "text"),
    ("_vision_model", "image"),
  )
}
IGNORED = (r"(^|\.)position_ids$",)
# What follows a tower alone: a projection, or BERT's pooler.
_AFTER_TOWER = (
  r"^(visual|text)_projection\.weight$",
  r"^(text_model\.)?head\.(weight|bias)$",
  r"^(text_model\.)?pooler\.dense\.(weight|bias)$",
)


@dataclasses.dataclass(frozen=True)
class Config:
  """A config.json: its kind and its fields.

  Attributes:
    family: one of `FAMILIES`.
    tower: "text" or "image" for a tower alone, else None.
    source: the fields.
  """

  family: HuggingFaceFamily
  tower: str | None
  source: fields.Source


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` is a directory of such a model, or of a relative of one."""
  kind = model_type(path)
  return kind is not None and (kind in MODEL_TYPES or "clip" in kind.lower())


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
  file = None if path.is_dir() else path
  if file:
    path = _config_directory(file, options, report)
  config = read_config(path, report, options.activation)
  file = file or weights.require(path)
  tensors = weights_file.read(file, options, report).tensors
  spec = describe(path, config)
  check_depths(spec, tensors, f"{path}: {file.name}")
  dialect: dict[str, Any] = {"weights": file.name}
  if config.family.name == "siglip2" and "image" in spec:
    dialect["naflex"] = True
  variables = {}
  if config.tower:
    prefix = PREFIXES[config.tower]
    has_prefix = any(name.startswith(prefix) for name in tensors)
    dialect["prefix"] = variables[config.tower] = prefix if has_prefix else ""
  model = portable.assemble(
    config.family.entries(spec, variables),
    tensors,
    spec,
    report=report,
    name=str(path),
    options=options,
    configs=[path / CONFIG],
    weights=weights.files(file),
    ignored=IGNORED + (_AFTER_TOWER if config.tower else ()),
    files=tokenizer_files.carry(path) if "text" in spec else {},
    dialect=dialect,
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
    if (file.parent / CONFIG).is_file():
      hint = f" Its directory, {file.parent}, has one: give that."
    raise errors.AmbiguousError(
      f"{file} holds weights under HuggingFace's names without their "
      f"config.{hint}",
      flags=f"--config {CONFIG}",
    )
  config = pathlib.Path(options.config).expanduser()
  directory = config if config.is_dir() else config.parent
  if not (directory / CONFIG).is_file():
    raise errors.UserError(
      f"--config {options.config}: weights under HuggingFace's names take a "
      f"{CONFIG}, with its tokenizer beside it."
    )
  report.infer("config", str(directory / CONFIG), "flag")
  return directory


def model_type(directory: pathlib.Path) -> str | None:
  """Returns the `model_type` of a directory, None where there is none."""
  found = config_file.peek(directory / CONFIG).get("model_type")
  return found if isinstance(found, str) else None


def read_config(
  directory: pathlib.Path,
  report: report_lib.Report,
  activation: str | None = None,
) -> Config:
  """Reads the config of a model of `FAMILIES`.

  Args:
    directory: with the file.
    report: takes what is read.
    activation: of both towers, if a user says it.

  Raises:
    UserError: it is none, or it is damaged.
  """
  path = directory / CONFIG
  data = config_file.read(path, strict=True)
  kind = data.get("model_type")
  if not isinstance(kind, str) or kind not in MODEL_TYPES:
    raise errors.UserError(
      f"{path}: model_type={kind!r:.100} is not a model of two towers that is "
      f"known here. Known: {', '.join(sorted(MODEL_TYPES))}."
    )
  family, tower = MODEL_TYPES[kind]
  where = {"": str(path)}
  if tower:
    section = _SECTIONS[tower]
    values, where[section] = {section: data}, str(path)
  else:
    parts = (_part(data, part, family, path) for part in _SECTIONS.values())
    values = {**data, **dict(zip(_SECTIONS.values(), parts, strict=True))}
  source = fields.Source(
    values,
    family.defaults,
    where=where,
    report=report,
    told={"activation": activation},
    towers=(tower,) if tower else tuple(_SECTIONS),
  )
  return Config(family, tower, source)


def _part(data, name, family, path) -> dict[str, Any]:
  """Returns a tower's part; the legacy `*_config_dict` wins as a whole."""
  values, legacy = (
    _object(data, field, path) for field in (name, f"{name}_dict")
  )
  if legacy is None or not family.legacy_parts:
    return values or {}
  # transformers completes the legacy part with defaults before it overrides.
  return {**(values or {}), **family.defaults[name], **legacy}


def _object(data, field, path) -> dict[str, Any] | None:
  value = data.get(field)
  if value is not None and not isinstance(value, dict):
    raise errors.UserError(
      f"{path}: {field} must be a JSON object; got {value!r:.100}."
    )
  return value


def describe(path: pathlib.Path, config: Config) -> dict[str, Any]:
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
  """Raises UserError before anything is as large as a config says."""
  for part in engine.towers(spec):
    depth = spec[part]["depth"]
    if depth > len(tensors):
      raise errors.UserError(
        f"{name} has {len(tensors)} tensors, and num_hidden_layers={depth} of "
        f"the {part} tower is more than that."
      )


def refusals(spec: dict[str, Any]) -> list[str]:
  """Returns what of a description no family here holds."""
  return _family(spec).refusals(spec) + images.refusals(spec)


def _family(spec: dict[str, Any]) -> HuggingFaceFamily:
  """Returns the family that holds a description, or lacks the least of it.

  To lack a kind of tower is more than to lack any number of its fields.
  """

  def lacks(family):
    problems = family.refusals(spec)
    return sum(".kind=" in problem for problem in problems), len(problems)

  return min(FAMILIES.values(), key=lacks)


def write(
  model: portable.Portable, destination: pathlib.Path, options: portable.Options
) -> None:
  """Writes a directory for `from_pretrained`."""
  del options
  spec = model.spec
  portable.refuse(NAME, refusals(spec))
  dialect = model.dialect(NAME)
  family = _family(spec)
  if dialect.get("naflex"):
    family = huggingface_siglip.SIGLIP2
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
  _write_json(destination / CONFIG, config)
  _write_json(
    destination / images.FILE, images.settings(spec, family.processor)
  )
  files = tokenizer.files_for(spec, model.files, model.report)
  if files:
    again = family.tokenizer(files, spec["text"], report_lib.Report(""))
    warnings += tokenizer.deviations(spec, again)
  for name, data in files.items():
    (destination / name).write_bytes(data)


def _fitting(extras, spec) -> dict[str, Any]:
  """Returns the ignored tensors of the source that fit the model as it is.

  Positions' ids do not after a resize; transformers makes its own.
  """
  image = spec["image"]
  grid = image["image_size"] // image["patch_size"]
  positions = {
    "text": spec["text"]["context_length"],
    "vision": grid * grid + int(image["class_token"]),
  }
  return {
    name: tensor
    for name, tensor in extras.items()
    if "position_ids" not in name
    or tensor.shape[-1:] == (positions.get(name.split("_")[0]),)
  }


def _dtype(tensors) -> np.dtype:
  """Returns the dtype to load in: the one that holds every parameter."""
  kinds = {x.dtype for k, x in tensors.items() if "position_ids" not in k}
  return kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)


def _write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", "utf-8")


FORMAT = Format(
  NAME, read, recognise=recognise, knows=knows, write=write, refusals=refusals
)
