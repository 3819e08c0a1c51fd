"""Writes the balanced part of a source: match, count, decide, copy.

Every pair is accounted for: it stays, or is dropped because it is bad, holds no
query, or lost every draw of its queries.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clip_jax import errors, json_text, preprocess, terminal
from clip_jax.data import prepare
from clip_jax.data import record as record_lib
from clip_jax.data.curation import (
  balancing,
  findings,
  language,
  matching,
  survey,
)
from clip_jax.data.curation import queries as queries_lib
from clip_jax.data.sources import views

COUNTS = "queries.tsv"
_TOP = 20
_CAPITALS = " Capitals count: ignore_case lets them make no difference."
_LANGUAGES = (
  " A caption is searched for the queries of the language that it seems to be "
  "in, which a few words do not always tell."
)


@dataclasses.dataclass(frozen=True)
class Rule:
  """What decides which pairs stay.

  Attributes:
    queries: the list; or one for each language, by its code in ISO 639-1: a
      caption is then searched for the queries of its own language.
    max_per_query: pairs that a query keeps, on average; of several languages,
      one of the first, and the others' tails are as large as its tail is; or
    tail_share: of all matches, the part that queries have which lose nothing,
      in each language; or
    size: pairs that stay in all, on average; `max_per_query` follows from it.
    seed: of the draws.
    ignore_case: whether capitals make no difference when queries are matched.
  """

  queries: queries_lib.Queries | Mapping[str, queries_lib.Queries]
  max_per_query: float | None = None
  tail_share: float | None = None
  size: int | None = None
  seed: int = 0
  ignore_case: bool = False

  def __post_init__(self) -> None:
    """Raises UserError unless exactly one limit is given, and above zero."""
    limits = {
      name: getattr(self, name)
      for name in ("max_per_query", "tail_share", "size")
    }
    given = {name: value for name, value in limits.items() if value is not None}
    if len(given) != 1:
      raise errors.UserError(
        "Give one of the most pairs of a query (max_per_query), the share of "
        "matches that lose nothing (tail_share) and the number of pairs in all "
        f"(size); got {given or 'none'}."
      )
    ((name, value),) = given.items()
    highest = 1 if name == "tail_share" else float("inf")
    if not 0 < value < highest:
      below = " and below one" if name == "tail_share" else ""
      raise errors.UserError(f"{name}={value} must be above zero{below}.")
    if self.languages:
      language.check(self.languages)
    if abs(self.seed) >= 2**63:
      raise errors.UserError(f"seed={self.seed} must have at most 63 bits.")

  @property
  def languages(self) -> tuple[str, ...]:
    """The languages that have a list; none where one serves all."""
    lists = self.queries
    return tuple(lists) if isinstance(lists, Mapping) else ()

  @functools.cached_property
  def lists(self) -> tuple[queries_lib.Queries, ...]:
    """The lists; of queries that differ in capitals the first, if told to."""
    several = self.queries
    lists = several.values() if isinstance(several, Mapping) else (several,)
    return tuple(each.folded() if self.ignore_case else each for each in lists)

  @functools.cached_property
  def texts(self) -> tuple[str, ...]:
    """The queries of all lists, one list after the other."""
    return tuple(text for each in self.lists for text in each.texts)

  def each(self, values: Sequence[Any]) -> np.ndarray:
    """Returns a value of each list for each of its queries, (queries,)."""
    return np.repeat(values, [len(found.texts) for found in self.lists])

  @property
  def parts(self) -> list[slice]:
    """Where the queries of each list stand among `texts`."""
    ends = np.cumsum([len(each.texts) for each in self.lists]).tolist()
    return [slice(*part) for part in itertools.pairwise([0, *ends])]

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields that identify the rule, as JSON has them."""
    digests = [each.digest for each in self.lists]
    named = dict(zip(self.languages, digests, strict=bool(self.languages)))
    return {
      "queries_digest": named or digests[0],
      "max_per_query": self.max_per_query,
      **({"tail_share": self.tail_share} if self.tail_share else {}),
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
    self._starts = [part.start for part in rule.parts]
    self._languages = rule.languages
    self._matchers = [
      matching.Matcher(
        each.texts,
        ignore_case=rule.ignore_case,
        characters=bool(rule.languages),
      )
      for each in rule.lists
    ]
    # Queries are told by their positions, so that their order counts.
    texts = "\n".join(rule.texts).encode()
    self.identity = (
      *(hashlib.sha256(texts).hexdigest(), rule.seed, rule.ignore_case),
      limits.max_pixels,
      *zip(rule.languages, self._starts, strict=bool(rule.languages)),
    )

  def __call__(self, record: record_lib.Record) -> Mapping[str, Any]:
    preprocess.check_header(record.image, limits=self._limits)
    return {
      "pair": balancing.hash_pair(record, seed=self._seed),
      "queries": self._found(record.texts),
    }

  def _found(self, texts: Sequence[str]) -> list[int]:
    if not self._languages:
      return self._matchers[0].find(texts)
    spoken = [language.of(text) for text in texts]
    found: list[int] = []
    for code, start, matcher in zip(
      self._languages, self._starts, self._matchers, strict=True
    ):
      own = [
        text for text, is_in in zip(texts, spoken, strict=True) if is_in == code
      ]
      found += (start + number for number in matcher.find(own))
    return found


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
    `limited_share` of all matches that are theirs; `threshold`, of the first
    language; `languages`, what is told of each; `expected`, the mean of
    `kept` over seeds; `entropy_bits` and `top`, the most frequent
    queries, before and after; and `written`, whether anything was.

  Raises:
    UserError: `out` holds something else, or no pair stays.
  """
  errors.check_out(out)
  how = ("curate", sorted(rule.to_dict().items()))
  fingerprint = views.fingerprint(source, *how)
  if (made := prepare.existing(out, fingerprint, limits)) is not None:
    return prepare.read_sealed(made, "curation", out) | {"written": False}
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
      about={"curation": json_text.seal(said)},
      beside={COUNTS: table},
      partial=partial,
    )
  return said | {"written": True}


def _decided(
  matches: balancing.Matches, rule: Rule, bad: dict[str, int]
) -> tuple[np.ndarray, dict[str, Any], bytes]:
  """Returns the pairs that stay, a summary, and the table of queries."""
  counts = matches.counts(len(rule.texts))
  if not len(matches.queries):
    none = np.zeros(len(matches.pairs), bool)
    raise findings.none_stays(
      _account(matches, none, bad),
      f"The first of {terminal.counted(len(counts), 'query', 'queries')} is "
      f"{rule.texts[0]!r}.{'' if rule.ignore_case else _CAPITALS}"
      f"{_LANGUAGES if rule.languages else ''}",
    )
  thresholds = _thresholds(matches, counts, rule)
  each = rule.each(thresholds)
  hashes = np.array([*map(balancing.hash_text, rule.texts)], np.uint64)
  stays = balancing.kept(matches, hashes, each)
  if not stays.any():
    raise findings.none_stays(
      _account(matches, stays, bad),
      f"A query keeps {thresholds[0]:.3g} "
      f"{terminal.noun(thresholds[0], 'pair')}; ask for more.",
    )
  after = np.bincount(
    matches.queries[stays[matches.rows()]], minlength=len(counts)
  )
  said = _summary(rule, matches, counts, after, stays, bad, each)
  if rule.languages:
    said["languages"] = _by_language(rule, matches, counts, stays, thresholds)
  return stays, said, _table(rule, counts, after)


def _thresholds(
  matches: balancing.Matches, counts: np.ndarray, rule: Rule
) -> list[float]:
  """Returns the pairs that a query of each list keeps, on average."""
  first, *others = (counts[part] for part in rule.parts)

  def of_tail(share: float) -> list[float]:
    return [balancing.threshold_of_tail(each, share) for each in others]

  def of_limit(limit: float) -> list[float]:
    return [limit, *of_tail(balancing.tail_share(first, limit))]

  if rule.tail_share is not None:
    share = rule.tail_share
    return [balancing.threshold_of_tail(first, share), *of_tail(share)]
  if others and not first.any():
    raise errors.UserError(
      f"No caption in {rule.languages[0]!r} holds a query, so that its limit "
      "says nothing of the other languages; put the list of a language that "
      "the captions are in first, or give tail_share."
    )
  if rule.max_per_query is not None:
    return of_limit(float(rule.max_per_query))
  return balancing.limits_of_size(
    matches,
    counts,
    rule.size or 0,
    limits=of_limit,
    each=rule.each,
    # Above the first's most, the tail is all, in each language.
    highest=float(first.max(initial=1)) + bool(others),
  )


def _by_language(
  rule: Rule,
  matches: balancing.Matches,
  counts: np.ndarray,
  stays: np.ndarray,
  thresholds: list[float],
) -> list[dict[str, Any]]:
  """Returns the summary of each language."""
  told, rows = [], matches.rows()
  for code, part, threshold in zip(
    rule.languages, rule.parts, thresholds, strict=True
  ):
    own = (matches.queries >= part.start) & (matches.queries < part.stop)
    pairs = np.unique(rows[own])
    told.append(
      {
        "language": code,
        "queries": part.stop - part.start,
        "queries_matched": int(np.count_nonzero(counts[part])),
        "threshold": threshold,
        "tail_share": balancing.tail_share(counts[part], threshold),
        "matched": len(pairs),
        "kept": int(stays[pairs].sum()),
      }
    )
  return told


def _account(
  matches: balancing.Matches, stays: np.ndarray, bad: dict[str, int]
) -> dict[str, Any]:
  """Returns how many pairs stay, and for what the others are dropped."""
  matched = int(np.count_nonzero(np.diff(matches.starts)))
  kept = int(stays.sum())
  dropped = {
    **bad,
    "no_query": len(stays) - sum(bad.values()) - matched,
    "balanced_away": matched - kept,
  }
  return {
    "pairs": len(stays),
    "matched": matched,
    "kept": kept,
    "dropped": {reason: n for reason, n in dropped.items() if n},
  }


def _summary(
  rule: Rule,
  matches: balancing.Matches,
  before: np.ndarray,
  after: np.ndarray,
  stays: np.ndarray,
  bad: dict[str, int],
  thresholds: np.ndarray,
) -> dict[str, Any]:
  limited = before > thresholds
  # Stable: equal counts stay in the order of the list.
  top = np.argsort(-before, kind="stable")[:_TOP]
  return {
    **_account(matches, stays, bad),
    "queries": len(before),
    "queries_repeated": sum(each.repeated for each in rule.lists),
    "queries_matched": int(np.count_nonzero(before)),
    "queries_limited": int(limited.sum()),
    "limited_share": float(before[limited].sum() / before.sum()),
    "threshold": float(thresholds[0]),
    "expected": balancing.expected_size(matches, before, thresholds),
    "entropy_bits": {
      "before": balancing.entropy(before),
      "after": balancing.entropy(after),
    },
    "top": [
      {
        "query": rule.texts[i],
        "before": int(before[i]),
        "after": int(after[i]),
      }
      for i in top
      if before[i]
    ],
    **rule.to_dict(),
  }


def _table(rule: Rule, before: np.ndarray, after: np.ndarray) -> bytes:
  """Returns each query with its pairs before and after, the frequent first."""
  order = np.argsort(-before, kind="stable")
  head, ends = "query\tbefore\tafter", [""] * len(rule.lists)
  if rule.languages:
    head, ends = f"{head}\tlanguage", [f"\t{code}" for code in rule.languages]
  # Tabs part columns.
  names = [text.translate(matching.SPACES) for text in rule.texts]
  ended = rule.each(ends)
  rows = [f"{names[i]}\t{before[i]}\t{after[i]}{ended[i]}" for i in order]
  return ("\n".join([head, *rows]) + "\n").encode()
