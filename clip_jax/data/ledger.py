"""The ledger of bad records: key, reason, and the record read instead."""

import collections
import json
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from clip_jax import errors, json_lines, terminal, whole_files

# A fraction of fewer examples than this says little: until then the limit is
# the fraction of this many (or of the whole source, if that is shorter).
SETTLED_EXAMPLES = 10_000
_SHOWN_KEYS = 5
_MOST_KEYS = 200  # Different bad records are counted up to this many.
# The fields of a line that are read back, and their types.
_FIELDS = {"step": int, "key": str, "reason": str}


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
  """Counts problems by reason and writes them as JSON lines.

  The lines are kept on disk only: memory does not grow with their number.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    records: int,
    max_bad_fraction: float,
    lost: int = 0,
  ):
    """Opens the ledger at `path`, with what an earlier run left there.

    Args:
      path: the JSON lines file; made once there is something to write.
      records: length of the source.
      max_bad_fraction: share of bad records among those seen that `check`
        lets pass.
      lost: records that the source had besides, which count as bad.
    """
    self._path = pathlib.Path(path)
    self._records = records
    self._lost = lost
    self._max_bad_fraction = max_bad_fraction
    self._forget()
    for _, line in json_lines.read(self._path, _FIELDS):
      if line is not None:
        self._count(line)

  @property
  def bad(self) -> int:
    """Number of bad records met so far; one met twice counts twice."""
    return self.counts.total()

  @property
  def different(self) -> int:
    """Number of different bad records met so far, counted up to 200."""
    return len(self._keys)

  def add(self, step: int, problems: Sequence[Problem]) -> None:
    """Writes the `problems` of the batch of `step`."""
    if not problems:
      return
    lines = [{"step": step} | problem._asdict() for problem in problems]
    for line in lines:
      self._count(line)
    with (
      whole_files.named(self._path),
      open(self._path, "a", encoding="utf-8") as file,
    ):
      file.write("".join(map(_to_line, lines)))

  def truncate_after(self, step: int) -> None:
    """Removes the lines written after `step`, which will be run again.

    A damaged line is moved to another file, with a warning.
    """
    self._forget()

    def keep(line: dict) -> bool:
      stays = line["step"] <= step
      if stays:
        self._count(line)
      return stays

    json_lines.rewrite(self._path, _FIELDS, keep)

  def check(self, bad: int, seen: int) -> None:
    """Raises `UserError` where `bad` of `seen` examples is too many."""
    settled = max(seen, min(self._records, SETTLED_EXAMPLES))
    # In a pass over the source, the lost records would have been met, too.
    lost = self._lost * settled / self._records if self._lost else 0
    # Not of `limit`, whose rounding would decide where both are equal.
    fraction = (bad + lost) / (settled + lost) if bad else 0
    # One record can stand in for several bad ones: 1 lets any number pass.
    if fraction <= self._max_bad_fraction or self._max_bad_fraction == 1:
      return
    limit = max(0, self._max_bad_fraction * (settled + lost) - lost)
    reasons = ", ".join(
      f"{count} {reason}" for reason, count in self.counts.most_common()
    )
    least = (
      ", the fewest that the limit is computed from" if settled > seen else ""
    )
    share = (
      f", and {terminal.counted(self._lost, 'record')} lost"
      if self._lost
      else ""
    )
    again = ""
    if bad == self.bad > len(self._keys) and len(self._keys) < _MOST_KEYS:
      ones = terminal.counted(len(self._keys), "different one")
      again = f" ({ones}, met again in later passes)"
    raise errors.UserError(
      f"{terminal.counted(bad, 'bad record')} among "
      f"{terminal.counted(seen, 'example')}{again}{share}; "
      "data.max_bad_fraction="
      f"{self._max_bad_fraction:g} allows {limit:g} ("
      f"{100 * self._max_bad_fraction:g} % of {settled} examples{least}"
      f"{', less the lost ones' if self._lost else ''}). "
      "Reasons: "
      f"{reasons or 'not known to this process'}. First keys: "
      f"{', '.join(map(terminal.escaped, self.first_keys)) or 'none here'}. "
      "Mend the data"
      " (`clip-jax data inspect` lists what is wrong) or raise the limit."
    )

  def _forget(self) -> None:
    self.counts: collections.Counter[str] = collections.Counter()
    self.first_keys: list[str] = []
    self._keys: set[str] = set()

  def _count(self, line: dict) -> None:
    self.counts[line["reason"]] += 1
    key = line["key"]
    if len(self._keys) < _MOST_KEYS:
      self._keys.add(key)
    if len(self.first_keys) < _SHOWN_KEYS and key not in self.first_keys:
      self.first_keys.append(key)


def _to_line(line: dict) -> str:
  # ASCII only: a key with a line separator in it must stay on one line.
  return json.dumps(line) + "\n"
