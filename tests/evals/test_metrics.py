"""Every measure against its definition, written out slowly."""

import math

import numpy as np
import pytest
from scipy import stats

from clip_jax import errors
from clip_jax.evals import metrics


def made_up(seed, *, n=40, classes=4, ties=True):
  """Scores of which many are equal, and several labels an example."""
  rng = np.random.default_rng(seed)
  scores = rng.normal(size=(n, classes))
  if ties:
    scores = rng.integers(0, 12, size=(n, classes)) / 8
  return scores, rng.random((n, classes)) < 0.35


def slow_curve(scores, targets):
  """(precision, hits) of what scores at least as much as each score."""
  curve = []
  for threshold in sorted(set(scores), reverse=True):
    found = [t for s, t in zip(scores, targets, strict=True) if s >= threshold]
    curve.append((sum(found) / len(found), sum(found)))
  return curve


def slow_eleven_points(scores, targets):
  positives, curve = sum(targets), slow_curve(scores, targets)
  return np.mean(
    [
      max(p for p, hits in curve if 10 * hits >= tenth * positives)
      for tenth in range(11)
    ]
  )


def slow_all_points(scores, targets):
  before, area = 0, 0.0
  for precision, hits in slow_curve(scores, targets):
    area += precision * (hits - before) / sum(targets)
    before = hits
  return area


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize(
  "measure, slow",
  [
    (metrics.map_11_point, slow_eleven_points),
    (metrics.map_all_point, slow_all_points),
  ],
)
def test_average_precision_matches_its_definition(measure, slow, ties):
  for seed in range(5):
    scores, targets = made_up(seed, ties=ties)
    targets[:, 2] &= seed > 0  # Once, a class without an example.
    ignore = np.random.default_rng(seed).random(scores.shape) < 0.2
    for left_out in (None, ignore):
      kept = np.ones(scores.shape, bool) if left_out is None else ~ignore
      want = np.mean(
        [
          slow(scores[kept[:, k], k], targets[kept[:, k], k])
          for k in range(scores.shape[1])
          if targets[kept[:, k], k].any()
        ]
      )
      got = measure(scores, targets, left_out)
      np.testing.assert_allclose(got, want, rtol=1e-12)


def test_eleven_points_take_a_recall_of_exactly_a_tenth():
  # Ten positives, each followed by a negative: recall 0.1 has precision 1, and
  # 0.3 = 3/10 the precision 3/5, both at the very step.
  scores = -np.arange(20.0)
  targets = np.arange(20) % 2 == 0
  want = (1 + sum(k / (2 * k - 1) for k in range(1, 11))) / 11
  got = metrics.map_11_point(scores[:, None], targets[:, None])
  np.testing.assert_allclose(got, want, rtol=1e-12)
  assert got != metrics.map_all_point(scores[:, None], targets[:, None])


@pytest.mark.parametrize("ties", [True, False])
def test_roc_auc_counts_pairs(ties):
  for seed in range(5):
    scores, targets = made_up(seed, ties=ties)
    scores, targets = scores[:, 0], targets[:, 0]
    pairs = [
      0.5 if p == n else float(p > n)
      for p in scores[targets]
      for n in scores[~targets]
    ]
    got = metrics.roc_auc(scores, targets)
    np.testing.assert_allclose(got, np.mean(pairs), rtol=1e-12)


def test_frozen_numbers_of_scikit_learn():
  # scikit-learn 1.9.1 with numpy 2.4.6 and scipy 1.17.1, by
  # average_precision_score, roc_auc_score, recall_score, log_loss,
  # brier_score_loss (scale_by_half=False) and top_k_accuracy_score.
  rng = np.random.default_rng(7)
  scores = rng.integers(0, 12, size=(40, 4)) / 8
  targets = rng.random((40, 4)) < 0.35
  labels = rng.choice([0, 1, 3], size=40)
  logits = 2 * rng.normal(size=(40, 4))
  weights = np.exp(logits)
  probabilities = weights / weights.sum(axis=1, keepdims=True)
  got = [
    metrics.map_all_point(scores, targets),
    *(metrics.roc_auc(scores[:, k], targets[:, k]) for k in range(4)),
    metrics.mean_per_class(scores.argmax(axis=1) == labels, labels, 4),
    metrics.negative_log_likelihood(logits, labels),
    metrics.brier(probabilities, labels),
    np.mean(metrics.ranks(logits, labels) < 2),
  ]
  want = [
    *(0.3446931907681544, 0.4658119658119658, 0.428, 0.4296875, 0.57),
    *(0.2883158508158508, 2.5615549964865107, 1.1549198146587645, 0.425),
  ]
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_equal_scores_rank_by_class_number():
  scores = np.array([[1, 1, 0, 1.0]] * 4)
  ranks = metrics.ranks(scores, np.array([0, 1, 2, 3]))
  np.testing.assert_array_equal(ranks, [0, 1, 3, 2])


def test_classes_without_examples_do_not_count():
  correct, labels = np.array([True, False, True]), np.array([0, 0, 5])
  assert metrics.mean_per_class(correct, labels, 9) == (0.5 + 1) / 2


def test_the_mean_of_top_1_and_top_5():
  rank = np.array([0, 4, 5, 3])
  assert metrics.mean_top1_top5(rank) == (1 / 4 + 3 / 4) / 2


def test_the_interval_is_clopper_pearsons():
  # By definition: at the bounds the observed count or a more extreme one has
  # probability (1 - level) / 2.
  low, high = metrics.clopper_pearson(37, 50, level=0.9)
  np.testing.assert_allclose(stats.binom.sf(36, 50, low), 0.05, rtol=1e-9)
  np.testing.assert_allclose(stats.binom.cdf(37, 50, high), 0.05, rtol=1e-9)
  assert metrics.clopper_pearson(37, 50) == metrics.clopper_pearson(
    37, 50, 0.95
  )


@pytest.mark.parametrize("right, bounds", [(0, (0.0, None)), (9, (None, 1.0))])
def test_the_interval_reaches_the_end_where_nothing_or_all_is_right(
  right, bounds
):
  got = metrics.clopper_pearson(right, 9)
  for value, bound in zip(got, bounds, strict=True):
    assert value == bound if bound is not None else 0 < value < 1


def test_the_calibration_error_and_its_table_match_a_loop():
  rng = np.random.default_rng(3)
  edges = [k / 15 for k in range(16)]
  # Both ends, and confidences that lie on an edge: they are of the lower bin.
  confidences = np.array([*edges, *rng.random(60)])
  correct = rng.random(len(confidences)) < confidences
  got = metrics.expected_calibration_error(confidences, correct)
  error = 0.0
  for k, row in enumerate(got.table):
    inside = [
      (c, r)
      for c, r in zip(confidences, correct, strict=True)
      if edges[k] < c <= edges[k + 1] or (k == 0 and c == 0)
    ]
    assert (row.low, row.high, row.count) == (*edges[k : k + 2], len(inside))
    mean_c, mean_r = np.mean(inside, axis=0)
    np.testing.assert_allclose([row.confidence, row.accuracy], [mean_c, mean_r])
    error += len(inside) / len(confidences) * abs(mean_c - mean_r)
  np.testing.assert_allclose(got.error, error, rtol=1e-12)


def test_empty_bins_have_no_mean():
  found = metrics.expected_calibration_error(np.array([0.99]), np.array([True]))
  assert [row.count for row in found.table] == [0] * 14 + [1]
  assert found.table[0].confidence is found.table[0].accuracy is None
  np.testing.assert_allclose(found.error, 0.01, rtol=1e-12)


@pytest.mark.parametrize("truth", [0.3, 1.0, 2.5])
def test_the_temperature_has_the_smallest_loss(truth, monkeypatch):
  monkeypatch.setattr(metrics, "_VALUES_PER_BLOCK", 1000)  # Several blocks.
  rng = np.random.default_rng(5)
  logits = 3 * rng.normal(size=(900, 5))
  noise = rng.gumbel(size=logits.shape)
  labels = (logits / truth + noise).argmax(axis=1)  # Drawn from the softmax.
  got = metrics.fit_temperature(logits, labels)
  assert not got.at_bound and got.steps < 20

  def loss(temperature):
    return metrics.negative_log_likelihood(logits / temperature, labels)

  assert loss(got.value) < min(loss(got.value * x) for x in (0.999, 1.001))
  np.testing.assert_allclose(got.value, truth, rtol=0.15)  # 900 draws.


def test_a_temperature_that_would_go_to_its_bounds_is_told():
  logits = 5 * np.eye(3)
  found = metrics.fit_temperature(logits, np.arange(3))
  assert (found.value, found.at_bound) == (pytest.approx(0.01), True)
  found = metrics.fit_temperature(logits, np.array([1, 2, 0]))
  assert (found.value, found.at_bound) == (pytest.approx(100), True)


@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_the_temperature_follows_the_scale_of_the_logits(scale):
  rng = np.random.default_rng(6)
  logits = rng.normal(size=(50, 3))
  labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
  one = metrics.fit_temperature(logits, labels).value
  got = metrics.fit_temperature(scale * logits, labels)
  if scale == 1:
    assert got.value == one
  else:
    want = np.clip(scale * one, 0.01, 100)
    np.testing.assert_allclose(got.value, want, rtol=1e-8)
    assert got.at_bound


def test_the_loss_of_logits_far_apart_is_finite():
  logits = np.array([[1e4, 0.0]])
  loss = metrics.negative_log_likelihood(logits, np.array([1]))
  assert loss == 1e4 and math.isfinite(loss)


@pytest.mark.parametrize(
  "call",
  [
    lambda: metrics.mean_per_class(np.zeros(0), np.zeros(0, int), 3),
    lambda: metrics.mean_top1_top5(np.zeros(0)),
    lambda: metrics.map_11_point(np.ones((2, 1)), np.zeros((2, 1))),
    lambda: metrics.map_all_point(np.full((2, 1), np.nan), np.ones((2, 1))),
    lambda: metrics.roc_auc(np.ones(3), np.ones(3)),
    lambda: metrics.clopper_pearson(4, 3),
    lambda: metrics.clopper_pearson(0, 0),
    lambda: metrics.expected_calibration_error(np.array([1.5]), np.ones(1)),
    lambda: metrics.expected_calibration_error(np.zeros(0), np.zeros(0)),
    lambda: metrics.negative_log_likelihood(np.zeros((0, 2)), np.zeros(0, int)),
    lambda: metrics.brier(np.zeros((0, 2)), np.zeros(0, int)),
    lambda: metrics.fit_temperature(np.full((1, 2), np.inf), np.array([0])),
  ],
)
def test_what_has_no_value_is_refused(call):
  with pytest.raises(errors.UserError):
    call()
