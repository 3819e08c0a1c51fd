"""Classes of rows for OpenCLIP's config, beyond one field for one of ours.

Their config is sparse: most fields are written only if they differ from their
default.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert.engine import fields, kinds
from clip_jax.convert.engine.family import Family

MODEL = "model_cfg"
VISION, TEXT = f"{MODEL}.vision_cfg", f"{MODEL}.text_cfg"
QUICK_GELU = f"{MODEL}.quick_gelu"


@dataclasses.dataclass(frozen=True)
class SparseFamily(Family):
  """A family whose configs leave out what has its default.

  Attributes:
    always: fields that are written all the same.
  """

  always: Collection[str] = ()

  def config(self, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config for a description of both towers."""
    return self._sparse(super().config(spec), self.defaults)

  def _sparse(self, values, defaults, section="") -> dict[str, Any]:
    found = {}
    for name, value in values.items():
      path, default = f"{section}{name}", defaults.get(name)
      if isinstance(value, dict):
        if inner := self._sparse(value, default or {}, f"{path}."):
          found[name] = inner
      elif path in self.always or value != default:
        found[name] = value
    return found


class Optional(fields.Field):
  """A field that is written only if the description has ours."""

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes the field, if there is something to write."""
    if fields.has(spec, self.ours):
      super().write(spec, config)


class HeadWidth(fields.Derived, fields.Heads):
  """The width of each head; a remainder of the tower's is dropped, as there."""


def mlp_ratio(width: int, mlp_dim: int) -> float:
  """Returns a ratio with `int(width * ratio) == mlp_dim`, as torch computes it.

  The quotient itself falls short by one for thousands of pairs.
  """
  ratio = mlp_dim / width
  while int(width * ratio) < mlp_dim:
    ratio = math.nextafter(ratio, math.inf)
  assert int(width * ratio) == mlp_dim, (width, mlp_dim)
  return ratio


class Activation(fields.Field):
  """A tower's activation: by "quick_gelu" of the model, or by its own field."""

  def read(self, source: fields.ConfigReader, spec: dict[str, Any]) -> None:
    """Reads both."""
    activation = source.read(self.theirs, self.kind)
    if source.read(QUICK_GELU, kinds.FLAG):
      if source.given(self.theirs):
        raise source.wrong(self.theirs, "left out beside quick_gelu")
      activation = "quick_gelu"
    said = QUICK_GELU if source.given(QUICK_GELU) else self.theirs
    source.note(self.ours, activation, said)
    fields.put(spec, self.ours, source.override(self.ours, activation, said))

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes one of both; with "quick_gelu", both towers have QuickGELU."""
    if fields.get(spec, self.ours) == "quick_gelu":
      fields.put(config, QUICK_GELU, True)
      for section in (VISION, TEXT):
        if fields.has(config, section):
          fields.get(config, section).pop("act_kwargs", None)
    elif not fields.has(config, QUICK_GELU):
      super().write(spec, config)

  def values(self, found: Any) -> tuple[Any, ...]:
    """Returns the activation that goes with the other tower's."""
    return (found,)


class TextProjection(fields.Row):
  """The projection of OpenCLIP's own text tower."""

  ours: str = "text_projection"

  def read(self, source: fields.ConfigReader, spec: dict[str, Any]) -> None:
    """Reads its kind and its bias."""
    kind = source.get(f"{TEXT}.proj_type")
    bias = kind == "linear" and source.get(f"{TEXT}.proj_bias")
    spec[self.ours] = "linear_bias" if bias else kind

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes its kind or its bias, if they are not the default."""
    if spec[self.ours] == "linear_bias":
      fields.put(config, f"{TEXT}.proj_bias", True)
    if spec[self.ours] == "none":
      fields.put(config, f"{TEXT}.proj_type", "none")

  def values(self, found: Any) -> tuple[Any, ...]:
    """Returns the projections that the tower can have."""
    return ("linear", "linear_bias", "none")


class StripEnd(fields.Other):
  """Whether zeros take the place of a tokenizer's end token, as in CLIPA."""

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes the field if the tokenizer ends texts in this way."""
    tokenizer = spec["tokenizer"]
    ends = (tokenizer.get("start_id"), tokenizer.get("end_id"))
    if tokenizer["kind"] == "wordpiece" and ends[1] == 0 != ends[0]:
      fields.put(config, self.theirs, True)


class Ends(fields.Row):
  """Checks that each tower ends in the shared embedding space."""

  ours: str = ""

  def check(self, source: fields.ConfigReader, spec: dict[str, Any]) -> None:
    """Raises UserError if a tower's output is not `embed_dim` wide."""
    for what in ("image", "text"):
      tower, projection = spec[what], spec[f"{what}_projection"]
      ends = projection != "none" or tower["kind"] == "resnet"
      if not ends and tower["width"] != spec["embed_dim"]:
        raise errors.UserError(
          f"{source.where('')}: the {what} tower has no projection and ends in "
          f"{tower['width']}, not in embed_dim={spec['embed_dim']}."
        )
