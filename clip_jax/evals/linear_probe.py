"""Classifiers on a model's image features: linear probe and nearest neighbours.

Features are those before the projection into the shared space (paper, appendix
A.3), or the embeddings themselves.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import errors
from clip_jax import preprocess as preprocess_lib
from clip_jax.data import account, sources
from clip_jax.data.sources import splits
from clip_jax.evals import logistic, prompts, zero_shot
from clip_jax.evals import reading as reading_lib

# The paper's grid of penalties: eight a decade from 1e-6 to 1e6.
PENALTIES = tuple(10 ** (k / 8 - 6) for k in range(97))
_COARSE, _SPANS = range(0, len(PENALTIES), 16), (8, 4, 2, 1)
_VALIDATION = 0.2  # Of the examples to train on, to choose the penalty by.
_LARGE = 10**9  # Examples times width times classes.
NEIGHBOURS = 20
_TEMPERATURE = 0.07  # Of a neighbour's vote (Wu et al. 2018, section 3.4).
_QUERIES = 1024

NOT_FINITE = (
  "The model gives features that are not finite; its parameters are damaged or "
  "its training diverged. Use an earlier checkpoint."
)


@dataclasses.dataclass(frozen=True)
class Examples:
  """Image features with their labels.

  Attributes:
    features: float32 (n, width).
    labels: int64 (n,), indices into `class_names`.
    class_names: of the labels.
    records: the place of each in its data, (n,), where they were read from any.
  """

  features: np.ndarray
  labels: np.ndarray
  class_names: tuple[str, ...]
  records: np.ndarray | None = None

  def __getitem__(self, rows: np.ndarray) -> "Examples":
    return Examples(self.features[rows], self.labels[rows], self.class_names)

  def among(self, records: np.ndarray) -> "Examples":
    """Returns the examples at these places of their data."""
    assert self.records is not None
    return self[np.flatnonzero(np.isin(self.records, records))]


@dataclasses.dataclass(frozen=True)
class Parts:
  """The examples of a probe.

  Attributes:
    train: to train on.
    test: to test on, with classes of the same numbers.
    about: what the result says of the data.
  """

  train: Examples
  test: Examples
  about: dict[str, Any]


def evaluate(
  task: str,
  data: str,
  *,
  embed: Callable[[np.ndarray], np.ndarray],
  preprocess: preprocess_lib.Preprocess,
  train_data: str = "",
  seed: int = 0,
  neighbours: int = NEIGHBOURS,
  reading: reading_lib.Reading = reading_lib.DEFAULT,
) -> dict[str, Any]:
  """Returns the accuracy of a classifier that is trained on one split.

  Args:
    task: one of `TASKS`.
    data: a DATA address without its split; with `train_data` the test data.
    embed: returns features (n, width) of uint8 images (n, size, size, 3).
    preprocess: how an image becomes an array.
    train_data: a DATA address; empty takes the other split of `data`.
    seed: of the examples that are kept to choose the penalty by.
    neighbours: that vote, of `knn`.
    reading: how the data are read.

  Raises:
    UserError: the data have no classes, or not the same in both splits.
  """
  parts = read_parts(
    data,
    embed=embed,
    preprocess=preprocess,
    train_data=train_data,
    reading=reading,
  )
  measured = fit(
    task, parts.train, parts.test, seed=seed, neighbours=neighbours
  )
  return {"task": task, **measured, **parts.about}


def fit(
  task: str,
  train: Examples,
  test: Examples,
  *,
  seed: int = 0,
  neighbours: int = NEIGHBOURS,
) -> dict[str, Any]:
  """Returns the accuracy of a classifier; arguments are as in `evaluate`."""
  options = {"seed": seed} if task == "linear_probe" else {"k": neighbours}
  measured = TASKS[task](train, test, **options)
  return {**measured, "train_examples": len(train.labels)}


def read_parts(
  data: str,
  *,
  embed: Callable[[np.ndarray], np.ndarray],
  preprocess: preprocess_lib.Preprocess,
  train_data: str = "",
  reading: reading_lib.Reading = reading_lib.DEFAULT,
) -> Parts:
  """Returns the features of both splits; arguments are as in `evaluate`."""
  train_data, data = addresses(data, train_data)
  opened = [sources.open_source(address) for address in (train_data, data)]
  order = check_classes(opened, (train_data, data))
  total, done = sum(map(len, opened)), 0
  bad: collections.Counter[str] = collections.Counter()
  read, warnings = [], []
  for source, address in zip(opened, (train_data, data), strict=True):
    warnings += account.tell(source, address)
    read.append(
      read_all(
        source,
        address,
        embed,
        bad=bad,
        preprocess=preprocess,
        reading=reading.part(done, total),
      )
    )
    done += len(source)
  train, test = read
  train = dataclasses.replace(train, labels=order[train.labels])
  train = dataclasses.replace(train, class_names=test.class_names)
  about = {
    "data": data,
    "train_data": train_data,
    "bad_records": dict(bad),
    "warnings": warnings,
  }
  return Parts(train, test, about)


def addresses(data: str, train_data: str = "") -> tuple[str, str]:
  """Returns the addresses to train on and to test on.

  Args:
    data: as in `evaluate`.
    train_data: as in `evaluate`.

  Raises:
    UserError: they are the same, or `data` has no two splits.
  """
  if not train_data:
    return splits.train_and_test(data)
  if train_data == data:
    raise errors.UserError(
      f"{data} would be trained on and tested on; give two parts of the data, "
      "or leave --train-data out."
    )
  return train_data, data


def unlabelled(address: str) -> errors.UserError:
  """Returns the error for data of which a probe needs the labels."""
  return errors.UserError(f"{address} has examples without a label.")


def check_classes(
  opened: Sequence[sources.Source], addresses: Sequence[str]
) -> np.ndarray:
  """Returns the test data's number of each class of the training data.

  Args:
    opened: the training and the test data.
    addresses: of both, for messages.

  Raises:
    UserError: one has no classes, or they have not the same.
  """
  for source, address in zip(opened, addresses, strict=True):
    if source.class_names is None:
      raise errors.UserError(
        f"{address} has no classes to tell apart; a probe needs labelled data "
        "such as builtin:digits or a folder of class folders."
      )
  train, test = (source.class_names or () for source in opened)
  splits.check_same_classes((train, test), addresses)
  if tuple(train) == tuple(test):
    return np.arange(len(train))
  if twice := prompts.repeated(train) or prompts.repeated(test):
    raise errors.UserError(
      f"{addresses[0]} and {addresses[1]} name their classes in different "
      f"orders, and give several the name {twice[0]!r}. Give all classes names "
      "that differ."
    )
  return np.array([test.index(name) for name in train])


def read_all(
  source: sources.Source,
  address: str,
  embed: Callable[[np.ndarray], np.ndarray],
  *,
  bad: collections.Counter[str],
  preprocess: preprocess_lib.Preprocess,
  reading: reading_lib.Reading = reading_lib.DEFAULT,
) -> Examples:
  """Returns the features of labelled data.

  Args:
    source: the data.
    address: its DATA address, for messages.
    embed: returns features (n, width) of uint8 images (n, size, size, 3).
    bad: a counter of bad records by reason, changed in place.
    preprocess: how an image becomes an array.
    reading: how the data are read.

  Raises:
    UserError: there is no example, or one without a label; features are not
      finite.
  """
  with reading.watched(source, preprocess, bad) as batches:
    return _embed(batches, embed, source.class_names, address)


def _embed(batches, embed, class_names, address: str) -> Examples:
  features, labels, records = [], [], []
  for batch in batches:
    if not len(batch["image"]):  # All of them are bad.
      continue
    features.append(np.asarray(embed(batch["image"]), np.float32))
    labels.append(batch["label"])
    records.append(batch["record"])
  if not features:
    raise errors.UserError(f"{address} has no example.")
  examples = Examples(
    np.concatenate(features),
    np.concatenate(labels),
    tuple(class_names or ()),
    np.concatenate(records),
  )
  if np.any(examples.labels < 0):
    raise unlabelled(address)
  if not np.all(np.isfinite(examples.features)):
    raise errors.UserError(NOT_FINITE)
  return examples


def _accuracy(scores: Iterator[np.ndarray], test: Examples) -> dict[str, Any]:
  counts, start = zero_shot.Accuracy(len(test.class_names)), 0
  for some in scores:
    counts.update(some, test.labels[start : start + len(some)])
    start += len(some)
  return counts.result()


def linear_probe(
  train: Examples, test: Examples, *, seed: int = 0
) -> dict[str, Any]:
  """Returns the test accuracy of logistic regression (paper, appendix A.3).

  The penalty is chosen on a part of the training examples; the classifier that
  is tested is fitted to all of them.

  Args:
    train: to fit.
    test: to measure.
    seed: of the part.

  Raises:
    UserError: there are too few examples to choose the penalty by.
  """
  classes = len(test.class_names)
  fitted, held = split(train.labels, seed)
  kept = train[held]
  regression = logistic.Regression(train.features, train.labels, classes)
  chosen = np.zeros(len(train.labels), bool)
  chosen[fitted] = True
  part, counted = part_of(regression, chosen)

  def validate(places: Sequence[int]) -> list[float]:
    found = part.fit_all([PENALTIES[place] for place in places], counted)
    return [share_right(weights, kept) for weights in found]

  best, validated = search(validate)
  weights = regression.fit(PENALTIES[best])
  return {
    **_accuracy(iter([weights.scores(test.features)]), test),
    "regularisation": PENALTIES[best],
    "validation_top1": validated,
    "validation_examples": len(held),
  }


def part_of(
  regression: logistic.Regression, chosen: np.ndarray
) -> tuple[logistic.Regression, np.ndarray | None]:
  """Returns the regression for some of the examples, and which of its count.

  Many examples are parted, which saves the work of the others; few are not,
  because one program then does for all fits, and to compile takes longer.

  Args:
    regression: all examples.
    chosen: whether to fit to each, (n,).
  """
  if regression.size > _LARGE:
    return regression.part(np.flatnonzero(chosen)), None
  return regression, chosen.astype(np.float32)


def share_right(weights: logistic.Weights, examples: Examples) -> float:
  """Returns the share of the examples whose class has the highest score."""
  found = weights.scores(examples.features).argmax(axis=1)
  return float(np.mean(found == examples.labels))


def search(
  score_all: Callable[[Sequence[int]], Sequence[float]],
) -> tuple[int, float]:
  """Returns the place in `PENALTIES` that scores best, and its score.

  First every sixteenth is tried, then the neighbours of the best at 8, 4, 2 and
  1 places (paper, appendix A.3). Of equal scores the first counts.

  Args:
    score_all: returns the scores of places; is asked for each place once.
  """
  scores: dict[int, float] = {}

  def best_of(places: Sequence[int]) -> int:
    if new := [place for place in places if place not in scores]:
      scores.update(zip(new, score_all(new), strict=True))
    return max(places, key=scores.__getitem__)

  for place in reversed(_COARSE):  # Each fit starts from the one before.
    best_of([place])
  peak = best_of(_COARSE)
  for span in _SPANS:
    near = (peak - span, peak, peak + span)
    peak = best_of([place for place in near if 0 <= place < len(PENALTIES)])
  return peak, scores[peak]


def split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the rows to fit and those to validate on, of each class a fifth.

  Args:
    labels: (n,).
    seed: of the choice.

  Raises:
    UserError: no class has enough examples to keep one.
  """
  rng = np.random.default_rng(seed)
  held = []
  for label in np.unique(labels):
    rows = rng.permutation(np.flatnonzero(labels == label))
    held.append(rows[: round(_VALIDATION * len(rows))])
  kept = np.sort(np.concatenate(held))
  if not len(kept):
    raise errors.UserError(
      "Every class has fewer than three examples to train on; a linear probe "
      "keeps a fifth of them to choose its penalty by."
    )
  return np.setdiff1d(np.arange(len(labels)), kept), kept


def nearest_neighbours(
  train: Examples, test: Examples, *, k: int = NEIGHBOURS
) -> dict[str, Any]:
  """Returns the test accuracy of a vote of the nearest training examples.

  Near is a large cosine c, and a vote counts exp(c / 0.07) (Wu et al. 2018).

  Args:
    train: that vote.
    test: to measure.
    k: how many vote; all where there are fewer.
  """
  k = min(k, len(train.labels))
  bank = jnp.asarray(_unit(train.features))
  labels = jnp.asarray(train.labels)

  @jax.jit
  def score(queries):
    cosines, rows = jax.lax.top_k(queries @ bank.T, k)
    votes = jnp.exp((cosines - 1) / _TEMPERATURE)
    scores = jnp.zeros((len(queries), len(test.class_names)))
    return scores.at[jnp.arange(len(queries))[:, None], labels[rows]].add(votes)

  starts = range(0, len(test.labels), _QUERIES)
  queries = (_unit(test.features[start : start + _QUERIES]) for start in starts)
  scores = (np.asarray(score(some)) for some in queries)
  return {**_accuracy(scores, test), "neighbours": k}


def _unit(features: np.ndarray) -> np.ndarray:
  lengths = np.linalg.norm(features, axis=1, keepdims=True)
  return features / np.maximum(lengths, np.finfo(np.float32).tiny)


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
  "knn": nearest_neighbours,
  "linear_probe": linear_probe,
}
