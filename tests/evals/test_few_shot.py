"""Few-shot probes beside slow ways to compute the same."""

import math

import numpy as np
import pytest
from PIL import Image

import colours
from clip_jax import errors
from clip_jax.data import sources
from clip_jax.data.sources import views
from clip_jax.evals import (
  embedding_model,
  few_shot,
  labelled_features,
  reading,
  ridge,
  shots,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Folders of colours: 6 and 3 noisy images of each, one to train on bad."""
  path = tmp_path_factory.mktemp("colours")
  rng = np.random.default_rng(0)
  for split, count in {"train": 6, "test": 3}.items():
    for name, channel in colours.COLOURS.items():
      (path / split / name).mkdir(parents=True)
      for i in range(count):
        pixels = rng.integers(0, 120, (5, 6, 3), np.uint8)
        pixels[..., channel] += 60
        Image.fromarray(pixels).save(path / split / name / f"{i}.png")
  (path / "train" / "red" / "2.png").write_bytes(colours.NO_PNG)
  return f"folder:{path}"


def embed(images):
  features = images.reshape(len(images), -1, 3).mean(axis=1) / 255
  return features / np.linalg.norm(features, axis=1, keepdims=True)


def evaluate(data, *, progress=None, **options):
  return few_shot.evaluate(
    data,
    embed=embed,
    embed_images=embed,
    embed_texts=colours.embed_texts,
    preprocess=colours.SPEC,
    reading=reading.Reading(4, 1, progress),
    **options,
  )


def pool(data):
  address = f"{data}/train"
  return shots.Pool(sources.open_source(address), address)


def test_shots_depend_on_the_seed_and_their_number_alone(data):
  some = pool(data)
  labels = some.labels
  for seed in (0, 1):
    four = some.draw(seed, 4)
    assert [len(slots) for slots in four] == [4, 4, 4]
    assert some.draw(seed, 2) == [slots[:2] for slots in four]
    for label, slots in enumerate(four):
      assert len(set(slots)) == 4 and set(labels[slots]) == {label}
  assert some.draw(0, 4) != some.draw(1, 4)


def test_a_bad_image_is_replaced_by_the_next_of_its_class(data):
  some = pool(data)
  red = sorted(colours.COLOURS).index("red")
  (first, bad) = some.embed(embed, most=5, seeds=2, preprocess=colours.SPEC)
  assert bad.total() == 1
  for draw in first:
    assert np.bincount(draw.examples.labels).tolist() == [5, 5, 5]
    assert draw.place.tolist() == [0, 1, 2, 3, 4] * 3
  slot = np.flatnonzero(some.labels == red)[2]
  assert slot not in some.draw(0, 5, without={slot})[red]


def test_a_few_shot_probe_stands_beside_zero_shot(data):
  seen = []
  found = evaluate(
    data, shots=(4, 1), seeds=2, progress=lambda *x: seen.append(x)
  )
  assert found["zero_shot"]["top1"] > 0.5  # Chance is a third.
  assert [entry["k"] for entry in found["shots"]] == [1, 4]
  for entry in found["shots"]:
    right = np.array(entry["top1"])
    assert entry["seeds"] == len(right) == len(entry["regularisation"]) == 2
    assert entry["mean"] == pytest.approx(right.sum() / 2)
    deviation = math.sqrt(((right - right.mean()) ** 2).sum() / 1)
    assert entry["std"] == pytest.approx(deviation)
  assert found["top1"] == found["shots"][-1]["mean"] > 0.5
  one, four = found["shots"]
  assert one["regularisation"] == [pytest.approx(1 / 0.316, rel=1e-3)] * 2
  assert (one["train_examples"], four["train_examples"]) == (3, 12)
  assert (found["examples"], found["classes"]) == (9, 3)
  assert sum(found["bad_records"].values()) <= 1
  assert seen[-1][0] == seen[-1][1]
  again = evaluate(data, shots=(4,), seeds=2)["shots"]
  assert again[0]["top1"] == four["top1"]


def test_more_shots_than_there_are_take_all_and_say_so(data):
  found = evaluate(data, shots=(1, 8), seeds=1)
  assert found["shots"][-1]["train_examples"] == 17
  assert any("fewer than 8 shots" in said for said in found["warnings"])
  assert found["shots"][-1]["std"] == 0


def test_a_test_on_the_data_that_shots_are_drawn_from_is_refused(data):
  with pytest.raises(errors.UserError, match="two parts of the data"):
    evaluate(f"{data}/test", train_data=f"{data}/test", shots=(1,), seeds=1)
  with pytest.raises(errors.UserError, match="two parts of the data"):
    evaluate(f"{data}/test", train_data=f"{data}/test/", shots=(1,), seeds=1)


def test_a_class_without_an_example_to_draw_is_named(data):
  source = sources.open_source(f"{data}/train")
  blue_and_red = views.Part(source, np.array([0, 1, 12, 13, 14, 15]), "some")
  with pytest.raises(errors.UserError, match="no example of green"):
    shots.Pool(blue_and_red, data).fewest()
  only_bad = views.Part(source, np.array([0, 1, 6, 7, 14]), "bad")
  with pytest.raises(errors.UserError, match="all images of red are bad"):
    shots.Pool(only_bad, data).embed(
      embed, most=1, seeds=1, preprocess=colours.SPEC
    )
  with pytest.raises(errors.UserError, match="at least 1"):
    evaluate("builtin:digits", shots=(0, 1))


@pytest.mark.parametrize(
  ("accuracies", "zero_shot", "shots", "text"),
  [
    # Halfway between 2 and 4 on the scale of the logarithm.
    ((0.2, 0.4, 0.6), 0.5, 2 * math.sqrt(2), "2.83"),
    ((0.2, 0.4, 0.6), 0.4, 2.0, "2"),
    ((0.2, 0.4, 0.6), 0.2, 1.0, "1"),
    ((0.2, 0.4, 0.6), 0.61, None, ">4"),
    ((0.2, 0.4, 0.6), 0.1, None, "<1"),
    # The first time counts.
    ((0.2, 0.6, 0.4), 0.5, 2**0.75, "1.68"),
    ((0.5, 0.5, 0.5), 0.5, 1.0, "1"),
  ],
)
def test_label_efficiency_is_read_off_the_line(
  accuracies, zero_shot, shots, text
):
  found = few_shot.label_efficiency((1, 2, 4), accuracies, zero_shot)
  assert found["text"] == text
  assert found["shots"] == (None if shots is None else pytest.approx(shots))


def draw_of(classes, most, width):
  rng = np.random.default_rng(3)
  labels = np.repeat(np.arange(classes), most)
  means = rng.normal(size=(classes, width))
  features = means[labels] + 0.7 * rng.normal(size=(len(labels), width))
  names = tuple(map(str, range(classes)))
  examples = labelled_features.Examples(
    features.astype(np.float32), labels, names
  )
  return shots.Shots(examples, np.tile(np.arange(most), classes))


def test_one_shot_of_unit_features_does_not_depend_on_further_shots():
  """With a large penalty the loss is near that of chance from the start."""
  draw = draw_of(10, 8, 24)
  features = draw.examples.features
  features /= np.linalg.norm(features, axis=1, keepdims=True)
  first = draw.place < 1
  alone = shots.Shots(draw.examples[np.flatnonzero(first)], draw.place[first])
  scores = [
    few_shot.fit(of, 1, classes=10)[1].scores(features) for of in (draw, alone)
  ]
  assert np.ptp(scores[0]) < 0.6
  np.testing.assert_allclose(*scores, atol=1e-3 * np.ptp(scores[0]))


@pytest.mark.parametrize(("scarce", "chosen"), [(4, True), (6, False)])
def test_the_penalty_of_one_shot_is_for_classes_of_one_example(scarce, chosen):
  draw = draw_of(10, 4, 6)
  labels = draw.examples.labels
  kept = np.flatnonzero((draw.place < 1) | (labels >= scarce))
  some = shots.Shots(draw.examples[kept], draw.place[kept])
  penalty, _ = few_shot.fit(some, 4, classes=10)
  assert (penalty != few_shot.ONE_SHOT_PENALTY) == chosen


def test_a_fit_sees_its_own_shots_only():
  draw = draw_of(3, 6, 5)
  penalty, weights = few_shot.fit(draw, 4, classes=3)
  later = draw.place >= 4
  features = draw.examples.features.copy()
  features[later] = draw.examples.features[later][::-1]
  changed = shots.Shots(
    labelled_features.Examples(
      features, draw.examples.labels, draw.examples.class_names
    ),
    draw.place,
  )
  other, theirs = few_shot.fit(changed, 4, classes=3)
  assert penalty == other
  # Other coordinates: the same optimum within the fit's tolerance.
  np.testing.assert_allclose(
    weights.scores(features), theirs.scores(features), atol=0.05
  )


@pytest.mark.parametrize("examples", [5, 30])
def test_ridge_is_least_squares_with_further_rows(examples):
  """The penalty as rows of its own, in both forms of the system."""
  width, classes = 9, 3
  rng = np.random.default_rng(0)
  features = rng.normal(2, 3, (examples, width)).astype(np.float32)
  labels = np.arange(examples) % classes
  test = rng.normal(2, 3, (4, width))
  mean, deviation = features.mean(0, float), features.std(0, float) + 1e-5
  rows = np.column_stack([(features - mean) / deviation, [100.0] * examples])
  rows = np.concatenate([rows, 32 * np.eye(width + 1)])  # 32² is 2^10.
  targets = np.full((len(rows), classes), 0.0)
  targets[:examples] = -1
  targets[np.arange(examples), labels] = 1
  weights = np.linalg.lstsq(rows, targets, rcond=None)[0]
  want = np.column_stack([(test - mean) / deviation, [100.0] * 4]) @ weights
  got = ridge.fit(features, labels, classes=classes)(test)
  # The means and deviations of float32 features, summed in float64 by both.
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)


def test_the_ridge_probe_of_a_run_measures_a_model(data):
  model = embedding_model.Functions(embed, colours.embed_texts, colours.SPEC)
  probe = ridge.open_few_shot(data)
  how = reading.Reading(batch_size=4, threads=1)
  found = probe.measure(model, reading=how)
  assert [entry["k"] for entry in found["shots"]] == [1, 5, 10, 25]
  assert (found["task"], found["data"]) == ("few_shot_lsr", f"{data}/test")
  assert found["top1"] == found["shots"][-1]["mean"] > 0.5
  assert (found["regularisation"], found["features"]) == (1024, "embedding")
  assert found == probe.measure(model, reading=how)
  with pytest.raises(errors.UserError, match="names one split"):
    ridge.open_few_shot("builtin:digits/test")


@pytest.mark.parametrize("fewest, has", [(1, "1 example"), (3, "3 examples")])
def test_fewer_examples_than_shots_are_told(fewest, has):
  assert shots.too_few([1, 4], fewest) == [
    f"The smallest class has {has} to draw from, fewer than 4 shots: where a "
    "class has no more, all of it is taken."
  ]
  assert shots.too_few([1], fewest) == []
