"""A config that is read, with its defaults, and the kinds of its values.

Fields are named by dotted paths, such as "text_config.hidden_act".
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import report as report_lib


class Wrong(ValueError):
  """A value that is not allowed; the message says what is allowed."""


@dataclasses.dataclass(frozen=True)
class Kind:
  """The values of a kind of field, and their translation both ways.

  Attributes:
    allowed: a description of their allowed values.
    read: returns our value; raises ValueError if theirs is not allowed.
    write: returns their value; if they have none, it is one that is read as
      another value of ours.
    values: our values, if they are few.
  """

  allowed: str
  read: Callable[[Any], Any]
  write: Callable[[Any], Any] = lambda value: value
  values: tuple[Any, ...] = ()


class ConfigReader:
  """A config that is read, with the defaults of its classes.

  Args:
    values: the values in the file, in nested sections.
    defaults: default values of the config's classes, in the same sections.
    where: names of sections in messages; "" is the whole file.
    report: the report that notes the values of our fields.
    overrides: the user's values of fields of every tower, by our name.
    towers: the towers that the config describes.
    remedy: what to do about a wrong value, for messages; "" is nothing.
  """

  def __init__(
    self,
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    where: Mapping[str, str],
    report: report_lib.Report,
    overrides: Mapping[str, Any] | None = None,
    towers: tuple[str, ...] = ("image", "text"),
    remedy: str = "Correct the file, or fetch it again.",
  ):
    self._values = values
    self._defaults = defaults
    self._where = where
    self.overrides: dict[str, Any] = dict(overrides or {})
    self._remedy = remedy
    self.report = report
    self.towers = towers

  def given(self, theirs: str) -> bool:
    """Whether the file itself has the field."""
    return has(self._values, theirs)

  def get(self, theirs: str) -> Any:
    """Returns the value of a field in the file, or its default.

    Raises:
      UserError: there is neither.
    """
    for values in (self._values, self._defaults):
      if has(values, theirs):
        return get(values, theirs)
    raise errors.UserError(
      f"{self.where(theirs)} lacks {last(theirs)}; fetch or make the file "
      "again."
    )

  def where(self, theirs: str) -> str:
    """Returns the name, in messages, of a field's section."""
    section = theirs.rpartition(".")[0]
    return self._where.get(section) or f"{self._where['']}, {section}"

  def read(self, theirs: str, kind: Kind) -> Any:
    """Returns the value of a field, translated into ours.

    Raises:
      UserError: the value is not allowed.
    """
    value = self.get(theirs)
    try:
      return kind.read(value)
    except (ValueError, TypeError, OverflowError) as error:
      words = str(error) if isinstance(error, Wrong) else kind.allowed
      raise self.wrong(theirs, words) from None

  def wrong(self, theirs: str, allowed: str) -> errors.UserError:
    """Returns the error for a field whose value is not allowed."""
    return errors.UserError(
      f"{self.where(theirs)}: {last(theirs)} must be {allowed}; got "
      f"{self.get(theirs)!r:.100}. {self._remedy}".rstrip()
    )

  def note(self, ours: str, value: Any, theirs: str) -> None:
    """Notes that `ours` comes from their field, or from its default."""
    said = "config" if self.given(theirs) else "format"
    self.report.infer(ours, value, said)

  def override(self, ours: str, value: Any, theirs: str) -> Any:
    """Returns the user's value for a field if there is one, else `value`."""
    field = last(ours)
    chosen = self.overrides.get(field)
    if chosen in (None, value):
      return value
    self.report.infer(ours, chosen, "flag")
    says = "which says" if self.given(theirs) else "whose default is"
    self.report.warnings.append(
      f"--{field} {chosen} overrides {self.where(theirs)}, {says} "
      f"{last(theirs)}={self.get(theirs)!r:.100}."
    )
    return chosen


def has(values: Mapping[str, Any], path: str) -> bool:
  """Whether nested mappings have a value at a dotted path."""
  for name in path.split("."):
    if not isinstance(values, Mapping) or name not in values:
      return False
    values = values[name]
  return True


def get(values: Mapping[str, Any], path: str) -> Any:
  """Returns the value in nested mappings at a dotted path."""
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


def last(path: str) -> str:
  """Returns the last name of a dotted path."""
  return path.rpartition(".")[2]
