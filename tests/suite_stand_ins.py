"""Small stand-ins for sets of the suite, in the layouts of the real ones."""

import io
import json
import tarfile
import zlib
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clip_jax import preprocess
from clip_jax.evals import embedding_model, reading
from clip_jax.evals.suite import data_sets, measuring
from clip_jax.evals.suite import subject as subject_lib

SIZE, EMBED = 4, 7
PREPROCESS = preprocess.Preprocess(
  image_size=SIZE, mean=(0, 0, 0), std=(1, 1, 1)
)
_PROJECTION = np.random.default_rng(0).normal(size=(SIZE * SIZE * 3, EMBED))
WDS = [str(digit) for digit in (3, 1, 4, 0, 5, 9, 2, 6, 8, 7)]
STL10 = [*reversed(data_sets.classes_of("stl10").names)]
FOLDERS = {
  "AnnualCrop": "annual crop land",
  "Forest": "forest",
  "HerbaceousVegetation": "brushland or shrubland",
  "Highway": "highway or road",
  "Industrial": "industrial buildings or commercial buildings",
  "Pasture": "pasture land",
  "PermanentCrop": "permanent crop land",
  "Residential": "residential buildings or homes or apartments",
  "River": "river",
  "SeaLake": "lake or sea",
}
MEMES = {"hateful": "hatespeech meme", "not-hateful": "meme"}


HOW = reading.Reading(batch_size=4)


def pixels(seed):
  noise = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3))
  return noise.astype(np.uint8)


def png(seed):
  buffer = io.BytesIO()
  Image.fromarray(pixels(seed)).save(buffer, "PNG")
  return buffer.getvalue()


def unit(rows):
  return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def embed_images(images):
  flat = np.asarray(images, np.float64).reshape(-1, SIZE * SIZE * 3) / 255 - 0.5
  return unit(flat @ _PROJECTION).astype(np.float32)


def embed_texts(texts):
  seeds = [zlib.crc32(text.encode()) for text in texts]
  rows = [np.random.default_rng(seed).normal(size=EMBED) for seed in seeds]
  return unit(np.stack(rows)).astype(np.float32)


def subject(fingerprint="f" * 64, images=embed_images, **fields):
  model = embedding_model.Functions(images, embed_texts, PREPROCESS)
  return subject_lib.Subject(model, fingerprint, "somewhere/model", **fields)


def write_tar(path, members):
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as tar:
    for name, data in members:
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))


def write_mnist(root):
  """CLIP_benchmark's tars; returns (seed, class) of each image."""
  place = root / "wds_mnist"
  truth = [(i, WDS[i % 10]) for i in range(25)]
  for shard, part in enumerate((truth[:13], truth[13:])):
    members = []
    for i, name in part:
      members.append((f"s{i:07d}.png", png(i)))
      members.append((f"s{i:07d}.cls", str(WDS.index(name)).encode()))
    write_tar(place / "test" / f"{shard}.tar", members)
  (place / "test" / "nshards.txt").write_text("2\n")
  (place / "classnames.txt").write_text("\n".join(WDS) + "\n")
  (place / "zeroshot_classification_templates.txt").write_text("{c}!\n")
  return truth


def write_folders(place, folders, seed):
  truth = []
  for number, (folder, name) in enumerate(folders.items()):
    (place / folder).mkdir(parents=True)
    for i in range(1 + number % 3):
      truth.append((seed + 10 * number + i, name))
      (place / folder / f"{i}.png").write_bytes(png(truth[-1][0]))
  return truth


def write_stl10(root, version="1.0.0"):
  import tensorflow_datasets as tfds

  truth = [(500 + i, STL10[i % 10]) for i in range(12)]
  with tfds.core.registered.skip_registration():

    class Stl10(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version(version)
      url_infos: ClassVar[dict] = {}

      def _info(self):
        features = {
          "image": tfds.features.Image(shape=(None, None, 3)),
          "label": tfds.features.ClassLabel(names=STL10),
        }
        return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict(features)
        )

      def _split_generators(self, manager):
        return {"test": self._generate_examples()}

      def _generate_examples(self):
        for i, (seed, name) in enumerate(truth):
          yield i, {"image": io.BytesIO(png(seed)), "label": STL10.index(name)}

  Stl10(data_dir=root, file_format="array_record").download_and_prepare()
  return truth


def write_cifar10_1(root):
  """TFDS's CIFAR-10.1, whose classes have no names; returns (seed, class)."""
  import tensorflow_datasets as tfds

  truth = [(700 + i, i % 10) for i in range(12)]
  with tfds.core.registered.skip_registration():

    class Cifar10_1(tfds.core.GeneratorBasedBuilder):
      VERSION = tfds.core.Version("1.1.0")
      BUILDER_CONFIGS: ClassVar[list] = [tfds.core.BuilderConfig(name="v6")]
      url_infos: ClassVar[dict] = {}

      def _info(self):
        features = {
          "image": tfds.features.Image(shape=(None, None, 3)),
          "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict(features)
        )

      def _split_generators(self, manager):
        return {"test": self._generate_examples()}

      def _generate_examples(self):
        for i, (seed, label) in enumerate(truth):
          yield i, {"image": io.BytesIO(png(seed)), "label": label}

  Cifar10_1(data_dir=root, file_format="array_record").download_and_prepare()
  return truth


def write_svhn(root):
  """The hub's Parquet files, in the folder of a config; (seed, class)."""
  truth = [(800 + i, i * 7 % 10) for i in range(20)]
  names = [str(digit) for digit in range(9, -1, -1)]
  label = {"names": names, "_type": "ClassLabel"}
  about = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
  place = root / "svhn" / "cropped_digits"
  place.mkdir(parents=True)
  for number, part in enumerate((truth[:12], truth[12:])):
    images = [{"bytes": png(seed), "path": None} for seed, _ in part]
    labels = [names.index(str(digit)) for _, digit in part]
    table = pa.table({"image": images, "label": labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, place / f"test-{number:05}-of-00002.parquet")
  (place / "train-00000-of-00001.parquet").write_bytes(b"not read")
  words = data_sets.classes_of("svhn").names
  return [(seed, words[digit]) for seed, digit in truth]


def write_flickr8k(root):
  captions = [[f"{i} dogs", f"a dog {i}", "a dog"][: 1 + i] for i in range(3)]
  members = []
  for i, own in enumerate(captions):
    members.append((f"s{i:07d}.png", png(900 + i)))
    members.append((f"s{i:07d}.txt", "\n".join(own).encode()))
  write_tar(root / "wds_flickr8k" / "test" / "0.tar", members)
  return captions


def measure(root, out, suite, whom=None, *, how=HOW, **options):
  entries = data_sets.choose(suite)
  found = measuring.run(
    entries, str(root), whom or subject(), out=out, how=how, **options
  )
  return {result["set"]: result for result in found}
