"""Whether a result compares with figures that are published of its data set.

The suite's tables say how many images, classes and captions a set has, and with
which prompts it is measured.
"""

import functools
from collections.abc import Mapping
from typing import Any

from clip_jax import names, terminal
from clip_jax.evals import prompts
from clip_jax.evals.suite import data_sets
from clip_jax.results import collected

# Of the images of a set, or of the captions of an image: a few may be lost.
_MOST_MISSING = 0.01


def difference(key: str | None, values: Mapping[str, Any]) -> str:
  """Returns in what a result's data are not those that figures are of.

  "" where they are, as far as the result says: it has the number of images of a
  published protocol, of which some may have been bad or are missing, with all
  classes, or with as many captions an image.

  Args:
    key: of the set in `published.table()`; None for other data.
    values: of the result.
  """
  found = [_difference(entry, values) for entry in _entries(key)]
  return "" if "" in found or not found else found[0]


def as_published(
  key: str | None, task: str, values: Mapping[str, Any]
) -> bool | None:
  """Whether a result has the prompts, or the features, of published figures.

  None where it does not say. Those of zero-shot classification are the suite's;
  the same prompts of classes in another order count as others.

  Args:
    key: of the set in `published.table()`; None for other data.
    task: of the result.
    values: of the result.
  """
  if key is None:
    return None
  if task in names.PROBE_TASKS:
    features = values.get("features")
    return None if features is None else features == names.FEATURES[0]
  if "set" in values and "prompts_hash" in values:  # Of a suite.
    return True
  digest = values.get("prompts_hash")
  if task != "zero_shot" or not isinstance(digest, str):
    return None
  return digest in _digests(key)


@functools.cache
def _digests(key: str) -> frozenset[str]:
  """Returns what the prompts of the suite's protocols of a set have as hash."""
  found = set()
  for entry in _entries(key):
    if entry.task == "zero_shot":
      classes = data_sets.classes(entry)
      labels = [list(several) for several in classes.synonyms]
      resolved = prompts.resolve(labels, classes.templates, may_repeat=True)
      found.add(resolved.digest)
  return frozenset(found)


def _entries(key: str | None) -> list[data_sets.Entry]:
  """Returns the suite's protocols of a set; they may be of other images."""
  return [
    entry
    for entry in data_sets.entries().values()
    if key and key in (entry.name, entry.published_as)
  ]


def _difference(entry: data_sets.Entry, values: Mapping[str, Any]) -> str:
  counts = "images" if entry.task == "retrieval" else "examples"
  images = collected.number(values.get(counts))
  if folds := collected.entries(values.get("folds")):  # Of the first split.
    images = collected.number(folds[0].get("examples"))
  classes = collected.number(values.get("classes"))
  texts = collected.number(values.get("texts"))
  found = []
  if images is not None and not _is_number_of(entry, images, _bad(values)):
    known = " or ".join(f"{count:,}" for count in entry.counts)
    what = terminal.noun(images, "image")
    found.append(f"{_number(images)} {what}, not {known}")
  if entry.classes and classes is not None and classes != entry.classes:
    what = terminal.noun(classes, "class", "classes")
    found.append(f"{_number(classes)} {what}, not {entry.classes:,}")
  if entry.texts and images and texts and not found:
    own, usual = texts / images, entry.texts / entry.examples
    if abs(own / usual - 1) > _MOST_MISSING:
      found.append(f"captions an image: {own:.3g}, not {usual:.3g}")
  return terminal.printable("; ".join(found), limit=120)


def _is_number_of(entry: data_sets.Entry, images: float, bad: float) -> bool:
  """Whether a set has so many images, some of which are bad or missing."""
  return any(
    images <= count and images + bad >= (1 - _MOST_MISSING) * count
    for count in entry.counts
  )


def _bad(values: Mapping[str, Any]) -> float:
  """Returns the number of bad records."""
  by_reason = values.get("bad_records")
  if not isinstance(by_reason, dict):
    return 0.0
  return sum(max(collected.number(x) or 0.0, 0.0) for x in by_reason.values())


def _number(count: float) -> str:
  return f"{count:,.0f}" if count < 1e12 else f"{count:g}"
