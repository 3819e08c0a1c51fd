"""HuggingFace's config.json: which family it is of, and its fields."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import config_file
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import fields
from clip_jax.convert.formats import (
  huggingface_chinese_clip,
  huggingface_clip,
  huggingface_siglip,
)
from clip_jax.convert.formats.huggingface_family import HuggingFaceFamily

FILE = "config.json"
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
_SECTIONS = {"text": "text_config", "image": "vision_config"}

# `model_type` -> the family, and the tower if it is one alone.
MODEL_TYPES: dict[str, tuple[str, str | None]] = {
  name: entry
  for family in FAMILIES
  for name, entry in (
    (family, (family, None)),
    (f"{family}_text_model", (family, "text")),
    (f"{family}_vision_model", (family, "image")),
  )
}


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


def model_type(directory: pathlib.Path) -> str | None:
  """Returns the `model_type` of a directory, None where there is none."""
  found = config_file.peek(directory / FILE).get("model_type")
  return found if isinstance(found, str) else None


def read(
  directory: pathlib.Path,
  report: report_lib.Report,
  told: Mapping[str, Any] | None = None,
) -> Config:
  """Reads the config of a model of `FAMILIES`.

  Args:
    directory: with the file.
    report: takes what is read.
    told: what a user says of both towers' fields.

  Raises:
    UserError: it is none, or it is damaged.
  """
  path = directory / FILE
  data = config_file.read(path, strict=True)
  kind = data.get("model_type")
  if not isinstance(kind, str) or kind not in MODEL_TYPES:
    raise errors.UserError(
      f"{path}: model_type={kind!r:.100} is not a model of two towers that is "
      f"known here. Known: {', '.join(sorted(MODEL_TYPES))}."
    )
  name, tower = MODEL_TYPES[kind]
  family = FAMILIES[name]
  where = {"": str(path)}
  if tower:
    values = {_SECTIONS[tower]: data}
    where[_SECTIONS[tower]] = str(path)
  else:
    parts = {
      part: _part(data, part, family, path) for part in _SECTIONS.values()
    }
    values = {**data, **parts}
  source = fields.Source(
    values,
    family.defaults,
    where=where,
    report=report,
    told=told,
    towers=(tower,) if tower else ("image", "text"),
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
