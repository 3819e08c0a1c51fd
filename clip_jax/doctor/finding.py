"""One thing that the doctor found."""

import dataclasses
from collections.abc import Iterable
from typing import Any

OK, WARNING, PROBLEM = "ok", "warning", "problem"
_WORST_LAST = (OK, WARNING, PROBLEM)


@dataclasses.dataclass(frozen=True)
class Finding:
  """One check, its verdict and its figures.

  Attributes:
    check: a short name.
    verdict: "ok", "warning" or "problem".
    message: a sentence: what was found and, unless it is fine, what to do.
    facts: figures by name; seconds, bytes and fractions as their names say.
  """

  check: str
  verdict: str
  message: str
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def worst(findings: Iterable[Finding]) -> str:
  """Returns the worst verdict; "ok" where there are no findings."""
  return max(
    (finding.verdict for finding in findings),
    key=_WORST_LAST.index,
    default=OK,
  )
