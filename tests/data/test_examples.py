"""TFRecords, and data sets that `datasets` has saved: records and damage."""

import json
import pickle
import struct
import sys

import numpy as np
import pyarrow as pa
import pytest

import tf_examples
from clip_jax import errors
from clip_jax.data import account, sources
from clip_jax.data.sources import tfrecord

N = 7
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture
def captioned(png):
  """Returns the examples of a small file."""
  pytest.importorskip("google_crc32c")
  return [
    tf_examples.example(
      jpg=png(i), txt=f"caption é {i}".encode(), key=b"%d" % i
    )
    for i in range(N)
  ]


def _save(directory, table, *, batch=3, name="data-00000-of-00001.arrow"):
  """Writes what `Dataset.save_to_disk` does."""
  directory.mkdir(parents=True, exist_ok=True)
  with pa.ipc.new_stream(directory / name, table.schema) as writer:
    writer.write_table(table, max_chunksize=batch)
  state = {"_data_files": [{"filename": name}], "_fingerprint": "0"}
  (directory / "state.json").write_text(json.dumps(state))
  return directory / name


@pytest.fixture
def table(png):
  """Returns a table of images and captions."""
  return pa.table(
    {
      "image": pa.array(
        [{"bytes": png(i), "path": None} for i in range(N)], IMAGE
      ),
      "text": [f"caption é {i}" for i in range(N)],
    }
  )


def test_features_of_several_values_and_labels_are_read(tmp_path, png):
  pytest.importorskip("google_crc32c")
  address = tf_examples.write(
    tmp_path / "a.tfrecord-00000-of-00001",
    tf_examples.example(
      image__encoded=png(0), captions__text=[b"one", b"two"], label=2, x=[1, 2]
    ),
    tf_examples.example(
      image__encoded=png(1), captions__text=b"three", label=-1
    ),
  )
  source = sources.open_source(address)
  found = [source[i] for i in range(2)]
  assert [(r.image, r.texts, r.label) for r in found] == [
    (png(0), ("one", "two"), 2),
    (png(1), ("three",), None),
  ]
  assert found[0].key == "a.tfrecord-00000-of-00001[0]"
  # A directory stands for the files that are named so.
  (tmp_path / "dataset_info.json").write_text("{}")
  (tmp_path / "b.tfrecord").mkdir()  # A directory of that name is none.
  whole = sources.open_source(f"tfrecord:{tmp_path}")
  # As another process gets it, which searches nothing anew.
  copy = pickle.loads(pickle.dumps(whole))
  assert [copy[i] for i in range(2)] == found
  assert len(whole) == 2 and whole.fingerprint == source.fingerprint
  (tmp_path / "names.txt").write_text("ant\nbee\nsea lion\n")
  only = f"{address}?label=label&classes={tmp_path}/names.txt"
  assert sources.open_source(only)[0].label == 2


def test_checksums_are_those_of_the_standard():
  pytest.importorskip("google_crc32c")
  for data in (b"", b"123456789", bytes(range(256))):
    assert tfrecord.masked_crc(data) == tf_examples.crc(data)


def test_damage_costs_what_it_hits_and_is_told(tmp_path, captioned, read_all):
  path = tmp_path / "a.tfrecord"
  address = tf_examples.write(path, *captioned)
  whole = path.read_bytes()
  frames = [len(tf_examples.framed(example)) for example in captioned]
  starts = np.cumsum([0, *frames])

  def opened(data):
    path.write_bytes(data)
    source = sources.open_source(address)
    return read_all(source), account.of(source)

  # In the data of record 2: that record alone.
  data = bytearray(whole)
  data[starts[2] + 30] ^= 4
  items, kept = opened(bytes(data))
  assert items[2] == "damaged_record" and not kept.lost_records
  assert sum(isinstance(item, str) for item in items) == 1
  # In a length: all that follows; about so many as there were.
  data = bytearray(whole)
  data[starts[3]] ^= 1
  items, kept = opened(bytes(data))
  assert len(items) == 3 and kept.lost_records == N - 3
  assert kept.damages == [(str(path), starts[3], "damaged_header")]
  # Cut within a record, or within a header.
  for end in (starts[5] + 40, starts[5] + 5):
    items, kept = opened(whole[:end])
    assert len(items) == 5 and kept.lost_in_words == "at least 1"
    assert "ends within a record (byte" in kept.warnings()[0]


def test_what_a_cut_file_has_lost_is_held_against_the_others(
  tmp_path, captioned
):
  for number in range(4):
    tf_examples.write(
      tmp_path / f"{number}.tfrecord", *captioned[: 3 if number == 3 else N]
    )
  path = tmp_path / "1.tfrecord"
  path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
  source = sources.open_source(f"tfrecord:{tmp_path}")
  # The last file may hold what is left over.
  assert len(source) + account.of(source).lost_records == 3 * N + 3


def test_an_arrow_stream_that_was_cut_between_two_batches_is_told(
  tmp_path, table
):
  paths = [
    _save(tmp_path, table, name=f"data-{i:05d}-of-00003.arrow")
    for i in range(3)
  ]
  (tmp_path / "state.json").unlink()
  whole = paths[1].read_bytes()
  with pa.ipc.open_stream(whole) as stream:
    kept = next(iter(stream))
  file = pa.BufferOutputStream()
  with pa.ipc.new_stream(file, table.schema) as writer:
    writer.write_batch(kept)
  cut = file.getvalue().to_pybytes()[:-8]  # Without the end.
  assert whole.startswith(cut)
  paths[1].write_bytes(cut)
  source = sources.open_source(f"hf:{tmp_path}")
  found = account.of(source)
  assert len(source) == 2 * N + 3
  assert found.lost == {str(paths[1]): N - 3}
  (said,) = found.warnings()
  assert "ends without an end marker, as if it had been cut (byte" in said
  alone = account.of(sources.open_source(f"hf:{paths[1]}"))
  assert alone.lost_in_words == "at least 1"
  # Two files that were put together, of which the first is read.
  paths[1].write_bytes(whole + whole)
  found = account.of(sources.open_source(f"hf:{tmp_path}"))
  assert found.lost == {str(paths[1]): N}
  assert "has more bytes after its end (byte" in found.warnings()[0]
  # Only the marker is gone.
  paths[1].write_bytes(whole[:-8])
  found = account.of(sources.open_source(f"hf:{tmp_path}"))
  assert not found.lost_records and len(found.damages) == 1


def test_a_file_that_was_cut_between_two_records_is_told(tmp_path, captioned):
  for number in range(4):
    kept = captioned[: (2 if number == 1 else 3 if number == 3 else N)]
    tf_examples.write(tmp_path / f"{number}.tfrecord", *kept)
  address = f"tfrecord:{tmp_path}"
  found = account.of(sources.open_source(address))
  (note,) = found.notes
  # The last file may hold what is left over.
  assert f"1 file of 4 holds fewer records than the {N} of the others" in note
  assert "1.tfrecord', which has 2: one that was cut" in note
  assert not found.lost_records
  # img2dataset says what each file holds.
  (tmp_path / "1_stats.json").write_text(json.dumps({"successes": N}))
  found = account.of(sources.open_source(address))
  assert not found.notes and found.lost_records == N - 2
  assert f"about {N - 2} records lost" in found.warnings()[0]
  (tmp_path / "1_stats.json").write_text(json.dumps({"successes": 1}))
  assert not account.of(sources.open_source(address)).lost_records


@pytest.mark.parametrize(
  "counts",
  [
    # As TFDS spreads 15 records over 4 files, in another order.
    {"0.tfrecord": 3, "1.tfrecord": 4, "2.tfrecord": 4, "3.tfrecord": 4},
    # A small split beside a large one.
    {
      **{f"test-{i}.tfrecord": 1 for i in range(2)},
      **{f"train-{i}.tfrecord": N for i in range(5)},
    },
  ],
)
def test_files_that_are_shorter_by_right_are_not_told(
  tmp_path, captioned, counts
):
  for name, count in counts.items():
    tf_examples.write(tmp_path / name, *captioned[:count])
  found = account.of(sources.open_source(f"tfrecord:{tmp_path}"))
  assert not found.warnings()


def test_a_short_file_that_is_known_to_be_whole_is_not_told(
  tmp_path, captioned
):
  for number in range(5):
    count = 2 if number == 2 else N
    tf_examples.write(tmp_path / f"{number}.tfrecord", *captioned[:count])
  address = f"tfrecord:{tmp_path}"
  assert len(account.of(sources.open_source(address)).notes) == 1
  # As of img2dataset, where some images could not be fetched.
  (tmp_path / "2_stats.json").write_text(json.dumps({"successes": 2}))
  assert not account.of(sources.open_source(address)).warnings()


def test_a_file_that_shrinks_later_ends_the_reading(tmp_path, captioned):
  path = tmp_path / "a.tfrecord"
  source = sources.open_source(tf_examples.write(path, *captioned))
  with open(path, "r+b") as file:
    file.truncate(50)
  with pytest.raises(errors.UserError, match="changed since it was opened"):
    source[3]


def test_records_of_other_kinds_are_bad_records(
  tmp_path, captioned, png, read_all
):
  address = tf_examples.write(
    tmp_path / "a.tfrecord",
    *captioned,
    *captioned,
    *captioned,
    b"\xff" * 9,
    b"",
    tf_examples.example(jpg=png(0), txt=[b"one", b"two"]),
    tf_examples.example(jpg=3, txt=b"a number"),
    tf_examples.example(jpg=png(0), txt=b"\xff\xfe"),
    tf_examples.example(jpg=b"", txt=b"nothing"),
  )
  found = read_all(sources.open_source(address))[3 * N :]
  assert found == [
    *("not_an_example", "missing_image", "several_values", "other_type"),
    *("not_utf8", "empty_image"),
  ]


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "is empty"),
    (b"\x1f\x8b\x08" + bytes(60), "unpack it by gunzip"),
    (b"PAR1" + bytes(60), "is no TFRecord file"),
    # Eight bytes of length, told to be right, and far more than the file has.
    (
      struct.pack("<QI", 2**62, tf_examples.crc(struct.pack("<Q", 2**62))),
      "is no TFRecord file",
    ),
  ],
)
def test_no_tfrecord_is_a_clear_error(tmp_path, content, message):
  pytest.importorskip("google_crc32c")
  (tmp_path / "a.tfrecord").write_bytes(content)
  with pytest.raises(errors.UserError, match=message):
    sources.open_source(f"tfrecord:{tmp_path}/a.tfrecord")


def test_without_the_library_of_checksums_its_extra_is_named(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "google_crc32c", None)
  tfrecord._crc32c.cache_clear()
  (tmp_path / "a.tfrecord").write_bytes(bytes(20))
  with pytest.raises(errors.UserError, match=r"jax-clip\[tfrecord\]"):
    sources.open_source(f"tfrecord:{tmp_path}/a.tfrecord")
  tfrecord._crc32c.cache_clear()


def test_saved_splits_are_read_by_name(tmp_path, table):
  for name, rows in (("train", 5), ("test", 2)):
    _save(tmp_path / name, table.slice(0, rows))
  (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
  sizes = {
    address: len(sources.open_source(f"hf:{tmp_path}{address}"))
    for address in ("", "/train", "/test", "/train+test", "?split=test")
  }
  assert list(sizes.values()) == [7, 5, 2, 7, 2]
  source = pickle.loads(pickle.dumps(sources.open_source(f"hf:{tmp_path}")))
  assert source[6].texts == ("caption é 1",)
  with pytest.raises(errors.UserError, match=r"Did you mean 'test'"):
    sources.open_source(f"hf:{tmp_path}/tset")


def test_damaged_saved_data_are_told(tmp_path, table, read_all):
  path = _save(tmp_path, table)
  whole = path.read_bytes()
  path.write_bytes(whole[: len(whole) // 2])
  source = sources.open_source(f"hf:{tmp_path}")
  assert 0 < len(source) < N
  assert account.of(source).lost_in_words == "at least 1"
  # Offsets that point anywhere must not be followed.
  seen = set()
  for at in range(0, len(whole), 97):
    data = bytearray(whole)
    data[at : at + 4] = b"\xfe\xff\xff\x7f"
    path.write_bytes(bytes(data))
    try:
      items = read_all(sources.open_source(f"hf:{tmp_path}"))
      seen.update(item for item in items if isinstance(item, str))
    except errors.UserError:
      seen.add("refused")
  assert {"damaged_record", "refused"} <= seen
  for name in (b"image", b"bytes"):
    path.write_bytes(whole.replace(name, name[:-1] + b"\xec"))
    with pytest.raises(errors.UserError, match="has no readable footer"):
      sources.open_source(f"hf:{tmp_path}")
  path.write_bytes(b"text")
  with pytest.raises(errors.UserError, match="is no Arrow file"):
    sources.open_source(f"hf:{tmp_path}")


@pytest.mark.parametrize("new", [pa.ipc.new_file, pa.ipc.new_stream])
def test_compressed_batches_are_refused(tmp_path, table, new):
  path = tmp_path / "a.arrow"
  for compression in ("zstd", "lz4"):
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with new(path, table.schema, options=options) as writer:
      writer.write_table(table)
    with pytest.raises(errors.UserError, match="save it without compression"):
      sources.open_source(f"hf:{path}")


@pytest.mark.parametrize(
  ("state", "message"),
  [
    ('{"_data_files": [{"filename": "../x.arrow"}]}', "no list of names"),
    ('{"_data_files": []}', "no list of names"),
    ('{"_data_files": 3}', "no list of names"),
    ('{"_indices_data_files": [{"filename": "i"}]}', "old version"),
    ('{"_data_files": ["gone.arrow"]}', r"gone\.arrow is not there, or links"),
    ("[", "state.json"),
  ],
)
def test_a_state_that_names_no_files_is_refused(tmp_path, state, message):
  (tmp_path / "state.json").write_text(state)
  with pytest.raises(errors.UserError, match=message):
    sources.open_source(f"hf:{tmp_path}")


def test_the_type_of_a_column_may_differ_between_records():
  text, other, number = [b"a"], [b"\xff"], [3]
  assert tfrecord._kind([text, text]) == pa.string()
  assert tfrecord._kind([text, other]) == pa.binary()
  assert tfrecord._kind([text, text, other]) == pa.string()
  assert tfrecord._kind([number, text, number]) == pa.int64()
  assert tfrecord._kind([number, number, [1, 2]]) == pa.int64()
  assert tfrecord._kind([[1, 2], number, [1, 2]]) == pa.list_(pa.int64())
  assert tfrecord._kind([[b""], other]) == pa.binary()
  assert tfrecord._kind([[b""], []]) == pa.string()
  assert tfrecord._kind([text, [b"a", b"b"]]) == pa.list_(pa.string())


def test_one_odd_record_does_not_decide_what_a_feature_is(
  tmp_path, png, read_all
):
  pytest.importorskip("google_crc32c")

  def example(number, **changes):
    fields = {"image": png(number), "label": b"cat", **changes}
    return tf_examples.example(**fields)

  address = tf_examples.write(
    tmp_path / "a.tfrecord",
    example(0, image=[png(0), png(1)]),
    example(1),
    example(2, label=b"\xff"),
    example(3, label=7),
    example(4, label=b"dog"),
    example(5, image=b""),
  )
  found = read_all(sources.open_source(address))
  assert [getattr(item, "texts", item) for item in found] == [
    "several_values",
    ("cat",),
    "not_utf8",
    "other_type",
    ("dog",),
    "empty_image",
  ]
  numbers = [{"text": b"a", "label": x} for x in ([1, 2], 3, b"x", -1)]
  address = tf_examples.write(
    tmp_path / "b.tfrecord",
    *(example(i, **fields) for i, fields in enumerate(numbers)),
  )
  found = read_all(sources.open_source(address))
  labels = [getattr(item, "label", item) for item in found]
  assert labels == ["several_values", 3, "other_type", None]


@pytest.mark.parametrize(
  "texts",
  [
    pa.array([b"a", b"\xff", b"c"]).view(pa.string()),
    pa.array([b"a", b"\xff" * 50, b"c"], pa.binary_view()).view(
      pa.string_view()
    ),
    pa.ListArray.from_arrays(
      pa.array([0, 1, 2, 3], pa.int32()),
      pa.array([b"a", b"\xff", b"c"]).view(pa.string()),
    ),
  ],
)
def test_a_saved_text_that_is_no_utf_8_costs_its_row(
  tmp_path, png, read_all, texts
):
  images = pa.array([png(i) for i in range(3)])
  _save(tmp_path / "saved", pa.table({"image": images, "text": texts}))
  found = read_all(sources.open_source(f"hf:{tmp_path}/saved"))
  assert [getattr(item, "texts", item) for item in found] == [
    ("a",),
    "not_utf8",
    ("c",),
  ]


def test_a_saved_path_that_is_no_utf_8_costs_its_row(tmp_path, png, read_all):
  paths = pa.array([b"a", b"\xff"]).view(pa.string())
  images = pa.array([png(0), None], pa.binary())
  image = pa.StructArray.from_arrays([images, paths], ["bytes", "path"])
  table = pa.table({"image": image, "text": ["a", "b"]})
  _save(tmp_path / "saved", table)
  first, second = read_all(sources.open_source(f"hf:{tmp_path}/saved"))
  assert (first.texts, second) == (("a",), "not_utf8")
