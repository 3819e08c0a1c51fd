"""The table of the suite: names, prompts and published figures."""

import collections
import string
import urllib.parse

import numpy as np
import pytest

from clip_jax import errors, names
from clip_jax.evals import class_names
from clip_jax.evals.suite import classes, data_sets, layouts
from clip_jax.models import variants


def test_the_groups_hold_what_they_are_named_after():
  count = collections.Counter(e.group for e in data_sets.choose("all"))
  assert count["paper27"] == 27 and count["robustness"] == 7
  assert list(count) == list(names.SUITE_GROUPS)
  assert [e.name for e in data_sets.choose("retrieval, dtd,dtd")] == [
    *("flickr30k", "coco", "flickr8k", "dtd")
  ]
  with pytest.raises(errors.UserError, match="Did you mean 'cifar10'"):
    data_sets.choose("cifar-10")


def test_every_entry_is_complete():
  for entry in data_sets.entries().values():
    assert entry.examples > 0 and entry.how_to_get("data")
    assert entry.task in names.TASKS
    if entry.metric == data_sets.RECALL:
      assert entry.texts
      continue
    assert entry.metric in data_sets.METRICS
    known = data_sets.classes(entry)
    assert entry.classes == len(known.synonyms)
    assert len(known.keys) in (0, entry.classes)
    for template in known.templates:
      holes = [p for p in string.Formatter().parse(template) if p[1] == ""]
      assert len(holes) == 1


def test_names_of_classes_are_told_apart():
  for entry in data_sets.entries().values():
    if entry.metric == data_sets.RECALL:
      continue
    known = classes.known_names(data_sets.classes(entry))
    shared = {name for name, numbers in known.items() if len(numbers) > 1}
    # ImageNet has two missiles and two kinds of sunglasses of one name, and
    # WordNet two cranes.
    twins = {"missile", "sunglasses", "crane"}
    assert shared <= (twins if "imagenet" in entry.name else set()), entry.name


def test_figures_are_shares_of_openais_models():
  for entry in data_sets.entries().values():
    assert set(entry.published) <= set(names.OPENAI_MODELS)
  assert set(names.OPENAI_MODELS) <= set(variants.VARIANTS)
  # The means over the 27 sets that the paper's rows give.
  for model, mean in (("ViT-B-32", 57.9), ("ViT-L-14-336", 67.6)):
    rows = [e.published[model]["paper"] for e in data_sets.choose("paper27")]
    assert 100 * np.mean(rows) == pytest.approx(mean, abs=0.06)


def test_the_figure_beside_a_measure_is_the_nearest():
  imagenet = data_sets.entries()["imagenet"]
  for model, value in (("RN50x4", 65.8), ("", 63.2), ("ViT-g-14", 63.2)):
    figure = data_sets.figure(imagenet, "accuracy", architecture=model)
    assert figure.value == pytest.approx(value / 100)
    assert figure.source == "paper"
  cifar = data_sets.entries()["cifar10"]
  other = data_sets.figure(cifar, "accuracy", examples=9)
  assert (other.source, other.value) == ("open_clip", 0.8983)
  flickr = data_sets.entries()["flickr30k"]
  recall = data_sets.figure(
    flickr, "image_to_text_r@1", architecture="ViT-L-14-336"
  )
  assert (recall.value, recall.source) == (pytest.approx(0.88), "paper")
  assert data_sets.figure(data_sets.entries()["cifar10_1"], "accuracy") is None
  # One set in two measures: the paper's 11-point precision, and crops' top-1.
  for name, metric, value in (
    ("voc2007", "map_11_point", 0.831),
    ("voc2007_crops", "accuracy", 0.764),
  ):
    assert data_sets.figure(data_sets.entries()[name], metric).value == value


def test_a_figure_of_both_benchmarks_is_that_of_the_newer_one():
  for entry in data_sets.entries().values():
    for rows in entry.published.values():
      assert not {"open_clip", "clip_benchmark"} <= set(rows), entry.name


# TFDS reads the names of these from what it downloads.
_NAMED_ONCE_PREPARED = {"cifar10", "cifar100", "stl10"}


@pytest.mark.parametrize(
  "name",
  sorted(
    {name for name, entry in data_sets.entries().items() if entry.tfds}
    - _NAMED_ONCE_PREPARED
  ),
)
def test_the_names_of_tfds_are_matched_and_not_its_numbers(name):
  import tensorflow_datasets as tfds

  entry = data_sets.entries()[name]
  features = tfds.builder(entry.tfds.rpartition("/")[0]).info.features
  options = dict(urllib.parse.parse_qsl(entry.tfds_options))
  feature = features[options.get("label", "label")]
  labels = getattr(feature, "feature", feature).names  # Of one, or of several.
  known = data_sets.classes(entry)
  within = data_sets.classes_of(entry.within) if entry.within else None
  found = classes.match(labels, known, within=within)
  assert sorted(found[found >= 0]) == list(range(len(known.synonyms)))
  backwards = classes.match(labels[::-1], known, within=within)
  np.testing.assert_array_equal(backwards[::-1], found)
  if name == "food101":  # Two of its classes change places.
    assert (found != np.arange(101)).sum() == 2
  if name == "imagenet_a":
    labels = np.array(labels)
    assert list(labels[found >= 0]) == list(known.keys)


def test_numbers_are_names_of_cifar10_1_only():
  """TFDS gives CIFAR-10.1's classes no names; the order is CIFAR-10's."""
  entries, numbers = data_sets.entries(), list(map(str, range(10)))
  own = data_sets.classes(entries["cifar10_1"])
  found = classes.match(numbers, own)
  assert [own.names[i] for i in found[[0, 2, 9]]] == [
    *("airplane", "bird", "truck")
  ]
  by_name = classes.match(own.names[::-1], own)
  np.testing.assert_array_equal(by_name, np.arange(10)[::-1])
  with pytest.raises(errors.UserError, match="not in the table: '0'"):
    classes.match(numbers, data_sets.classes(entries["cifar10"]))


def test_equal_names_stand_for_classes_in_their_order():
  known = data_sets.classes_of("imagenet")
  found = classes.match(known.names, known)
  np.testing.assert_array_equal(found, np.arange(1000))
  with pytest.raises(errors.UserError, match=r"More than once.*'missile'"):
    classes.match([*known.names, "missile"], known)


@pytest.mark.parametrize("name", ["imagenet", "imagenet_a", "imagenet_r"])
def test_wordnets_names_stand_for_imagenets_classes(name):
  known, words = data_sets.classes_of(name), data_sets.wordnet_names()
  given = [words[key] for key in known.keys]
  assert known.names[:1] != given[:1]
  found = classes.match(given, known)
  np.testing.assert_array_equal(found, np.arange(len(given)))
  if name == "imagenet":
    assert given[0] == "tench, Tinca tinca"
    # The two cranes lie in this order, and HuggingFace tells them apart so.
    assert given[134] == given[517] == "crane"
    given[517] = "crane2"
    backwards = classes.match(given[::-1], known)
    np.testing.assert_array_equal(backwards, np.arange(1000)[::-1])


@pytest.mark.parametrize(
  "given, same",
  [
    ("/a/airplane cabin", "airplane_cabin"),
    ("00012", "12"),
    ("ApplyEyeMakeup", "Apply Eye Makeup"),
    ("707-320", "707320"),
    ("n01440764", "N01440764"),
  ],
)
def test_names_are_compared_by_letters_and_digits(given, same):
  assert class_names.normalise(given) == class_names.normalise(same)
  assert class_names.normalise(given) != class_names.normalise(given + "1")


def _touch(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(b"")


@pytest.mark.parametrize(
  "name, file, address",
  [
    ("cifar10", "wds_vtab-cifar10/test/0.tar", "wds:{0}/wds_vtab-cifar10/test"),
    ("cifar10", "cifar10/test/0.tar", "wds:{0}/cifar10/test"),
    (
      "voc2007",
      "wds_voc2007_multilabel/test/0.tar",
      "wds:{0}/wds_voc2007_multilabel/test?labels=several",
    ),
    (
      "coco",
      "wds_mscoco_captions/test/0.tar",
      "wds:{0}/wds_mscoco_captions/test?captions=lines",
    ),
    (
      "voc2007",
      "voc/2007/5.0.0/dataset_info.json",
      "tfds:voc/2007/test?data_dir={0}&label=labels_no_difficult&ignored=labels",
    ),
    (
      "imagenet_v2",
      "imagenet_v2/matched-frequency/3.0.0/dataset_info.json",
      "tfds:imagenet_v2/test?data_dir={0}",
    ),
    (
      "mnist",
      "mnist/data/test-00000-of-00001.parquet",
      "parquet:{0}/mnist/data/test*.parquet",
    ),
    ("mnist", "mnist/test/0.parquet", "parquet:{0}/mnist/test"),
    (
      "mnist",
      "mnist/mnist/test-00000-of-00001.parquet",
      "parquet:{0}/mnist/mnist/test*.parquet",
    ),
    (
      "cifar10",
      "cifar10/plain_text/test/0000.parquet",
      "parquet:{0}/cifar10/plain_text/test",
    ),
    (
      "imagenet",
      "imagenet/default/validation/0000.parquet",
      "parquet:{0}/imagenet/default/validation",
    ),
    (
      "flickr30k",
      "flickr30k/dataset_flickr30k.json",
      "coco:{0}/flickr30k/dataset_flickr30k.json/test",
    ),
    ("flickr8k", "flickr8k/captions.txt", "coco:{0}/flickr8k/test"),
    ("dtd", "dtd/val/dotted/1.jpg", "folder:{0}/dtd/val?layout=classes"),
    ("dtd", "dtd/dotted/1.jpg", "folder:{0}/dtd?layout=classes"),
    ("dtd", "other/dotted/1.jpg", None),
  ],
)
def test_a_set_is_found_in_its_layout(tmp_path, name, file, address):
  _touch(tmp_path / file)
  found = layouts.find(data_sets.entries()[name], tmp_path)
  expected = address and address.format(tmp_path)
  assert (found and found.address) == expected


def test_imagenets_test_images_without_labels_are_not_taken(tmp_path):
  for split in ("test", "train", "validation"):
    _touch(tmp_path / "imagenet" / "data" / f"{split}-00000-of-00014.parquet")
  found = layouts.find(data_sets.entries()["imagenet"], tmp_path)
  assert (
    found.address == f"parquet:{tmp_path}/imagenet/data/validation*.parquet"
  )


@pytest.mark.parametrize("path", ["{}-0.parquet", "{}/0.parquet"])
@pytest.mark.parametrize("config", ["", "default"])
def test_of_a_config_the_published_split_is_taken(tmp_path, path, config):
  for split in ("test", "train", "validation"):
    _touch(tmp_path / "imagenet" / config / path.format(split))
  found = layouts.find(data_sets.entries()["imagenet"], tmp_path)
  assert "/validation" in found.address and found.layout == "parquet"


def test_of_several_configs_the_published_one_is_taken(tmp_path):
  for config in ("cropped_digits", "full_numbers"):
    for split in ("extra", "test", "train"):
      name = f"{split}-00000-of-00002.parquet"
      _touch(tmp_path / "svhn" / config / name)
      _touch(tmp_path / "mnist" / config / name)
  entries = data_sets.entries()
  found = layouts.find(entries["svhn"], tmp_path)
  assert (
    found.address == f"parquet:{tmp_path}/svhn/cropped_digits/test*.parquet"
  )
  with pytest.raises(errors.UserError, match="cropped_digits, full_numbers; k"):
    layouts.find(entries["mnist"], tmp_path)
  _touch(tmp_path / "cifar10/plain_text/train-00000-of-00001.parquet")
  with pytest.raises(errors.UserError, match="of a split for tests, nor class"):
    layouts.find(entries["cifar10"], tmp_path)


@pytest.mark.parametrize(
  "files, taken",
  [
    (["test/unknown/1.JPEG", "val/n01440764/1.JPEG"], "imagenet/val"),
    (["test/n01440764/1.JPEG", "val/n01440764/1.JPEG"], "imagenet/test"),
    (["test/unknown/1.JPEG", "n01440764/1.JPEG"], "imagenet"),
    (["test/unknown/1.JPEG", "val/unknown/1.JPEG"], "imagenet/test"),
  ],
)
def test_a_split_without_a_known_class_is_taken_last(tmp_path, files, taken):
  for file in files:
    _touch(tmp_path / "imagenet" / file)
  found = layouts.find(data_sets.entries()["imagenet"], tmp_path)
  assert found.address == f"folder:{tmp_path}/{taken}?layout=classes"


def test_numbers_are_imagenets_classes_in_folders_of_imagenet_v2_only():
  entries = data_sets.entries()
  table = data_sets.classes(entries["imagenet_v2"])
  assert list(table.keys) == sorted(table.keys)  # The order of its numbers.
  names = sorted(str(number) for number in range(1000))
  assert names[:4] == ["0", "1", "10", "100"]
  found = classes.match(names, table)
  assert found.tolist() == [int(name) for name in names]
  assert classes.match([f"{n:04}" for n in range(1000)], table)[999] == 999
  assert classes.match(table.keys, table).tolist() == [*range(1000)]
  for other in ("imagenet", "imagenet_sketch", "cifar100"):
    with pytest.raises(errors.UserError, match="Give the classes"):
      classes.match(names, data_sets.classes(entries[other]))


def test_the_root_must_be_a_directory(tmp_path):
  with pytest.raises(errors.UserError, match="is no directory"):
    layouts.check_root(str(tmp_path / "none"))
