"""Writes the balanced part of a source: match, count, decide, copy.

Every pair is accounted for: it stays, or is dropped because it is bad, holds no
query, or lost every draw of its queries.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clip_jax import errors, preprocess
from clip_jax.data import prepare
from clip_jax.data import record as record_lib
from clip_jax.data.curation import balancing, matching, survey
from clip_jax.data.curation import queries as queries_lib
from clip_jax.data.sources import views

COUNTS = "queries.tsv"
_TOP = 20


@dataclasses.dataclass(frozen=True)
class Rule:
  """What decides which pairs stay.

  Attributes:
    queries: the list.
    max_per_query: pairs that a query keeps, on average; or
    size: pairs that stay in all, on average; the threshold follows from it.
    seed: of the draws.
    ignore_case: whether capitals make no difference when queries are matched.
  """

  queries: queries_lib.Queries
  max_per_query: float | None = None
  size: int | None = None
  seed: int = 0
  ignore_case: bool = False

  def __post_init__(self) -> None:
    """Raises UserError unless exactly one limit is given, and above zero."""
    limits = {"max_per_query": self.max_per_query, "size": self.size}
    given = {name: value for name, value in limits.items() if value is not None}
    if len(given) != 1:
      raise errors.UserError(
        "Give either the most pairs of a query (max_per_query) or the number "
        f"of pairs in all (size); got {given or 'neither'}."
      )
    ((name, value),) = given.items()
    if not 0 < value < float("inf"):
      raise errors.UserError(f"{name}={value} must be above zero.")
    if self.ignore_case:  # What differs in capitals only is one query.
      object.__setattr__(self, "queries", self.queries.folded())
    if abs(self.seed) >= 2**63:
      raise errors.UserError(f"seed={self.seed} must have at most 63 bits.")

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields that identify the rule, as JSON has them."""
    return {
      "queries_digest": self.queries.digest,
      "max_per_query": self.max_per_query,
      "size": self.size,
      "seed": self.seed,
      "ignore_case": self.ignore_case,
    }


class _Examine:
  """Finds the queries of a record; picklable, for other processes."""

  columns: Mapping[str, np.dtype] = {"pair": np.dtype(np.uint64)}
  ragged: Mapping[str, np.dtype] = {"queries": np.dtype(np.uint32)}

  def __init__(self, rule: Rule, limits: preprocess.Limits):
    self._seed = rule.seed
    self._limits = limits
    self._matcher = matching.Matcher(
      rule.queries.texts, ignore_case=rule.ignore_case
    )
    # Queries are told by their positions, so that their order counts.
    texts = "\n".join(rule.queries.texts).encode()
    self.identity = (
      *(hashlib.sha256(texts).hexdigest(), rule.seed, rule.ignore_case),
      limits.max_pixels,
    )

  def __call__(self, record: record_lib.Record) -> Mapping[str, Any]:
    preprocess.check_header(record.image, limits=self._limits)
    # Keys of different shards may be equal.
    name = "\0".join((record.key, *record.texts))
    return {
      "pair": balancing.hash_text(name, seed=self._seed),
      "queries": self._matcher.find(record.texts),
    }


def curate(
  source: record_lib.Source,
  out: str | os.PathLike,
  rule: Rule,
  *,
  address: str = "",
  workers: int = 1,
  limits: preprocess.Limits = preprocess.DEFAULT_LIMITS,
  on_record: Callable[[int], None] | None = None,
  fill: survey.Fill | None = None,
) -> dict[str, Any]:
  """Writes the pairs of `source` that stay to `out`, for `arrayrecord:OUT`.

  The bytes written depend on source and rule alone. Keys, captions and labels
  are those of the source, and so is the order. A file `queries.tsv` beside the
  records has each query, its pairs before and after. The directory appears
  complete or not at all; where it is there already and was made of the same
  source by the same rule, nothing is done. What an interrupted run has found
  is not looked for again.

  Args:
    source: what to choose from.
    out: a new directory.
    rule: decides which pairs stay.
    address: where `source` came from, for the record.
    workers: processes that read and match; one does it in this process.
    limits: images beyond these are bad.
    on_record: called with the number of records examined.
    fill: reads and matches elsewhere (beam_runner.py).

  Returns:
    A dictionary: `pairs` in the source; `matched`, that hold a query; `kept`;
    `dropped` by reason, so that kept and dropped add up to pairs; `queries` in
    the list, `queries_matched`, `queries_limited`, that lose pairs;
    `limited_share` of all matches that are theirs; `threshold`; `expected`,
    the mean of `kept` over seeds; `entropy_bits` and `top`, the most frequent
    queries, before and after; and `written`, whether anything was.

  Raises:
    UserError: `out` holds something else, or no pair stays.
  """
  errors.check_out(out)
  how = ("curate", sorted(rule.to_dict().items()))
  nothing = np.zeros(0, np.int64)
  fingerprint = views.Part(source, nothing, *how).fingerprint
  if (made := prepare.existing(out, fingerprint, limits)) is not None:
    return made.get("curation", {}) | {"written": False}
  with prepare.partial_directory(out) as partial:
    found = survey.survey(
      source,
      _Examine(rule, limits),
      workers=workers,
      keep=partial / prepare.FOUND,
      on_record=on_record,
      fill=fill,
    )
    starts = np.concatenate([[0], np.cumsum(found.lengths["queries"])])
    matches = balancing.Matches(
      found.columns["pair"], starts, found.values["queries"]
    )
    stays, said, table = _decided(matches, rule, found.bad())
    prepare.prepare(
      views.Part(source, np.flatnonzero(stays), *how),
      out,
      address=address,
      limits=limits,
      about={"curation": said},
      beside={COUNTS: table},
      partial=partial,
    )
  return said | {"written": True}


def _decided(
  matches: balancing.Matches, rule: Rule, bad: dict[str, int]
) -> tuple[np.ndarray, dict[str, Any], bytes]:
  """Returns the pairs that stay, a summary, and the table of queries."""
  pairs, counts = len(matches.pairs), matches.counts(len(rule.queries.texts))
  if not len(matches.queries):
    raise errors.UserError(
      f"None of the {pairs} pairs holds one of the {len(counts)} queries"
      f"{f' ({sum(bad.values())} pairs are bad)' if bad else ''}; the first "
      f"query is {rule.queries.texts[0]!r}. Capitals count: ignore_case lets "
      "them make no difference."
    )
  threshold = (
    float(rule.max_per_query)
    if rule.max_per_query is not None
    else balancing.threshold_of_size(matches, counts, rule.size or 0)
  )
  hashes = np.array([*map(balancing.hash_text, rule.queries.texts)], np.uint64)
  stays = balancing.kept(matches, hashes, threshold)
  if not stays.any():
    raise errors.UserError(
      f"Of {pairs} pairs none stays at {threshold:.3g} pairs a query; "
      "ask for more."
    )
  after = np.bincount(
    matches.queries[stays[matches.rows()]], minlength=len(counts)
  )
  said = _summary(rule, matches, counts, after, stays, bad, threshold)
  return stays, said, _table(rule.queries.texts, counts, after)


def _summary(
  rule: Rule,
  matches: balancing.Matches,
  before: np.ndarray,
  after: np.ndarray,
  stays: np.ndarray,
  bad: dict[str, int],
  threshold: float,
) -> dict[str, Any]:
  matched = int(np.count_nonzero(np.diff(matches.starts)))
  kept = int(stays.sum())
  limited = before > threshold
  dropped = {
    **bad,
    "no_query": len(stays) - sum(bad.values()) - matched,
    "balanced_away": matched - kept,
  }
  # Stable: equal counts stay in the order of the list.
  top = np.argsort(-before, kind="stable")[:_TOP]
  return {
    "pairs": len(stays),
    "matched": matched,
    "kept": kept,
    "dropped": {reason: n for reason, n in dropped.items() if n},
    "queries": len(before),
    "queries_repeated": rule.queries.repeated,
    "queries_matched": int(np.count_nonzero(before)),
    "queries_limited": int(limited.sum()),
    "limited_share": float(before[limited].sum() / before.sum()),
    "threshold": threshold,
    "expected": balancing.expected_size(matches, before, threshold),
    "entropy_bits": {
      "before": balancing.entropy(before),
      "after": balancing.entropy(after),
    },
    "top": [
      {
        "query": rule.queries.texts[i],
        "before": int(before[i]),
        "after": int(after[i]),
      }
      for i in top
      if before[i]
    ],
    **rule.to_dict(),
  }


def _table(
  texts: tuple[str, ...], before: np.ndarray, after: np.ndarray
) -> bytes:
  """Returns each query with its pairs before and after, the frequent first."""
  order = np.argsort(-before, kind="stable")
  names = [text.replace("\t", " ") for text in texts]  # A tab parts columns.
  rows = [f"{names[i]}\t{before[i]}\t{after[i]}" for i in order]
  return ("\n".join(["query\tbefore\tafter", *rows]) + "\n").encode()
