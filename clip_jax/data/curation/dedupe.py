"""Writes a source without its duplicates, and without what an evaluation has.

Every pair is accounted for: it stays, or is dropped because it is bad, is near
an example of an evaluation set, or is a duplicate of one that stays: by bytes,
else by looks, else by embeddings.
"""

import json
import os
import pathlib
from typing import Any

import numpy as np

from clip_jax import errors, json_text, terminal
from clip_jax.data import prepare
from clip_jax.data import record as record_lib
from clip_jax.data.curation import findings, likeness, linking
from clip_jax.data.sources import views

DUPLICATES = "duplicates.tsv"
OVERLAP = "overlap.tsv"
REPORT = "report.json"
_MOST_KEYS = 1000  # In the answer; the table has all.


def dedupe(
  source: record_lib.Source,
  out: str | os.PathLike,
  rule: likeness.Rule,
  *,
  against: record_lib.Source | None = None,
  report_only: bool = False,
  address: str = "",
  work: linking.Work | None = None,
) -> dict[str, Any]:
  """Writes the pairs of `source` that are no duplicates, for `arrayrecord:OUT`.

  Of each group of duplicates the image of the most pixels stays; of equal ones
  that of the most bytes, then of the smallest hash of the pair. Groups
  are transitive: what is near something near is in the group, too. Of several
  kinds, groups of the same bytes come first, and only what is left is compared
  further.

  The directory appears complete or not at all, and where it was made of the
  same by the same rule, nothing is done. What an interrupted run has found is
  not looked for again. `duplicates.tsv` has what each duplicate was dropped
  for, `overlap.tsv` what each pair that is near one of `against` is near.

  Args:
    source: what to choose from.
    out: a new directory.
    rule: what counts as a duplicate.
    against: an evaluation set; no pair near one of its images stays.
    report_only: whether to write the tables and `report.json` only.
    address: where `source` came from, for the record.
    work: how the work is done.

  Returns:
    A dictionary: `pairs` in the source; `kept`; `dropped` by reason or kind, so
    that kept and dropped add up to pairs; `groups` by kind; `largest_group`;
    `overlap`, or None: `examples` of `against`, `found` among the pairs,
    `share` of the examples, `pairs` that are near one, `by` kind, and the first
    1000 `keys` of examples; what identifies the rule; and `written`.

  Raises:
    UserError: `out` holds something else, nothing stays or is compared, or
      `against` has no image that can be.
  """
  errors.check_out(out)
  out, work = pathlib.Path(os.path.expanduser(out)), work or linking.Work()
  _check(rule)
  how = (
    *("dedupe", sorted(rule.to_dict().items())),
    *(None if against is None else against.fingerprint, report_only),
  )
  fingerprint = views.fingerprint(source, *how)
  if (made := _made(out, fingerprint, work, report_only)) is not None:
    return made | {"written": False}
  with prepare.partial_directory(out) as partial:
    keep = partial / prepare.FOUND
    pairs = linking.Set(source, rule, work, keep)
    overlap, tables = None, {}
    if against is not None:
      others = linking.Set(against, rule, work, keep)
      overlap, tables[OVERLAP] = _drop_overlap(pairs, others, rule)
    links, groups, largest = linking.drop_duplicates(pairs, rule)
    tables[DUPLICATES] = links.table("key\tkept\tkind\tdistance", pairs, pairs)
    said = {
      **_summary(pairs, links, overlap),
      "groups": groups,
      "largest_group": largest,
      "overlap": overlap,
      "report_only": report_only,
      **rule.to_dict(),
    }
    if report_only:
      report = {"fingerprint": fingerprint, "dedupe": json_text.seal(said)}
      _write_tables(report, tables, partial, out)
    else:
      _write(pairs, how, out, address, work, said, tables, partial)
  return said | {"written": True}


def _drop_overlap(
  pairs: linking.Set, others: linking.Set, rule: likeness.Rule
) -> tuple[dict[str, Any], bytes]:
  """Drops the pairs near one of `others`; returns a summary and the table."""
  links, seen = linking.overlap(pairs, others, rule)
  if not others.found.good.any():
    raise errors.UserError(
      "No image of the evaluation set can be compared: "
      f"{terminal.counts(others.found.bad())}; `clip-jax data inspect` says "
      "more."
    )
  pairs.left[links.slots()] = False
  table = links.table("key\texample\tkind\tdistance", pairs, others)
  return _told(links, seen, others), table


def _write_tables(report, tables, partial, out) -> None:
  """Writes what --report-only leaves: the tables and `report.json`."""
  tables[REPORT] = json.dumps(report, indent=2).encode() + b"\n"
  prepare.finish(partial, out, tables)


def _summary(
  pairs: linking.Set, links: linking.Links, overlap: dict[str, Any] | None
) -> dict[str, Any]:
  near = overlap["pairs"] if overlap else 0
  dropped = {"overlap": near} if near else {}
  return {
    "pairs": len(pairs),
    "kept": int(pairs.left.sum()),
    "dropped": pairs.found.bad() | dropped | links.counts(),
  }


def _check(rule: likeness.Rule) -> None:
  if not rule.exact and rule.max_distance is None and rule.semantic is None:
    raise errors.UserError(
      "Nothing is compared: leave exact or near duplicates in, or give a model."
    )
  likeness.check(rule)
  if rule.mirrored and rule.max_distance is None:
    raise errors.UserError(
      "Mirror images are found by what they look like: give max_distance."
    )


def _made(
  out: pathlib.Path, fingerprint: str, work: linking.Work, report_only: bool
) -> dict[str, Any] | None:
  """Returns the summary that `out` was made with, if it was made."""
  report = out / REPORT
  if report_only and report.is_file():
    found = json_text.read(report)
    if found.get("fingerprint") == fingerprint:
      return prepare.read_sealed(found, "dedupe", out)
  made = prepare.existing(out, fingerprint, work.limits)
  return None if made is None else prepare.read_sealed(made, "dedupe", out)


def _write(pairs, how, out, address, work, said, tables, partial) -> None:
  if not pairs.left.any():
    raise findings.none_stays(said)
  prepare.prepare(
    views.Part(pairs.source, np.flatnonzero(pairs.left), *how),
    out,
    address=address,
    limits=work.limits,
    about={"dedupe": json_text.seal(said)},
    beside=tables,
    partial=partial,
  )


def _told(
  links: linking.Links, seen: np.ndarray, others: linking.Set
) -> dict[str, Any]:
  """Returns the summary of an overlap (paper, section 5)."""
  examples, found = int(others.found.good.sum()), int(seen.sum())
  return {
    "examples": examples,
    "bad": others.found.bad(),
    "found": found,
    "share": found / max(examples, 1),
    "pairs": len(links),
    "by": links.counts(),
    "keys": [others.key(i) for i in np.flatnonzero(seen)[:_MOST_KEYS].tolist()],
  }
