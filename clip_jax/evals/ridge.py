"""The few-shot probe of a run in training: ridge regression in closed form.

It is what big_vision calls `fewshot_lsr` (Dosovitskiy et al. 2021, section
4.1): quick, deterministic and without a search, so that its numbers over a run
compare with each other. The linear probe is better for a number by itself.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from clip_jax.data import sources
from clip_jax.data.sources import splits
from clip_jax.evals import embedding_model, labelled_features
from clip_jax.evals import reading as reading_lib
from clip_jax.evals import shots as shots_lib

TASK = "few_shot_lsr"
SHOTS = (1, 5, 10, 25)  # Of big_vision's probe, as all of these.
PENALTY = 2.0**10
_BIAS = 100.0  # A feature that is always so large: nearly no penalty.
_SMALLEST = 1e-5  # Added to the deviation of a feature.


@dataclasses.dataclass(frozen=True)
class FewShot:
  """An evaluation of a run, beside `tasks.Evaluation`.

  Attributes:
    task: `TASK`.
    data: the address of the test data.
    source: what it opened to.
    train_data: the address that shots are drawn from.
    pool: what it opened to.
    order: the test data's number of each class of the training data.
  """

  data: str
  source: sources.Source
  train_data: str
  pool: shots_lib.Pool
  order: np.ndarray
  task: str = TASK

  def measure(
    self,
    model: embedding_model.EmbeddingModel,
    *,
    reading: reading_lib.Reading = reading_lib.DEFAULT,
  ) -> dict[str, Any]:
    """Returns the accuracy of probes on a model's embeddings.

    Args:
      model: to measure.
      reading: how the data are read.

    Raises:
      UserError: the data cannot be used, or a class has no example.
    """
    short = shots_lib.too_few(SHOTS, self.pool.fewest())
    seeds, most = shots_lib.SEEDS, max(SHOTS)
    before = min(len(self.pool.labels), seeds * most * len(self.order))
    total = before + len(self.source)
    draws, bad = self.pool.embed(
      model.embed_images,
      most=most,
      seeds=seeds,
      preprocess=model.preprocess,
      reading=reading.part(0, total),
    )
    test = labelled_features.read_all(
      self.source,
      self.data,
      model.embed_images,
      bad=bad,
      preprocess=model.preprocess,
      reading=reading.part(before, total),
    )
    entries = []
    for k in SHOTS:
      right = []
      for draw in draws:
        rows = draw.place < k
        scores = fit(
          draw.examples.features[rows],
          self.order[draw.examples.labels[rows]],
          classes=len(self.order),
        )(test.features)
        right.append(float(np.mean(scores.argmax(axis=1) == test.labels)))
      entries.append(shots_lib.summary(k, right))
    return {
      "task": self.task,
      "data": self.data,
      "train_data": self.train_data,
      "top1": entries[-1]["mean"],
      "examples": len(test.labels),
      "classes": len(self.order),
      "shots": entries,
      "regularisation": PENALTY,
      "features": "embedding",
      "bad_records": dict(bad),
      "warnings": short,
    }


def open_few_shot(
  data: str,
  *,
  open_source: Callable[[str], sources.Source] = sources.open_source,
) -> FewShot:
  """Returns the evaluation of a DATA address with two splits; reads no record.

  Args:
    data: a DATA address without its split.
    open_source: from an address to its source.

  Raises:
    UserError: the data have no classes, or not the same in both splits.
  """
  addresses = splits.train_and_test(data, hint="")
  train, test = map(open_source, addresses)
  numbers = labelled_features.check_classes((train, test), addresses)
  return FewShot(
    data=addresses[1],
    source=test,
    train_data=addresses[0],
    pool=shots_lib.Pool(train, addresses[0]),
    order=numbers.train,
  )


def fit(
  features: np.ndarray, labels: np.ndarray, *, classes: int
) -> Callable[[np.ndarray], np.ndarray]:
  """Returns a function from features (m, width) to scores (m, classes).

  The targets are 1 for the own class and -1 for others, the features centred
  and divided by their deviation; all in float64.

  Args:
    features: (n, width).
    labels: (n,), from 0 to classes - 1.
    classes: how many there are.
  """
  features = features.astype(np.float64)
  mean, deviation = features.mean(axis=0), features.std(axis=0) + _SMALLEST

  def prepare(some: np.ndarray) -> np.ndarray:
    return np.pad(
      (some - mean) / deviation, ((0, 0), (0, 1)), constant_values=_BIAS
    )

  inputs = prepare(features)  # (n, width + 1)
  targets = 2.0 * (labels[:, None] == np.arange(classes)) - 1
  examples, width = inputs.shape
  if examples < width:  # The smaller of the two equal systems.
    gram = inputs @ inputs.T + PENALTY * np.eye(examples)
    weights = inputs.T @ np.linalg.solve(gram, targets)
  else:
    gram = inputs.T @ inputs + PENALTY * np.eye(width)
    weights = np.linalg.solve(gram, inputs.T @ targets)
  return lambda some: prepare(some) @ weights
