"""The report of a conversion: what became of every tensor, and warnings."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from clip_jax import errors, terminal

# Where a field of the description comes from.
SOURCES = ("config", "shape", "format", "flag", "archive")
_SHOWN = 10
# Descriptions of the lists of tensors, in the order in which they are shown.
_ACCOUNT = {
  "stripped": "stripped from the names",
  "left_out": "left out beside the model",
  "ignored": "ignored",
  "missing": "missing",
  "unexpected": "unexpected",
  "shape_mismatch": "of another shape",
}


@dataclasses.dataclass
class Report:
  """The report of reading a checkpoint, or of a conversion.

  Attributes:
    source_format: name of the format read.
    target_format: name of the format written, "" if none.
    tensors: number of tensors in the source.
    mapped: number of source tensors that became parameters.
    stripped: wrappers and prefixes around the names, from the outside.
    left_out: other content of the file, such as an optimizer or an epoch.
    ignored: names of tensors that are not parameters.
    missing: tensors that the model needs and the source lacks.
    unexpected: tensors of the source that do not belong to the model.
    shape_mismatch: dicts of "key", "got" and "want".
    inferred: field -> {"value", "source"}, for what is not in the weights.
    warnings: messages for the user.
    facts: sizes, digests, dtypes, counts.
  """

  source_format: str
  target_format: str = ""
  tensors: int = 0
  mapped: int = 0
  stripped: list[str] = dataclasses.field(default_factory=list)
  left_out: list[str] = dataclasses.field(default_factory=list)
  ignored: list[str] = dataclasses.field(default_factory=list)
  missing: list[str] = dataclasses.field(default_factory=list)
  unexpected: list[str] = dataclasses.field(default_factory=list)
  shape_mismatch: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  inferred: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  warnings: list[str] = dataclasses.field(default_factory=list)
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def exact(self) -> bool:
    """Whether every tensor was accounted for."""
    return not (self.missing or self.unexpected or self.shape_mismatch)

  def infer(self, field: str, value: Any, source: str) -> Any:
    """Returns `value`, and notes that `field` has it from `source`."""
    assert source in SOURCES, source
    self.inferred[field] = {"value": value, "source": source}
    return value

  def to_dict(self) -> dict[str, Any]:
    """Returns the report as plain data."""
    return dataclasses.asdict(self)

  def to_text(self) -> str:
    """Returns the report as text."""
    arrow = f" -> {self.target_format}" if self.target_format else ""
    lines = [
      f"{self.source_format}{arrow}: {self.mapped} of {self.tensors} tensors "
      f"mapped, {len(self.ignored)} ignored"
    ]
    lines += self.account()
    rows = [
      (field, _words(entry["value"]), entry["source"])
      for field, entry in self.inferred.items()
    ]
    if rows:
      header = ("not in the weights", "value", "from")
      lines += ["", terminal.table(header, rows)]
    lines += [f"Warning: {warning}" for warning in self.warnings]
    return "\n".join(lines)

  def account(self, *, ignored: bool = True) -> list[str]:
    """Returns a line of text for each list of tensors that is not empty."""
    lines = []
    for field, what in _ACCOUNT.items():
      names = [
        x if isinstance(x, str) else "{key}: got {got}, want {want}".format(**x)
        for x in getattr(self, field)
      ]
      if names and (ignored or field != "ignored"):
        lines.append(f"  {what}: {shown(names)}")
    return lines


class MismatchError(errors.UserError):
  """The tensors of a checkpoint do not match those of its model."""

  def __init__(self, report: Report, *, name: str, hint: str = ""):
    super().__init__(
      "\n".join(
        [
          f"{name} is not the {report.source_format} model that it looks like: "
          "every tensor must have exactly one place.",
          *report.account(ignored=False),
          hint or "Check that the weights and the config belong together.",
        ]
      )
    )
    self.report = report
    self.payload = report.to_dict()


def shown(names: Sequence[str], most: int = _SHOWN) -> str:
  """Returns the first names, joined, and how many there are if not all."""
  more = f", … ({len(names)} in all)" if len(names) > most else ""
  return ", ".join(names[:most]) + more


def _words(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:g}"
  if isinstance(value, list | tuple):
    return ", ".join(map(_words, value))
  return str(value)
