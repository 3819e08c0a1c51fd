"""A family of models in a format: tensor names, config fields and defaults."""

import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import engine
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import fields as fields_lib
from clip_jax.convert.engine.names import Names
from clip_jax.models import variants


@dataclasses.dataclass(frozen=True)
class Family:
  """The tables of one family of models in a format.

  Attributes:
    name: the format's name for the family.
    names: tables of tensor names.
    fields: rows for the config's fields, in the order in which they are read.
    defaults: default values of the config's fields, in sections.
  """

  name: str
  names: Names
  fields: tuple[fields_lib.Row, ...]
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def describe(self, source: fields_lib.ConfigReader) -> dict[str, Any]:
    """Returns the description of a config's model.

    It has the towers of the source. What no field says, such as the tokenizer,
    is missing.

    Raises:
      UserError: a field has a value that is not supported.
    """
    found: dict[str, Any] = {}
    rows = self._rows(source)
    for row in rows:
      row.read(source, found)
    for row in rows:
      row.check(source, found)
    return found

  def _rows(self, source: fields_lib.ConfigReader) -> list[fields_lib.Row]:
    """Returns the rows of a config's towers."""
    parts = set(source.towers)
    if len(parts) == 2:  # Includes rows that are about no tower.
      return list(self.fields)
    return [row for row in self.fields if row.ours.split(".")[0] in parts]

  def config(self, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config for a description of both towers."""
    described = normal_form(spec)
    found: dict[str, Any] = {}
    for row in self.fields:
      row.write(described, found)
    return found

  def entries(
    self, spec: Mapping[str, Any], variables: Mapping[str, Any] | None = None
  ) -> list[engine.Entry]:
    """Returns the entry of each tensor (`Names.entries`)."""
    return self.names.entries(spec, variables)

  def refusals(self, spec: Mapping[str, Any]) -> list[str]:
    """Returns a message for each field that this family's config cannot say.

    To find them, the config is written, read again, and compared.
    """
    problems, other, wanted = [], [], normal_form(spec)
    for row in self.fields:
      tower, _, field = row.ours.partition(".")
      kind = wanted[tower]["kind"] if field == "kind" else None
      if isinstance(row, fields_lib.Fixed) and kind not in (None, row.value):
        problems.append(refusal(row.ours, kind, (row.value,)))
        small = {**engine.STAND_INS, tower: engine.stand_in(tower, row.value)}
        small = engine.resolve({"embed_dim": 1, **small})
        wanted[tower] = normal_form(small)[tower]
        other.append(tower)
    source = fields_lib.ConfigReader(
      as_json(self.config(wanted)),
      self.defaults,
      where={"": "The config that it would get"},
      report=report_lib.Report(""),
      remedy="",  # There is no file yet.
    )
    found: dict[str, Any] = {}
    try:
      for row in self.fields:
        row.read(source, found)
      again = normal_form(engine.resolve(found))
      problems += self.differences(wanted, again, skip=other)
      for row in () if problems else self.fields:
        row.check(source, found)
    except errors.UserError as error:
      problems.append(str(error).removesuffix("."))
    return problems

  def differences(
    self,
    wanted: Mapping[str, Any],
    found: Mapping[str, Any],
    *,
    skip: Collection[str] = (),
  ) -> list[str]:
    """Returns a message for each field that differs in a description read back.

    Args:
      wanted: the description, as of `normal_form`.
      found: the description read back, as of `normal_form`, with towers of the
        same kinds.
      skip: towers that are not compared.
    """
    rows = {row.ours: row for row in self.fields}
    compared = [
      f"{tower}.{field}"
      for tower in engine.towers(found)
      if tower not in skip
      for field in found[tower]
    ]
    compared += [x for x in rows if x in found and x not in ("image", "text")]
    problems = []
    for field in compared:
      want, got = fields_lib.get(wanted, field), fields_lib.get(found, field)
      row = rows.get(field, fields_lib.Row())
      if not row.means_same(want, got):
        problems.append(refusal(field, want, row.values(got)))
    return problems


def as_json(value: Any) -> Any:
  """Returns `value` as after JSON, with lists instead of tuples."""
  return json.loads(json.dumps(value))


def refusal(field: str, value: Any, allowed: tuple[Any, ...]) -> str:
  """Returns the message for a field's value that a format cannot hold."""
  shown = " or ".join(map(repr, allowed))
  return f"{field}={value!r} is not supported by this format (only {shown})"


def published(name: str, tower: str, fields: str) -> dict[str, Any]:
  """Returns the fields, named in a text, of a published model's tower."""
  described = variants.spec(name)[tower]
  return {field: described[field] for field in fields.split()}


def fixed_fields(
  spec: Mapping[str, Any],
  kinds: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> Iterator[tuple[str, tuple[Any, ...]]]:
  """Yields (field, its allowed values), for fields with fixed values.

  Args:
    spec: a description.
    kinds: tower -> kinds that the format has -> field -> its only value.
  """
  for tower in engine.towers(spec):
    yield f"{tower}.kind", tuple(kinds[tower])
    for field, value in kinds[tower].get(spec[tower]["kind"], {}).items():
      yield f"{tower}.{field}", (value,)


def not_allowed(
  spec: Mapping[str, Any], allowed: Iterable[tuple[str, tuple[Any, ...]]]
) -> list[str]:
  """Returns a refusal of each field whose value is not allowed.

  Args:
    spec: a description.
    allowed: (field, its allowed values).
  """
  return [
    refusal(field, value, values)
    for field, values in allowed
    if (value := fields_lib.get(spec, field)) not in values
  ]


def changes(
  wanted: Mapping[str, Any], found: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
  """Yields (field, wanted, found) where fields of towers differ."""
  wanted, found = normal_form(wanted), normal_form(found)
  for tower in engine.towers(wanted):
    pair = wanted[tower], found.get(tower, {})
    for field in sorted(pair[0].keys() | pair[1].keys()):
      want, got = (fields.get(field) for fields in pair)
      if want != got:
        yield f"{tower}.{field}", want, got


def normal_form(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a description in a normal form, in order to be compared.

  Values are those of JSON; sizes that follow from others are filled in; flags
  that have no effect are off.
  """
  found = as_json(spec)
  for tower in engine.towers(found):
    fields = found[tower]
    if fields.get("mlp_dim", 0) is None:
      fields["mlp_dim"] = 4 * fields["width"]
    if "class_position" in fields:
      fields["class_position"] &= fields["class_token"]
    if "drop_edge" in fields:
      fields["drop_edge"] &= fields["image_size"] % fields["patch_size"] > 0
  return found
