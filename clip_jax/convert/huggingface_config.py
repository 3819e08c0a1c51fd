"""HuggingFace's config.json: what it leaves out, its classes say.

Published configs are sparse: a field is written where it differs from the
default of its class (transformers 5, `configuration_clip.py` and its
siblings). Those defaults are semantics of the format, so they stand here.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import report as report_lib
from clip_jax.convert.containers import datafile, safetensors_file

FILE = "config.json"
MAX_BYTES = 100_000_000
# Beyond every model; a hostile number must not become a loop or an overflow.
MAX_INTEGER = 1 << 24
_MAX_PIXELS = 1 << 14

_BASE = {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_hidden_layers": 12,
  "num_attention_heads": 12,
}
_CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_SIGLIP = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_CLIP_TEXT = {
  **_CLIP,
  "vocab_size": 49408,
  "hidden_size": 512,
  "intermediate_size": 2048,
  "num_hidden_layers": 12,
  "num_attention_heads": 8,
  "max_position_embeddings": 77,
  "eos_token_id": 49407,
}
_CLIP_VISION = {
  **_BASE,
  **_CLIP,
  "num_channels": 3,
  "image_size": 224,
  "patch_size": 32,
}
_SIGLIP_TEXT = {
  **_BASE,
  **_SIGLIP,
  "vocab_size": 32000,
  "max_position_embeddings": 64,
  "projection_size": None,
}
_SIGLIP_VISION = {
  **_BASE,
  **_SIGLIP,
  "num_channels": 3,
  "patch_size": 16,
  "vision_use_head": True,
}


@dataclasses.dataclass(frozen=True)
class Family:
  """The defaults of a model's three config classes."""

  root: dict[str, Any]
  text: dict[str, Any]
  vision: dict[str, Any]


_CLIP_FAMILY = Family(
  {"projection_dim": 512, "logit_scale_init_value": 2.6592},
  _CLIP_TEXT,
  _CLIP_VISION,
)
FAMILIES = {
  "clip": _CLIP_FAMILY,
  "metaclip_2": _CLIP_FAMILY,
  "siglip": Family({}, _SIGLIP_TEXT, {**_SIGLIP_VISION, "image_size": 224}),
  "siglip2": Family({}, _SIGLIP_TEXT, {**_SIGLIP_VISION, "num_patches": 256}),
}

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


class Section:
  """One part of a config, read field by field and checked by type.

  Args:
    values: as they stand in the file.
    defaults: of the config class.
    where: what messages call the part.
    report: takes what is read under one of our names.
  """

  def __init__(
    self,
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    where: str,
    report: report_lib.Report,
  ):
    self._values = values
    self._defaults = defaults
    self._report = report
    self.where = where

  def get(self, field: str, ours: str | None = None) -> Any:
    """Returns a field as it stands, or its default."""
    given = field in self._values
    value = self._values[field] if given else self._defaults[field]
    if ours:
      self._report.infer(ours, value, "config" if given else "format")
    return value

  def integer(self, field: str, ours: str | None = None) -> int:
    """Returns a whole number from 1 on."""
    value = self.get(field, ours)
    if type(value) is not int or not 1 <= value <= MAX_INTEGER:
      raise self.wrong(field, value, "a whole number from 1 on")
    return value

  def number(self, field: str, ours: str | None = None) -> float:
    """Returns a finite number."""
    value = self.get(field, ours)
    if type(value) not in (int, float) or not math.isfinite(value):
      raise self.wrong(field, value, "a finite number")
    return float(value)

  def flag(self, field: str) -> bool:
    """Returns a truth value."""
    value = self.get(field)
    if type(value) is not bool:
      raise self.wrong(field, value, "true or false")
    return value

  def side(self, field: str, ours: str | None = None) -> int:
    """Returns the side of a square in pixels: a number, or two equal ones."""
    value = self.get(field, ours)
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or any(
      type(side) is not int or not 1 <= side <= _MAX_PIXELS for side in sides
    ):
      raise self.wrong(field, value, "a number of pixels")
    if sides[0] != sides[1]:
      raise self.wrong(field, value, "square, which all models here are")
    return sides[0]

  def wrong(self, field: str, value: Any, allowed: str) -> errors.UserError:
    """Returns the error for a field of a wrong value."""
    return errors.UserError(
      f"{self.where}: {field} must be {allowed}; got {value!r:.100}."
    )


@dataclasses.dataclass(frozen=True)
class Config:
  """A config.json: its kind, and the parts that this kind has.

  Attributes:
    family: one of `FAMILIES`.
    tower: "text" or "image" for a tower alone, else None.
    root: of both towers' models.
    text: of the text tower.
    vision: of the image tower.
  """

  family: str
  tower: str | None
  root: Section
  text: Section
  vision: Section


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Reads a JSON object from a file that nobody vouches for."""
  file = datafile.DataFile(path)
  with datafile.checked(file.path, "JSON"):
    if file.size > MAX_BYTES:
      raise ValueError(f"it has {file.size} bytes")
    return safetensors_file.parse_json(file.read(0, file.size))


def model_type(directory: pathlib.Path) -> str | None:
  """Returns the `model_type` of a directory, None where there is none."""
  path = directory / FILE
  if not path.is_file():
    return None
  try:
    found = read_json(path).get("model_type")
  except errors.UserError:
    return None
  return found if isinstance(found, str) else None


def read(directory: pathlib.Path, report: report_lib.Report) -> Config:
  """Reads the config of a CLIP or SigLIP.

  Raises:
    UserError: it is none, or it is damaged.
  """
  path = directory / FILE
  data = read_json(path)
  kind = data.get("model_type")
  if not isinstance(kind, str) or kind not in MODEL_TYPES:
    raise errors.UserError(
      f"{path}: model_type={kind!r:.100} is not a model of two towers that is "
      f"known here. Known: {', '.join(sorted(MODEL_TYPES))}."
    )
  family, tower = MODEL_TYPES[kind]
  defaults = FAMILIES[family]

  def section(part, known):
    values = data
    if tower is None:
      values = _part(data, f"{part}_config", known, path=path, family=family)
    where = str(path) if tower else f"{path}, {part}_config"
    return Section(values, known, where=where, report=report)

  return Config(
    family=family,
    tower=tower,
    root=Section(data, defaults.root, where=str(path), report=report),
    text=section("text", defaults.text),
    vision=section("vision", defaults.vision),
  )


def _part(data, name, defaults, *, path, family) -> dict[str, Any]:
  """Returns a tower's part; the legacy `*_config_dict` wins as a whole."""
  values, legacy = (
    _object(data, field, path) for field in (name, f"{name}_dict")
  )
  if legacy is None or FAMILIES[family] is not _CLIP_FAMILY:
    return values or {}
  # transformers completes the legacy part with defaults before it overrides.
  return {**(values or {}), **defaults, **legacy}


def _object(data, field, path) -> dict[str, Any] | None:
  value = data.get(field)
  if value is not None and not isinstance(value, dict):
    raise errors.UserError(
      f"{path}: {field} must be a JSON object; got {value!r:.100}."
    )
  return value
