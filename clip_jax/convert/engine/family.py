"""A family of models in a format: names, fields and defaults."""

import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import entries as entries_lib
from clip_jax.convert.engine import fields as fields_lib
from clip_jax.convert.engine.names import Names


@dataclasses.dataclass(frozen=True)
class Family:
  """What a format says of one family of models, as tables.

  Attributes:
    name: what the format calls the family.
    names: of its tensors.
    fields: of its config, in the order in which they are read.
    defaults: of its config's fields, in sections.
  """

  name: str
  names: Names
  fields: tuple[fields_lib.Row, ...]
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def describe(self, source: fields_lib.Source) -> dict[str, Any]:
    """Returns the description that a config stands for.

    It has the towers of the source, and lacks what the fields do not say, such
    as the tokenizer.

    Raises:
      UserError: a field has a value that no model here has.
    """
    found: dict[str, Any] = {}
    for row in self._rows(source):
      row.read(source, found)
    self._check(source, found)
    return found

  def _check(self, source: fields_lib.Source, found: dict[str, Any]) -> None:
    for row in self._rows(source):
      row.check(source, found)

  def _rows(self, source: fields_lib.Source) -> Iterator[fields_lib.Row]:
    """Yields the rows of the towers that a config is of."""
    for row in self.fields:
      tower = row.ours.split(".")[0]
      if tower in source.towers or (
        tower not in ("image", "text") and len(source.towers) == 2
      ):
        yield row

  def config(self, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config that stands for a description of both towers."""
    described = normal(spec)
    found: dict[str, Any] = {}
    for row in self.fields:
      row.write(described, found)
    return found

  def entries(
    self, spec: Mapping[str, Any], variables: Mapping[str, Any] | None = None
  ) -> list[entries_lib.Entry]:
    """Returns where each tensor goes (`Names.entries`)."""
    return self.names.entries(spec, variables)

  def refusals(self, spec: Mapping[str, Any]) -> list[str]:
    """Returns the fields that a config of this family cannot say.

    They are those that do not come back: the config is written and read again.
    """
    problems, wanted = [], normal(spec)
    kinds = {
      row.ours: row.value
      for row in self.fields
      if isinstance(row, fields_lib.Fixed) and row.ours.endswith(".kind")
    }
    other = [
      tower
      for tower in entries_lib.towers(wanted)
      if kinds.get(f"{tower}.kind", wanted[tower]["kind"])
      != wanted[tower]["kind"]
    ]
    for tower in other:
      kind = kinds[f"{tower}.kind"]
      problems.append(refusal(f"{tower}.kind", wanted[tower]["kind"], (kind,)))
      wanted[tower] = _stand_in(tower, kind)
    source = fields_lib.Source(
      json.loads(json.dumps(self.config(wanted))),
      self.defaults,
      where={"": "The config that it would get"},
      report=report_lib.Report(""),
    )
    found: dict[str, Any] = {}
    try:
      for row in self._rows(source):
        row.read(source, found)
      again = normal(entries_lib.resolve(found))
      problems += self.differences(wanted, again, skip=other)
      if not problems:
        self._check(source, found)
    except errors.UserError as error:
      problems.append(str(error))
    return problems

  def differences(
    self,
    wanted: Mapping[str, Any],
    found: Mapping[str, Any],
    *,
    skip: Collection[str] = (),
  ) -> list[str]:
    """Returns how a description that came back is another one.

    Args:
      wanted: the description, as `normal` returns it.
      found: what came back, too, with towers of the same kinds.
      skip: towers that are not compared.
    """
    problems = []
    rows = {row.ours: row for row in self.fields}
    for field in _compared(found, rows):
      if field.split(".")[0] in skip:
        continue
      want, got = fields_lib.get(wanted, field), fields_lib.get(found, field)
      row = rows.get(field)
      if not (row.holds(want, got) if row else want == got):
        allowed = row.values(got) if row else (got,)
        problems.append(refusal(field, want, allowed))
    return problems


def refusal(field: str, value: Any, allowed: tuple[Any, ...]) -> str:
  """Returns how a field is refused that a format cannot say."""
  shown = " or ".join(map(repr, allowed))
  return f"{field}={value!r} is not supported by this format (only {shown})"


def pinned(
  spec: Mapping[str, Any],
  kinds: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> Iterator[tuple[str, tuple[Any, ...]]]:
  """Yields the fields of both towers that a format has one value of.

  Args:
    spec: a description.
    kinds: tower -> its kinds there -> field -> value.
  """
  for tower in entries_lib.towers(spec):
    yield f"{tower}.kind", tuple(kinds[tower])
    for field, value in kinds[tower].get(spec[tower]["kind"], {}).items():
      yield f"{tower}.{field}", (value,)


def unlike(
  spec: Mapping[str, Any], allowed: Iterable[tuple[str, tuple[Any, ...]]]
) -> list[str]:
  """Returns the refusals of fields that have none of their allowed values."""
  return [
    refusal(field, value, values)
    for field, values in allowed
    if (value := fields_lib.get(spec, field)) not in values
  ]


def _compared(found, rows) -> Iterator[str]:
  """Yields the fields of both towers, and those of the whole that rows say."""
  for tower in entries_lib.towers(found):
    yield from (f"{tower}.{field}" for field in found[tower])
  whole = found.keys() - {"image", "text"}
  yield from (row for row in rows if row in whole)


def _stand_in(tower: str, kind: str) -> dict[str, Any]:
  """Returns a small tower of a kind, for one that the format does not have."""
  sizes = {"width": 1, "depth": 1, "heads": 1, "vocab_size": 1}
  sizes |= {"context_length": 3, "positions": 3, "token_types": 1}
  sizes |= {"image_size": 1, "patch_size": 1}
  kinds = entries_lib.variants.TOWERS[tower]
  known = {field.name for field in dataclasses.fields(kinds[kind])}
  small = {"kind": kind, **{k: v for k, v in sizes.items() if k in known}}
  spec = {"embed_dim": 1, **entries_lib.STAND_INS, tower: small}
  return normal(entries_lib.resolve(spec))[tower]


def normal(spec: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a description with what makes no difference in one form.

  Values are those of JSON; sizes that follow from others are worked out; flags
  that mean nothing beside others are off.
  """
  found = json.loads(json.dumps(spec))
  for tower in entries_lib.towers(found):
    fields = found[tower]
    if fields.get("mlp_dim", 0) is None:
      fields["mlp_dim"] = 4 * fields["width"]
    if "class_position" in fields:
      fields["class_position"] &= fields["class_token"]
    if "drop_edge" in fields:
      fields["drop_edge"] &= fields["image_size"] % fields["patch_size"] > 0
  return found
