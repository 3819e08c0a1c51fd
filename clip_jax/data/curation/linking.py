"""Finds which pairs of a source are near each other or another's."""

import dataclasses
import hashlib
import io
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from clip_jax import names, preprocess, terminal
from clip_jax.data import record as record_lib
from clip_jax.data.curation import embedding, findings, likeness, survey
from clip_jax.data.curation import model as model_lib
from clip_jax.data.sources import views


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


class Set:
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


class Links:
  """Links between the pairs of one set or of two: arrays, as there are many.

  A slot is linked once, with the first that it is said to be near.
  """

  def __init__(self, number: int):
    """Links none of `number` slots."""
    self._other = np.full(number, -1)
    self._kind = np.zeros(number, np.int8)
    self._distance = np.zeros(number)

  def new(self, slots: np.ndarray) -> np.ndarray:
    """Whether each of `slots` is linked with nothing yet, bool."""
    return self._other[slots] < 0

  def add(
    self, kind: str, slots: np.ndarray, others: np.ndarray, far: np.ndarray
  ) -> None:
    """Links slots, each once, with others at distances."""
    self._other[slots] = others
    self._kind[slots] = names.DUPLICATE_KINDS.index(kind)
    self._distance[slots] = far

  def drop(self, slots: np.ndarray) -> None:
    """Links these with nothing."""
    self._other[slots] = -1

  def slots(self) -> np.ndarray:
    """Returns the slots that are linked, in order, int64."""
    return np.flatnonzero(self._other >= 0)

  def __len__(self) -> int:
    return len(self.slots())

  def __iter__(self) -> Iterator[tuple[int, int, str, float]]:
    """Yields slot, slot it is linked with, kind and distance, in order."""
    for slot in self.slots():
      yield (
        *(int(slot), int(self._other[slot])),
        names.DUPLICATE_KINDS[self._kind[slot]],
        float(self._distance[slot]),
      )

  def counts(self) -> dict[str, int]:
    """Returns the number of links by kind."""
    kinds = names.DUPLICATE_KINDS
    found = np.bincount(self._kind[self.slots()], minlength=len(kinds))
    return {kind: n for kind, n in zip(kinds, found.tolist(), strict=True) if n}

  def table(self, header: str, pairs: Set, others: Set) -> bytes:
    """Returns a row for each link, in the order of the source."""
    table = io.BytesIO()
    table.write(f"{header}\n".encode())
    for slot, other, kind, distance in self:
      row = f"{pairs.key(slot)}\t{others.key(other)}\t{kind}\t{distance:.6g}\n"
      table.write(row.encode())
    return table.getvalue()


def drop_duplicates(
  pairs: Set, rule: likeness.Rule
) -> tuple[Links, dict[str, int], int]:
  """Drops the duplicates; returns them, the groups by kind, and the largest.

  Args:
    pairs: loses its duplicates.
    rule: what counts as one.
  """
  links = Links(len(pairs))
  groups: dict[str, int] = {}
  sizes = np.ones(len(pairs), np.int64)  # Of the group that each one keeps.

  def drop(kind: str, slots: np.ndarray, labels: np.ndarray, far) -> None:
    order = np.lexsort((pairs.ranks[slots], labels))
    first = np.ones(len(order), bool)
    first[1:] = np.diff(labels[order]) != 0
    best = slots[order[np.flatnonzero(first)[np.cumsum(first) - 1]]]
    gone, stays = slots[order][~first], best[~first]
    np.add.at(sizes, stays, sizes[gone])
    links.add(kind, gone, stays, far(order[~first], stays))
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
  return links, groups, int(sizes.max(initial=1))


def overlap(
  pairs: Set, others: Set, rule: likeness.Rule
) -> tuple[Links, np.ndarray]:
  """Returns the pairs near one of `others`, and which of these are found.

  Args:
    pairs: keeps them.
    others: the examples.
    rule: what is near.

  Returns:
    The links of the pairs, and whether each of `others` is near one, bool.
  """
  links = Links(len(pairs))
  seen = np.zeros(len(others), bool)

  def link(kind: str, slots, theirs, near: np.ndarray, far) -> None:
    """Adds links for `near`, rows of positions in `slots` and `theirs`."""
    seen[theirs[near[:, 1]]] = True
    # Of several examples the first by what it is, not by where it is.
    order = np.lexsort((others.ranks[theirs[near[:, 1]]], near[:, 0]))
    _, first = np.unique(near[order, 0], return_index=True)
    near = near[order[first]]
    i, j = near[links.new(slots[near[:, 0]])].T
    links.add(kind, slots[i], theirs[j], far(i, j))

  slots, theirs = pairs.slots(), others.slots()
  if rule.exact:
    link(
      "exact",
      slots,
      theirs,
      likeness.same_bytes(pairs.found, slots, others.found, theirs),
      lambda i, j: np.zeros(len(i)),
    )
  if rule.max_distance is not None:
    near = likeness.near_looks(pairs.found, slots, others.found, theirs, rule)

    def bits(i: np.ndarray, j: np.ndarray) -> np.ndarray:
      sets = (pairs.found, slots[i]), (others.found, theirs[j])
      return likeness.distance(*sets[0], *sets[1], mirrored=rule.mirrored)

    link("near", slots, theirs, near, bits)
  if (semantic := rule.semantic) is not None:
    embeds = pairs.embeds(semantic.model, "embed")
    examples = others.embeds(semantic.model, "embed examples")
    slots, theirs = pairs.slots(), others.slots()
    order = np.argsort(others.ranks[theirs])  # The first one near is named.
    theirs, examples = theirs[order], examples[order]
    near = semantic.near_between(
      embeds, examples, similarity=semantic.min_similarity
    )
    link(
      "semantic",
      slots,
      theirs,
      near,
      lambda i, j: 1 - np.einsum("ne,ne->n", embeds[i], examples[j]),
    )
  # Embedding has shown some to be bad.
  links.drop(np.flatnonzero(~pairs.found.good))
  return links, seen
