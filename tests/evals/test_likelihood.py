"""Scores of models that predict captions, against loops of numpy."""

import math
import types

import numpy as np
import pytest

from clip_jax import errors
from clip_jax.evals import (
  efficiency,
  embedding_model,
  prompts,
  tasks,
  zero_shot,
)
from clip_jax.models import text_shares

TEXTS = {
  "cat": ["a cat", "the cat"],
  "dog": ["a dog"],
  "owl": ["owl", "an owl"],
}


def _made(images=7, units=4, seed=0):
  """Returns log-probabilities, weights and labels."""
  rng = np.random.default_rng(seed)
  log_p = np.log(rng.dirichlet(np.ones(units), images))
  texts = sum(map(len, TEXTS.values()))
  return log_p, rng.random((units, texts)), rng.integers(0, 3, images)


def _slow_scores(log_p, weights, *, subtract_prior):
  """A class's score, term by term."""
  found, start = np.zeros((len(log_p), len(TEXTS))), 0
  for c, several in enumerate(TEXTS.values()):
    for text in range(start, start + len(several)):
      for unit in range(log_p.shape[1]):
        prior = np.log(np.exp(log_p[:, unit]).mean()) if subtract_prior else 0
        term = weights[unit, text] * (log_p[:, unit] - prior)
        found[:, c] += term / len(several)
    start += len(several)
  return found


def _model(log_p, weights):
  asked = []

  def score_texts(texts):
    asked.extend(texts)
    units, held = weights.nonzero()
    return embedding_model.Likelihoods(
      of_images=lambda images: log_p[images],
      weights=text_shares.Shares(units, held, weights[units, held]),
    )

  return types.SimpleNamespace(score_texts=score_texts, asked=asked)


@pytest.mark.parametrize("subtract_prior", [False, True])
def test_accuracy_is_that_of_the_slow_scores(subtract_prior):
  log_p, weights, labels = _made()
  model = _model(log_p, weights)
  source = types.SimpleNamespace(class_names=tuple(TEXTS), templates=None)
  batches = [
    {"image": np.arange(7)[part], "label": labels[part]}
    for part in (slice(0, 3), slice(3, 7))
  ]
  got = zero_shot.evaluate(
    source,
    model=model,
    batches=batches,
    labels=TEXTS,
    subtract_prior=subtract_prior,
  )
  want = _slow_scores(log_p, weights, subtract_prior=subtract_prior)
  assert model.asked == [text for several in TEXTS.values() for text in several]
  assert got["top1"] == np.mean(want.argmax(axis=1) == labels)
  assert (got["examples"], got["classes"]) == (7, 3)
  assert ("less its mean over all" in got["protocol"]) == subtract_prior


def test_scores_equal_a_loop_with_and_without_the_prior():
  log_p, weights, labels = _made(seed=3)
  resolved = prompts.resolve(TEXTS)
  batches = [{"image": np.arange(7), "label": labels}]
  for subtract_prior in (False, True):
    ((got, _),) = zero_shot.likelihood.scores(
      batches,
      _model(log_p, weights).score_texts,
      resolved,
      subtract_prior=subtract_prior,
    )
    want = _slow_scores(log_p, weights, subtract_prior=subtract_prior)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_scores_that_are_not_finite_are_told():
  log_p, weights, labels = _made()
  log_p[2, 1] = np.nan
  source = types.SimpleNamespace(class_names=tuple(TEXTS), templates=None)
  with pytest.raises(errors.UserError, match="not finite"):
    zero_shot.evaluate(
      source,
      model=_model(log_p, weights),
      batches=[{"image": np.arange(7), "label": labels}],
      labels=TEXTS,
    )


def test_a_prior_needs_zero_shot_and_a_model_that_predicts():
  with pytest.raises(errors.UserError, match="scores of classes"):
    tasks.open_evaluation(
      "retrieval", "builtin:digits/test", subtract_prior=True
    )
  source = types.SimpleNamespace(class_names=("a", "b"), templates=None)
  with pytest.raises(errors.UserError, match="Leave --subtract-prior out"):
    zero_shot.evaluate(
      source,
      model=types.SimpleNamespace(),
      batches=[],
      subtract_prior=True,
    )


def test_images_to_reach_are_linear_in_their_logarithm():
  images, accuracies = [100, 400, 1600, 6400], [0.1, 0.5, 0.4, 0.9]
  reach = efficiency.images_to_reach
  np.testing.assert_allclose(reach(images, accuracies, 0.3), 200, rtol=1e-12)
  np.testing.assert_allclose(reach(images, accuracies, 0.65), 3200, rtol=1e-12)
  assert reach(images, accuracies, 0.5) == pytest.approx(400)
  assert reach(images, accuracies, 0.05) == 100
  assert reach(images, accuracies, 0.95) is None


def test_a_training_that_never_arrives_makes_the_ratio_a_bound():
  def needed(*images):
    return [efficiency.Needed(abs(x), reached=x > 0) for x in images]

  others = needed(1800, 3700, 3700)
  found = efficiency.ratio(needed(-5100, 3900, -5100), others)
  want = math.prod((5100 / 1800, 3900 / 3700, 5100 / 3700)) ** (1 / 3)
  assert found == efficiency.Ratio(pytest.approx(want), ">", 3, 1)
  # Of opposite ratios the mean is 1.
  found = efficiency.ratio(needed(100, 400), needed(400, 100))
  assert found == efficiency.Ratio(pytest.approx(1), "=", 2, 2)
  found = efficiency.ratio(needed(100, -900), needed(-800, -900))
  assert found == efficiency.Ratio(pytest.approx(1 / 8), "<", 1, 0)
  found = efficiency.ratio(needed(100, -900), needed(-800, 200))
  assert found == efficiency.Ratio(None, "=", 2, 0)
  assert efficiency.ratio(needed(-9), needed(-9)).value is None
  assert efficiency.needed([10, 20], [0.1, 0.2], 0.3) == needed(-20)[0]
