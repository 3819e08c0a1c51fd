"""Classes of rows for OpenCLIP's config, beyond one field for one of ours.

Their config is sparse: most fields are written only if they differ from their
default.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from clip_jax import errors
from clip_jax.convert.engine import fields
from clip_jax.convert.engine.family import Family

MODEL = "model_cfg"
VISION, TEXT = f"{MODEL}.vision_cfg", f"{MODEL}.text_cfg"
QUICK_GELU = f"{MODEL}.quick_gelu"
FLAG = fields.exactly(False, True)


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


@dataclasses.dataclass(frozen=True)
class Other(fields.Row):
  """A field of theirs that does not determine a field of ours by itself.

  Attributes:
    theirs: its name.
    kind: the kind of its values; None for any value.
    ours: the tower that it belongs to.
  """

  theirs: str
  kind: fields.Kind | None = None
  ours: str = ""

  def read(self, source: fields.Source, spec: dict[str, Any]) -> None:
    """Checks the field, if the file has it."""
    if self.kind and source.given(self.theirs):
      source.read(self.theirs, self.kind)


def only(theirs: str, *values: Any) -> Other:
  """Returns a row for a field for which only these values are supported."""
  return Other(theirs, fields.exactly(*values))


@dataclasses.dataclass(frozen=True)
class Derived(fields.Field):
  """A field whose meaning depends on others of its tower, read before."""

  _ours: ClassVar[Callable[..., Any]]  # From their value and our tower.
  _theirs: ClassVar[Callable[..., Any]]  # From our tower.

  def read(self, source: fields.Source, spec: dict[str, Any]) -> None:
    """Reads the field."""
    tower = spec[self.ours.split(".")[0]]

    def read(value):
      return self._ours(self.kind.read(value), tower)

    kind = dataclasses.replace(self.kind, read=read)
    fields.Field.read(dataclasses.replace(self, kind=kind), source, spec)

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes the field."""
    value = self._theirs(spec[self.ours.split(".")[0]])
    fields.put(config, self.theirs, value)

  def holds(self, value: Any, found: Any) -> bool:
    """Whether the value was read back, or is not used."""
    return found is None or value == found


class HeadWidth(Derived, fields.Heads):
  """The width of each head; a remainder of the tower's is dropped, as there."""

  def _ours(self, head_width, tower):
    return _positive(tower["width"] // head_width)

  def _theirs(self, tower):
    return tower["width"] // tower["heads"]


class MlpRatio(Derived):
  """The width of an MLP as a multiple of the tower's."""

  def _ours(self, ratio, tower):
    return _positive(int(tower["width"] * ratio) if ratio <= 64 else 0)

  def _theirs(self, tower):
    return mlp_ratio(tower["width"], tower["mlp_dim"])


class NormAfterPool(Derived):
  """Whether the last norm follows the pooling: for one token it is the same."""

  def _ours(self, after, tower):
    return after and tower["pooling"] == "gap"

  def _theirs(self, tower):
    return tower["norm_after_pool"]


EOS_ID = 2  # Their default, which only the pooling "eos" uses.


class EosId(Derived):
  """The id of the token at which a text is pooled, if the pooling needs it."""

  def _ours(self, eos_id, tower):
    return eos_id if tower["pooling"] == "eos" else None

  def _theirs(self, tower):
    return tower["eos_id"] if tower["pooling"] == "eos" else EOS_ID


def _positive(number: int) -> int:
  if number < 1:
    raise ValueError
  return number


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

  def read(self, source: fields.Source, spec: dict[str, Any]) -> None:
    """Reads both."""
    activation = source.read(self.theirs, self.kind)
    if source.read(QUICK_GELU, FLAG):
      if source.given(self.theirs):
        raise source.wrong(self.theirs, "left out beside quick_gelu")
      activation = "quick_gelu"
    said = QUICK_GELU if source.given(QUICK_GELU) else self.theirs
    source.note(self.ours, activation, said)
    fields.put(spec, self.ours, activation)

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


@dataclasses.dataclass(frozen=True)
class Edge(fields.Row):
  """Whether there are pixels at the edge that patches do not cover."""

  ours: str = "drop_edge"

  def read(self, source: fields.Source, spec: dict[str, Any]) -> None:
    """Stores whether pixels are left over."""
    size, patch_size = (spec["image"][k] for k in ("image_size", "patch_size"))
    if size < patch_size:
      raise source.wrong(
        f"{VISION}.image_size", f"at least patch_size={patch_size}"
      )
    spec["image"]["drop_edge"] = size % patch_size != 0
    source.report.infer(self.ours, spec["image"]["drop_edge"], "format")


class TextProjection(fields.Row):
  """The projection of OpenCLIP's own text tower."""

  ours: str = "text_projection"

  def read(self, source: fields.Source, spec: dict[str, Any]) -> None:
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


class StripEnd(Other):
  """Whether zeros take the place of a tokenizer's end token, as in CLIPA."""

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes the field if the tokenizer ends texts in this way."""
    cuts = spec["tokenizer"]
    ends = (cuts.get("start_id"), cuts.get("end_id"))
    if cuts["kind"] == "wordpiece" and ends[1] == 0 != ends[0]:
      fields.put(config, self.theirs, True)


class Ends(fields.Row):
  """Checks that each tower ends in the shared embedding space."""

  ours: str = ""

  def check(self, source: fields.Source, spec: dict[str, Any]) -> None:
    """Raises UserError if a tower's output is not `embed_dim` wide."""
    for what in ("image", "text"):
      tower, projection = spec[what], spec[f"{what}_projection"]
      ends = projection != "none" or tower["kind"] == "resnet"
      if not ends and tower["width"] != spec["embed_dim"]:
        raise errors.UserError(
          f"{source.where('')}: the {what} tower has no projection and ends in "
          f"{tower['width']}, not in embed_dim={spec['embed_dim']}."
        )
