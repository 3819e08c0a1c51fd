"""Writes a source without its duplicates, and without what an evaluation has.

Every pair is accounted for: it stays, or is dropped because it is bad, is near
an example of an evaluation set, or is a duplicate of one that stays: by bytes,
else by looks, else by embeddings.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from clip_jax import errors, json_text, names, preprocess, terminal
from clip_jax.data import prepare
from clip_jax.data import record as record_lib
from clip_jax.data.curation import embedding, findings, likeness, survey
from clip_jax.data.curation import model as model_lib
from clip_jax.data.sources import views

DUPLICATES = "duplicates.tsv"
OVERLAP = "overlap.tsv"
REPORT = "report.json"
_MOST_KEYS = 1000  # In the answer; the table has all.


@dataclasses.dataclass(frozen=True)
class Work:
  """How and where the work is done; nothing of it changes the result.

  Attributes:
    workers: processes that read and decode; one does it in this process.
    batch_size: images that are embedded at a time.
    threads: that read and decode images to be embedded.
    limits: images beyond these are bad.
    on_record: called with what is done, the number done, and of all.
    fill: examines elsewhere (beam_runner.py).
  """

  workers: int = 1
  batch_size: int = 256
  threads: int = 4
  limits: preprocess.Limits = preprocess.DEFAULT_LIMITS
  on_record: Callable[[str, int, int], None] = lambda what, done, total: None
  fill: survey.Fill | None = None


class _Set:
  """The images of a source, and which of them are left."""

  def __init__(
    self,
    source: record_lib.Source,
    rule: likeness.Rule,
    work: Work,
    keep: pathlib.Path,
  ):
    self.source, self._work, self._keep = source, work, keep
    examine = likeness.Examine(work.limits, looks=rule.max_distance is not None)
    self.found = survey.survey(
      source,
      examine,
      workers=work.workers,
      keep=keep,
      on_record=lambda done: work.on_record("examine", done, len(source)),
      fill=work.fill,
    )
    self.left = self.found.good.copy()
    self.ranks = likeness.ranks(self.found)
    self._ends = np.cumsum(self.found.lengths["key"])
    self._embeds: np.ndarray | None = None
    self._row = np.zeros(0, np.int64)  # Of each slot in `_embeds`.

  def __len__(self) -> int:
    return len(self.left)

  def slots(self) -> np.ndarray:
    """Returns the slots that are left, in an order of their contents."""
    slots = np.flatnonzero(self.left)
    columns = self.found.columns
    order = np.lexsort((columns["exact"][slots, 0], columns["name"][slots]))
    return slots[order]

  def key(self, slot: int) -> str:
    """Returns a key as a table holds it."""
    end = int(self._ends[slot])
    start = end - int(self.found.lengths["key"][slot])
    data = self.found.values["key"][start:end].tobytes()
    return terminal.escaped(data.decode("utf-8", "surrogatepass"))

  def embeds(self, model: model_lib.Model, what: str) -> np.ndarray:
    """Returns embeddings of `slots()`, less those that decoding shows bad."""
    slots = self.slots()
    if self._embeds is not None:  # Of these and perhaps of more.
      return self._embeds[self._row[slots]]
    digest = hashlib.sha256(slots.tobytes()).hexdigest()
    found = embedding.embeds(
      views.Part(self.source, slots, digest),
      model,
      keep=self._keep,
      batch_size=self._work.batch_size,
      threads=self._work.threads,
      on_pair=lambda done, total: self._work.on_record(what, done, total),
    )
    self.found = findings.with_bad(self.found, slots, found)
    self.left &= self.found.good
    self._embeds = found.columns["embeds"]
    self._row = np.zeros(len(self), np.int64)
    self._row[slots] = np.arange(len(slots))
    return self._embeds[found.good]


@dataclasses.dataclass(frozen=True)
class _Links:
  """What pairs of one set or of two are linked with, by kind.

  Attributes:
    rows: (slot, slot it is linked with, kind, distance).
  """

  rows: list[tuple[int, int, str, float]]

  def counts(self) -> dict[str, int]:
    """Returns the number of rows by kind."""
    return {
      kind: n
      for kind in names.DUPLICATE_KINDS
      if (n := sum(row[2] == kind for row in self.rows))
    }

  def table(self, header: str, pairs: _Set, others: _Set) -> bytes:
    """Returns the rows in the order of the source."""
    lines = [
      f"{pairs.key(slot)}\t{others.key(other)}\t{kind}\t{distance:.6g}"
      for slot, other, kind, distance in sorted(self.rows)
    ]
    return ("\n".join([header, *lines]) + "\n").encode()


def dedupe(
  source: record_lib.Source,
  out: str | os.PathLike,
  rule: likeness.Rule,
  *,
  against: record_lib.Source | None = None,
  report_only: bool = False,
  address: str = "",
  work: Work | None = None,
) -> dict[str, Any]:
  """Writes the pairs of `source` that are no duplicates, for `arrayrecord:OUT`.

  Of each group of duplicates the image of the most pixels stays; of equal ones
  that of the most bytes, then of the smallest hash of key and captions. Groups
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
    UserError: `out` holds something else, or nothing stays or is compared.
  """
  errors.check_out(out)
  out, work = pathlib.Path(out).expanduser(), work or Work()
  _check(rule)
  how = (
    *("dedupe", sorted(rule.to_dict().items())),
    *(against and against.fingerprint, report_only),
  )
  nothing = np.zeros(0, np.int64)
  fingerprint = views.Part(source, nothing, *how).fingerprint
  if (made := _made(out, fingerprint, work, report_only)) is not None:
    return made | {"written": False}
  with prepare.partial_directory(out) as partial:
    keep = partial / prepare.FOUND
    pairs = _Set(source, rule, work, keep)
    overlap, tables = None, {}
    if against is not None:
      others = _Set(against, rule, work, keep)
      links, seen = _overlap(pairs, others, rule)
      pairs.left[[row[0] for row in links.rows]] = False
      overlap = _told(links, seen, others)
      tables[OVERLAP] = links.table(
        "key\texample\tkind\tdistance", pairs, others
      )
    links, groups, largest = _duplicates(pairs, rule)
    tables[DUPLICATES] = links.table("key\tkept\tkind\tdistance", pairs, pairs)
    said = {
      "pairs": len(pairs),
      "kept": int(pairs.left.sum()),
      "dropped": pairs.found.bad()
      | ({"overlap": overlap["pairs"]} if overlap and overlap["pairs"] else {})
      | links.counts(),
      "groups": groups,
      "largest_group": largest,
      "overlap": overlap,
      "report_only": report_only,
      **rule.to_dict(),
    }
    if report_only:
      report = {"fingerprint": fingerprint, "dedupe": said}
      tables[REPORT] = json.dumps(report, indent=2).encode() + b"\n"
      for name, data in tables.items():
        (partial / name).write_bytes(data)
      prepare.finish(partial, out)
    else:
      _write(pairs, how, out, address, work, said, tables, partial)
  return said | {"written": True}


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
  out: pathlib.Path, fingerprint: str, work: Work, report_only: bool
) -> dict[str, Any] | None:
  """Returns what was told when `out` was made, if it was."""
  report = out / REPORT
  if report_only and report.is_file():
    found = json_text.read(report)
    if found.get("fingerprint") == fingerprint:
      return found["dedupe"]
  made = prepare.existing(out, fingerprint, work.limits)
  return None if made is None else made.get("dedupe", {})


def _write(pairs, how, out, address, work, said, tables, partial) -> None:
  if not pairs.left.any():
    error = errors.UserError(
      f"None of the {len(pairs)} pairs stays; dropped: "
      f"{', '.join(f'{n} {why}' for why, n in said['dropped'].items())}."
    )
    error.payload = said
    raise error
  prepare.prepare(
    views.Part(pairs.source, np.flatnonzero(pairs.left), *how),
    out,
    address=address,
    limits=work.limits,
    about={"dedupe": said},
    beside=tables,
    partial=partial,
  )


def _duplicates(
  pairs: _Set, rule: likeness.Rule
) -> tuple[_Links, dict[str, int], int]:
  """Drops the duplicates; returns them, the groups by kind, and the largest."""
  rows: list[tuple[int, int, str, float]] = []
  groups: dict[str, int] = {}
  sizes = np.ones(len(pairs), np.int64)  # Of the group that each one keeps.

  def drop(kind: str, slots: np.ndarray, labels: np.ndarray, far) -> None:
    order = np.lexsort((pairs.ranks[slots], labels))
    first = np.ones(len(order), bool)
    first[1:] = np.diff(labels[order]) != 0
    best = slots[order[np.flatnonzero(first)[np.cumsum(first) - 1]]]
    gone, stays = slots[order][~first], best[~first]
    np.add.at(sizes, stays, sizes[gone])
    distances = far(order[~first], stays)
    rows.extend(
      zip(
        gone.tolist(),
        stays.tolist(),
        [kind] * len(gone),
        distances.tolist(),
        strict=True,
      )
    )
    pairs.left[gone] = False
    groups[kind] = len(np.unique(stays))

  if rule.exact:
    slots = pairs.slots()
    labels = likeness.exact_labels(pairs.found, slots)
    drop("exact", slots, labels, lambda at, stays: np.zeros(len(at)))
  if rule.max_distance is not None:
    slots = pairs.slots()
    labels = likeness.near_labels(pairs.found, slots, rule)
    drop(
      "near",
      slots,
      labels,
      lambda at, stays: likeness.distance(
        pairs.found, slots[at], pairs.found, stays, mirrored=rule.mirrored
      ),
    )
  if (semantic := rule.semantic) is not None:
    embeds = pairs.embeds(semantic.model, "embed")
    slots = pairs.slots()
    near = semantic.near_within(
      embeds, similarity=semantic.min_similarity, clusters=semantic.clusters
    )
    place = np.zeros(len(pairs), np.int64)
    place[slots] = np.arange(len(slots))
    drop(
      "semantic",
      slots,
      likeness.groups(near, len(slots)),
      lambda at, stays: (
        1 - np.einsum("ne,ne->n", embeds[at], embeds[place[stays]])
      ),
    )
  return _Links(rows), groups, int(sizes.max(initial=1))


def _overlap(
  pairs: _Set, others: _Set, rule: likeness.Rule
) -> tuple[_Links, np.ndarray]:
  """Returns the pairs near one of `others`, and which of these are found."""
  linked: dict[int, tuple[int, int, str, float]] = {}
  seen = np.zeros(len(others), bool)

  def link(kind: str, slots, theirs, near: np.ndarray, far) -> None:
    """Takes in what positions of `slots` and `theirs` are near."""
    seen[theirs[near[:, 1]]] = True
    # Of several examples the first by what it is, not by where it is.
    order = np.lexsort((others.ranks[theirs[near[:, 1]]], near[:, 0]))
    _, first = np.unique(near[order, 0], return_index=True)
    for i, j in near[order[first]].tolist():
      slot, other = int(slots[i]), int(theirs[j])
      if slot not in linked:
        linked[slot] = (slot, other, kind, float(far(i, j)))

  slots, theirs = pairs.slots(), others.slots()
  if rule.exact:
    near = likeness.same_bytes(pairs.found, slots, others.found, theirs)
    link("exact", slots, theirs, near, lambda i, j: 0)
  if rule.max_distance is not None:
    near = likeness.near_looks(pairs.found, slots, others.found, theirs, rule)

    def bits(i: int, j: int) -> float:
      return likeness.distance(
        pairs.found,
        slots[[i]],
        others.found,
        theirs[[j]],
        mirrored=rule.mirrored,
      )[0]

    link("near", slots, theirs, near, bits)
  if (semantic := rule.semantic) is not None:
    embeds = pairs.embeds(semantic.model, "embed")
    examples = others.embeds(semantic.model, "embed examples")
    near = semantic.near_between(
      embeds, examples, similarity=semantic.min_similarity
    )
    slots, theirs = pairs.slots(), others.slots()
    link(
      "semantic",
      slots,
      theirs,
      near,
      lambda i, j: 1 - float(embeds[i] @ examples[j]),
    )
  good = pairs.found.good  # Embedding has shown some to be bad.
  return _Links([row for row in linked.values() if good[row[0]]]), seen


def _told(links: _Links, seen: np.ndarray, others: _Set) -> dict[str, Any]:
  """Returns what is said of an overlap (paper, section 5)."""
  examples, found = int(others.found.good.sum()), int(seen.sum())
  return {
    "examples": examples,
    "bad": others.found.bad(),
    "found": found,
    "share": found / max(examples, 1),
    "pairs": len(links.rows),
    "by": links.counts(),
    "keys": [others.key(i) for i in np.flatnonzero(seen)[:_MOST_KEYS].tolist()],
  }
