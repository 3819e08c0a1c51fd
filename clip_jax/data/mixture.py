"""Several sources as one, each with its share, its epochs and its position.

`data.train` is an address, or a JSON object of addresses and weights:
`{"wds:a.tar": 2, "csv:b.tsv": 1}`. Every address begins with its scheme, so
that none begins like JSON.

Each source is read in an order of its own, so that none of its records comes
twice in an epoch of it. Where a run goes on with other sources or weights, each
source goes on where it stood: what a checkpoint holds is its `position`.
"""

import bisect
import dataclasses
import fractions
import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax import errors, json_text, terminal
from clip_jax.data import account as account_lib
from clip_jax.data import order, shares
from clip_jax.data import record as record_lib

_TEMPERED_PARTS = 10_000  # The sum of weights that a temperature gives.


@dataclasses.dataclass(frozen=True)
class Part:
  """One source of a mixture.

  Attributes:
    address: of its data.
    source: its records.
    weight: its share is this over the sum of all weights.
    start: its examples that came before the mixture began.
    tag: tells its order from those of others; 0 is that of a source alone.
  """

  address: str
  source: record_lib.Source
  weight: int
  start: int = 0
  tag: int = 0


def parse(text: str) -> dict[str, int] | None:
  """Returns addresses and weights, in lowest terms; None for one address.

  Args:
    text: of `data.train`: an address, or a JSON object of addresses and
      weights, or a JSON list of addresses.

  Raises:
    UserError: the text begins like JSON, but is not such an object or list.
  """
  if not text.lstrip().startswith(("{", "[", "(")):
    return None
  try:
    found = json_text.parse(
      text, what="data.train", kind=(dict, list), strict=True
    )
  except json_text.JsonError as error:
    spelled = json_text.of_python(text)
    todo = f"; write {spelled}" if spelled else ""
    said = str(error).removesuffix(json_text.AGAIN)
    raise errors.UserError(f"{said}: {text!r:.200}{todo}.") from None
  if isinstance(found, list):
    wrong = [x for x in found if not isinstance(x, str)]
    if wrong or len(set(map(str, found))) < len(found):
      raise errors.UserError(
        "data.train as a list has addresses, each once; weights go into an "
        f'object such as {{"wds:a.tar": 2, "csv:b.tsv": 1}}; got {text!r:.200}.'
      )
    found = dict.fromkeys(found, 1)
  if not found:
    raise errors.UserError(f"data.train={text!r} names no data.")
  return dict(zip(found, _whole(found), strict=True))


def _whole(weights: Mapping[str, Any]) -> list[int]:
  """Returns weights as whole numbers without a common divisor."""
  exact = []
  for address, weight in weights.items():
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 < weight < math.inf:
      raise errors.UserError(
        f"data.train: the weight of {address!r} must be a number above 0, got "
        f"{weight!r:.60}."
      )
    exact.append(fractions.Fraction(str(weight)))
  common = math.lcm(*(weight.denominator for weight in exact))
  numbers = [int(weight * common) for weight in exact]
  divisor = math.gcd(*numbers)
  numbers = [number // divisor for number in numbers]
  if sum(numbers) > shares.MOST:
    raise errors.UserError(
      "data.train: the weights must be in the ratio of whole numbers with a "
      f"sum of at most {shares.MOST:,}, such as 2 and 1, or 0.65 and 0.35; got "
      f"{', '.join(map(str, weights.values())):.200}."
    )
  return numbers


def tempered(
  weights: Sequence[int], records: Sequence[int], temperature: float
) -> list[int]:
  """Returns weights in which larger sources count more, in lowest terms.

  That is weight * records ** (1 / temperature), rounded to 10,000ths of the
  sum, but never to nothing: 1 gives all records the same number of passes, and
  the higher the temperature, the more often those of small sources come (as in
  Devlin, multilingual BERT, 2018, and Conneau et al., XLM-R, 2020, section 3.1,
  with alpha = 1 / temperature).

  Args:
    weights: of each source.
    records: the number of each, at least 1.
    temperature: above 0.
  """
  # In logarithms, of shares: at low temperatures powers are beyond all floats.
  with np.errstate(over="ignore"):
    powers = (np.log(records) - np.log(max(records))) / temperature
  logs = np.log(weights) + powers
  share = np.exp(logs - logs.max())
  parts = _TEMPERED_PARTS * share / share.sum()
  numbers = [max(1, round(part)) for part in parts.tolist()]
  divisor = math.gcd(*numbers)
  return [number // divisor for number in numbers]


@dataclasses.dataclass(frozen=True)
class MixedOrder:
  """The order of a mixture: example to slot.

  Attributes:
    seed: of the run.
    since: the first example of this mixture.
    records: of each source.
    weights: of each.
    starts: examples of each that came before.
    tags: of each.
  """

  seed: int
  since: int
  records: tuple[int, ...]
  weights: tuple[int, ...]
  starts: tuple[int, ...]
  tags: tuple[int, ...]

  def slot(self, g: int, *, attempt: int = 0) -> int:
    """Returns the slot that example `g` reads; another of the same source
    for each attempt."""
    part, before = shares.place(self.weights, g - self.since)
    found = order.record_index(
      self.starts[part] + before,
      seed=self.seed,
      records=self.records[part],
      attempt=attempt,
      tag=self.tags[part],
    )
    return sum(self.records[:part]) + found


class Mixture:
  """The records of several sources, one source after the other.

  The key of a record has the address of its source in front, where there are
  several, so that ledger and messages name it.
  """

  def __init__(
    self,
    parts: Sequence[Part],
    *,
    since: int = 0,
    gone: Sequence[Mapping[str, Any]] = (),
  ):
    """Makes the mixture.

    Args:
      parts: at least one, each with a record.
      since: the first example of the run that is of this mixture.
      gone: positions of sources that the run had before.
    """
    self.parts = tuple(
      part
      if part.tag or part.start or len(parts) == 1
      else dataclasses.replace(part, tag=_tag(part.source, since, number))
      for number, part in enumerate(parts)
    )
    self.since, self.gone = since, tuple(gone)
    self._ends = list(
      itertools.accumulate(len(part.source) for part in self.parts)
    )
    names = {part.source.class_names for part in self.parts}
    self._same_classes = len(names) == 1
    first = self.parts[0].source
    self.class_names = first.class_names if self._same_classes else None
    self.templates = first.templates if self._same_classes else None
    self.account = account_lib.merged(
      {part.address: account_lib.of(part.source) for part in self.parts}
    )

  @property
  def fingerprint(self) -> str:
    """A digest of sources and weights; that of the source where it is one."""
    if len(self.parts) == 1:
      return self.parts[0].source.fingerprint
    said = [(part.source.fingerprint, part.weight) for part in self.parts]
    return hashlib.sha256(repr(said).encode()).hexdigest()

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int) -> record_lib.Record:
    if not 0 <= index < len(self):
      raise IndexError(index)
    number = bisect.bisect_right(self._ends, index)
    part = self.parts[number]
    try:
      record = part.source[index - (self._ends[number - 1] if number else 0)]
    except record_lib.BadRecord as error:
      named = record_lib.BadRecord(error.reason, self._key(part, error.key))
      named.hint, named.advice = error.hint, error.advice
      raise named from error
    record = dataclasses.replace(record, key=self._key(part, record.key))
    if self._same_classes:
      return record
    return dataclasses.replace(record, label=None, labels=None, ignored=())

  def _key(self, part: Part, key: str) -> str:
    return key if len(self.parts) == 1 else f"{part.address}: {key}"

  def make_order(self, seed: int) -> MixedOrder:
    """Returns the order of the examples of a run with this seed."""
    return MixedOrder(
      seed,
      self.since,
      records=tuple(len(part.source) for part in self.parts),
      weights=tuple(part.weight for part in self.parts),
      starts=tuple(part.start for part in self.parts),
      tags=tuple(part.tag for part in self.parts),
    )

  def describe(self, examples: int) -> list[str]:
    """Returns a sentence about each source, in a run of so many examples."""
    total = sum(part.weight for part in self.parts)
    return [
      f"{terminal.escaped(part.address)}: {part.weight} of "
      f"{terminal.counted(total, 'example')}, "
      f"{terminal.counted(len(part.source), 'record')}, "
      f"{examples * part.weight / total / len(part.source):.3g} passes"
      for part in self.parts
    ]


def _tag(source: record_lib.Source, since: int, number: int) -> int:
  """Returns a number above 0, of a source that comes in at an example.

  The same records at two addresses must not come in the same order: an image
  would meet itself in every batch.

  Args:
    source: the records.
    since: the first example of the run that may be of this source.
    number: its place among the sources.
  """
  text = f"{since} {number} {source.fingerprint}"
  digest = hashlib.sha256(text.encode()).digest()
  return int.from_bytes(digest[:4], "little") or 1


def parts_of(source: record_lib.Source, address: str) -> tuple[Part, ...]:
  """Returns the sources of a mixture; any other is one, at `address`."""
  if isinstance(source, Mixture):
    return source.parts
  return (Part(address, source, 1),)


def position(
  source: record_lib.Source, *, address: str, batch_size: int
) -> dict[str, Any]:
  """Returns the counters of a checkpoint that lets a run change its data.

  Args:
    source: of the training pairs.
    address: of it, where it is no mixture.
    batch_size: rows of the global batch.
  """
  since, gone = 0, []
  if isinstance(source, Mixture):
    since, gone = source.since, [*map(dict, source.gone)]
  return {
    "since": since,
    "batch_size": batch_size,
    "parts": [
      {
        "address": part.address,
        "fingerprint": part.source.fingerprint,
        "weight": part.weight,
        "start": part.start,
        "tag": part.tag,
      }
      for part in parts_of(source, address)
    ],
    "gone": gone,
  }


def go_on(
  source: record_lib.Source,
  saved: Mapping[str, Any] | None,
  *,
  address: str,
  step: int,
  batch_size: int,
) -> record_lib.Source:
  """Returns `source` with each of its parts where a run has left it.

  Args:
    source: of the training pairs, as the config has them now.
    saved: of `position`, at the checkpoint; None of a new run.
    address: of `source`, where it is no mixture.
    step: updates done.
    batch_size: rows of the global batch now.
  """
  parts = parts_of(source, address)
  if saved is None:
    return source
  olds: list[Mapping[str, Any]] = saved["parts"]
  same = len(olds) == len(parts) and all(
    (_same_address(part, old) or _same_records(part, old))
    and old["weight"] == part.weight
    for part, old in zip(parts, olds, strict=True)
  )
  if same and saved["batch_size"] == batch_size:
    if not isinstance(source, Mixture) and _is_plain(saved):
      return source
    return Mixture(
      [_moved(part, old) for part, old in zip(parts, olds, strict=True)],
      since=saved["since"],
      gone=saved["gone"],
    )
  weights = [old["weight"] for old in olds]
  seen = shares.counts(weights, step * saved["batch_size"] - saved["since"])
  left: list[Mapping[str, Any]] = [
    {**old, "start": old["start"] + count}
    for old, count in zip(olds, seen, strict=True)
  ]
  left += saved["gone"]
  stood: dict[int, Mapping[str, Any]] = {}
  for wanted in (_same_address, _same_records):  # All by their addresses first.
    for number, part in enumerate(parts):
      old = next((x for x in left if wanted(part, x)), None)
      if number not in stood and old is not None:
        stood[number] = old
        left.remove(old)
  since = step * batch_size
  now = [
    _moved(part, stood[i])
    if i in stood
    else dataclasses.replace(part, tag=_tag(part.source, since, i))
    for i, part in enumerate(parts)
  ]
  return Mixture(now, since=since, gone=left)


def _is_plain(saved: Mapping[str, Any]) -> bool:
  """Whether the run had one source, from its first example on."""
  (part, *others) = saved["parts"]
  return not (others or part["start"] or part["tag"] or saved["since"])


def _same_address(part: Part, old: Mapping[str, Any]) -> bool:
  return part.address == old["address"]


def _same_records(part: Part, old: Mapping[str, Any]) -> bool:
  return part.source.fingerprint == old["fingerprint"]


def _moved(part: Part, old: Mapping[str, Any]) -> Part:
  return dataclasses.replace(part, start=old["start"], tag=old["tag"])
