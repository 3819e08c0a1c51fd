"""Probes beside slow ways to compute the same."""

import numpy as np
import pytest
from PIL import Image
from scipy import optimize, special
from suite_stand_ins import png, write_tar

import colours
from clip_jax import errors
from clip_jax.data import sources
from clip_jax.data.sources import overlap, splits
from clip_jax.evals import labelled_features, linear_probe, logistic


def blobs(examples, width, classes, *, spread=1.5, seed=0):
  """Features whose axes differ much in scale, with a mean far from zero."""
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.arange(examples) % classes)
  means = np.random.default_rng(7).normal(size=(classes, width))
  features = means[labels] + spread * rng.normal(size=(examples, width))
  scales = np.geomspace(1, 0.02, width)
  return (features * scales + 3).astype(np.float32), labels


def objective(kernel, bias, features, labels, penalty):
  """Returns the mean loss in float64 and its gradient."""
  logits = features.astype(np.float64) @ kernel + bias
  errors_ = special.softmax(logits, axis=1)
  own = np.arange(len(labels)), labels
  loss = -special.log_softmax(logits, axis=1)[own].sum()
  errors_[own] -= 1
  gradient = features.T @ errors_ + penalty * kernel
  loss += penalty / 2 * np.square(kernel).sum()
  return loss / len(labels), gradient / len(labels), errors_.mean(axis=0)


@pytest.mark.parametrize(
  "penalty",
  [10.0, *(pytest.param(x, marks=pytest.mark.slow) for x in (1e4, 0.1, 1e-3))],
)
def test_a_fit_is_the_minimum_that_scipy_finds_in_float64(penalty):
  width, classes = 7, 3
  features, labels = blobs(90, width, classes)
  weights = logistic.Regression(features, labels, classes).fit(penalty)

  def flat(x):
    kernel, bias = x[:-classes].reshape(width, classes), x[-classes:]
    loss, *parts = objective(kernel, bias, features, labels, penalty)
    return loss, np.concatenate([part.ravel() for part in parts])

  start = np.zeros((width + 1) * classes)
  options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-9}
  found = optimize.minimize(
    flat, start, jac=True, method="L-BFGS-B", options=options
  )
  loss, *_ = objective(
    weights.kernel.astype(np.float64), weights.bias, features, labels, penalty
  )
  assert loss == pytest.approx(found.fun, rel=2e-4, abs=1e-6)
  kernel = found.x[:-classes].reshape(width, classes)
  theirs = features @ kernel + found.x[-classes:]
  same = weights.scores(features).argmax(axis=1) == theirs.argmax(axis=1)
  assert same.mean() > 0.98


def loss_of(weights, features, labels, penalty):
  kernel = weights.kernel.astype(np.float64)
  return objective(kernel, weights.bias, features, labels, penalty)[0]


def test_fits_at_once_are_those_one_by_one():
  """What an accelerator runs, with a start and a part of its own for each."""
  features, labels = blobs(60, 5, 3)
  regression = logistic.Regression(features, labels, 3)
  counted = np.ones((2, 60), np.float32)
  counted[1, ::3] = 0
  penalties = 0.5, 20.0
  found, steps = logistic.minimise_all(
    regression._turned,
    regression._labels,
    regression._variances,
    logistic.TOLERANCE,
    np.zeros((2, 3, 6), np.float32),
    counted,
    np.array(penalties, np.float32),
  )
  for i, penalty in enumerate(penalties):
    regression._found.clear()
    weights = regression.fit(penalty, counted[i])
    # Sums in another order, float32.
    np.testing.assert_allclose(
      regression._found[penalty], found[i], rtol=1e-2, atol=1e-3
    )
    assert abs(weights.steps - int(steps[i])) <= 2


def test_examples_that_do_not_count_are_as_if_not_there():
  features, labels = blobs(60, 5, 3)
  rows = np.arange(60) % 3 > 0
  alone = logistic.Regression(features[rows], labels[rows], 3).fit(2.0)
  regression = logistic.Regression(features, labels, 3)
  part = regression.part(np.flatnonzero(rows)).fit(2.0)
  regression._found.clear()
  masked = regression.fit(2.0, rows.astype(np.float32))
  for weights in (part, masked):
    # Other coordinates: the same optimum within the tolerance.
    got, want = (
      loss_of(x, features[rows], labels[rows], 2.0) for x in (weights, alone)
    )
    assert got == pytest.approx(want, rel=1e-4)


def test_more_features_than_examples_are_fitted_in_their_span():
  features, labels = blobs(20, 50, 3)
  weights = logistic.Regression(features, labels, 3).fit(1.0)
  assert weights.kernel.shape == (50, 3)
  _, kernel_gradient, bias_gradient = objective(
    weights.kernel.astype(np.float64), weights.bias, features, labels, 1.0
  )
  assert np.abs(kernel_gradient).max() < 5e-3  # At zero weights it is 0.3.
  assert np.abs(bias_gradient).max() < 5e-3


def test_a_fit_does_not_stay_at_the_optimum_of_another_penalty():
  """With many examples the gradient there is small, and the loss is not."""
  features, labels = blobs(2000, 30, 4, spread=4)
  weak, strong = 1e-2, 10.0
  regression = logistic.Regression(features, labels, 4)
  regression.fit(strong)
  warm = regression.fit(weak)
  cold = logistic.Regression(features, labels, 4).fit(weak)
  got, want = (loss_of(x, features, labels, weak) for x in (warm, cold))
  assert got == pytest.approx(want, rel=1e-4)
  between = regression.fit(0.3)  # It starts between the two.
  cold = logistic.Regression(features, labels, 4).fit(0.3)
  got, want = (loss_of(x, features, labels, 0.3) for x in (between, cold))
  assert got == pytest.approx(want, rel=1e-4)


def test_a_feature_that_never_varies_and_an_absent_class_do_no_harm():
  features, labels = blobs(60, 5, 3)
  features[:, 2] = 4.0
  weights = logistic.Regression(features, labels, 4).fit(1.0)
  scores = weights.scores(features)
  assert np.all(np.isfinite(scores))
  assert set(scores.argmax(axis=1)) == {0, 1, 2}


def test_the_search_is_the_papers():
  tried = []

  def score_all(places):
    tried.extend(places)
    return [-abs(place - 37) for place in places]

  assert linear_probe.search(score_all) == (37, 0)
  assert len(tried) == 15  # None twice.
  # Every sixteenth, then 8, 4, 2 and 1 places around the best so far.
  assert set(tried) == {*range(0, 97, 16), 24, 40, 36, 44, 34, 38, 35, 37}
  found = linear_probe.search(lambda places: [0.5] * len(places))
  assert found == (0, 0.5)  # The first of equals.
  assert len(linear_probe.PENALTIES) == 97
  ends = linear_probe.PENALTIES[0], linear_probe.PENALTIES[-1]
  assert ends == (pytest.approx(1e-6), pytest.approx(1e6))


def examples(*shape, seed=0):
  features, labels = blobs(*shape, seed=seed)
  names = tuple(f"class {i}" for i in range(shape[2]))
  return labelled_features.Examples(features, labels, names)


def test_a_probe_tells_classes_apart():
  train, test = examples(300, 9, 4), examples(200, 9, 4, seed=1)
  found = linear_probe.linear_probe(train, test)
  assert found["top1"] > 0.5  # Chance is 0.25.
  assert found["regularisation"] in linear_probe.PENALTIES
  assert found["validation_examples"] == 60
  assert found == linear_probe.linear_probe(train, test)


def test_a_probe_of_many_examples_fits_to_a_part_of_its_own(monkeypatch):
  train, test = examples(300, 9, 4), examples(200, 9, 4, seed=1)
  few = linear_probe.linear_probe(train, test)
  monkeypatch.setattr(linear_probe, "_LARGE", 100)
  many = linear_probe.linear_probe(train, test)
  # Both stop near the same optimum, not at the same point.
  assert many["top1"] == pytest.approx(few["top1"], abs=0.02)
  assert many["validation_top1"] == pytest.approx(
    few["validation_top1"], abs=0.02
  )


def test_a_probe_of_two_examples_a_class_is_refused():
  train = examples(6, 9, 3)
  with pytest.raises(errors.UserError, match="fewer than three"):
    linear_probe.linear_probe(train, train)


def test_nearest_neighbours_equal_a_plain_vote():
  train, test = examples(50, 6, 3), examples(40, 6, 3, seed=1)
  found = linear_probe.nearest_neighbours(train, test, k=7)
  bank = train.features / np.linalg.norm(train.features, axis=1)[:, None]
  right = 0
  for query, label in zip(test.features, test.labels, strict=True):
    cosines = bank @ (query / np.linalg.norm(query))
    votes = np.zeros(3)
    for row in np.argsort(-cosines)[:7]:
      votes[train.labels[row]] += np.exp((cosines[row] - 1) / 0.07)
    right += votes.argmax() == label
  assert found["top1"] == right / 40
  assert found["neighbours"] == 7


@pytest.mark.parametrize("k", [1, 3, 30])
def test_a_class_without_a_vote_is_not_among_the_five_nearest(k):
  """Else the classes of low numbers would be, whatever the features."""
  train, test = examples(120, 6, 20), examples(90, 6, 20, seed=1)
  found = linear_probe.nearest_neighbours(train, test, k=k)
  bank = train.features / np.linalg.norm(train.features, axis=1)[:, None]
  top1, top5 = [], []
  for query, label in zip(test.features, test.labels, strict=True):
    cosines = bank @ (query / np.linalg.norm(query))
    votes = {}
    for row in np.argsort(-cosines)[:k]:
      one = train.labels[row]
      votes[one] = votes.get(one, 0) + np.exp((cosines[row] - 1) / 0.07)
    nearest = sorted(votes, key=lambda one: (-votes[one], one))
    top1.append(label in nearest[:1])
    top5.append(label in nearest[:5])
  assert found["top1"] == np.mean(top1)
  assert found["top5"] == np.mean(top5)
  both = (np.mean(top1) + np.mean(top5)) / 2
  assert found["mean_top1_top5"] == pytest.approx(both)


@pytest.mark.parametrize(
  ("address", "train", "test"),
  [
    ("builtin:digits", "builtin:digits/train", "builtin:digits/test"),
    (
      "tfds:cifar10?label=label",
      "tfds:cifar10/train?label=label",
      "tfds:cifar10/test?label=label",
    ),
    ("wds:a.tar", "wds:a.tar?split=train", "wds:a.tar?split=held_out"),
    (
      "csv:a.csv?sep=tab",
      "csv:a.csv?sep=tab&split=train",
      "csv:a.csv?sep=tab&split=held_out",
    ),
  ],
)
def test_an_address_without_a_split_has_two_parts(address, train, test):
  assert splits.train_and_test(address) == (train, test)


@pytest.mark.parametrize(
  "address", ["builtin:digits/test", "tfds:cifar10/test", "csv:a?split=train"]
)
def test_an_address_of_one_split_is_refused(address):
  with pytest.raises(errors.UserError, match="--train-data"):
    splits.train_and_test(address)


@pytest.mark.parametrize("scheme", ["folder", "wds"])
@pytest.mark.parametrize("names", [("train", "val"), ("Training", "testing")])
def test_a_folder_may_hold_both_parts(tmp_path, monkeypatch, names, scheme):
  for name in names:
    (tmp_path / "x" / name).mkdir(parents=True)
  monkeypatch.setenv("HOME", str(tmp_path))
  for path in (tmp_path / "x", "~/x"):
    found = splits.train_and_test(f"{scheme}:{path}")
    assert found == tuple(f"{scheme}:{path}/{name}" for name in names)
  (tmp_path / "x" / "0.tar").touch()  # Shards beside the folders count alone.
  address = f"wds:{tmp_path}/x"
  halves = f"{address}?split=train", f"{address}?split=held_out"
  assert splits.train_and_test(address) == halves


def test_an_unknown_built_in_is_called_so():
  with pytest.raises(errors.UserError, match="Did you mean 'digits'"):
    splits.train_and_test("builtin:digts")


class Source:
  def __init__(self, *names):
    self.class_names = names or None


def test_classes_are_matched_by_name():
  opened = [Source("cat", "dog", "owl"), Source("owl", "cat", "dog")]
  order = labelled_features.check_classes(opened, ("a", "b"))
  assert order.train.tolist() == [1, 2, 0]
  assert order.names == opened[1].class_names
  with pytest.raises(errors.UserError, match=r"different classes: cat, owl"):
    labelled_features.check_classes(
      [Source("dog", "owl"), Source("cat", "dog")], ("a", "b")
    )
  twice = Source("a", "a", "b")
  order = labelled_features.check_classes([twice, twice], ("a", "b"))
  assert order.train.tolist() == [0, 1, 2]
  for other in (Source("b", "a", "a"), Source("a", "b")):
    for opened in ([twice, other], [other, twice]):
      with pytest.raises(errors.UserError, match="several the name 'a'"):
        labelled_features.check_classes(opened, ("a", "b"))
  with pytest.raises(errors.UserError, match="no classes"):
    labelled_features.check_classes([Source("dog"), Source()], ("a", "b"))


@pytest.mark.parametrize("task", ["knn", "linear_probe"])
def test_the_test_data_may_lack_classes(tmp_path, task):
  """Their images are told among all classes; numbers are those of training."""
  shades = {"ash": 0, "bay": 80, "elm": 160, "fir": 240}
  for part, names in (("train", shades), ("test", ("bay", "fir"))):
    for name in names:
      for i in range(5):
        path = tmp_path / part / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shade = shades[name] + i + 5 * (part == "test")
        Image.new("RGB", (4, 4), (shade,) * 3).save(path)
  (tmp_path / "test" / "bay" / "4.png").unlink()
  found = linear_probe.evaluate(
    task,
    f"folder:{tmp_path}",
    embed=lambda images: np.eye(4)[images[:, 0, 0, 0] // 80],
    preprocess=colours.SPEC,
    **({"neighbours": 3} if task == "knn" else {}),
  )
  assert (found["classes"], found["examples"]) == (4, 9)
  assert found["top1"] == found["mean_per_class"] == 1
  assert found["warnings"] == [
    f"folder:{tmp_path}/test has no image of 2 of the 4 classes of "
    f"folder:{tmp_path}/train, such as 'ash'."
  ]
  with pytest.raises(errors.UserError, match="classes: ash, elm are in one"):
    linear_probe.evaluate(
      task,
      f"folder:{tmp_path}/train",
      train_data=f"folder:{tmp_path}/test",
      embed=None,
      preprocess=None,
    )


def test_a_batch_of_bad_images_alone_adds_no_features():
  def embed(images):
    assert len(images)  # Of none, nobody knows the width.
    return np.zeros((len(images), 5))

  batches = [
    {
      "image": np.zeros((n, 2, 2, 3)),
      "label": np.zeros(n, int),
      "record": np.arange(n),
    }
    for n in (3, 0, 2)
  ]
  found = labelled_features._embed(batches, embed, ("a",), "data")
  assert found.features.shape == (5, 5)


def test_a_test_on_the_training_data_is_refused():
  address = "builtin:digits/test"
  with pytest.raises(errors.UserError, match="two parts of the data"):
    linear_probe.evaluate(
      "knn", address, embed=None, preprocess=None, train_data=address
    )


@pytest.mark.parametrize(
  ("train_data", "shared"),
  [
    ("folder:a?layout=classes", 12),
    ("folder:./b/../a/", 12),
    ("folder:link", 12),
    ("folder:a?split=train&held_out=0.5", 6),
    ("folder:a?split=held_out", 3),
    ("folder:b", 0),  # Other images of the same names.
  ],
)
def test_the_same_data_are_found_in_any_spelling(
  tmp_path, monkeypatch, train_data, shared
):
  monkeypatch.chdir(tmp_path)
  for i, name in enumerate(("a/x", "a/y", "a/z", "b/x", "b/y", "b/z")):
    (tmp_path / name).mkdir(parents=True)
    for k in range(4):
      image = Image.new("RGB", (4, 4), (40 * i, 40 * k, 0))
      image.save(tmp_path / name / f"{k}.png")
  (tmp_path / "link").symlink_to("a")
  data = f"folder:{tmp_path}/a"
  opened = [sources.open_source(each) for each in (train_data, data)]
  assert overlap.count(*opened) == shared
  if shared:
    match = f"^{shared} of the 12 records of {data} are in"
    with pytest.raises(errors.UserError, match=match):
      labelled_features.check_parts(opened, (train_data, data))
  else:
    labelled_features.check_parts(opened, (train_data, data))


@pytest.mark.parametrize(
  ("one", "two", "shared"),
  [
    ("builtin:digits/train", "builtin:digits/test", False),
    ("builtin:digits/test", "builtin:digits/test", True),
    ("folder:f?split=train", "folder:f?split=held_out", False),
    ("folder:f?split=train", "folder:./f?split=train&held_out=0.2", True),
    ("wds:t/0.tar", "wds:t/1.tar", False),
    ("wds:t/0.tar", "wds:u/0.tar", False),
    ("wds:t", "wds:t/{0..1}.tar", True),
    ("wds:u/0.tar", "wds:./u/*.tar", True),
  ],
)
def test_two_parts_of_data_have_no_record_in_common(
  tmp_path, monkeypatch, one, two, shared
):
  """Tars of equal names, keys and sizes are told apart by their place."""
  monkeypatch.chdir(tmp_path)
  for k, name in enumerate(("t/0.tar", "t/1.tar", "u/0.tar")):
    image = png(k)
    members = [(f"{i}.png", image) for i in range(3)]
    members += [(f"{i}.txt", b"a") for i in range(3)]
    write_tar(tmp_path / name, sorted(members))
  for k in range(10):
    (tmp_path / "f/a").mkdir(parents=True, exist_ok=True)
    (tmp_path / f"f/a/{k}.png").write_bytes(png(k))
  found = overlap.count(*map(sources.open_source, (one, two)))
  assert (found > 0) == shared
