"""Labels of images that may be of several classes."""

import io
import tarfile

import numpy as np
import pytest

from clip_jax import errors
from clip_jax.data import prepare, sources

NAMES = ("cat", "dog", "owl")
LABELS = {"a": (0, 2), "b": (), "c": (1,), "d": (0, 1, 2), "e": (2,)}


def write(folder, members, names=NAMES):
  folder.mkdir(exist_ok=True)
  (folder / "classnames.txt").write_text("\n".join(names))
  with tarfile.open(folder / "0.tar", "w") as tar:
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return f"wds:{folder}"


def npy(labels, classes=3):
  content = io.BytesIO()
  np.save(content, np.isin(np.arange(classes), labels).astype(np.int64))
  return content.getvalue()


def cls(labels):
  return "; ".join(map(str, labels)).encode()


@pytest.fixture
def tar(tmp_path, png):
  def make(encode, **changes):
    members = []
    for i, (key, labels) in enumerate(LABELS.items()):
      members.append((f"{key}.png", png(i)))
      suffix = "npy" if encode is npy else "cls"
      members.append((f"{key}.{suffix}", changes.get(key) or encode(labels)))
    return write(tmp_path / "tars", members)

  return make


@pytest.mark.parametrize("encode", [npy, cls])
def test_labels_are_read_and_survive_a_copy(tar, encode, tmp_path):
  plain = tar(encode)
  address = plain + "?labels=several"
  source = sources.open_source(address)
  assert [record.labels for record in source] == list(LABELS.values())
  assert [record.label for record in source] == [None] * 5
  assert source[0].texts == ("cat", "owl")
  assert source[1].texts == ("none of the classes",)
  if encode is cls:
    with pytest.raises(sources.BadRecord, match="bad_label"):
      sources.open_source(plain)[0]
    # The fingerprint of an address without the option is as it was.
    one, two = (sources.open_source(plain + x) for x in ("", "?labels=one"))
    assert one.fingerprint == two.fingerprint != source.fingerprint
  prepare.prepare(source, tmp_path / "copy", address=address)
  copy = sources.open_source(f"arrayrecord:{tmp_path / 'copy'}")
  assert list(copy) == list(source)


@pytest.mark.parametrize(
  "content",
  [
    b"0 3",
    b"0 x",
    npy([0], classes=4),
    npy([0])[:-9],
    b"\x93NUMPY\x01\x00\xff\xff{",
  ],
)
def test_labels_that_are_none_make_a_bad_record(tar, content):
  source = sources.open_source(tar(cls, c=content) + "?labels=several")
  with pytest.raises(sources.BadRecord, match="bad_label"):
    source[2]
  assert source[3].labels == (0, 1, 2)


def test_an_unknown_value_of_the_option_is_refused(tar):
  with pytest.raises(errors.UserError, match=r"labels=.*one, several"):
    sources.open_source(tar(cls) + "?labels=many")
