"""Classifiers on a model's image features: linear probe and nearest neighbours.

Features are those before the projection into the shared space (paper, appendix
A.3), or the embeddings themselves.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import errors
from clip_jax import preprocess as preprocess_lib
from clip_jax.evals import labelled_features, logistic, zero_shot
from clip_jax.evals import reading as reading_lib

# The paper's grid of penalties: eight a decade from 1e-6 to 1e6.
PENALTIES = tuple(10 ** (k / 8 - 6) for k in range(97))
_COARSE, _SPANS = range(0, len(PENALTIES), 16), (8, 4, 2, 1)
_VALIDATION = 0.2  # Of the examples to train on, to choose the penalty by.
_LARGE = 10**9  # Examples times width times classes.
NEIGHBOURS = 20
_TEMPERATURE = 0.07  # Of a neighbour's vote (Wu et al. 2018, section 3.4).
_QUERIES = 1024


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
    UserError: the data have no classes, or the test data one that the training
      data lack.
  """
  parts = labelled_features.read_parts(
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
  train: labelled_features.Examples,
  test: labelled_features.Examples,
  *,
  seed: int = 0,
  neighbours: int = NEIGHBOURS,
) -> dict[str, Any]:
  """Returns the accuracy of a classifier; arguments are as in `evaluate`."""
  options = {"seed": seed} if task == "linear_probe" else {"k": neighbours}
  measured = TASKS[task](train, test, **options)
  return {**measured, "train_examples": len(train.labels)}


def _accuracy(
  scores: Iterator[np.ndarray],
  test: labelled_features.Examples,
  *,
  are_votes: bool = False,
) -> dict[str, Any]:
  """Returns the accuracy of batches of scores (n, classes).

  Args:
    scores: of the test examples, in their order.
    test: has the labels.
    are_votes: whether a class that scores 0 is none of the nearest.
  """
  counts, start = zero_shot.Accuracy(len(test.class_names)), 0
  for some in scores:
    labels = test.labels[start : start + len(some)]
    counts.update(some, labels, absent=some <= 0 if are_votes else None)
    start += len(some)
  return counts.result()


def linear_probe(
  train: labelled_features.Examples,
  test: labelled_features.Examples,
  *,
  seed: int = 0,
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


def share_right(
  weights: logistic.Weights, examples: labelled_features.Examples
) -> float:
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
  train: labelled_features.Examples,
  test: labelled_features.Examples,
  *,
  k: int = NEIGHBOURS,
) -> dict[str, Any]:
  """Returns the test accuracy of a vote of the nearest training examples.

  Near is a large cosine c, and a vote counts exp(c / 0.07) (Wu et al. 2018). A
  class without a vote is never among the five nearest.

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
  return {**_accuracy(scores, test, are_votes=True), "neighbours": k}


def _unit(features: np.ndarray) -> np.ndarray:
  lengths = np.linalg.norm(features, axis=1, keepdims=True)
  return features / np.maximum(lengths, np.finfo(np.float32).tiny)


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
  "knn": nearest_neighbours,
  "linear_probe": linear_probe,
}
