"""Few-shot: the linear probe on k examples a class, beside zero-shot.

The paper's Figures 6, 7 and 15. The paper does not say how the penalty is
chosen: here by the search of the linear probe, on two halves of the k examples
in turn (the first, third, … of each class and the second, fourth, …). Where
fewer than half of the classes have two examples it is `ONE_SHOT_PENALTY`. Of
equal penalties the largest counts.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from clip_jax import errors
from clip_jax import preprocess as preprocess_lib
from clip_jax.data import account, sources
from clip_jax.data import record as record_lib
from clip_jax.evals import (
  labelled_features,
  linear_probe,
  logistic,
  prompts,
  tasks,
  zero_shot,
)
from clip_jax.evals import reading as reading_lib
from clip_jax.evals import shots as shots_lib

_LOGGER = logging.getLogger(__name__)

TASK = "few_shot"
SHOTS = (1, 2, 4, 8, 16)  # Paper, Figure 6.
# 1 / 0.316, the penalty of OpenAI's example of a linear probe.
ONE_SHOT_PENALTY = linear_probe.PENALTIES[52]
# Of a large penalty a loss near that of chance hides how classes differ.
_TOLERANCE = 1e-7
_NUDGE = 1e-9  # Less than any difference of accuracies.

Embed = Callable[[np.ndarray], np.ndarray]


def evaluate(
  data: str,
  *,
  embed: Embed,
  embed_images: Embed,
  embed_texts: prompts.EmbedTexts,
  preprocess: preprocess_lib.Preprocess,
  train_data: str = "",
  shots: Sequence[int] = SHOTS,
  seeds: int = shots_lib.SEEDS,
  labels: str = "",
  templates: str = "",
  reading: reading_lib.Reading = reading_lib.DEFAULT,
) -> dict[str, Any]:
  """Returns the accuracy of probes on a few examples, and of zero-shot.

  `shots` is a list of {k, mean, std, seeds, …}, `label_efficiency` the number
  of examples a class at which the probe equals zero-shot. `top1` and
  `regularisation` are those of the most shots: the mean and the median over
  the seeds.

  Args:
    data: a DATA address without its split; with `train_data` the test data.
    embed: returns the probe's features (n, width) of uint8 images.
    embed_images: returns their unit embeddings.
    embed_texts: returns unit embeddings of texts.
    preprocess: how an image becomes an array.
    train_data: a DATA address; empty takes the other split of `data`.
    shots: numbers of examples a class, at least 1.
    seeds: draws of each number, of the seeds 0, 1, ….
    labels: comma-separated, or a file; empty takes the data's own.
    templates: one template, or a file; empty takes the data's own.
    reading: how the data are read.

  Raises:
    UserError: the data have no classes, or not the same in both splits, or the
      splits are the same.
  """
  shots = _ascending(shots)
  opened = _open(data, train_data, shots, labels=labels, templates=templates)
  classes = prompts.class_embeddings(opened.prompts, embed_texts)
  pool, order, most = opened.pool, opened.order, max(shots)
  before = min(len(opened.train), seeds * most * len(order))
  total = before + len(opened.test)
  drawn, bad = pool.embed(
    embed,
    most=most,
    seeds=seeds,
    preprocess=preprocess,
    reading=reading.part(0, total),
  )
  tested, embeddings = _read_test(
    opened.test,
    opened.data,
    embed,
    embed_images,
    bad=bad,
    preprocess=preprocess,
    reading=reading.part(before, total),
  )
  baseline = zero_shot.accuracy(iter([(embeddings, tested.labels)]), classes)
  found = [_in_order(draw, order, tested.class_names) for draw in drawn]
  entries = [_of_shots(k, found, tested) for k in shots]
  return {
    "task": TASK,
    "data": opened.data,
    "train_data": opened.train_data,
    "top1": entries[-1]["mean"],
    "regularisation": float(np.median(entries[-1]["regularisation"])),
    "zero_shot": baseline,
    "shots": entries,
    "label_efficiency": label_efficiency(
      shots, [entry["mean"] for entry in entries], baseline["top1"]
    ),
    "examples": baseline["examples"],
    "classes": len(tested.class_names),
    "bad_records": dict(bad),
    "warnings": opened.warnings,
  }


def _ascending(shots: Sequence[int]) -> list[int]:
  """Returns the numbers of shots in order, each once."""
  if not shots or min(shots) < 1:
    raise errors.UserError(
      f"shots={list(shots)} must be whole numbers of at least 1, such as 1,4."
    )
  return sorted(set(shots))


@dataclasses.dataclass(frozen=True)
class _Opened:
  """Both splits, checked against each other.

  Attributes:
    train_data: the address of the training data.
    data: that of the test data.
    train: the training data.
    test: the test data.
    order: the test data's number of each class of the training data.
    prompts: of the test data's classes.
    pool: from which shots are drawn.
    warnings: for the result.
  """

  train_data: str
  data: str
  train: record_lib.Source
  test: record_lib.Source
  order: np.ndarray
  prompts: prompts.Prompts
  pool: shots_lib.Pool
  warnings: list[str]


def _open(
  data: str,
  train_data: str,
  shots: Sequence[int],
  *,
  labels: str,
  templates: str,
) -> _Opened:
  """Opens both splits and tells what is wrong with them; embeds nothing."""
  train_data, data = labelled_features.addresses(data, train_data)
  opened = tasks.open_evaluation(
    "zero_shot", data, labels=labels, templates=templates
  )
  train, test = sources.open_source(train_data), opened.source
  parts = (train, test), (train_data, data)
  order = labelled_features.check_parts(*parts).train
  resolved = opened.class_prompts()
  told = [*account.tell(train, train_data), *account.tell(test, data)]
  pool = shots_lib.Pool(train, train_data)
  short = shots_lib.too_few(shots, pool.fewest())
  for warning in short:
    _LOGGER.warning("%s", warning)
  return _Opened(
    train_data, data, train, test, order, resolved, pool, told + short
  )


def _read_test(
  source: record_lib.Source,
  data: str,
  embed: Embed,
  embed_images: Embed,
  **how: Any,
) -> tuple[labelled_features.Examples, np.ndarray]:
  """Returns the test examples and their unit embeddings, in one pass.

  Args:
    source: the test data.
    data: its address.
    embed: returns the probe's features.
    embed_images: returns unit embeddings; it may be `embed`.
    **how: of `labelled_features.read_all`.
  """
  embeddings = []

  def both(images: np.ndarray) -> np.ndarray:
    embeddings.append(np.asarray(embed_images(images), np.float32))
    return embeddings[-1] if embed == embed_images else embed(images)

  examples = labelled_features.read_all(source, data, both, **how)
  return examples, np.concatenate(embeddings)


def _in_order(draw, order, class_names) -> shots_lib.Shots:
  """Returns a draw with the class numbers of the test data."""
  examples = labelled_features.Examples(
    draw.examples.features, order[draw.examples.labels], class_names
  )
  return shots_lib.Shots(examples, draw.place)


def _of_shots(
  k: int, draws: Sequence[shots_lib.Shots], test: labelled_features.Examples
) -> dict[str, Any]:
  accuracies, penalties, used = [], [], []
  for draw in draws:
    penalty, weights = fit(draw, k, classes=len(test.class_names))
    accuracies.append(linear_probe.share_right(weights, test))
    penalties.append(penalty)
    used.append(int(np.sum(draw.place < k)))
  more = {"regularisation": penalties, "train_examples": max(used)}
  return shots_lib.summary(k, accuracies, **more)


def fit(
  draw: shots_lib.Shots, k: int, *, classes: int
) -> tuple[float, logistic.Weights]:
  """Returns the penalty and the classifier of the first k examples a class.

  Args:
    draw: of at least k examples a class, where a class has so many.
    k: how many to take.
    classes: how many there are.
  """
  examples = draw.examples
  regression = logistic.Regression(examples.features, examples.labels, classes)
  taken = draw.place < k
  halves = [taken & (draw.place % 2 == parity) for parity in (0, 1)]
  penalty = ONE_SHOT_PENALTY
  in_both = np.unique(examples.labels[halves[1]])
  if 2 * len(in_both) >= len(np.unique(examples.labels)):
    held = [examples[np.flatnonzero(half)] for half in halves[::-1]]

    def validate(places: Sequence[int]) -> list[float]:
      found = regression.fit_all(
        [linear_probe.PENALTIES[place] for place in places for _ in halves],
        np.stack(halves * len(places)),
      )
      right = [
        linear_probe.share_right(weights, held[i % 2])
        for i, weights in enumerate(found)
      ]
      # Of equal ones the largest penalty, which so few examples speak for.
      return [
        float(np.mean(right[2 * i : 2 * i + 2])) + place * _NUDGE
        for i, place in enumerate(places)
      ]

    penalty = linear_probe.PENALTIES[linear_probe.search(validate)[0]]
  return penalty, regression.fit(penalty, taken, _TOLERANCE)


def label_efficiency(
  shots: Sequence[int], accuracies: Sequence[float], zero_shot_accuracy: float
) -> dict[str, Any]:
  """Returns the number of examples a class with which a probe equals zero-shot.

  `shots` is that number, interpolated linearly over the logarithm of the
  shots (paper, section 3.1.4 and Figure 7), or None where it lies beyond those
  that were measured; `text` says it in any case, such as "5.4", "<1" or ">16".

  Args:
    shots: ascending.
    accuracies: of the probe with each.
    zero_shot_accuracy: to equal.
  """
  if accuracies[0] > zero_shot_accuracy:
    return {"shots": None, "text": f"<{shots[0]}"}
  points = list(zip(shots, accuracies, strict=True))
  for (low, below), (high, above) in zip(
    [points[0], *points], points, strict=False
  ):
    if above >= zero_shot_accuracy:
      rise = above - below
      share = (zero_shot_accuracy - below) / rise if rise else 0.0
      number = math.exp(
        math.log(low) + share * (math.log(high) - math.log(low))
      )
      return {"shots": number, "text": f"{number:.3g}"}
  return {"shots": None, "text": f">{shots[-1]}"}
