"""Reads and writes HuggingFace's directories, of two towers or of one.

config.json says which of `FAMILIES` a model is of. Weights are read from
safetensors or PyTorch files, single or in shards, and written as safetensors.
"""

import dataclasses
import os
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
from clip_jax.convert.source_reading import SourceReading

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

# `model_type` -> the family, and the tower of a single-tower model.
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
# Layers after a single tower: a projection, or BERT's pooler.
_AFTER_TOWER = (
  r"^(visual|text)_projection\.weight$",
  r"^(text_model\.)?head\.(weight|bias)$",
  r"^(text_model\.)?pooler\.dense\.(weight|bias)$",
)


@dataclasses.dataclass(frozen=True)
class ReadConfig:
  """The content of a config.json.

  Attributes:
    family: one of `FAMILIES`.
    tower: "text" or "image" for a single tower, else None.
    source: the fields.
  """

  family: HuggingFaceFamily
  tower: str | None
  source: fields.ConfigReader


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` is a directory of such a model, or of a similar one."""
  kind = model_type(path)
  return kind is not None and (kind in MODEL_TYPES or "clip" in kind.lower())


def recognise_names(names: Collection[str]) -> bool:
  """Whether these are names of such a model."""
  return any(name.startswith(tuple(PREFIXES.values())) for name in names)


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Returns the model of a directory, or of a file whose config is an option.

  Raises:
    UserError: it is damaged, or holds an unknown model.
    AmbiguousError: it is a file, and the options have no config.
  """
  reading = SourceReading(str(path), NAME, options)
  file = None if path.is_dir() else path
  if file:
    path = _config_directory(file, reading)
  config = read_config(path, reading)
  file = file or weights.require(path)
  tensors = reading.tensors(file)
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
  model = reading.model(
    config.family.entries(spec, variables),
    tensors,
    spec,
    configs=[path / CONFIG],
    weights=weights.files(file),
    ignored=IGNORED + (_AFTER_TOWER if config.tower else ()),
    files=tokenizer_files.carry(path) if "text" in spec else {},
    dialect=dialect,
  )
  after = [name for name in model.extras if "position_ids" not in name]
  if after:
    reading.report.warnings.append(
      f"{', '.join(after)} come after the {config.tower} tower and are not "
      "part of it; they are kept as extras."
    )
  return model


def _config_directory(file, reading) -> pathlib.Path:
  """Returns the directory of the config for a file of weights."""
  given = reading.options.config
  if given is None:
    hint = ""
    if (file.parent / CONFIG).is_file():
      hint = f" Its directory, {file.parent}, has one: give that."
    raise errors.AmbiguousError(
      f"{file} holds weights under HuggingFace's names without their "
      f"config.{hint}",
      flags=f"--config {CONFIG}",
    )
  directory = config_directory(given)
  # Path.is_file raises on names that are long.
  if not os.path.isfile(directory / CONFIG):
    raise errors.UserError(
      f"--config {given}: weights under HuggingFace's names take a "
      f"{CONFIG}, with its tokenizer beside it."
    )
  reading.report.infer("config", str(directory / CONFIG), "flag")
  return directory


def config_directory(given: str) -> pathlib.Path:
  """Returns the directory of a config that the user gives, or itself."""
  path = pathlib.Path(os.path.expanduser(given))
  return path.parent if path.name == CONFIG else path


def model_type(directory: pathlib.Path) -> str | None:
  """Returns the `model_type` of a directory; None if there is none."""
  found = config_file.peek(directory / CONFIG).get("model_type")
  return found if isinstance(found, str) else None


def read_config(directory: pathlib.Path, reading: SourceReading) -> ReadConfig:
  """Returns the config of a model of `FAMILIES`.

  Args:
    directory: the directory with the file.
    reading: the checkpoint that is read; its options may have the activation.

  Raises:
    UserError: it is of an unknown model, or damaged.
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
  towers = (tower,) if tower else tuple(_SECTIONS)
  source = reading.config(values, family.defaults, where, towers)
  return ReadConfig(family, tower, source)


def _part(data, name, family, path) -> dict[str, Any]:
  """Returns a tower's section; an old `*_config_dict` replaces all of it."""
  values, legacy = (
    None
    if data.get(field) is None
    else config_file.section(data, field, str(path))
    for field in (name, f"{name}_dict")
  )
  if legacy is None or not family.legacy_parts:
    return values or {}
  # transformers completes the legacy part with defaults before it overrides.
  return {**(values or {}), **family.defaults[name], **legacy}


def describe(path: pathlib.Path, config: ReadConfig) -> dict[str, Any]:
  """Returns the complete description of a directory's model."""
  spec = config.family.describe(config.source)
  family, report = config.family, config.source.report
  if "image" in spec:
    spec |= images.describe(path, family.processor, spec["image"], report)
  if "text" in spec:
    files = tokenizer_files.carry(path)
    spec["tokenizer"] = family.tokenizer(files, spec["text"], report)
  return engine.resolve(spec)


def check_depths(spec: dict[str, Any], tensors: Sized, name: str) -> None:
  """Raises UserError if a config's depth exceeds the number of tensors.

  So a hostile config cannot cause large allocations.
  """
  for part in engine.towers(spec):
    depth = spec[part]["depth"]
    if depth > len(tensors):
      raise errors.UserError(
        f"{name} has only {len(tensors)} tensors, but "
        f"num_hidden_layers={depth} for the {part} tower."
      )


def refusals(spec: dict[str, Any]) -> list[str]:
  """Returns messages about what of a description no family can hold."""
  return _family(spec).refusals(spec) + images.refusals(spec)


def _family(spec: dict[str, Any]) -> HuggingFaceFamily:
  """Returns the family that can hold most of a description.

  Kinds of towers that a family lacks count first, then the number of fields.
  """

  def lacks(family):
    problems = family.refusals(spec)
    return sum(".kind=" in problem for problem in problems), len(problems)

  return min(FAMILIES.values(), key=lacks)


def write(model: portable.Portable, destination: pathlib.Path) -> None:
  """Writes a directory that `from_pretrained` loads."""
  spec = model.spec
  portable.refuse(NAME, refusals(spec))
  dialect = model.dialect(NAME)
  family = _family(spec)
  if dialect.get("naflex"):
    family = huggingface_siglip.SIGLIP2
  tensors = engine.to_theirs(family.entries(spec), model.leaves)
  tensors |= _fitting(model.extras_of(NAME), spec)
  config = {**family.config(spec), "dtype": _dtype(tensors).name}
  warnings = model.report.warnings
  if (source := dialect.get("weights", "")).startswith(weights.TORCH):
    warnings.append(f"{source} becomes {weights.WEIGHTS}: the same tensors.")
  warnings += images.deviations(spec)
  destination.mkdir(parents=True, exist_ok=True)
  weights.write(destination, tensors)
  config_file.write(destination / CONFIG, config)
  settings = images.settings(spec, family.processor)
  config_file.write(destination / images.FILE, settings)
  files = tokenizer.files_for(spec, model.files, model.report)
  if files:
    again = family.tokenizer(files, spec["text"], report_lib.Report(""))
    warnings += tokenizer.deviations(spec, again)
  for name, data in files.items():
    (destination / name).write_bytes(data)


def _fitting(extras, spec) -> dict[str, Any]:
  """Returns the extra tensors of the source that still fit the model.

  After a resize the ids of positions do not; transformers makes its own.
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
  """Returns the dtype for the config, which holds every parameter exactly."""
  return engine.common_dtype(
    x.dtype for name, x in tensors.items() if "position_ids" not in name
  )


FORMAT = Format(
  NAME,
  read,
  recognise=recognise,
  recognise_names=recognise_names,
  write=write,
  refusals=refusals,
)
