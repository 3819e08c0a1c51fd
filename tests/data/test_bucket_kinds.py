"""Kinds of data in buckets whose files are copied, or hold lists of others."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
from source_content import at_both, content

import bucket_stand_in
import tf_examples
from clip_jax import cli, errors, kept_files, mirrors
from clip_jax.buckets import attempts
from clip_jax.data import pipeline, prepare, sources
from clip_jax.data.sources import array_record
from clip_jax.mirrors import data_files, fetching

N = 7


@pytest.fixture
def data(tmp_path, pairs, write_tar, members):
  """A folder with the same pairs in each kind."""
  pytest.importorskip("google_crc32c")
  root, records = tmp_path / "data", pairs(N)
  root.mkdir()
  write_tar(root / "a.tar", members(records))
  tar = sources.open_source(f"wds:{root}/a.tar")
  prepare.prepare(tar, root / "records", shard_bytes=1000)
  _save(root / "saved", records)
  tf_examples.write(
    root / "a.tfrecord-00000-of-00001",
    *(
      tf_examples.example(jpg=each.image, txt=each.texts[0].encode())
      for each in records
    ),
  )
  images = []
  (root / "coco/val2014").mkdir(parents=True)
  for record, split in zip(records, "abcabca", strict=True):
    name = f"{record.key}.png"
    (root / "coco/val2014" / name).write_bytes(record.image)
    sentences = [{"raw": text} for text in (*record.texts, "more")]
    images.append({"filename": name, "split": split, "sentences": sentences})
  table = json.dumps({"images": images})
  (root / "coco/dataset_coco.json").write_text(table)
  (root / "coco/names.txt").write_text("key001.png\nkey004.png\n")
  return root


def _save(root, records):
  """Writes what `DatasetDict.save_to_disk` does."""
  for split, some in (("train", records[:4]), ("test", records[4:])):
    (root / split).mkdir(parents=True)
    table = pa.table(
      {
        "image": [record.image for record in some],
        "text": [record.texts[0] for record in some],
      }
    )
    names = [f"data-{i:05d}-of-00002.arrow" for i in range(2)]
    for name, part in zip(names, (table[:2], table[2:]), strict=True):
      with pa.ipc.new_stream(root / split / name, table.schema) as writer:
        writer.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names]}
    (root / split / "state.json").write_text(json.dumps(state))
  splits = {"splits": ["train", "test"]}
  (root / "dataset_dict.json").write_text(json.dumps(splits))


ADDRESSES = (
  "arrayrecord:{}/records",
  "arrayrecord:{}/records/*1.array_record",
  "arrayrecord:{}/records?split=held_out",
  "hf:{}/saved",
  "hf:{}/saved/test",
  "hf:{}/saved?split=train",
  "hf:{}/saved/test/*.arrow",
  "tfrecord:{}",
  "tfrecord:{}/a.tfrecord-00000-of-00001?image=jpg&caption=txt",
  "coco:{}/coco",
  "coco:{}/coco/b+c?captions=1",
  "coco:{}/coco/dataset_coco.json?images={}/coco/names.txt&root={}/coco",
)


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
@pytest.mark.parametrize("address", ADDRESSES)
def test_a_bucket_holds_what_the_disk_does(address, scheme, store, data):
  store.upload("data-1", data)
  bucket, disk = map(content, at_both(address, scheme, data))
  assert bucket == disk
  assert len(bucket[0]) >= 1


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_twenty_faults_change_nothing(scheme, store, data):
  store.upload("data-1", data)
  disk = [content(at_both(x, scheme, data)[1]) for x in ADDRESSES]
  # After a fault of other requests, Google's client waits for a second.
  store.faulty = "alt=media" if scheme == "gs" else ""
  for fault in bucket_stand_in.FAULTS * 4:
    store.faults.extend((fault, ""))
  assert [content(at_both(x, scheme, data)[0]) for x in ADDRESSES] == disk
  assert store.happened == list(bucket_stand_in.FAULTS * 4)


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
@pytest.mark.parametrize("number", [0, 3, 6, 9])
def test_batches_are_those_of_the_disk_bit_by_bit(
  number, scheme, store, data, spec, tokens
):
  store.upload("data-1", data)
  found = []
  for address in at_both(ADDRESSES[number], scheme, data):
    with pipeline.train_batches(
      sources.open_source(address),
      seed=3,
      batch_size=4,
      rows=np.arange(4),
      start_step=1,
      preprocess=spec,
      tokenizer=tokens,
      workers=0 if number else 1,  # A process of its own takes seconds.
    ) as batches:
      found.append([next(batches) for _ in range(5)])
  for bucket, disk in zip(*found, strict=True):
    assert bucket.keys() == disk.keys() and "image" in disk
    for name, expected in disk.items():
      np.testing.assert_array_equal(bucket[name], expected)


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_copies_are_fetched_once_and_anew_where_objects_change(
  scheme, store, data, pairs
):
  store.upload("data-1", data)
  address = f"arrayrecord:{scheme}://data-1/records"
  names = [x for x in store.objects["data-1"] if x.endswith(".array_record")]
  source = sources.open_source(address)
  assert len(names) > 2 and source[N - 1].key == "key006"
  store.requests.clear()
  assert sources.open_source(address)[0].image == source[0].image
  assert not _read(store, ".array_record")
  one, two = (f"{scheme}://data-1/{name}" for name in names[:2])
  store.put("data-1", names[1], b"a longer one" * 9000)
  copies = mirrors.copied([one, two])
  assert copies[two].read_bytes() == b"a longer one" * 9000
  assert not _read(store, "0.array_record")
  assert len(_read(store, "1.array_record")) == 1


def _read(store, name):
  """Returns the requests for an object's bytes."""
  return [
    asked
    for asked in store.requests
    if name in asked
    and ("alt=media" in asked or asked.startswith("GET /data-1/"))
  ]


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_a_copy_that_was_cut_or_changed_is_fetched_again(scheme, store, data):
  store.upload("data-1", data)
  address = f"arrayrecord:{scheme}://data-1/records"
  wanted = content(address)
  copies = sorted(kept_files.folder("buckets").rglob("*.array_record"))
  copies[0].write_bytes(copies[0].read_bytes()[:-5])
  copies[1].unlink()
  (copies[2].parent / ".0123.partial").write_bytes(b"half")
  assert content(address) == wanted
  assert not list(copies[2].parent.glob(".*"))


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_a_copy_that_was_broken_off_goes_on(scheme, store, data, monkeypatch):
  monkeypatch.setattr(attempts, "ATTEMPTS", 1)
  monkeypatch.setattr(data_files, "_NOTED_FILES", 1)
  store.upload("data-1", data)
  root = f"{scheme}://data-1/records"
  names = [x.removeprefix("records/") for x in store.objects["data-1"]]
  addresses = [f"{root}/{x}" for x in sorted(names) if x.endswith("_record")]
  store.faulty = "00002.array_record"
  # It is found first, and asked for again before it is read.
  store.faults.extend([*[""] * 2, *["503"] * 9])
  with pytest.raises(errors.UserError, match="could not be reached"):
    mirrors.copied(addresses)
  store.faults.clear()
  store.requests.clear()
  assert len(mirrors.copied(addresses)) == len(addresses)
  assert _read(store, "00002.array_record")
  assert not _read(store, "00000.array_record")


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
@pytest.mark.parametrize("kind", ["arrayrecord", "hf", "tfrecord"])
def test_files_that_change_after_they_were_opened_are_told(
  kind, scheme, store, data
):
  store.upload("data-1", data)
  folder = {"arrayrecord": "records", "hf": "saved/train", "tfrecord": ""}[kind]
  source = sources.open_source(f"{kind}:{scheme}://data-1/{folder}".rstrip("/"))
  for name, found in list(store.objects["data-1"].items()):
    store.put("data-1", name, found.data[:-7])
  other = pickle.loads(pickle.dumps(source))  # Which opens its own files.
  with pytest.raises(errors.UserError, match=rf"{scheme}://data-1/.*change"):
    other[0]


@pytest.mark.parametrize("scheme", bucket_stand_in.SCHEMES)
def test_a_data_set_that_is_not_whole_is_told_by_its_address(
  scheme, store, data
):
  store.upload("data-1", data)
  objects = store.objects["data-1"]
  root = f"{scheme}://data-1"
  name = next(x for x in objects if x.endswith("array_record"))
  cut = store.put("data-1", name, objects.pop(name).data[:-9])
  with pytest.raises(errors.UserError, match=f"{name}.*has {len(cut.data)}"):
    sources.open_source(f"arrayrecord:{root}/records")
  with pytest.raises(errors.UserError, match="not a whole ArrayRecord") as told:
    sources.open_source(f"arrayrecord:{root}/{name}")
  assert f"{root}/{name}" in str(told.value)
  assert str(kept_files.folder("buckets")) not in str(told.value)
  del objects["saved/train/data-00000-of-00002.arrow"]
  with pytest.raises(errors.UserError, match=r"There is nothing at .*00000-"):
    sources.open_source(f"hf:{root}/saved")
  objects.pop(name)
  with pytest.raises(errors.UserError, match="is missing"):
    sources.open_source(f"arrayrecord:{root}/records")


@pytest.mark.parametrize(
  ("address", "said"),
  [
    ("arrayrecord:{}/none", "none' does not exist"),
    ("hf:{}/none", "none' does not exist"),
    ("tfrecord:{}/none", "none' does not exist"),
    ("coco:{}/none", "holds no file of captions"),
    ("coco:{}/none.json", "none.json does not exist"),
    ("tfds:{}/none", "tfds:NAME/SPLIT?data_dir="),
    ("builtin:{}/digits", "names a folder where"),
  ],
)
def test_what_is_not_in_a_bucket_is_named(address, said, store, capsys):
  store.put("data-1", "a.txt", b"x")
  address = address.format("gs://data-1")
  assert cli.run(["data", "inspect", address]) == 1
  found = capsys.readouterr().err
  assert said in found and "Traceback" not in found


def test_a_disk_that_is_full_is_told(store, data, monkeypatch):
  store.upload("data-1", data)
  free = type("Usage", (), {"free": 10})
  monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: free)
  with pytest.raises(errors.UserError, match=r"room for 10 bytes.*XDG_CACHE"):
    sources.open_source("arrayrecord:gs://data-1/records")


def test_the_command_line_reads_each_kind(store, data, capsys):
  store.upload("data-1", data)
  for address in ADDRESSES[:1] + ADDRESSES[3:4] + ADDRESSES[7:10:2]:
    address = address.format("gs://data-1")
    assert cli.run(["data", "inspect", address, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["records"] == found["good"] == N


def test_a_record_says_where_it_lies(store, data):
  store.upload("data-1", data)
  source = sources.open_source("arrayrecord:gs://data-1/records")
  assert source[0].path.startswith("gs://data-1/records/")
  assert source[0].path.endswith(array_record.SUFFIX)
