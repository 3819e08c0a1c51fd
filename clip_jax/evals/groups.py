"""Zero-shot classification by groups of images: accuracies, rates and gaps.

The probes of the paper's section 7.1 on any data. A table says which group an
image belongs to; a group's rate of a label is the share of its images that are
classified as this label.
"""

import collections
import csv
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from clip_jax import errors, regular_files
from clip_jax.evals import embedding_model, metrics, tasks, zero_shot
from clip_jax.evals import reading as reading_lib

TASK = "groups"
_MOST_LABELS = 20  # Reported of an attribute, as in the paper's section 7.1.


def read_groups(path: str) -> dict[str, dict[str, str]]:
  """Returns the group of each key, by attribute, from a CSV file.

  The first column contains the records' keys (an image's path as the data names
  it), each further one an attribute, such as `gender`. An empty cell means that
  the image is in no group.

  Args:
    path: of the file, in UTF-8, with the names of the columns in line 1.

  Raises:
    UserError: the file cannot be read, is not such a table, or gives a key two
      groups of an attribute.
  """
  try:
    with io.TextIOWrapper(
      regular_files.open_regular(pathlib.Path(os.path.expanduser(path))),
      encoding="utf-8-sig",
      newline="",
    ) as file:
      rows = list(csv.reader(file, strict=True))
  except (OSError, ValueError, csv.Error) as error:
    raise errors.UserError(
      f"The table of groups {path!r} cannot be read ({error}); write a CSV "
      "file in UTF-8 with the columns key and one for each attribute."
    ) from None
  names = rows[0] if rows else []
  if len(names) < 2 or "" in names or len(set(names)) < len(names):
    raise errors.UserError(
      f"The first line of the table of groups {path!r} must name its columns: "
      "the keys and at least one attribute, all different and none empty; got "
      f"{names}."
    )
  found: dict[str, dict[str, str]] = {name: {} for name in names[1:]}
  for number, row in enumerate(rows[1:], 2):
    if not row:
      continue
    if len(row) != len(names):
      raise errors.UserError(
        f"{path!r}, line {number} has {len(row)} cells, but the first line has "
        f"{len(names)}."
      )
    for name, cell in zip(names[1:], row[1:], strict=True):
      if not (group := cell.strip()):
        continue
      if (before := found[name].setdefault(row[0], group)) != group:
        raise errors.UserError(
          f"{path!r}, line {number}: {row[0]!r} is of {name} {group!r}, but of "
          f"{before!r} in a line before. Give each key one group, or make "
          "attributes of groups that an image may share."
        )
  return found


def evaluate(
  data: str,
  model: embedding_model.EmbeddingModel,
  *,
  groups: str,
  labels: str = "",
  templates: str = "",
  reading: reading_lib.Reading = reading_lib.DEFAULT,
) -> dict[str, Any]:
  """Returns the results of zero-shot classification by group, as a JSON object.

  `attributes` has for each attribute what `compare` returns. `top1` is the
  accuracy over all images, or None where an image has no label;
  `keys_of_no_image` the number of the table's keys that no image has that was
  read, of its `keys`.

  Args:
    data: a DATA address.
    model: to measure.
    groups: the path of the table, as `read_groups` takes it.
    labels: comma-separated, or a file; empty takes the data's own.
    templates: one template, or a file; empty takes the data's own.
    reading: how the data are read.

  Raises:
    UserError: the table cannot be read or has none of the data's keys, or
      labels and data do not fit each other.
  """
  table = read_groups(groups)
  classifier = tasks.open_classifier(
    data, model.embed_texts, labels=labels, templates=templates
  )
  keys, guesses, truths, bad = _classify(classifier, model, reading)
  if not keys:
    raise errors.UserError(f"{data} has no image.")
  grouped = set().union(*table.values())
  if not grouped.intersection(keys):
    raise errors.UserError(
      f"{groups!r} has no group for any image of {data}. Its first column must "
      f"contain the keys of the data, such as {keys[0]!r}."
    )
  is_labelled = min(truths) >= 0
  right = np.equal(guesses, truths) if is_labelled else None
  attributes = {
    name: compare(
      np.array(guesses),
      [members.get(key) for key in keys],
      classifier.names,
      right=right,
    )
    for name, members in table.items()
  }
  return {
    "task": TASK,
    "data": data,
    "groups": groups,
    "top1": None if right is None else float(right.mean()),
    "attributes": attributes,
    "keys": len(grouped),
    "keys_of_no_image": len(grouped.difference(keys)),
    "examples": len(keys),
    "classes": len(classifier.embeddings),
    "bad_records": dict(bad),
    "warnings": classifier.warnings,
  }


def _classify(
  classifier: tasks.Classifier,
  model: embedding_model.EmbeddingModel,
  reading: reading_lib.Reading,
) -> tuple[list[str], list[int], list[int], collections.Counter[str]]:
  """Returns keys, guessed classes, labels, and bad records by reason."""
  keys, guesses, truths = [], [], []
  bad: collections.Counter[str] = collections.Counter()
  with reading.watched(classifier.source, model.preprocess, bad) as batches:
    for batch in batches:
      embeds = model.embed_images(batch["image"])
      guesses += zero_shot.guess(embeds, classifier.embeddings).tolist()
      truths += batch["label"].tolist()
      keys += batch["key"]
  return keys, guesses, truths, bad


def compare(
  guesses: np.ndarray,
  groups: Sequence[str | None],
  names: Sequence[str],
  *,
  right: np.ndarray | None = None,
) -> dict[str, Any]:
  """Returns each group's rates, and the largest gaps between groups.

  `labels` lists the labels whose rates differ most between groups, and
  `largest_gap` is None where no two accuracies differ. Of labels of one name
  all but the first have their number behind it, as in "crane (134)". `chi2` is
  Pearson's statistic of the table (group, image got the label or not), and `p`
  its p-value times the number of labels (Bonferroni's correction).

  Args:
    guesses: the guessed label of each image, a number, (n,).
    groups: the group of each image, n; None where it is in none.
    names: of the labels, by number.
    right: whether each guess is right, (n,); None where it is not known.
  """
  members = {
    group: np.array([i for i, own in enumerate(groups) if own == group])
    for group in sorted({group for group in groups if group is not None})
  }
  counts = np.array(
    [
      np.bincount(guesses[rows], minlength=len(names))
      for rows in members.values()
    ],
    int,
  ).reshape(len(members), len(names))
  names = _told_apart(names)
  found, accuracies = {}, {}
  for (group, rows), row in zip(members.items(), counts, strict=True):
    found[group] = {
      "examples": len(rows),
      "rates": {
        name: _rate(int(hits), len(rows))
        for name, hits in zip(names, row, strict=True)
      },
    }
    if right is not None:
      top1 = _rate(int(right[rows].sum()), len(rows))
      accuracies[group] = top1["rate"]
      found[group] |= {
        "top1": top1["rate"],
        "top1_interval_95": top1["interval_95"],
      }
  sizes = np.array([len(rows) for rows in members.values()])
  labels = []
  for label, name in enumerate(names):
    rates = dict(zip(members, counts[:, label] / sizes, strict=True))
    if (gap := _gap(rates)) is None:
      continue
    chi2, p = chi_squared(counts[:, label], sizes)
    p = None if p is None else min(1.0, p * len(names))
    labels.append({"label": name, **gap, "chi2": chi2, "p": p})
  labels.sort(key=lambda entry: -entry["gap"])
  return {
    "groups": found,
    "largest_gap": _gap(accuracies),
    "labels": labels[:_MOST_LABELS],
    "without_group": sum(group is None for group in groups),
  }


def _told_apart(names: Sequence[str]) -> list[str]:
  """Returns the names, with its number behind one that was there before."""
  found: dict[str, int] = {}
  for number, name in enumerate(names):
    while name in found:
      name = f"{name} ({number})"
    found[name] = number
  return list(found)


def _rate(hits: int, examples: int) -> dict[str, Any]:
  interval = list(metrics.clopper_pearson(hits, examples))
  return {"rate": hits / examples, "interval_95": interval}


def _gap(rates: Mapping[str, float]) -> dict[str, Any] | None:
  """Returns the difference of the extreme rates, and whose they are, if any."""
  if len(set(rates.values())) < 2:
    return None
  lowest = min(rates, key=rates.__getitem__)
  highest = max(rates, key=rates.__getitem__)
  gap = float(rates[highest] - rates[lowest])
  return {"gap": gap, "between": [lowest, highest]}


def chi_squared(
  hits: np.ndarray, sizes: np.ndarray
) -> tuple[float | None, float | None]:
  """Returns Pearson's chi² of equal shares of hits in all groups, and p.

  Both are None where all examples are hits, or none is.

  Args:
    hits: the number in each group, (groups,).
    sizes: the number of examples in each group, (groups,).
  """
  share = hits.sum() / sizes.sum()
  if not 0 < share < 1:
    return None, None
  variances = sizes * share * (1 - share)
  chi2 = float(np.sum((hits - sizes * share) ** 2 / variances))
  return chi2, float(special.chdtrc(len(hits) - 1, chi2))
