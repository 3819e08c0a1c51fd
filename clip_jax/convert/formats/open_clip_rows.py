"""Rows of OpenCLIP's config that are more than one field of theirs for ours.

Their config is sparse: most fields are written where they differ from their
default, which therefore stands in the row.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from clip_jax import errors
from clip_jax.convert.engine import fields
from clip_jax.convert.formats import bert, open_clip_berts, timm_vit

MODEL = "model_cfg"
VISION, TEXT = f"{MODEL}.vision_cfg", f"{MODEL}.text_cfg"
QUICK_GELU = f"{MODEL}.quick_gelu"
FLAG = fields.exactly(False, True)
# Their timm_proj -> where timm keeps the projection; "" for none. Without one
# of OpenCLIP's, timm's classifier serves as the projection.
TIMM_HEADS = {
  "linear": "head.proj",
  "none": "",
  "": "trunk.head",
  None: "trunk.head",
}
# Our projection -> how it is written for a tower of timm.
TIMM_PROJECTIONS = {
  "linear": {"timm_proj": "linear"},
  "linear_bias": {"timm_proj": "linear", "timm_proj_bias": True},
  "none": {"timm_proj": "none"},
}
# Fields that the weights' shapes show, so the report leaves them out.
_IN_WEIGHTS = ("width", "depth", "mlp_dim")
NOTHING = object()


@dataclasses.dataclass(frozen=True)
class Option(fields.Field):
  """A field with a default.

  Attributes:
    default: theirs.
    always: whether it is written even then.
  """

  default: Any = None
  always: bool = False

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes the field, if it must be."""
    if not fields.has(spec, self.ours):
      return
    value = self.kind.write(fields.get(spec, self.ours))
    if self.always or value != self.default:
      fields.put(config, self.theirs, value)


@dataclasses.dataclass(frozen=True)
class Other(fields.Row):
  """A field of theirs that no field of ours is read from by itself.

  Attributes:
    theirs: its name.
    default: its value where the file does not say it.
    kind: what it may say; None for anything.
    warns: whether another value than the default is worth a warning.
    written: what is written; nothing where this is not given.
    ours: the tower that it belongs to.
  """

  theirs: str
  default: Any = None
  kind: fields.Kind | None = None
  warns: bool = False
  written: Any = NOTHING
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

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes what is always written."""
    if self.written is not NOTHING:
      fields.put(config, self.theirs, self.written)


def only(theirs: str, *values: Any) -> Other:
  """Returns the row of a field that has these values, the first by default."""
  return Other(theirs, values[0], fields.exactly(*values))


def without_effect(
  rows: Iterable[fields.Row], *, beside: Iterable[fields.Row]
) -> tuple[Other, ...]:
  """Returns rows that warn of fields which another kind of tower reads.

  Args:
    rows: of that kind.
    beside: of the tower itself, whose fields do have an effect.
  """
  read = {"", *map(_first, beside)}
  found = {
    _first(row): Other(
      _first(row), None if "." in row.theirs else row.default, warns=True
    )
    for row in rows
    if _first(row) not in read
  }
  return tuple(found.values())


def _first(row: fields.Row) -> str:
  return getattr(row, "theirs", "").split(".")[0]


@dataclasses.dataclass(frozen=True)
class OptionalHeads(Option, fields.Heads):
  """A tower's number of heads."""


@dataclasses.dataclass(frozen=True)
class Derived(Option):
  """A field whose meaning depends on others of its tower, read before.

  Attributes:
    reads: returns our value of theirs and of our tower.
    writes: returns their value of our tower.
  """

  reads: Callable[[Any, dict[str, Any]], Any] = lambda value, tower: value
  writes: Callable[[dict[str, Any]], Any] = lambda tower: None

  def read(self, source: fields.Source, spec: dict[str, Any]) -> None:
    """Reads the field."""
    tower = spec[self.ours.split(".")[0]]

    def read(value):
      return self.reads(self.kind.read(value), tower)

    kind = dataclasses.replace(self.kind, read=read)
    value = source.read(self.theirs, kind)
    if not self.in_weights:
      source.note(self.ours, value, self.theirs)
    fields.put(spec, self.ours, value)

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes the field."""
    value = self.writes(spec[self.ours.split(".")[0]])
    if value != self.default:
      fields.put(config, self.theirs, value)

  def holds(self, value: Any, found: Any) -> bool:
    """Whether it came back, or is not looked at."""
    return found is None or value == found


class HeadWidth(Derived, fields.Heads):
  """The width of each head, of which the number of heads follows."""


def heads(head_width: int, tower: dict[str, Any]) -> int:
  """Returns the number of heads; a remainder is dropped, as there."""
  if head_width > tower["width"]:
    raise ValueError
  return tower["width"] // head_width


def mlp_dim(ratio: float, tower: dict[str, Any]) -> int:
  """Returns the width of an MLP that is a multiple of the tower's."""
  if not 0 < ratio <= 64 or int(tower["width"] * ratio) < 1:
    raise ValueError
  return int(tower["width"] * ratio)


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
    """Writes either; with "quick_gelu", no tower has another activation."""
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
  """The pixels at the edge that make no whole patch."""

  ours: str = "drop_edge"

  def read(self, source: fields.Source, spec: dict[str, Any]) -> None:
    """Works out whether pixels are left over."""
    size, patch_size = (spec["image"][k] for k in ("image_size", "patch_size"))
    if size < patch_size:
      raise source.wrong(
        f"{VISION}.image_size", f"at least patch_size={patch_size}"
      )
    spec["image"]["drop_edge"] = size % patch_size != 0
    source.report.infer(self.ours, spec["image"]["drop_edge"], "format")


@dataclasses.dataclass(frozen=True)
class ResNetSizes(fields.Row):
  """The sizes of a ResNet, which its stages and its pooling divide."""

  ours: str = ""

  def check(self, source: fields.Source, spec: dict[str, Any]) -> None:
    """Asks for whole pixels after five halvings, and for whole heads."""
    image = spec["image"]
    for field, factor, unit in (("image_size", 1, 32), ("width", 32, 64)):
      if image[field] * factor % unit:
        raise source.wrong(
          f"{VISION}.{field}", f"a multiple of {unit // factor} for a ResNet"
        )


@dataclasses.dataclass(frozen=True)
class TextProjection(fields.Row):
  """The projection of OpenCLIP's own text tower."""

  ours: str = "text_projection"

  def read(self, source: fields.Source, spec: dict[str, Any]) -> None:
    """Reads its kind and its bias."""
    kind = source.get(f"{TEXT}.proj_type")
    bias = kind == "linear" and source.get(f"{TEXT}.proj_bias")
    spec[self.ours] = "linear_bias" if bias else kind

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes either, where it is not the default."""
    if spec[self.ours] == "linear_bias":
      fields.put(config, f"{TEXT}.proj_bias", True)
    if spec[self.ours] == "none":
      fields.put(config, f"{TEXT}.proj_type", "none")

  def values(self, found: Any) -> tuple[Any, ...]:
    """Returns the projections that it has."""
    return ("linear", "linear_bias", "none")


@dataclasses.dataclass(frozen=True)
class TimmTower(fields.Row):
  """An image tower that is all in timm's name for it, and its projection."""

  ours: str = "image"

  def read(self, source: fields.Source, spec: dict[str, Any]) -> None:
    """Looks the name up."""
    name, proj, bias, pool, size = (
      source.get(f"{VISION}.{field}")
      for field in (
        *("timm_model_name", "timm_proj", "timm_proj_bias", "timm_pool"),
        "image_size",
      )
    )
    tower, head = timm_vit.describe(name), TIMM_HEADS[proj]
    if pool or head != "head.proj":
      made_so = head != "head.proj"
      tower = timm_vit.pooled(tower, pool, made_so=made_so, name=name)
    if fields.PIXELS.read(size) != tower["image_size"]:
      raise errors.UserError(
        f"{source.where(f'{VISION}.image_size')}: image_size={size}, but "
        f"{name} is made for {tower['image_size']}; give the timm_model_name "
        "of that size."
      )
    _note_all(source, "image", tower)
    spec["image"] = {**tower, **spec["image"]}
    biased = bias or head == "trunk.head"
    projection = "linear_bias" if biased else "linear"
    spec["image_projection"] = projection if head else "none"

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes the name that timm has for the tower."""
    name, pool = find_timm(spec)
    written = {
      "image_size": spec["image"]["image_size"],
      "timm_model_name": name,
      "timm_model_pretrained": False,
      "timm_pool": pool,
      **TIMM_PROJECTIONS[spec["image_projection"]],
    }
    for field, value in written.items():
      fields.put(config, f"{VISION}.{field}", value)


def find_timm(spec: dict[str, Any]) -> tuple[str, str] | None:
  """Returns the name and the pooling of timm's tower that the image's is."""
  projection = spec["image_projection"]
  if spec["image"]["kind"] != "vit" or projection not in TIMM_PROJECTIONS:
    return None
  return timm_vit.find(spec["image"], made_so=projection == "none")


def _note_all(source, tower: str, described: dict[str, Any]) -> None:
  """Notes that a tower's fields follow from its name."""
  for field, value in described.items():
    key = f"{tower}.{field}"
    if field not in _IN_WEIGHTS and key not in source.report.inferred:
      source.report.infer(key, value, "config")


@dataclasses.dataclass(frozen=True)
class BertTower(fields.Row):
  """A BERT, by the name under which it was published.

  Attributes:
    config: returns the config of a BERT by its name.
  """

  config: Callable[[str], dict[str, Any]]
  ours: str = "text"

  def read(self, source: fields.Source, spec: dict[str, Any]) -> None:
    """Reads the config of that name."""
    name, theirs = source.get(f"{TEXT}.hf_model_name"), f"{TEXT}.hf_model_name"
    if not source.get(f"{TEXT}.hf_tokenizer_name"):
      raise errors.UserError(
        f"{source.where(theirs)} lacks hf_tokenizer_name: CLIP's tokenizer "
        f"does not fit hf_model_name={name!r:.100}."
      )
    config = source.get(f"{TEXT}.hf_model_config")
    if config is None:
      config = self.config(name)
    where = f"{source.where(theirs)}: the config of {name}"
    tower = bert.describe(config, source.report, where) | {"normalize": False}
    _note_all(source, "text", tower)
    spec["text"] = {**tower, **spec["text"]}

  def check(self, source: fields.Source, spec: dict[str, Any]) -> None:
    """Compares the longest text with the positions."""
    positions = spec["text"]["positions"]
    if spec["text"]["context_length"] > positions:
      raise source.wrong(
        f"{TEXT}.context_length", f"at most {positions}, its positions"
      )

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes the name of the nearest."""
    name = open_clip_berts.nearest(spec["text"])
    fields.put(config, f"{TEXT}.hf_model_name", name)


@dataclasses.dataclass(frozen=True)
class StripEnd(Other):
  """Whether zeros stand for the end token of a tokenizer, as in CLIPA."""

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes it where the tokenizer ends texts so."""
    cuts = spec["tokenizer"]
    ends = (cuts.get("start_id"), cuts.get("end_id"))
    if cuts["kind"] == "wordpiece" and ends[1] == 0 != ends[0]:
      fields.put(config, self.theirs, True)


@dataclasses.dataclass(frozen=True)
class Ends(fields.Row):
  """What each tower ends in."""

  ours: str = ""

  def check(self, source: fields.Source, spec: dict[str, Any]) -> None:
    """Raises UserError where that is not the shared space."""
    for what in ("image", "text"):
      tower, projection = spec[what], spec[f"{what}_projection"]
      ends = projection != "none" or tower["kind"] == "resnet"
      if not ends and tower["width"] != spec["embed_dim"]:
        raise errors.UserError(
          f"{source.where('')}: the {what} tower has no projection and ends in "
          f"{tower['width']}, not in embed_dim={spec['embed_dim']}."
        )
