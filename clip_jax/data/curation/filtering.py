"""Writes the part of a source that passes rules about pairs.

Every pair is accounted for: it stays, or is dropped because it is bad or by the
first rule that it breaks, in the order of `rules.Rules`.
"""

import dataclasses
import fractions
import hashlib
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clip_jax import errors, json_text, preprocess, terminal
from clip_jax.data import prepare
from clip_jax.data import record as record_lib
from clip_jax.data.curation import (
  embedding,
  findings,
  language,
  pair_rules,
  survey,
)
from clip_jax.data.curation import model as model_lib
from clip_jax.data.curation import rules as rules_lib
from clip_jax.data.sources import views

SCORES = "scores.tsv"
_QUANTILES = 10


@dataclasses.dataclass
class _Decisions:
  """Which rule drops each pair, and which captions stay."""

  found: findings.Found
  rule: np.ndarray
  stays: np.ndarray

  @property
  def kept(self) -> np.ndarray:
    return self.found.good & (self.rule == pair_rules.PASSED)

  def starts(self) -> np.ndarray:
    lengths = self.found.lengths["stays"]
    return np.concatenate([[0], np.cumsum(lengths)])

  def owners(self) -> np.ndarray:
    """Returns the slot of each caption."""
    lengths = self.found.lengths["stays"]
    return np.repeat(np.arange(len(lengths)), lengths)

  def remove(self, name: str, captions: np.ndarray) -> None:
    """Removes captions, and drops the pairs that have none left."""
    self.stays &= ~captions
    left = np.zeros(len(self.rule), bool)
    left[self.owners()[self.stays]] = True
    self.rule[self.kept & ~left] = pair_rules.CODE[name]

  def view(self, source: record_lib.Source, *how: Any) -> views.Chosen:
    """Returns the pairs that stay, with the captions that stay."""
    slots = np.flatnonzero(self.kept)
    stays = self.stays[self.kept[self.owners()]]
    lengths = self.found.lengths["stays"][slots]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return views.Chosen(source, slots, starts, stays, *how)

  def digest(self) -> str:
    """Returns a digest of which pairs and captions `view` has."""
    both = np.packbits(self.kept).tobytes() + np.packbits(self.stays).tobytes()
    return hashlib.sha256(both).hexdigest()

  def dropped(self) -> dict[str, int]:
    """Returns the number of pairs by what drops them, in order."""
    rules = self.rule[self.found.good]
    counts = {
      name: int((rules == i).sum()) for name, i in pair_rules.CODE.items()
    }
    return self.found.bad() | {k: n for k, n in counts.items() if n}


def filter_pairs(
  source: record_lib.Source,
  out: str | os.PathLike,
  rules: rules_lib.Rules,
  *,
  model: model_lib.Model | None = None,
  address: str = "",
  workers: int = 1,
  batch_size: int = 256,
  threads: int = 4,
  limits: preprocess.Limits = preprocess.DEFAULT_LIMITS,
  on_record: Callable[[int], None] | None = None,
  on_score: Callable[[int, int], None] | None = None,
  fill: survey.Fill | None = None,
) -> dict[str, Any]:
  """Writes the pairs of `source` that pass `rules`, for `arrayrecord:OUT`.

  Keys, labels and order are those of the source; of several captions of an
  image those stay that pass. The directory appears complete or not at all, and
  where it was made of the same source by the same rules, nothing is done. What
  an interrupted run has found is not looked for again. With a model, a file
  `scores.tsv` beside the records has each pair that was scored.

  Args:
    source: what to choose from.
    out: a new directory.
    rules: what a pair must pass; at least one.
    model: gives the scores, where a rule needs them.
    address: where `source` came from, for the record.
    workers: processes that read; one does it in this process.
    batch_size: pairs that are scored at a time.
    threads: that read and decode the pairs to be scored.
    limits: images beyond these are bad.
    on_record: called with the number of records examined.
    on_score: called with the number of pairs scored, and of all to score.
    fill: examines elsewhere (beam_runner.py).

  Returns:
    A dictionary: `pairs` in the source; `kept`; `dropped` by reason or rule, so
    that kept and dropped add up to pairs; `captions` of the good pairs and
    `captions_kept`; `thresholds`, the limits that were set; `score_threshold`
    and `score_quantiles` (the least, each tenth, the largest), or None; and
    `written`, whether anything was.

  Raises:
    UserError: `out` holds something else, no pair stays, or rules and model do
      not go together.
  """
  errors.check_out(out)
  _check(rules, model)
  how = (
    *("filter", sorted(rules.given().items())),
    *(*pair_rules.versions(rules), *_fingerprints(model)),
  )
  fingerprint = views.fingerprint(source, *how)
  if (made := prepare.existing(out, fingerprint, limits)) is not None:
    return prepare.read_sealed(made, "filter", out) | {"written": False}
  with prepare.partial_directory(out) as partial:
    found = survey.survey(
      source,
      pair_rules.Examine(rules, limits),
      workers=workers,
      keep=partial / prepare.FOUND,
      on_record=on_record,
      fill=fill,
    )
    decided, scored, beside = _decide(found, rules), {}, {}
    if model is not None and decided.kept.any():
      scored, beside = _score(
        decided,
        rules,
        decided.view(source, *how, decided.digest()),
        model,
        keep=partial / prepare.FOUND,
        batch_size=batch_size,
        threads=threads,
        on_pair=on_score,
      )
    said = _summary(decided, rules, scored)
    prepare.prepare(
      decided.view(source, *how),
      out,
      address=address,
      limits=limits,
      about={"filter": json_text.seal(said)},
      beside=beside,
      partial=partial,
    )
  return said | {"written": True}


def _fingerprints(model: model_lib.Model | None) -> tuple[str, ...]:
  return () if model is None else (model.fingerprint,)


def _check(rules: rules_lib.Rules, model: model_lib.Model | None) -> None:
  if not rules.given():
    raise errors.UserError(
      f"Give at least one rule. Known: {', '.join(rules_lib.NAMES)}."
    )
  if rules.scored != (model is not None):
    raise errors.UserError(
      "A model and a limit of its scores go together: give score_model and "
      f"min_score or keep_share; got {'no model' if model is None else 'one'}."
    )
  if rules.languages:
    language.check(rules.languages)


def _decide(found: findings.Found, rules: rules_lib.Rules) -> _Decisions:
  """Returns the decisions of the rules that need no model."""
  decided = _Decisions(
    found, found.columns["rule"].copy(), found.values["stays"].copy()
  )
  if rules.max_caption_repeats is not None:
    too_often = _repeated(decided, rules.max_caption_repeats)
    decided.remove("max_caption_repeats", too_often)
  return decided


def _repeated(decided: _Decisions, limit: int) -> np.ndarray:
  """Returns a mask of the captions that more than `limit` good pairs have."""
  captions, owners = decided.found.values["captions"], decided.owners()
  hashes, of = np.unique(captions, return_inverse=True)
  # A pair that has a caption twice counts once.
  order = np.lexsort((owners, of))
  first = np.ones(len(order), bool)
  first[1:] = (np.diff(of[order]) != 0) | (np.diff(owners[order]) != 0)
  counts = np.bincount(of[order][first], minlength=len(hashes))
  return counts[of] > limit


def _score(
  decided: _Decisions,
  rules: rules_lib.Rules,
  left: record_lib.Source,
  model: model_lib.Model,
  **how: Any,
) -> tuple[dict[str, Any], dict[str, bytes]]:
  """Scores pairs and applies the rule about scores.

  Args:
    decided: by the other rules; changed in place.
    rules: with a limit of the scores.
    left: the pairs and captions that `decided` has left.
    model: gives the scores.
    **how: of `embedding.scores`.

  Returns:
    What is told of the scores, and the files to write beside the records.
  """
  measured = embedding.scores(left, model, **how)
  slots = np.flatnonzero(decided.kept)
  captions = np.flatnonzero(decided.stays & decided.kept[decided.owners()])
  # Images that only decoding has shown to be bad.
  bad = slots[~measured.good]
  good = np.ones(len(decided.rule), bool)
  good[bad] = False
  captions = captions[good[decided.owners()[captions]]]
  values = measured.values["scores"]
  scores = np.full(len(decided.stays), -np.inf)
  scores[captions] = values
  best = np.full(len(decided.rule), -np.inf)
  np.maximum.at(best, decided.owners()[captions], values.astype(np.float64))
  best = best[slots[measured.good]]
  decided.found = findings.with_bad(decided.found, slots, measured)
  threshold, name = rules.min_score, "min_score"
  if rules.keep_share is not None:
    name = "keep_share"
    # The share as it was written: 0.07 of 100 is 7, as a float a bit more.
    count = math.ceil(fractions.Fraction(str(rules.keep_share)) * len(best))
    # Equal scores stay together, so that no order decides.
    threshold = float(np.sort(best)[-count]) if count else math.inf
  assert threshold is not None
  decided.remove(name, scores < threshold)
  said: dict[str, Any] = {"score_threshold": threshold}
  if len(best):
    quantiles = np.quantile(best, np.linspace(0, 1, _QUANTILES + 1))
    said["score_quantiles"] = [round(float(q), 6) for q in quantiles]
  return said, {SCORES: _table(decided, captions, scores, measured)}


def _table(
  decided: _Decisions,
  captions: np.ndarray,
  scores: np.ndarray,
  measured: findings.Found,
) -> bytes:
  rows = ["key\tcaption\tscore\tkept"]
  names = embedding.keys(measured)
  owners, starts = decided.owners(), decided.starts()
  slots, of = np.unique(owners[captions], return_inverse=True)
  for caption, name in zip(captions.tolist(), of.tolist(), strict=True):
    number = caption - int(starts[slots[name]])
    stays = int(decided.stays[caption])
    key = terminal.escaped(names[name])
    rows.append(f"{key}\t{number}\t{scores[caption]:.6f}\t{stays}")
  return ("\n".join(rows) + "\n").encode()


def _summary(
  decided: _Decisions, rules: rules_lib.Rules, scored: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the summary that `filter_pairs` returns.

  Raises:
    UserError: no pair stays.
  """
  kept = decided.kept
  good = decided.found.good[decided.owners()]
  stays = decided.stays & kept[decided.owners()]
  said = {
    "pairs": len(kept),
    "kept": int(kept.sum()),
    "dropped": decided.dropped(),
    "captions": int(good.sum()),
    "captions_kept": int(stays.sum()),
    "thresholds": {
      # Of a list of words its length, and not the words.
      name: len(value) if name.startswith("block_") else value
      for name, value in rules.given().items()
    },
    "score_threshold": None,
    "score_quantiles": None,
    **scored,
  }
  if not said["kept"]:
    raise findings.none_stays(said)
  return said
