import collections

import numpy as np

from clip_jax.evals import confusions, zero_shot

NAMES = ("ant", "bee", "cat", "dog", "eel")


def test_confusions_count_each_pair_as_a_slow_loop_does():
  rng = np.random.default_rng(0)
  # Few values, so that scores are often equal.
  scores = rng.integers(0, 4, (300, 5)).astype(np.float32)
  labels = rng.integers(0, 5, 300)
  counted = confusions.Confusions(NAMES)
  for rows in (slice(0, 113), slice(113, 113), slice(113, 300)):
    counted.update(scores[rows], labels[rows])
  want = collections.Counter()
  for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
    guess = row.index(max(row))
    if guess != label:
      want[NAMES[label], NAMES[guess]] += 1
  found = counted.result()
  assert {(x["true"], x["predicted"]): x["count"] for x in found} == dict(want)
  counts = [x["count"] for x in found]
  assert counts == sorted(counts, reverse=True) and len(counts) == 20


def test_the_most_frequent_ones_are_kept_in_a_fixed_order():
  counted = confusions.Confusions([str(i) for i in range(60)])
  scores, labels = np.eye(60), np.arange(60)
  counted.update(scores, (labels + 1) % 60)
  counted.update(scores[[7]], np.array([8]))
  found = counted.result()
  assert len(found) == confusions.MOST
  assert found[0] == {"true": "8", "predicted": "7", "count": 2}
  assert found[1] == {"true": "0", "predicted": "59", "count": 1}


def test_accuracy_has_confusions_where_classes_are_named():
  classes = np.eye(3, dtype=np.float32)
  batches = [(classes[[0, 1, 1]], np.array([0, 2, 2]))]
  assert "confusions" not in zero_shot.accuracy(batches, classes)
  found = zero_shot.accuracy(batches, classes, names=NAMES[:3])
  assert found["confusions"] == [
    {"true": "cat", "predicted": "bee", "count": 2}
  ]
  # The errors and the right guesses are all of the examples.
  assert round(found["top1"] * 3) + 2 == found["examples"]


def test_classes_are_counted_as_by_hand():
  rng = np.random.default_rng(0)
  names = [f"class {i}" for i in range(30)]
  counted = confusions.Confusions(names)
  want = {name: [0, 0] for name in names}
  for n in (7, 90):
    scores = rng.normal(size=(n, 30)).round(1)  # With ties.
    labels = rng.integers(0, 25, n)
    scores[np.arange(n), labels] += 1
    counted.update(scores, labels)
    for row, label in zip(scores, labels, strict=True):
      want[names[label]][0] += 1
      want[names[label]][1] += list(row).index(max(row)) == label
  found = counted.per_class()
  for entry in found:
    assert [entry["examples"], entry["right"]] == want[entry["name"]]
  shown = [names.index(entry["name"]) for entry in found]
  assert len(shown) == confusions.MOST and shown == sorted(shown)
  rest = [
    count for name, (count, _) in want.items() if names.index(name) not in shown
  ]
  assert max(rest) <= min(entry["examples"] for entry in found)
