"""The same few pairs in every format, and small stand-ins for sources."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from clip_jax import preprocess, tokenizer
from clip_jax.data import record as record_lib

CONTEXT = 7


def _png(seed: int, width: int = 9, height: int = 11) -> bytes:
  pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
  buffer = io.BytesIO()
  Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
  return buffer.getvalue()


@pytest.fixture(scope="session")
def png():
  """Returns PNG bytes of noise by seed."""
  return _png


@pytest.fixture(scope="session")
def pairs():
  """Returns n records with distinct images and texts."""

  def make(n: int, **fields) -> list[record_lib.Record]:
    return [
      record_lib.Record(_png(i), (f"caption é {i}",), f"key{i:03d}", **fields)
      for i in range(n)
    ]

  return make


@pytest.fixture
def write_tar():
  """Writes members, a list of (name, bytes), to a tar file."""

  def write(path, members, tar_format=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=tar_format) as tar:
      for name, data in members:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return path

  return write


@pytest.fixture
def members():
  """Returns the tar members of records: image, json and text of each."""

  def make(records):
    return [
      member
      for record in records
      for member in (
        (f"{record.key}.png", record.image),
        (f"{record.key}.json", json.dumps({"caption": "unused"}).encode()),
        (f"{record.key}.txt", record.texts[0].encode()),
      )
    ]

  return make


@pytest.fixture(scope="session")
def spec():
  """Returns a preprocessing to 8 x 8 pixels."""
  return preprocess.Preprocess(image_size=8, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture(scope="session")
def tokens():
  """Returns a tokenizer with a short context."""
  return tokenizer.make_tokenizer("clip_bpe", context_length=CONTEXT)


class _ListSource:
  """Records and bad slots from a list."""

  class_names = templates = None
  fingerprint = "list"

  def __init__(self, items):
    self._items = items

  def __len__(self):
    return len(self._items)

  def __getitem__(self, index):
    item = self._items[index]
    if isinstance(item, record_lib.Record):
      return item
    raise record_lib.BadRecord(item, f"slot{index}")


@pytest.fixture(scope="session")
def list_source():
  """Makes a source from records and reasons (texts) of bad slots."""
  return _ListSource


@pytest.fixture(scope="session")
def read_all():
  """Returns every record of a source, or the reason where it is bad."""

  def read(source):
    items = []
    for index in range(len(source)):
      try:
        items.append(source[index])
      except record_lib.BadRecord as error:
        items.append(error.reason)
    return items

  return read
