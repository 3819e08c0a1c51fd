"""Finds equal and similar images of a set: by bytes, looks or embeddings."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy import sparse

from clip_jax import errors, names, preprocess
from clip_jax.data import record as record_lib
from clip_jax.data.curation import (
  balancing,
  findings,
  hamming,
  image_hash,
)
from clip_jax.data.curation import model as model_lib


@dataclasses.dataclass(frozen=True)
class Semantic:
  """How embeddings are compared.

  Attributes:
    model: gives them.
    near_within: `search.clusters.near_within`.
    near_between: `search.clusters.near_between`.
    min_similarity: cosine of a pair, at least.
    clusters: pairs are compared within; None is one for each 1000 images.
  """

  model: model_lib.Model
  near_within: Callable[..., np.ndarray]
  near_between: Callable[..., np.ndarray]
  min_similarity: float = names.DUPLICATE_SIMILARITY
  clusters: int | None = None


@dataclasses.dataclass(frozen=True)
class Rule:
  """What counts as a duplicate.

  Attributes:
    exact: whether images of the same bytes do.
    max_distance: bits in which the hashes of near images differ, at most; None
      looks for no near images.
    mirrored: whether mirror images are near, too.
    semantic: how embeddings are compared; None compares none.
  """

  exact: bool = True
  max_distance: int | None = names.DUPLICATE_DISTANCE
  mirrored: bool = False
  semantic: Semantic | None = None

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields that identify the rule, as JSON has them."""
    semantic = self.semantic
    return {
      "exact": self.exact,
      "max_distance": self.max_distance,
      "mirrored": self.mirrored,
      "min_similarity": semantic and semantic.min_similarity,
      "clusters": semantic and semantic.clusters,
      "model": semantic and semantic.model.fingerprint,
    }


class Examine:
  """Finds what an image is and looks like; picklable, for other processes."""

  columns: Mapping[str, np.dtype] = {
    "exact": np.dtype((np.uint64, (2,))),
    "name": np.dtype(np.uint64),
    "pixels": np.dtype(np.int64),
    "bytes": np.dtype(np.int64),
    "bits": np.dtype(np.uint64),
    "mirrored": np.dtype(np.uint64),
    "thumb": np.dtype((np.uint8, (image_hash.THUMB, image_hash.THUMB, 3))),
    "flat": np.dtype(bool),
  }
  ragged: Mapping[str, np.dtype] = {"key": np.dtype(np.uint8)}

  def __init__(self, limits: preprocess.Limits, *, looks: bool):
    """Stores the arguments.

    Args:
      limits: images beyond these are bad.
      looks: whether to decode images for what they look like.
    """
    self._limits = limits
    self._looks = looks
    self.identity = (limits.max_pixels, looks)

  def __call__(self, record: record_lib.Record) -> Mapping[str, Any]:
    """Returns a value for each of `columns`, and the key in UTF-8."""
    width, height = preprocess.check_header(record.image, limits=self._limits)
    look = image_hash.NOTHING
    if self._looks:
      image = preprocess.decode(record.image, limits=self._limits)
      look = image_hash.of(image)
    return {
      "exact": balancing.digest(record.image),
      "name": balancing.hash_pair(record),
      "pixels": width * height,
      "bytes": len(record.image),
      **dataclasses.asdict(look),
      "key": record.key.encode("utf-8", "surrogatepass"),
    }


def ranks(found: findings.Found) -> np.ndarray:
  """Returns the place of each slot in the order in which one of a group stays.

  The image of the most pixels comes first, of equal ones that of the most
  bytes, then the smallest `hash_pair`.
  """
  columns = found.columns
  order = np.lexsort(
    (
      *(columns["exact"][:, 1], columns["exact"][:, 0], columns["name"]),
      *(-columns["bytes"], -columns["pixels"]),
    )
  )
  places = np.empty(len(order), np.int64)
  places[order] = np.arange(len(order))
  return places


def groups(pairs: np.ndarray, number: int) -> np.ndarray:
  """Returns a label for each of `number` nodes, the same where connected.

  Args:
    pairs: of nodes, int64 (pairs, 2).
    number: of nodes.
  """
  graph = sparse.coo_array(
    (np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])),
    shape=(number, number),
  )
  return sparse.csgraph.connected_components(graph, directed=False)[1]


@dataclasses.dataclass(frozen=True)
class Nodes:
  """The distinct perceptual hashes of some slots, and the hash of each slot.

  Attributes:
    bits: hashes, uint64 (nodes,).
    mirrored: of mirror images, uint64 (nodes,).
    thumb: uint8 (nodes, 4, 4, 3).
    of: the node of each slot, int64 (slots,); -1 where an image shows nothing.
  """

  bits: np.ndarray
  mirrored: np.ndarray
  thumb: np.ndarray
  of: np.ndarray

  @classmethod
  def at(cls, found: findings.Found, slots: np.ndarray) -> "Nodes":
    """Returns the nodes of `slots`."""
    seen = ~found.columns["flat"][slots]
    shown = slots[seen]
    sizes = {"bits": 8, "mirrored": 8, "thumb": 3 * image_hash.THUMB**2}
    parts = [
      found.columns[name][shown].view(np.uint8).reshape(len(shown), size)
      for name, size in sizes.items()
    ]
    rows = np.concatenate(parts, axis=1)
    del parts  # A row has 64 bytes, and what follows copies all again.
    rows = rows.view(f"V{rows.shape[1]}").ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    of = np.full(len(slots), -1)
    of[seen] = inverse
    return cls(*(found.columns[name][shown[first]] for name in sizes), of=of)

  def _turned(self) -> "Nodes":
    """Returns the nodes of the mirror images."""
    return Nodes(self.mirrored, self.bits, self.thumb[:, :, ::-1], self.of)

  def _sides(self, others: "Nodes", rule: Rule) -> list[tuple["Nodes", ...]]:
    """Returns nodes of two sets, of which one may be that of mirror images.

    Either one, as a hash is not quite as far from a mirror image's as that of
    the other image is: small coefficients are 0 on both sides.
    """
    sides = [(self, others)]
    if rule.mirrored:
      sides += [(self._turned(), others), (self, others._turned())]
    return sides

  def labels(self, rule: Rule) -> np.ndarray:
    """Returns a label for each node, the same where near ones connect them."""
    assert rule.max_distance is not None
    labels = np.arange(len(self.bits))
    for first, second in self._sides(self, rule):

      def confirm(i, j, first=first.thumb, second=second.thumb):
        sure = i < j
        sure[sure] = image_hash.are_alike(first[i[sure]], second[j[sure]])
        return sure

      labels = hamming.join(
        first.bits, second.bits, rule.max_distance, labels, confirm=confirm
      )
    return labels

  def _at(self, nodes: np.ndarray) -> "Nodes":
    """Returns some of the nodes, each of a slot of its own."""
    columns = self.bits, self.mirrored, self.thumb
    own = np.arange(len(nodes))
    return Nodes(*(column[nodes] for column in columns), of=own)

  def near(self, others: "Nodes", places: np.ndarray, rule: Rule) -> np.ndarray:
    """Returns near pairs of nodes of two sets, int64 (pairs, 2).

    Of all pairs those are given of each node and the first that it is near, and
    of each other node that is near any with one of these.

    Args:
      others: the nodes of the second set.
      places: of these, which say what comes first.
      rule: says what is near.
    """
    order = np.argsort(places)
    ahead = self._first(others._at(order), rule, back=False)
    mine = np.flatnonzero(ahead < len(order))
    alone = np.ones(len(order), bool)
    alone[ahead[mine]] = False
    rest = np.flatnonzero(alone)
    back = self._first(others._at(order[rest]), rule, back=True)
    near = back < len(self.bits)
    pairs = [mine, order[ahead[mine]]], [back[near], order[rest[near]]]
    return np.concatenate([np.stack(pair, axis=1) for pair in pairs])

  def _first(self, others: "Nodes", rule: Rule, *, back: bool) -> np.ndarray:
    """Returns the first near one of `others` for each node, or `back` of these.

    Args:
      others: nodes of another set.
      rule: says what is near.
      back: whether to return the first node for each of `others`.
    """
    assert rule.max_distance is not None
    mine, theirs = (others, self) if back else (self, others)
    found = np.full(len(mine.bits), len(theirs.bits))
    for queries, hashes in mine._sides(theirs, rule):

      def confirm(i, j, first=queries.thumb, second=hashes.thumb):
        return image_hash.are_alike(first[i], second[j])

      found = hamming.first(
        queries.bits,
        hashes.bits,
        rule.max_distance,
        confirm=confirm,
        found=found,
      )
    return found


def check(rule: Rule) -> None:
  """Raises UserError for limits that mean nothing."""
  if rule.max_distance is not None:
    hamming.check(rule.max_distance)
  if rule.semantic and not 0 < rule.semantic.min_similarity <= 1:
    raise errors.UserError(
      f"min_similarity={rule.semantic.min_similarity} must be above 0 and at "
      "most 1: it is a cosine."
    )


def exact_labels(found: findings.Found, slots: np.ndarray) -> np.ndarray:
  """Returns a label for each slot, the same for the same bytes."""
  return _labels(found.columns["exact"][slots])


def _labels(digests: np.ndarray) -> np.ndarray:
  """Returns a number for each row of two, the same for equal rows."""
  order = np.lexsort((digests[:, 1], digests[:, 0]))
  new = np.ones(len(order), bool)
  new[1:] = (np.diff(digests[order], axis=0) != 0).any(axis=1)
  labels = np.empty(len(order), np.int64)
  labels[order] = np.cumsum(new) - 1
  return labels


def near_labels(
  found: findings.Found, slots: np.ndarray, rule: Rule
) -> np.ndarray:
  """Returns a label for each slot, the same for near images."""
  nodes = Nodes.at(found, slots)
  labels = nodes.labels(rule)
  # What shows nothing is near nothing.
  alone = len(nodes.bits) + np.arange(len(slots))
  return np.where(nodes.of >= 0, np.append(labels, -1)[nodes.of], alone)


def same_bytes(
  found: findings.Found,
  slots: np.ndarray,
  other: findings.Found,
  others: np.ndarray,
) -> np.ndarray:
  """Returns positions of slots of two sets with the same bytes, (pairs, 2).

  Of all pairs those are given that name each such slot of either set, and for
  each of the first that of the second which comes first by `ranks`.

  Args:
    found: of the first set.
    slots: some of it.
    other: of the second set.
    others: some of it.
  """
  rows = np.concatenate(
    [found.columns["exact"][slots], other.columns["exact"][others]]
  )
  of = _labels(rows)
  mine, theirs = of[: len(slots)], of[len(slots) :]
  both = np.intersect1d(mine, theirs)
  pairs = np.stack([both, both], axis=1)
  return _named(mine, theirs, pairs, ranks(other)[others])


def near_looks(
  found: findings.Found,
  slots: np.ndarray,
  other: findings.Found,
  others: np.ndarray,
  rule: Rule,
) -> np.ndarray:
  """Returns positions of slots of two sets that look alike, (pairs, 2).

  Of all pairs those are given that `same_bytes` gives.

  Args:
    found: of the first set.
    slots: some of it.
    other: of the second set.
    others: some of it.
    rule: says what is near.
  """
  mine, theirs = Nodes.at(found, slots), Nodes.at(other, others)
  places = ranks(other)[others]
  firsts = np.full(len(theirs.bits), np.iinfo(np.int64).max)
  seen = theirs.of >= 0
  np.minimum.at(firsts, theirs.of[seen], places[seen])
  pairs = mine.near(theirs, firsts, rule)
  return _named(mine.of, theirs.of, pairs, places)


def _named(
  mine: np.ndarray, theirs: np.ndarray, pairs: np.ndarray, places: np.ndarray
) -> np.ndarray:
  """Returns pairs i and j that name all that is near, at most n + m of them.

  Args:
    mine: the node of each i, int64 (n,); -1 for none.
    theirs: the node of each j, int64 (m,); likewise.
    pairs: of these nodes that are near, all or those of `Nodes.near`, int64
      (pairs, 2).
    places: of each j; each i that is near some is given the first of these.
  """
  # The first j of each of their nodes, and of each of mine by way of these.
  by_place = np.argsort(places)
  of, first = np.unique(theirs[by_place], return_index=True)
  best = np.full(1 + theirs.max(initial=-1), -1)
  best[of[of >= 0]] = by_place[first[of >= 0]]
  pairs = pairs[np.argsort(places[best[pairs[:, 1]]], kind="stable")]
  found = np.full(1 + mine.max(initial=-1), -1)
  nodes, first = np.unique(pairs[:, 0], return_index=True)
  found[nodes] = best[pairs[first, 1]]
  i = np.flatnonzero(mine >= 0)
  i = i[found[mine[i]] >= 0]
  # Some i of each of my nodes, and of each of theirs by way of these.
  some = np.full(len(found), -1)
  some[mine[i]] = i
  back = np.full(len(best), -1)
  back[pairs[:, 1]] = some[pairs[:, 0]]
  j = np.flatnonzero(theirs >= 0)
  j = j[back[theirs[j]] >= 0]
  return np.concatenate(
    [
      np.stack([i, found[mine[i]]], axis=1),
      np.stack([back[theirs[j]], j], axis=1),
    ]
  )


def distance(
  found: findings.Found,
  slots: np.ndarray,
  other: findings.Found,
  others: np.ndarray,
  *,
  mirrored: bool,
) -> np.ndarray:
  """Returns the bits in which the hashes of pairs differ, int64 (n,).

  Args:
    found: of the first images.
    slots: of these, int64 (n,).
    other: of the second images.
    others: the slots of these, int64 (n,).
    mirrored: whether mirror images are compared, too.
  """
  sides = [("bits", "bits")]
  if mirrored:
    sides += [("mirrored", "bits"), ("bits", "mirrored")]
  bits = [
    np.bitwise_count(found.columns[one][slots] ^ other.columns[two][others])
    for one, two in sides
  ]
  return np.min(bits, axis=0).astype(np.int64)
