"""The fields of a format's config as rows, each of which reads and writes.

    Field("text_config.num_hidden_layers", "text.depth", INTEGER)

reads their field into ours and checks it, reports where the value comes from,
and writes it. A field of ours that has the same value in every model of the
format is `Fixed`; a field of theirs without one of ours is `Written`. A format
derives its own class from `Row` for what needs more than one field.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert.engine.config_reader import (
  ConfigReader,
  Kind,
  get,
  last,
  put,
)
from clip_jax.convert.engine.config_reader import (
  has as has,
)  # For the formats' rows.
from clip_jax.convert.engine.kinds import INTEGER, exactly

Spec = dict[str, Any]


class Row:
  """A row for a format's config; the base class, whose methods do nothing.

  Attributes:
    theirs: their field with its sections, such as "text_config.hidden_act";
      only rows about a field of theirs have it.
    ours: our field that the row is about, such as "text.depth"; "image" or
      "text" for a row about that tower as a whole, "" for no tower.
    also: other values of our field that mean the same in this format.
    free: whether our field may have any value, since the model then computes
      the same.
  """

  theirs: str
  ours: str
  also: tuple[Any, ...] = ()
  free: bool = False

  def read(self, source: ConfigReader, spec: Spec) -> None:
    """Adds what the config says to the description; may raise UserError."""

  def check(self, source: ConfigReader, spec: Spec) -> None:
    """Raises UserError if fields do not fit together; all are read before."""

  def write(self, spec: Spec, config: dict[str, Any]) -> None:
    """Adds what the description says to the config; never raises an error."""

  def means_same(self, value: Any, found: Any) -> bool:
    """Whether `value`, of ours, computes the same as `found`, read back."""
    return self.free or value == found or value in self.also

  def values(self, found: Any) -> tuple[Any, ...]:
    """Returns the values of our field that the format can hold."""
    return (found, *self.also)


@dataclasses.dataclass(frozen=True)
class Field(Row):
  """A field of theirs that corresponds to one of ours.

  Attributes:
    kind: the kind of its values.
    in_weights: whether the weights show the value too; the report then leaves
      it out.
  """

  theirs: str
  ours: str
  kind: Kind = INTEGER
  in_weights: bool = False
  free: bool = False

  def read(self, source: ConfigReader, spec: Spec) -> None:
    """Reads, notes and stores the field."""
    value = source.read(self.theirs, self.kind)
    if not self.in_weights:
      source.note(self.ours, value, self.theirs)
    put(spec, self.ours, source.override(self.ours, value, self.theirs))

  def write(self, spec: Spec, config: dict[str, Any]) -> None:
    """Writes the field."""
    put(config, self.theirs, self.kind.write(get(spec, self.ours)))

  def values(self, found: Any) -> tuple[Any, ...]:
    """Returns our values if they are few, else the one found."""
    return self.kind.values or (found,)


def _tower(row: Row, spec: Spec) -> Spec:
  return spec[row.ours.split(".")[0]]


@dataclasses.dataclass(frozen=True)
class Derived(Field):
  """A field whose meaning depends on others of its tower, read before.

  Attributes:
    decode: returns our value, from theirs and our tower.
    encode: returns their value, from our tower.
  """

  decode: Callable[[Any, Spec], Any] = lambda value, tower: value
  encode: Callable[[Spec], Any] = lambda tower: None

  def read(self, source: ConfigReader, spec: Spec) -> None:
    """Reads the field."""
    tower = _tower(self, spec)
    kind = dataclasses.replace(
      self.kind, read=lambda x: self.decode(self.kind.read(x), tower)
    )
    Field.read(dataclasses.replace(self, kind=kind), source, spec)

  def write(self, spec: Spec, config: dict[str, Any]) -> None:
    """Writes the field."""
    put(config, self.theirs, self.encode(_tower(self, spec)))

  def means_same(self, value: Any, found: Any) -> bool:
    """Whether the value was read back, or is not used."""
    return found is None or value == found


@dataclasses.dataclass(frozen=True)
class Heads(Field):
  """A tower's number of heads, which must divide its width."""

  def check(self, source: ConfigReader, spec: Spec) -> None:
    """Raises UserError unless the heads divide the width."""
    tower = _tower(self, spec)
    if tower["width"] % tower["heads"]:
      raise errors.UserError(
        f"{source.where(self.theirs)}: {last(self.theirs)}={tower['heads']} "
        f"must divide the width, {tower['width']}."
      )


@dataclasses.dataclass(frozen=True)
class Fixed(Row):
  """A field of ours that has the same `value` in every model of the format."""

  ours: str
  value: Any
  also: tuple[Any, ...] = ()
  in_weights: bool = False
  free: bool = False

  def read(self, source: ConfigReader, spec: Spec) -> None:
    """Stores the value."""
    if not self.in_weights:
      source.report.infer(self.ours, self.value, "format")
    put(spec, self.ours, self.value)


@dataclasses.dataclass(frozen=True)
class Written(Row):
  """A field of theirs that is written, without a field of ours.

  Attributes:
    value: the value to write, or a function of the description.
    kind: the kind of its values; None if any value may be read.
  """

  theirs: str
  value: Any
  kind: Kind | None = None
  ours: str = ""

  def read(self, source: ConfigReader, spec: Spec) -> None:
    """Checks the field, if it has a kind."""
    if self.kind:
      source.read(self.theirs, self.kind)

  def write(self, spec: Spec, config: dict[str, Any]) -> None:
    """Writes the field."""
    value = self.value(spec) if callable(self.value) else self.value
    put(config, self.theirs, value)


@dataclasses.dataclass(frozen=True)
class Other(Row):
  """A field of theirs that does not determine a field of ours by itself.

  Its values are of the `kind`; None for any value.
  """

  theirs: str
  kind: Kind | None = None
  ours: str = ""

  def read(self, source: ConfigReader, spec: Spec) -> None:
    """Checks the field, if the file has it."""
    if self.kind and source.given(self.theirs):
      source.read(self.theirs, self.kind)


def only(theirs: str, *values: Any) -> Other:
  """Returns a row for a field for which only these values are supported."""
  return Other(theirs, exactly(*values))


@dataclasses.dataclass(frozen=True)
class Edge(Row):
  """Whether there are pixels that patches do not cover; after both sizes."""

  theirs: str = "image_size"
  ours: str = "drop_edge"

  def read(self, source: ConfigReader, spec: Spec) -> None:
    """Stores whether pixels are left over, with a warning if so."""
    size, patch = (spec["image"][x] for x in ("image_size", "patch_size"))
    if size < patch:
      raise source.wrong(self.theirs, f"at least patch_size={patch}")
    if edge := size % patch:
      source.report.warnings.append(
        f"image_size={size} is not a multiple of patch_size={patch}: the last "
        f"{edge} rows and columns of pixels are ignored, as in the source."
      )
    drop_edge = source.report.infer(self.ours, edge > 0, "format")
    spec["image"]["drop_edge"] = drop_edge


def within(section: str, tower: str, rows: Iterable[Any]) -> tuple[Any, ...]:
  """Returns the rows of a tower with full names on both sides.

  Args:
    section: the section of the tower in their config; "" for none.
    tower: "image" or "text".
    rows: rows with names relative to both.
  """
  found = []
  for row in rows:
    changes = {"ours": f"{tower}.{row.ours}" if row.ours else tower}
    if section and getattr(row, "theirs", ""):
      changes["theirs"] = f"{section}.{row.theirs}"
    found.append(dataclasses.replace(row, **changes))
  return tuple(found)


def unknown(
  rows: Iterable[Row], values: Mapping[str, Any], section: str
) -> list[str]:
  """Returns the fields of a section in `values` that no row is about."""
  known = {getattr(row, "theirs", "") for row in rows}
  return [field for field in values if f"{section}.{field}" not in known]
