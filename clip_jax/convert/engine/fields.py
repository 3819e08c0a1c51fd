"""The fields of a format's config as rows, each of which reads and writes.

    Field("text_config.num_hidden_layers", "text.depth", INTEGER)

reads their field into ours, checked; says in the report where the value comes
from; and writes it. A field that the format always has one value of is
`Fixed`, and one that only the format has is `Written`. What takes more than
one field is a class of the format's own, derived from `Row`.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import config_file
from clip_jax.convert import report as report_lib

# Beyond every model; a hostile number must not become a loop or an overflow.
MAX_INTEGER = 1 << 24
MAX_PIXELS = 1 << 14

Spec = dict[str, Any]


class Source:
  """A config that is read, with what its classes say where it is silent.

  Args:
    values: as they stand in the file; dots lead into sections.
    defaults: of the config's classes, in the same sections.
    where: what messages call a section; "" is the whole file.
    report: takes what is read under one of our names.
    told: what a user says of a field of every tower, such as "activation".
    towers: that the config is of.
  """

  def __init__(
    self,
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    where: Mapping[str, str],
    report: report_lib.Report,
    told: Mapping[str, Any] | None = None,
    towers: tuple[str, ...] = ("image", "text"),
  ):
    self._values = values
    self._defaults = defaults
    self._where = where
    self._told = told or {}
    self.report = report
    self.towers = towers

  def given(self, theirs: str) -> bool:
    """Whether the file itself says the field."""
    return has(self._values, theirs)

  def get(self, theirs: str) -> Any:
    """Returns a field as it stands, or its default.

    Raises:
      UserError: it has neither.
    """
    for values in (self._values, self._defaults):
      if has(values, theirs):
        return get(values, theirs)
    raise errors.UserError(
      f"{self.where(theirs)} lacks {_last(theirs)}; fetch or make the file "
      "again."
    )

  def where(self, theirs: str) -> str:
    """Returns what messages call the section that a field lies in."""
    section = theirs.rpartition(".")[0]
    return self._where.get(section) or f"{self._where['']}, {section}"

  def read(self, theirs: str, kind: "Kind") -> Any:
    """Returns a field in our words.

    Raises:
      UserError: its value is none of the kind's.
    """
    value = self.get(theirs)
    try:
      return kind.read(value)
    except (ValueError, TypeError, OverflowError) as error:
      words = str(error) if isinstance(error, _Wrong) else kind.allowed
      raise self.wrong(theirs, words) from None

  def wrong(self, theirs: str, allowed: str) -> errors.UserError:
    """Returns the error for a field of a wrong value."""
    return errors.UserError(
      f"{self.where(theirs)}: {_last(theirs)} must be {allowed}; got "
      f"{self.get(theirs)!r:.100}."
    )

  def note(self, ours: str, value: Any, theirs: str) -> None:
    """Notes that `ours` comes from their field, or from its default."""
    said = "config" if self.given(theirs) else "format"
    self.report.infer(ours, value, said)

  def settle(self, ours: str, value: Any, theirs: str) -> Any:
    """Returns what a user says instead of `value`, if anything."""
    field = _last(ours)
    told = self._told.get(field)
    if told in (None, value):
      return value
    self.report.infer(ours, told, "flag")
    self.report.warnings.append(
      f"--{field} {told} is not what {self.where(theirs)} says: "
      f"{self.get(theirs)}."
    )
    return told


class _Wrong(ValueError):
  """A wrong value, with what is allowed instead."""


@dataclasses.dataclass(frozen=True)
class Kind:
  """What values a field takes, both ways.

  Attributes:
    allowed: theirs, in words.
    read: returns ours; raises ValueError for what is not allowed.
    write: returns theirs; a value of ours that it has none for becomes one
      that is read as another.
    values: ours, where they are few.
  """

  allowed: str
  read: Callable[[Any], Any]
  write: Callable[[Any], Any] = lambda value: value
  values: tuple[Any, ...] = ()


def checked(
  allowed: str,
  holds: Callable[[Any], bool],
  convert: Callable[[Any], Any] = lambda value: value,
) -> Kind:
  """Returns the kind of values of which `holds` is true."""

  def read(value):
    if not holds(value):
      raise ValueError
    return convert(value)

  return Kind(allowed, read)


def is_number(value: Any) -> bool:
  """Whether a value of JSON is a finite number."""
  return type(value) in (int, float) and math.isfinite(value)


def up_to(most: int) -> Kind:
  """Returns the kind of a whole number from 1 to `most`."""
  return checked(
    f"a whole number from 1 to {most}",
    lambda x: type(x) is int and 1 <= x <= most,
  )


INTEGER = up_to(MAX_INTEGER)
TOKEN_ID = checked(
  f"the id of one token, from 0 to {MAX_INTEGER}",
  lambda x: type(x) is int and 0 <= x <= MAX_INTEGER,
)
NUMBER = checked("a finite number", is_number, float)
EPSILON = checked("from 0 to 1", lambda x: is_number(x) and 0 <= x < 1, float)


def _side(value: Any) -> int:
  sides = value if isinstance(value, list) else [value, value]
  if len(sides) != 2 or any(
    type(side) is not int or not 1 <= side <= MAX_PIXELS for side in sides
  ):
    raise ValueError
  if sides[0] != sides[1]:
    raise _Wrong("square, which all models here are")
  return sides[0]


# The side of a square: a number, or two equal ones.
PIXELS = Kind(f"a number of pixels, from 1 to {MAX_PIXELS}", _side)


def _channels(words: str, least: float) -> Kind:
  """Returns the kind of a mean or a deviation of each channel."""

  def holds(x):
    numbers = isinstance(x, list) and len(x) == 3 and all(map(is_number, x))
    return numbers and least <= min(x) <= max(x) <= config_file.MAX_CHANNEL

  return checked(words, holds, lambda x: [float(number) for number in x])


_THREE = "three numbers, red, green and blue"
MEANS = _channels(_THREE, -config_file.MAX_CHANNEL)
DEVIATIONS = _channels(f"{_THREE}, above 0", config_file.LEAST_DEVIATION)


_MAX_LOG_SCALE = 80.0  # Float32 ends at e^88.


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
  """Returns the kind of a field whose values have these meanings.

  Args:
    known: theirs -> ours; of several for one of ours, the first is written.
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


def exactly(*values: Any) -> Kind:
  """Returns the kind of a field that has one of these in all models here."""

  def read(found):
    if not any(found == x and type(found) is type(x) for x in values):
      raise ValueError
    return found

  return Kind(" or ".join(map(json.dumps, values)), read)


class Row:
  """A row of a format's fields; others add to it or replace its methods.

  Attributes:
    ours: our field that the row is about, "text.depth"; a bare "image" or
      "text" for a row about that tower as a whole, "" for one about none.
    also: other values of ours that mean the same there.
    free: any value of ours will do, for the model computes the same.
  """

  theirs: str  # Only rows that are about a field of theirs have it.
  ours: str
  also: tuple[Any, ...] = ()
  free: bool = False

  def read(self, source: Source, spec: Spec) -> None:
    """Adds what the config says to a description, or raises UserError."""

  def check(self, source: Source, spec: Spec) -> None:
    """Raises UserError where fields, all of them read, do not fit together."""

  def write(self, spec: Spec, config: dict[str, Any]) -> None:
    """Adds what a description says to a config; never raises."""

  def holds(self, value: Any, found: Any) -> bool:
    """Whether our `value`, written and read back as `found`, is the same."""
    return self.free or value == found or value in self.also

  def values(self, found: Any) -> tuple[Any, ...]:
    """Returns those of our values that the format has."""
    return (found, *self.also)


@dataclasses.dataclass(frozen=True)
class Field(Row):
  """A field of theirs that says one of ours.

  Attributes:
    theirs: with its sections, "text_config.hidden_act".
    ours: "text.activation".
    kind: its values.
    in_weights: the weights show the value, too, so the report leaves it out.
    free: as of every `Row`.
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
    """Returns our values, as far as they are few."""
    return self.kind.values or (found,)


@dataclasses.dataclass(frozen=True)
class Heads(Field):
  """A tower's number of heads, which must divide its width."""

  def check(self, source: Source, spec: Spec) -> None:
    """Compares the heads with the width."""
    tower = spec[self.ours.split(".")[0]]
    if tower["width"] % tower["heads"]:
      raise errors.UserError(
        f"{source.where(self.theirs)}: {_last(self.theirs)}={tower['heads']} "
        f"must divide the width, {tower['width']}."
      )


@dataclasses.dataclass(frozen=True)
class Fixed(Row):
  """A field of ours that has one value in every model of the format.

  Attributes:
    ours: "text.causal".
    value: that value.
    also, free: as of every `Row`.
    in_weights: as of a `Field`.
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
  """A field of theirs that is written, and says nothing that is ours.

  Attributes:
    theirs: "text_config.attention_dropout".
    value: what is written, or a function of the description.
    kind: what a config may say; None where it may say anything.
    ours: the tower that it belongs to, "image" or "text".
  """

  theirs: str
  value: Any
  kind: Kind | None = None
  ours: str = ""

  def read(self, source: Source, spec: Spec) -> None:
    """Checks the field, if it is of a kind."""
    if self.kind:
      source.read(self.theirs, self.kind)

  def write(self, spec: Spec, config: dict[str, Any]) -> None:
    """Writes the field."""
    value = self.value(spec) if callable(self.value) else self.value
    put(config, self.theirs, value)


def within(section: str, tower: str, rows: Iterable[Any]) -> tuple[Any, ...]:
  """Returns rows of a tower with their full names on both sides.

  Args:
    section: of their config that holds the tower; "" for none.
    tower: "image" or "text".
    rows: with names below both.
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
  """Returns the fields of a section, of these values, that no row is about."""
  known = {getattr(row, "theirs", "") for row in rows}
  return [field for field in values if f"{section}.{field}" not in known]


def has(values: Mapping[str, Any], path: str) -> bool:
  """Whether nested mappings hold something at a dotted path."""
  for name in path.split("."):
    if not isinstance(values, Mapping) or name not in values:
      return False
    values = values[name]
  return True


def get(values: Mapping[str, Any], path: str) -> Any:
  """Returns what nested mappings hold at a dotted path."""
  found: Any = values
  for name in path.split("."):
    found = found[name]
  return found


def put(values: dict[str, Any], path: str, value: Any) -> None:
  """Stores a value in nested mappings at a dotted path."""
  *sections, last = path.split(".")
  for name in sections:
    values = values.setdefault(name, {})
  values[last] = value


def _last(path: str) -> str:
  return path.rpartition(".")[2]
