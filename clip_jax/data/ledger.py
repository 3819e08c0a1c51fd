"""The account of bad records: which, why, what stood in for them, how many."""

import collections
import json
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from clip_jax import errors

# A fraction of fewer examples than this says little: until then the limit is
# the fraction of this many (or of the whole source, if that is shorter).
SETTLED_EXAMPLES = 10_000
_SHOWN_KEYS = 5


class Problem(NamedTuple):
  """One bad record that a row of a batch met.

  Attributes:
    index: global example index of the row.
    key: key of the bad record.
    reason: one word.
    substitute: slot of the record that the row holds instead.
  """

  index: int
  key: str
  reason: str
  substitute: int


class Ledger:
  """Counts problems by reason and writes them as JSON lines."""

  def __init__(
    self,
    path: str | os.PathLike | None,
    *,
    records: int,
    max_bad_fraction: float,
  ):
    """Opens the ledger at `path`, with what an earlier run left there.

    Args:
      path: the JSON lines file; None keeps the account in memory only.
      records: length of the source.
      max_bad_fraction: share of bad records among those seen that `check`
        lets pass.
    """
    self._path = None if path is None else pathlib.Path(path)
    self._records = records
    self._max_bad_fraction = max_bad_fraction
    self._lines: list[dict] = self._read()
    self._recount()

  @property
  def bad(self) -> int:
    """Number of bad records met so far; one met twice counts twice."""
    return len(self._lines)

  def add(self, step: int, problems: Sequence[Problem]) -> None:
    """Enters the `problems` of the batch of `step`."""
    if not problems:
      return
    lines = [{"step": step} | problem._asdict() for problem in problems]
    self._lines += lines
    self._recount(lines)
    if self._path is not None:
      try:
        with open(self._path, "a", encoding="utf-8") as file:
          file.write("".join(map(_to_line, lines)))
      except OSError as error:  # A write does not name its file, an open does.
        raise OSError(error.errno, error.strerror, str(self._path)) from error

  def truncate_after(self, step: int) -> None:
    """Forgets what was entered after `step`, so that it can be run again."""
    kept = [line for line in self._lines if line["step"] <= step]
    self._lines = kept
    self._recount()
    if self._path is None or not self._path.exists():
      return
    partial = self._path.with_name(self._path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
      file.write("".join(map(_to_line, kept)))
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, self._path)

  def check(self, bad: int, seen: int) -> None:
    """Raises `UserError` where `bad` of `seen` examples is too many."""
    settled = max(seen, min(self._records, SETTLED_EXAMPLES))
    limit = self._max_bad_fraction * settled
    if bad <= limit:
      return
    reasons = ", ".join(
      f"{count} {reason}" for reason, count in self.counts.most_common()
    )
    raise errors.UserError(
      f"{bad} bad records among {seen} examples; data.max_bad_fraction="
      f"{self._max_bad_fraction:g} allows {limit:g}. Reasons: "
      f"{reasons or 'not known to this process'}. First keys: "
      f"{', '.join(self.keys[:_SHOWN_KEYS]) or 'none here'}. Mend the data"
      " (`clip-jax data inspect` lists what is wrong) or raise the limit."
    )

  def _recount(self, lines: list[dict] | None = None) -> None:
    if lines is None:
      self.counts: collections.Counter[str] = collections.Counter()
      self.keys: list[str] = []
      self._known_keys: set[str] = set()
      lines = self._lines
    for line in lines:
      self.counts[line["reason"]] += 1
      if line["key"] not in self._known_keys:
        self._known_keys.add(line["key"])
        self.keys.append(line["key"])

  def _read(self) -> list[dict]:
    if self._path is None or not self._path.exists():
      return []
    lines = []
    for line in self._path.read_text("utf-8").splitlines():
      try:
        lines.append(json.loads(line))
      except json.JSONDecodeError:
        break  # A kill in the middle of a write tears the last line.
    return lines


def _to_line(line: dict) -> str:
  # ASCII only: a key with a line separator in it must stay on one line.
  return json.dumps(line) + "\n"
