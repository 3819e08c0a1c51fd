"""Mean average precision of images that may be of several classes."""

import types

import numpy as np
import pytest

from clip_jax import errors
from clip_jax.evals import embedding_model, metrics, multi_label, zero_shot


def test_ignored_classes_do_not_count_and_precision_is_that_of_cosines():
  rng = np.random.default_rng(0)
  embeds = rng.normal(size=(20, 4))
  embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
  labels = [tuple(np.flatnonzero(rng.random(3) < 0.4)) for _ in range(20)]
  ignored = [
    tuple(set(np.flatnonzero(rng.random(3) < 0.3)) - set(own)) for own in labels
  ]
  classes = np.linalg.qr(rng.normal(size=(4, 4)))[0][:3]
  batch = {"labels": labels, "ignored": ignored}
  marks = multi_label.marks(batch, 3)
  got = multi_label.precision(embeds, marks, classes)
  kept = np.array([[k not in own for k in range(3)] for own in ignored])
  want = []
  for k in range(3):
    rows = kept[:, k]
    targets = np.array([k in own for own in labels])[rows]
    scores = (embeds @ classes[k])[rows]
    want.append(metrics.map_11_point(scores[:, None], targets[:, None]))
  np.testing.assert_allclose(got["map_11_point"], np.mean(want), rtol=1e-12)
  assert got["labels"] == sum(map(len, labels))
  assert got["ignored"] == sum(map(len, ignored))


@pytest.mark.parametrize(
  "labels, message", [([(0,), None], "one label and others"), ([(3,)], "3")]
)
def test_labels_that_do_not_fit_are_refused(labels, message):
  batch = {"labels": labels, "ignored": [()] * len(labels)}
  with pytest.raises(errors.UserError, match=message):
    multi_label.marks(batch, 3)


def evaluate(batches):
  axes = {"cat": 0, "dog": 1, "owl": 2}
  model = embedding_model.Functions(
    lambda images: images / np.linalg.norm(images, axis=1, keepdims=True),
    lambda texts: np.eye(3)[[axes[text] for text in texts]],
    preprocess=None,
  )
  source = types.SimpleNamespace(class_names=tuple(axes), templates=("{}",))
  return zero_shot.evaluate(source, model=model, batches=batches)


def batch(images, labels):
  several = [own if isinstance(own, tuple) else None for own in labels]
  one = [-1 if isinstance(own, tuple) else own for own in labels]
  return {
    "image": np.array(images, float).reshape(-1, 3),
    "label": np.array(one, int),
    "labels": several,
    "ignored": [()] * len(labels),
  }


def test_data_with_several_labels_give_average_precision():
  got = evaluate(
    [
      batch([[2, 1, 0], [1, 0, 2]], [(0, 1), ()]),
      batch([], []),
      batch([[1, 2, 2]], [(1,)]),
    ]
  )
  # Cat: of the images 0.9, 0.4, 0.3 the first. Dog: 0.7 and 0.4 before 0.
  # Nobody has an owl, which does not count.
  assert got["map_11_point"] == got["map_all_point"] == 1
  assert (got["examples"], got["labels"], got["classes"]) == (3, 3, 3)
  assert "top1" not in got and got["prompts_hash"]


def test_data_of_both_kinds_are_refused():
  both = [batch([[1, 0, 0]], [(0,)]), batch([[1, 0, 0]], [0])]
  for batches in (both, both[::-1]):
    with pytest.raises(errors.UserError, match="one label and others"):
      evaluate(batches)
