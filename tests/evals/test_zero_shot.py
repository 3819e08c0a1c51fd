import types

import numpy as np
import pytest

from clip_jax import errors
from clip_jax.evals import calibration, metrics, prompts, zero_shot


def slow_accuracy(embeds, labels, classes):
  """Sorts every row by (score, index): the definition, one image at a time."""
  top1, top5, per_class = [], [], {}
  for embed, label in zip(embeds, labels, strict=True):
    scores = [float(np.dot(embed, c)) for c in classes]
    order = sorted(range(len(classes)), key=lambda i: (-scores[i], i))
    top1.append(order[0] == label)
    top5.append(label in order[:5])
    per_class.setdefault(label, []).append(top1[-1])
  means = [np.mean(hits) for hits in per_class.values()]
  return np.mean(top1), np.mean(top5), np.mean(means)


def units(rng, *shape):
  x = rng.normal(size=shape)
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def batches(embeds, labels, size):
  for start in range(0, len(embeds), size):
    yield embeds[start : start + size], labels[start : start + size]


@pytest.mark.parametrize("size", [1, 4, 100])
def test_accuracy_matches_a_sort_of_every_row(size):
  rng = np.random.default_rng(0)
  classes = units(rng, 11, 3)
  labels = rng.choice([0, 1, 2, 3, 7, 10], size=53)
  embeds = classes[labels] + rng.normal(size=(53, 3)) * 0.4
  embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
  got = zero_shot.accuracy(batches(embeds, labels, size), classes)
  top1, top5, per_class = slow_accuracy(embeds, labels, classes)
  assert 0.2 < top1 < 0.9  # The data can tell right from wrong.
  # Counts of hits are exact; only their division rounds.
  np.testing.assert_allclose(got["top1"], top1, rtol=1e-12)
  np.testing.assert_allclose(got["top5"], top5, rtol=1e-12)
  np.testing.assert_allclose(got["mean_per_class"], per_class, rtol=1e-12)
  assert got["mean_per_class"] != got["top1"]
  assert (got["examples"], got["classes"]) == (53, 11)


def test_a_model_that_gives_all_images_the_same_is_right_by_chance_only():
  embeds = np.ones((6, 2))
  classes = np.ones((3, 2))
  labels = np.array([0, 1, 2, 0, 1, 2])
  assert zero_shot.accuracy([(embeds, labels)], classes)["top1"] == 1 / 3


@pytest.mark.parametrize(
  "label, message", [(-1, "without a label"), (3, "only 3 labels")]
)
def test_labels_that_are_no_class_are_refused(label, message):
  embeds, labels = np.ones((2, 4)), np.array([0, label])
  with pytest.raises(errors.UserError, match=message):
    zero_shot.accuracy([(embeds, labels)], np.ones((3, 4)))


@pytest.mark.parametrize("value", [np.nan, np.inf, 0])
def test_broken_embeddings_are_refused_and_never_scored(value):
  embeds = np.full((1, 4), value)
  with pytest.raises(errors.UserError, match="1 of 1 image embeddings"):
    zero_shot.accuracy([(embeds, np.array([0]))], np.ones((3, 4)))


def test_no_example_is_an_error():
  with pytest.raises(errors.UserError, match="no example"):
    zero_shot.accuracy([], np.ones((3, 4)))


def fake_source(class_names, templates):
  return types.SimpleNamespace(class_names=class_names, templates=templates)


class Embedder:
  """Texts and images with known directions; remembers what it was asked."""

  axes = types.MappingProxyType({"cat": 0, "dog": 1, "owl": 2})
  logit_scale = None

  def __init__(self):
    self.texts = []

  def embed_texts(self, texts):
    self.texts += texts
    rows = [
      np.eye(3)[next(i for name, i in self.axes.items() if name in text)]
      for text in texts
    ]
    return np.array(rows)

  def embed_images(self, images):
    return np.eye(3)[images[:, 0, 0, 0]]

  def embed_classes(self, resolved):
    return prompts.class_embeddings(resolved, self.embed_texts)


def image_batches(classes):
  image = np.zeros((len(classes), 2, 2, 3), np.uint8)
  image[:, 0, 0, 0] = classes
  return [{"image": image, "label": np.array([0, 1, 2, 2])}]


@pytest.mark.parametrize(
  "labels, templates, source, texts",
  [
    (
      None,
      None,
      fake_source(("cat", "dog", "owl"), None),
      ["a photo of a cat.", "a photo of a dog.", "a photo of a owl."],
    ),
    (
      None,
      None,
      fake_source(("cat", "dog", "owl"), ("one {}",)),
      ["one cat", "one dog", "one owl"],
    ),
    (
      ["cat", "dog", "owl"],
      ["my {}"],
      fake_source(None, ("one {}",)),
      ["my cat", "my dog", "my owl"],
    ),
  ],
)
def test_labels_and_templates_default_to_those_of_the_data(
  labels, templates, source, texts
):
  embedder = Embedder()
  got = zero_shot.evaluate(
    source,
    model=embedder,
    batches=image_batches([0, 1, 2, 0]),
    labels=labels,
    templates=templates,
  )
  assert embedder.texts == texts
  assert got["top1"] == 0.75


@pytest.mark.parametrize("labels", [None, ["dog", "cat", "cat"]])
def test_data_may_name_two_classes_alike(labels, caplog):
  embedder = Embedder()
  source = fake_source(("cat", "dog", "cat"), None)
  zero_shot.check(source, labels=labels)
  assert "more than one class of the name 'cat'" in caplog.text
  got = zero_shot.evaluate(
    source,
    model=embedder,
    batches=image_batches([0, 1, 0, 0]),
    labels=labels,
  )
  assert (got["classes"], got["top1"], got["top5"]) == (3, 0.5, 1.0)
  with pytest.raises(errors.UserError, match="more than once: cat"):
    zero_shot.check(source, labels=["cat", "cat", "owl"])


def test_names_that_differ_in_capitals_or_spaces_are_told(caplog):
  names = ["Siamese  cat", "dog", "siamese cat"]
  zero_shot.check(fake_source(("cat", "dog", "owl"), None), labels=names)
  assert "the name 'Siamese  cat', but for capitals" in caplog.text
  caplog.clear()
  # Of full prompts the prompts count, and not the names.
  prompts = {"cat": "a cat", "Cat": "a drawing", "owl": "an owl"}
  zero_shot.check(fake_source(("cat", "Cat", "owl"), None), labels=prompts)
  assert not caplog.text


@pytest.mark.parametrize(
  "labels, class_names, message",
  [
    (None, None, "names no classes"),
    (["cat", "dog"], ("cat", "dog", "owl"), "2 labels.*has 3 classes"),
  ],
)
def test_labels_that_do_not_fit_the_data_are_refused(
  labels, class_names, message
):
  embedder = Embedder()
  with pytest.raises(errors.UserError, match=message):
    zero_shot.evaluate(
      fake_source(class_names, None),
      model=embedder,
      batches=image_batches([0, 1, 2, 0]),
      labels=labels,
    )


def scored(seed=0, *, n=101, classes=4):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, n)
  weights = units(rng, classes, 6)
  embeds = weights[labels] + 0.6 * rng.normal(size=(n, 6))
  embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
  return embeds.astype(np.float32), labels, weights.astype(np.float32)


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_a_scale_that_is_not_finite_is_told(scale):
  embeds = np.eye(3)
  with pytest.raises(errors.UserError, match=r"logit scale is (nan|inf); its"):
    zero_shot.accuracy([(embeds, [0, 1, 2])], embeds, logit_scale=scale)
  assert zero_shot.accuracy([(embeds, [0, 1, 2])], embeds)["top1"] == 1


def test_calibration_is_that_of_the_models_own_softmax(monkeypatch):
  embeds, labels, weights = scored()
  monkeypatch.setattr(calibration, "_SCORES_PER_BLOCK", 40)
  got = zero_shot.accuracy(
    batches(embeds, labels, 30), weights, logit_scale=20.0
  )["calibration"]
  logits = 20.0 * np.asarray(embeds, float) @ np.asarray(weights, float).T
  probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  sure, right = probabilities.max(1), probabilities.argmax(1) == labels
  want = metrics.expected_calibration_error(sure, right)
  # Logits are products of float32.
  close = {"rtol": 1e-5}
  np.testing.assert_allclose(got["ece"], want.error, **close)
  np.testing.assert_allclose(
    [got["nll"], got["brier"]],
    [
      metrics.negative_log_likelihood(logits, labels),
      metrics.brier(probabilities, labels),
    ],
    **close,
  )
  table = got["reliability"]
  assert [row["count"] for row in table] == [row.count for row in want.table]
  fitted = metrics.fit_temperature(logits[::2], labels[::2])
  np.testing.assert_allclose(got["temperature"], fitted.value, rtol=1e-4)
  half = logits[1::2] / fitted.value
  half = np.exp(half) / np.exp(half).sum(axis=1, keepdims=True)
  after = metrics.expected_calibration_error(half.max(1), right[1::2])
  np.testing.assert_allclose(got["ece_after"], after.error, rtol=1e-3)
  before = metrics.expected_calibration_error(sure[1::2], right[1::2])
  np.testing.assert_allclose(got["ece_held_out"], before.error, **close)


def test_a_single_example_gives_no_temperature():
  embeds, labels, weights = scored(n=1)
  got = zero_shot.accuracy([(embeds, labels)], weights, logit_scale=5.0)
  assert got["calibration"]["temperature"] is None
  assert got["calibration"]["ece_after"] is None


def test_two_classes_have_a_roc_curve_where_both_are_there():
  embeds, labels, weights = scored(classes=2)
  got = zero_shot.accuracy(batches(embeds, labels, 7), weights)
  scores = np.asarray(embeds, float) @ (weights[1] - weights[0])
  pairs = scores[labels == 1][:, None] > scores[labels == 0][None]
  np.testing.assert_allclose(got["roc_auc"], pairs.mean(), rtol=1e-12)
  alone = zero_shot.accuracy([(embeds[:3], np.zeros(3, int))], weights)
  assert "roc_auc" not in alone and "calibration" not in alone


def test_results_carry_intervals_and_the_mean_of_top_1_and_top_5():
  embeds, labels, weights = scored(classes=9)
  got = zero_shot.accuracy(batches(embeds, labels, 7), weights)
  for name in ("top1", "top5"):
    right = round(got[name] * len(labels))
    want = metrics.clopper_pearson(right, len(labels))
    assert got["interval_95"][name] == list(want)
  assert got["mean_top1_top5"] == (got["top1"] + got["top5"]) / 2
