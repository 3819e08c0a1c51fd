"""TFDS data is read without TensorFlow, by encoded images."""

import io
import pickle
import shutil
import sys
from typing import ClassVar

import pytest

import bucket_stand_in
from clip_jax import errors
from clip_jax.data import account, sources
from clip_jax.data.sources import tfds_prepared

N = 5
# The classes of an image, and those that have an object that is not difficult.
OBJECTS = [
  ([0, 2], [2]),
  ([1], []),
  ([2, 0, 1], [0, 1, 2]),
  ([], []),
  ([2], [2]),
]


@pytest.fixture(scope="session")  # TFDS registers a class once a process.
def data_dir(tmp_path_factory, png):
  """Prepares two tiny data sets as ArrayRecord files."""
  import tensorflow_datasets as tfds

  features = tfds.features

  class TinyPairs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    url_infos: ClassVar[dict] = {}  # Nothing to download, nothing to look up.
    own_features = features.FeaturesDict(
      {
        "image": features.Image(shape=(None, None, 3)),
        "captions": features.Sequence({"text": features.Text()}),
        "note": features.Text(),
        "label": features.ClassLabel(names=["sea_lion", "ant"]),
      }
    )

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=self.own_features)

    def _split_generators(self, manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i in range(N):
        example = {
          "image": io.BytesIO(png(i)),
          "captions": [{"text": f"é {i}"}, {"text": f"second {i}"}],
          "note": f"note {i}" if i else " ",
          "label": i % 2,
        }
        yield i, {name: example[name] for name in self.own_features}

  class TinyLabels(TinyPairs):
    own_features = features.FeaturesDict(
      {
        "image": features.Image(shape=(None, None, 3)),
        "label": features.ClassLabel(names=["sea_lion", "ant"]),
      }
    )

  class TinyKeys(TinyPairs):
    own_features = features.FeaturesDict(
      {
        "image": features.Image(shape=(None, None, 3)),
        "label": features.ClassLabel(names=["sea_lion", "ant"]),
        "file_name": features.Text(),
      }
    )

    def _generate_examples(self):
      for i in range(N):
        example = {"image": io.BytesIO(png(i)), "label": i % 2}
        yield i, {**example, "file_name": f"test_{i}" if i else ""}

  names = features.ClassLabel(names=["sea_lion", "ant", "bee"])

  class TinyObjects(TinyPairs):
    own_features = features.FeaturesDict(
      {
        "image": features.Image(shape=(None, None, 3)),
        "labels": features.Sequence(names),
        "labels_no_difficult": features.Sequence(names),
      }
    )

    def _generate_examples(self):
      for i, (all_labels, easy) in enumerate(OBJECTS):
        yield (
          i,
          {
            "image": io.BytesIO(png(i)),
            "labels": all_labels,
            "labels_no_difficult": easy,
          },
        )

  directory = tmp_path_factory.mktemp("tfds")
  for builder in (TinyPairs, TinyLabels, TinyKeys, TinyObjects):
    builder(
      data_dir=directory, file_format="array_record"
    ).download_and_prepare()
  return directory


def _by_image(source, png):
  """TFDS shuffles: finds out which record is which by its image."""
  records = {}
  for index in range(len(source)):
    record = source[index]
    (i,) = (i for i in range(N) if png(i) == record.image)
    records[i] = record
  return records


def test_captions_labels_and_names_are_read(data_dir, png):
  source = sources.open_source(f"tfds:tiny_pairs/train?data_dir={data_dir}")
  assert source.class_names == ("sea lion", "ant")
  records = _by_image(source, png)
  assert sorted(records) == list(range(N))
  for i, record in records.items():
    assert record.texts == (f"é {i}", f"second {i}")
    assert record.label == i % 2
  assert len({record.key for record in records.values()}) == N
  assert "tensorflow" not in sys.modules


def test_labels_alone_give_their_names_as_texts(data_dir, png, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
  records = _by_image(sources.open_source("tfds:tiny_labels/train"), png)
  assert records[2].texts == ("sea lion",)
  assert records[3].texts == ("ant",)


def test_names_of_files_are_no_captions(data_dir, png, read_all):
  address = f"tfds:tiny_keys/train?data_dir={data_dir}"
  source = sources.open_source(address)
  records = _by_image(source, png)
  assert [records[i].texts for i in range(N)] == [
    ("sea lion",),
    ("ant",),
    ("sea lion",),
    ("ant",),
    ("sea lion",),
  ]
  assert account.of(source).remarks() == [
    "Features, guessed by type and name: images from 'image', labels from "
    "'label'; ?image=, ?caption= and ?label= choose others."
  ]
  named = sources.open_source(f"{address}&image=image&caption=file_name")
  assert not account.of(named).remarks()
  assert ("test_1",) in [getattr(x, "texts", ()) for x in read_all(named)]


def test_a_feature_that_is_declared_but_not_stored_is_missing(
  data_dir, png, monkeypatch, read_all
):
  import tensorflow_datasets as tfds

  address = f"tfds:tiny_labels/train?data_dir={data_dir}"
  features = tfds.features
  declared = {
    "image": features.Image(shape=(None, None, 3)),
    "label": features.ClassLabel(names=["sea_lion", "ant"]),
    "id": features.Text(),
    "caption": features.Text(),
    "mark": features.ClassLabel(names=["sea_lion", "ant"]),
    "marks": features.Sequence(features.ClassLabel(names=["sea_lion", "ant"])),
  }

  def declare(*names):
    some = features.FeaturesDict({name: declared[name] for name in names})
    builder = tfds.builder_cls("tiny_labels")
    monkeypatch.setattr(builder, "own_features", some)

  declare("image", "label", "id")
  records = _by_image(sources.open_source(address), png)
  assert [records[i].texts[0] for i in (0, 1)] == ["sea lion", "ant"]
  declare("image", "label", "caption", "mark")
  assert read_all(sources.open_source(address)) == ["missing_caption"] * N
  found = read_all(sources.open_source(f"{address}&label=mark"))
  assert found == ["missing_caption"] * N
  declare("image", "label", "mark")
  found = _by_image(sources.open_source(f"{address}&ignored=mark"), png)
  assert [(found[i].label, found[i].ignored) for i in (0, 1)] == [
    (0, ()),
    (1, ()),
  ]
  declare("image", "mark")
  assert read_all(sources.open_source(address)) == ["missing_label"] * N
  declare("image", "label", "marks")  # TFDS cannot make a sequence of nothing.
  assert read_all(sources.open_source(address)) == ["damaged_record"] * N


def test_features_are_chosen_by_name(data_dir, png, read_all):
  address = f"tfds:tiny_pairs/train?data_dir={data_dir}&caption=note"
  items = read_all(sources.open_source(address))
  assert sorted(i if isinstance(i, str) else i.texts[0] for i in items) == [
    "empty_caption",
    *(f"note {i}" for i in range(1, N)),
  ]
  with pytest.raises(errors.UserError, match="Did you mean 'note'"):
    sources.open_source(address + "s")
  both = _by_image(sources.open_source(f"{address},captions/text"), png)
  assert both[1].texts == ("note 1", "é 1", "second 1")


def test_parts_of_splits_and_copies_in_other_processes_work(data_dir):
  part = f"tfds:tiny_pairs:1.0.0/train[1:4]?data_dir={data_dir}"
  source = sources.open_source(part)
  assert len(source) == 3
  copy = pickle.loads(pickle.dumps(source))
  assert copy[1] == source[1]
  whole = sources.open_source(f"tfds:tiny_pairs/train?data_dir={data_dir}")
  assert whole.fingerprint != source.fingerprint
  assert whole[2].image == source[1].image


@pytest.mark.parametrize(
  ("address", "message"),
  [
    ("tfds:tiny_pears/train", "cannot open 'tiny_pears'"),
    ("tfds:tiny_pairs", "has no split"),
    ("tfds:tiny_pairs/test", r"Known: train\."),
    ("tfds:tiny_pairs:2.0.0/train", "cannot open"),
    ("tfds:mnist/train", r"not prepared.*tfds build mnist"),
  ],
)
def test_what_is_not_there_is_a_short_error(
  data_dir, monkeypatch, address, message
):
  monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
  with pytest.raises(errors.UserError, match=message) as error:
    sources.open_source(address)
  assert len(str(error.value)) < 500


def test_versions_that_are_there_are_named(data_dir, tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  shutil.copytree(data_dir / "tiny_labels", tmp_path / "tiny_labels")
  address = f"tfds:tiny_labels/train?data_dir={tmp_path}"
  newer = tfds.core.Version("1.10.0")
  monkeypatch.setattr(tfds.builder_cls("tiny_labels"), "VERSION", newer)
  old = tmp_path / "tiny_labels" / "1.0.0"
  with pytest.raises(tfds_prepared.NotPreparedError) as error:
    sources.open_source(address)
  told = (
    "1.10.0. Prepared there: tiny_labels:1.0.0; write "
    "tfds:tiny_labels:1.0.0/train. Or prepare this one with `tfds build"
  )
  assert told in str(error.value)
  assert (error.value.wanted, error.value.versions) == (
    "1.10.0",
    ("tiny_labels:1.0.0",),
  )
  old_address = address.replace("/train", ":1.0.0/train")
  assert len(sources.open_source(old_address)) == N
  shutil.copytree(old, tmp_path / "tiny_labels" / "1.9.0")
  shutil.copytree(old, tmp_path / "tiny_labels" / "other" / "2.0.0")
  assert tfds_prepared.versions("tiny_labels:1.9.0", str(tmp_path)) == [
    "tiny_labels:1.0.0",
    "tiny_labels:1.9.0",
    "tiny_labels/other:2.0.0",
  ]
  # Another config is other data.
  with pytest.raises(errors.UserError, match=r"write tfds:tiny_labels:1.9.0/"):
    sources.open_source(address.replace("/train", ":7.0.0/train"))
  shutil.copytree(old, tmp_path / "tiny_labels" / "2.0.0.incompleteX")
  assert len(tfds_prepared.versions("tiny_labels", str(tmp_path))) == 3


def test_sequences_of_labels_and_classes_to_ignore_are_read(data_dir, png):
  address = f"tfds:tiny_objects/train?data_dir={data_dir}"
  source = sources.open_source(f"{address}&label=labels_no_difficult")
  records = _by_image(source, png)
  assert source.class_names == ("sea lion", "ant", "bee")
  for i, (_, easy) in enumerate(OBJECTS):
    assert (records[i].labels, records[i].ignored) == (tuple(easy), ())
  assert records[2].texts == source.class_names
  assert records[3].texts == ("none of the classes",)
  options = "&label=labels_no_difficult&ignored=labels"
  both = sources.open_source(address + options)
  for i, record in _by_image(both, png).items():
    labels, easy = map(set, OBJECTS[i])
    assert set(record.labels) == easy
    assert set(record.ignored) == labels - easy
  assert both.fingerprint != source.fingerprint
  with pytest.raises(errors.UserError, match="ignored=image is no feature"):
    sources.open_source(f"{address}&label=labels&ignored=image")


@pytest.fixture
def store(monkeypatch, tmp_path, data_dir):
  """A store that both schemes lead to, and that holds the data sets."""
  with bucket_stand_in.reached(monkeypatch, tmp_path / "cache") as store:
    store.upload("data-1", data_dir)
    yield store


@pytest.mark.parametrize("scheme", ["gs", "s3"])
@pytest.mark.parametrize(
  "address",
  [
    "tfds:tiny_pairs/train?data_dir={}",
    "tfds:tiny_pairs:1.0.0/train[1:4]?data_dir={}&caption=note",
    "tfds:tiny_labels/all?data_dir={}",
  ],
)
def test_a_bucket_holds_what_the_disk_does(
  address, scheme, store, data_dir, read_all
):
  bucket, disk = (
    sources.open_source(address.format(place))
    for place in (f"{scheme}://data-1", data_dir)
  )
  assert read_all(bucket) == read_all(disk)
  assert bucket.fingerprint == disk.fingerprint
  assert bucket.class_names == disk.class_names


def test_of_a_bucket_the_newest_version_and_one_split_are_read(store):
  objects = store.objects["data-1"]
  for name in [x for x in objects if x.startswith("tiny_pairs/1.0.0/")]:
    for version in ("0.9.0", "0.10.0"):
      data = objects[name].data
      store.put("data-1", name.replace("1.0.0", version), data)
  shard = "tiny_pairs/1.0.0/tiny_pairs-test.array_record-00000-of-00001"
  store.put("data-1", shard, b"none of the split")
  address = "tfds:tiny_pairs/train?data_dir=gs://data-1"
  assert len(sources.open_source(address)) == N
  read = [x for x in store.requests if "alt=media" in x]
  assert read and all("1.0.0" in x and "-test." not in x for x in read)
  assert len(sources.open_source(address.replace("/tr", ":0.10.0/tr"))) == N


@pytest.mark.parametrize(
  ("address", "message"),
  [
    ("tfds:tiny_pears/train", "cannot open 'tiny_pears'.*there: none"),
    ("tfds:tiny_pairs/test", r"Known: train\."),
    ("tfds:tiny_pairs:2.0.0/train", r"cannot open.*there: 1\.0\.0"),
  ],
)
def test_what_is_not_in_a_bucket_is_a_short_error(
  store, monkeypatch, address, message
):
  monkeypatch.setenv("TFDS_DATA_DIR", "s3://data-1")
  with pytest.raises(errors.UserError, match=message):
    sources.open_source(address)


def test_what_is_damaged_in_a_bucket_is_told_by_its_address(store):
  store.put("data-1", "tiny_pairs/1.0.0/features.json", b"{")
  address = "tfds:tiny_pairs/train?data_dir=gs://data-1"
  with pytest.raises(errors.UserError, match="open gs://data-1/t") as told:
    sources.open_source(address)
  assert "cache" not in str(told.value)


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("tiny_pairs", "label=note", "'note' cannot be the label, .* whole number"),
    ("tiny_pairs", "label=captions", "cannot be the label"),
    ("tiny_pairs", "caption=label", "cannot be the caption, which is a text"),
    ("tiny_pairs", "caption=note,image", "'image' cannot be the caption"),
    ("tiny_pairs", "image=label", "cannot be the image"),
    ("tiny_objects", "image=labels", "cannot be the image"),
    ("tiny_objects", "caption=labels", "cannot be the caption"),
  ],
)
def test_a_feature_of_another_kind_is_a_clear_error(
  data_dir, name, options, message
):
  address = f"tfds:{name}/train?data_dir={data_dir}&{options}"
  with pytest.raises(errors.UserError, match=message):
    sources.open_source(address)
