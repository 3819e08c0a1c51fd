"""Classes of rows for OpenCLIP's config, beyond one field for one of ours.

Their config is sparse: most fields are written only if they differ from their
default, so each row has the default.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from clip_jax import errors
from clip_jax.convert.engine import fields

MODEL = "model_cfg"
VISION, TEXT = f"{MODEL}.vision_cfg", f"{MODEL}.text_cfg"
QUICK_GELU = f"{MODEL}.quick_gelu"
FLAG = fields.exactly(False, True)


@dataclasses.dataclass(frozen=True)
class Option(fields.Field):
  """A field with a default.

  Attributes:
    default: its default value in open_clip.
    always: whether it is written even if it has that value.
  """

  default: Any = None
  always: bool = False

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes the field, unless it has the default value."""
    if fields.has(spec, self.ours):
      self.put(self.kind.write(fields.get(spec, self.ours)), config)

  def put(self, value: Any, config: dict[str, Any]) -> None:
    """Stores their value in the config, unless it is the default."""
    if self.always or value != self.default:
      fields.put(config, self.theirs, value)


@dataclasses.dataclass(frozen=True)
class Other(fields.Row):
  """A field of theirs that does not determine a field of ours by itself.

  Attributes:
    theirs: its name.
    default: its value if the file does not have it.
    kind: the kind of its values; None for any value.
    warns: whether a value other than the default causes a warning.
    ours: the tower that it belongs to.
  """

  theirs: str
  default: Any = None
  kind: fields.Kind | None = None
  warns: bool = False
  ours: str = ""

  def read(self, source: fields.Source, spec: dict[str, Any]) -> None:
    """Checks the field."""
    if self.kind:
      source.read(self.theirs, self.kind)
    value = source.get(self.theirs)
    if self.warns and value != self.default:
      where, name = source.where(self.theirs), self.theirs.rpartition(".")[2]
      source.report.warnings.append(
        f"{where}.{name}={value!r:.100} has no effect there."
      )


def only(theirs: str, *values: Any) -> Other:
  """Returns a row for a field with these values; the first is the default."""
  return Other(theirs, values[0], fields.exactly(*values))


def without_effect(
  rows: Iterable[Any], *, beside: Iterable[fields.Row]
) -> Iterable[Other]:
  """Yields rows that warn of fields that only another kind of tower uses.

  Args:
    rows: rows of that other kind.
    beside: rows of the tower itself, whose fields do have an effect.
  """
  done = {"", *map(_first, beside)}
  for row in rows:
    if (name := _first(row)) not in done:
      done.add(name)
      default = None if "." in row.theirs else row.default
      yield Other(name, default, warns=True)


def _first(row: fields.Row) -> str:
  return getattr(row, "theirs", "").split(".")[0]


class OptionalHeads(Option, fields.Heads):
  """A tower's number of heads."""


@dataclasses.dataclass(frozen=True)
class Derived(Option):
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
    self.put(self._theirs(spec[self.ours.split(".")[0]]), config)

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


class EosId(Derived):
  """The id of the token at which a text is pooled, if the pooling needs it."""

  def _ours(self, eos_id, tower):
    return eos_id if tower["pooling"] == "eos" else None

  def _theirs(self, tower):
    return tower["eos_id"] if tower["pooling"] == "eos" else self.default


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


class Activation(Option):
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
