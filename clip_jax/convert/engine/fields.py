"""The fields of a format's config as rows, each of which reads and writes.

    Field("text_config.num_hidden_layers", "text.depth", INTEGER)

reads their field into ours and checks it, reports where the value comes from,
and writes it. A field of ours that has the same value in every model of the
format is `Fixed`; a field of theirs without one of ours is `Written`. A format
derives its own class from `Row` for what needs more than one field.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert.engine.source import (
  Kind,
  Source,
  Wrong,
  get,
  last,
  put,
)
from clip_jax.convert.engine.source import has as has  # For the formats' rows.

# More than any model has; a hostile number must not cause a loop or overflow.
MAX_INTEGER = 1 << 24
MAX_PIXELS = 1 << 14
MAX_WIDTH = 1 << 14
MAX_DEPTH = 1 << 10
# Of means and standard deviations of channels, for pixels from 0 to 1.
MAX_CHANNEL = 1e6
LEAST_DEVIATION = 1e-6

Spec = dict[str, Any]


def checked(
  allowed: str,
  holds: Callable[[Any], bool],
  convert: Callable[[Any], Any] = lambda value: value,
) -> Kind:
  """Returns the kind of field whose values satisfy `holds`."""

  def read(value):
    if not holds(value):
      raise ValueError
    return convert(value)

  return Kind(allowed, read)


def or_null(kind: Kind, null: Any = None) -> Kind:
  """Returns the kind of field that may also be null, which means `null`."""
  return Kind(
    f"{kind.allowed}, or null",
    lambda value: null if value is None else kind.read(value),
  )


def is_number(value: Any) -> bool:
  """Whether a JSON value is a finite number."""
  return type(value) in (int, float) and math.isfinite(value)


def up_to(most: int) -> Kind:
  """Returns the kind of field whose values are integers from 1 to `most`."""
  return checked(
    f"a whole number from 1 to {most}",
    lambda x: type(x) is int and 1 <= x <= most,
  )


INTEGER = up_to(MAX_INTEGER)
WIDTH = up_to(MAX_WIDTH)
DEPTH = up_to(MAX_DEPTH)
TOKEN_ID = checked(
  f"the id of one token, from 0 to {MAX_INTEGER}",
  lambda x: type(x) is int and 0 <= x <= MAX_INTEGER,
)
TEXT = checked("text", lambda x: type(x) is str)
NUMBER = checked("a finite number", is_number, float)
EPSILON = checked("from 0 to 1", lambda x: is_number(x) and 0 <= x < 1, float)


def _side(value: Any) -> int:
  sides = value if isinstance(value, list) else [value, value]
  if len(sides) != 2 or any(
    type(side) is not int or not 1 <= side <= MAX_PIXELS for side in sides
  ):
    raise ValueError
  if sides[0] != sides[1]:
    raise Wrong("square, which all models here are")
  return sides[0]


# The side of a square: a number, or two equal numbers.
PIXELS = Kind(f"a number of pixels, from 1 to {MAX_PIXELS}", _side)


def _channels(words: str, least: float) -> Kind:
  """Returns the kind of field for means or standard deviations of channels."""

  def holds(x):
    numbers = isinstance(x, list) and len(x) == 3 and all(map(is_number, x))
    return numbers and least <= min(x) <= max(x) <= MAX_CHANNEL

  return checked(words, holds, lambda x: [float(number) for number in x])


_THREE = "three numbers, red, green and blue"
MEANS = _channels(_THREE, -MAX_CHANNEL)
DEVIATIONS = _channels(f"{_THREE}, above 0", LEAST_DEVIATION)


_MAX_LOG_SCALE = 80.0  # The largest float32 is about e^88.


def _scale(log: Any) -> float:
  if abs(NUMBER.read(log)) > _MAX_LOG_SCALE:
    raise ValueError
  return math.exp(log)


LOG_SCALE = Kind(
  "the logarithm of a scale",
  _scale,
  lambda scale: math.log(scale) if scale > 0 else math.inf,
)


def one_of(known: Mapping[Any, Any]) -> Kind:
  """Returns the kind of field whose values are the keys of `known`.

  Args:
    known: their value -> ours; the first of several with the same is written.
  """
  back = {ours: theirs for theirs, ours in reversed(list(known.items()))}
  types = set(map(type, known))

  def read(value):
    if type(value) not in types or value not in known:
      raise ValueError
    return known[value]

  first = next(iter(known))
  return Kind(
    f"one of {', '.join(sorted(map(str, known)))}",
    read,
    lambda ours: back.get(ours, first),
    tuple(back),
  )


def choice(*names: str) -> Kind:
  """Returns the kind of field whose values have the same names as ours."""
  return one_of({name: name for name in names})


def exactly(*values: Any) -> Kind:
  """Returns the kind of field for which only these values are supported."""

  def read(found):
    if not any(found == x and type(found) is type(x) for x in values):
      raise ValueError
    return found

  return Kind(" or ".join(map(json.dumps, values)), read)


FLAG = exactly(True, False)


# The width of an MLP over its tower's; more than 64 is no model's.
RATIO = checked(
  "a number above 0 that makes an MLP, 64 at most",
  lambda x: is_number(x) and 0 < x <= 64,
)


def mlp_dim(ratio: float, tower: Spec) -> int:
  """Returns the width of a tower's MLPs; raises ValueError if it is none."""
  return INTEGER.read(int(tower["width"] * ratio))


class Row:
  """A row for a format's config; the base class, whose methods do nothing.

  Attributes:
    ours: our field that the row is about, such as "text.depth"; "image" or
      "text" for a row about that tower as a whole, "" for no tower.
    also: other values of our field that mean the same in this format.
    free: whether our field may have any value, since the model then computes
      the same.
  """

  theirs: str  # Only rows about a field of theirs have it.
  ours: str
  also: tuple[Any, ...] = ()
  free: bool = False

  def read(self, source: Source, spec: Spec) -> None:
    """Adds what the config says to the description; may raise UserError."""

  def check(self, source: Source, spec: Spec) -> None:
    """Raises UserError if fields do not fit together; all are read before."""

  def write(self, spec: Spec, config: dict[str, Any]) -> None:
    """Adds what the description says to the config; never raises an error."""

  def holds(self, value: Any, found: Any) -> bool:
    """Whether our `value` means the same as `found`, which was read back."""
    return self.free or value == found or value in self.also

  def values(self, found: Any) -> tuple[Any, ...]:
    """Returns the values of our field that the format can hold."""
    return (found, *self.also)


@dataclasses.dataclass(frozen=True)
class Field(Row):
  """A field of theirs that corresponds to one of ours.

  Attributes:
    theirs: their field with its sections, such as "text_config.hidden_act".
    ours: our field, such as "text.activation".
    kind: the kind of its values.
    in_weights: whether the weights show the value too; the report then leaves
      it out.
    free: see `Row`.
  """

  theirs: str
  ours: str
  kind: Kind = INTEGER
  in_weights: bool = False
  free: bool = False

  def read(self, source: Source, spec: Spec) -> None:
    """Reads, notes and stores the field."""
    value = source.read(self.theirs, self.kind)
    if not self.in_weights:
      source.note(self.ours, value, self.theirs)
    put(spec, self.ours, source.settle(self.ours, value, self.theirs))

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

  def read(self, source: Source, spec: Spec) -> None:
    """Reads the field."""
    tower = _tower(self, spec)
    kind = dataclasses.replace(
      self.kind, read=lambda x: self.decode(self.kind.read(x), tower)
    )
    Field.read(dataclasses.replace(self, kind=kind), source, spec)

  def write(self, spec: Spec, config: dict[str, Any]) -> None:
    """Writes the field."""
    put(config, self.theirs, self.encode(_tower(self, spec)))

  def holds(self, value: Any, found: Any) -> bool:
    """Whether the value was read back, or is not used."""
    return found is None or value == found


@dataclasses.dataclass(frozen=True)
class Heads(Field):
  """A tower's number of heads, which must divide its width."""

  def check(self, source: Source, spec: Spec) -> None:
    """Raises UserError unless the heads divide the width."""
    tower = _tower(self, spec)
    if tower["width"] % tower["heads"]:
      raise errors.UserError(
        f"{source.where(self.theirs)}: {last(self.theirs)}={tower['heads']} "
        f"must divide the width, {tower['width']}."
      )


@dataclasses.dataclass(frozen=True)
class Fixed(Row):
  """A field of ours that has the same value in every model of the format.

  Attributes:
    ours: our field, such as "text.causal".
    value: its value.
    also, free: see `Row`.
    in_weights: see `Field`.
  """

  ours: str
  value: Any
  also: tuple[Any, ...] = ()
  in_weights: bool = False
  free: bool = False

  def read(self, source: Source, spec: Spec) -> None:
    """Stores the value."""
    if not self.in_weights:
      source.report.infer(self.ours, self.value, "format")
    put(spec, self.ours, self.value)


@dataclasses.dataclass(frozen=True)
class Written(Row):
  """A field of theirs that is written, without a field of ours.

  Attributes:
    theirs: their field, such as "text_config.attention_dropout".
    value: the value to write, or a function of the description.
    kind: the kind of its values; None if any value may be read.
    ours: the tower that it belongs to, "image" or "text".
  """

  theirs: str
  value: Any
  kind: Kind | None = None
  ours: str = ""

  def read(self, source: Source, spec: Spec) -> None:
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

  Attributes:
    theirs: its name.
    kind: the kind of its values; None for any value.
    ours: the tower that it belongs to.
  """

  theirs: str
  kind: Kind | None = None
  ours: str = ""

  def read(self, source: Source, spec: Spec) -> None:
    """Checks the field, if the file has it."""
    if self.kind and source.given(self.theirs):
      source.read(self.theirs, self.kind)


def only(theirs: str, *values: Any) -> Other:
  """Returns a row for a field for which only these values are supported."""
  return Other(theirs, exactly(*values))


@dataclasses.dataclass(frozen=True)
class Edge(Row):
  """Whether there are pixels that patches do not cover; after both sizes.

  Attributes:
    theirs: their field of the image size.
  """

  theirs: str = "image_size"
  ours: str = "drop_edge"

  def read(self, source: Source, spec: Spec) -> None:
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
