"""Parquet tables as the HuggingFace hub has them: columns, splits, damage."""

import json
import os
import pathlib
import pickle
import tracemalloc
from concurrent import futures

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from clip_jax import cli, errors
from clip_jax.data import account, inspection, sources
from clip_jax.data.sources import parquet, row_groups, splits, views

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NO_PATHS = pa.struct([("bytes", pa.binary()), ("path", pa.null())])
NAMES = ["sea_lion", "ant", "Bee"]
N = 7


def _images(png, numbers, kind=IMAGE):
  if pa.types.is_struct(kind):
    suffix = ".png" if kind == IMAGE else None
    values = [
      {"bytes": png(i), "path": suffix and f"{i}{suffix}"} for i in numbers
    ]
  else:
    values = [png(i) for i in numbers]
  return pa.array(values, kind)


def _write(path, columns, *, features=None, rows=3, **options):
  """Writes a table as `datasets` does, in row groups of so many rows."""
  table = pa.table(columns)
  if features is not None:
    info = json.dumps({"info": {"features": features}}).encode()
    table = table.replace_schema_metadata({b"huggingface": info})
  path.parent.mkdir(parents=True, exist_ok=True)
  pq.write_table(table, path, row_group_size=rows, **options)


@pytest.fixture
def captioned(png):
  """Writes a table of images and captions, two of each image."""

  def write(path, numbers=range(N), **options):
    texts = [[f"caption é {i}", f"second {i}"] for i in numbers]
    columns = {"captions": texts, "image": _images(png, numbers)}
    _write(path, columns, **options)
    return path

  return write


@pytest.fixture
def labelled(png):
  """Writes a table of images with labels and the names of their classes."""

  def write(path, numbers=range(N), labels=None, **options):
    labels = [i % 3 for i in numbers] if labels is None else labels
    columns = {"image": _images(png, numbers), "label": labels}
    features = {
      "image": {"_type": "Image"},
      "label": {"names": NAMES, "_type": "ClassLabel"},
    }
    _write(path, columns, features=features, **options)
    return path

  return write


def _all(source):
  return [source[i] for i in range(len(source))]


def _shown(records):
  return [(record.image, record.texts, record.label) for record in records]


def test_a_table_gives_the_records_of_a_tar_of_the_same(
  tmp_path, captioned, write_tar, png
):
  captioned(tmp_path / "a.parquet")
  write_tar(
    tmp_path / "a.tar",
    [
      member
      for i in range(N)
      for member in (
        (f"{i}.png", png(i)),
        (f"{i}.txt", f"caption é {i}\nsecond {i}".encode()),
      )
    ],
  )
  source = sources.open_source(f"parquet:{tmp_path}/a.parquet")
  tar = sources.open_source(f"wds:{tmp_path}/a.tar?captions=lines")
  assert _shown(_all(source)) == _shown(_all(tar))
  assert source.class_names is None
  assert [source[i].key for i in (0, 6)] == ["a.parquet[0]", "a.parquet[6]"]
  for index in (-1, N):
    with pytest.raises(IndexError):
      source[index]
  (said,) = account.of(source).remarks()
  assert "images from 'image', captions from 'captions'" in said
  named = f"parquet:{tmp_path}/a.parquet?image=image&caption=captions"
  assert not account.of(sources.open_source(named)).sentences()


def test_labels_have_the_names_that_the_schema_tells(tmp_path, labelled):
  labelled(tmp_path / "a.parquet", labels=[0, 1, 2, -1, None, 9, 1])
  source = sources.open_source(f"parquet:{tmp_path}/a.parquet")
  assert source.class_names == ("sea lion", "ant", "Bee")
  good = [source[i] for i in (0, 1, 2, 6)]
  assert [(r.texts, r.label) for r in good] == [
    (("sea lion",), 0),
    (("ant",), 1),
    (("Bee",), 2),
    (("ant",), 1),
  ]
  for slot, reason in {3: "missing_label", 5: "bad_label"}.items():
    with pytest.raises(sources.BadRecord, match=reason):
      source[slot]


def test_labels_that_nobody_asked_for_change_no_captions(tmp_path, png):
  """A run on captions goes on, whatever the files name their classes."""
  _write_classes(tmp_path, png, "parquet", NAMES, NAMES[::-1], ["other"])
  for path in tmp_path.glob("*.parquet"):
    rows = pq.read_table(path)
    texts = pa.array([f"{path.stem}, {i}" for i in range(3)])
    pq.write_table(rows.append_column("caption", texts), path)
  source = sources.open_source(f"parquet:{tmp_path}")
  assert [source[i].texts[0] for i in (0, 4, 8)] == ["0, 0", "1, 1", "2, 2"]
  with pytest.raises(errors.UserError, match="has the class 'other', which"):
    sources.open_source(f"parquet:{tmp_path}?label=label")


@pytest.mark.parametrize("scheme", ["parquet", "hf"])
def test_each_files_numbers_are_those_of_its_own_names(tmp_path, png, scheme):
  _write_classes(tmp_path, png, scheme, NAMES, NAMES, NAMES)
  same = sources.open_source(f"{scheme}:{tmp_path}")
  assert [same[i].label for i in range(9)] == [0, 1, 2] * 3
  orders = ["sea lion", "ant", "Bee"], ["Bee", "sea_lion", "ant"]
  _write_classes(tmp_path, png, scheme, NAMES, *orders)
  source = sources.open_source(f"{scheme}:{tmp_path}")
  assert source.class_names == ("sea lion", "ant", "Bee")
  found = [source[i] for i in range(9)]
  assert [record.label for record in found] == [0, 1, 2, 0, 1, 2, 2, 0, 1]
  assert [record.texts[0] for record in found[6:]] == ["Bee", "sea lion", "ant"]
  (tmp_path / "names.txt").write_text("x\ny\nz\n")
  named = f"{scheme}:{tmp_path}?classes={tmp_path}/names.txt"
  renamed = sources.open_source(named)
  assert [renamed[i].texts[0] for i in range(9)] == [*"xyz"] * 3
  _write_classes(
    tmp_path, png, scheme, NAMES, NAMES, ["sea lion", "ant", "bee"]
  )
  other = sources.open_source(named)
  assert [other[i].label for i in range(9)] == [0, 1, 2] * 3
  for lists, message in (
    ([NAMES, ["sea lion", "ant", "bee"]], r"1\.\w+ has the class 'bee', which"),
    ([NAMES, ["ant", "sea lion"]], r"1\.\w+ lacks the class 'Bee'"),
    ([NAMES, None, NAMES[::-1]], r"1\.\w+ does not name the classes"),
    ([None, NAMES, NAMES[::-1]], r"1\.\w+ names the classes"),
    ([["a", "a", "b"], ["a", "b", "a"]], "several have the same name"),
  ):
    _write_classes(tmp_path, png, scheme, *lists)
    with pytest.raises(errors.UserError, match=message):
      sources.open_source(f"{scheme}:{tmp_path}")
  _write_classes(tmp_path, png, scheme, NAMES, None)
  assert sources.open_source(f"{scheme}:{tmp_path}")[4].texts == ("ant",)


def _write_classes(place, png, scheme, *lists):
  """Writes a file for each list of names, with the labels 0, 1 and 2."""
  for old in (*place.glob("*.parquet"), *place.glob("*.arrow")):
    old.unlink()
  for number, names in enumerate(lists):
    labels = [0, 1, 2] if names is None or len(names) > 2 else [0, 1, 0]
    columns = {"image": _images(png, range(3)), "label": labels}
    label = {"names": names, "_type": "ClassLabel"}
    features = {
      "image": {"_type": "Image"},
      **({"label": label} if names else {}),
    }
    path = place / f"{number}.parquet"
    _write(path, columns, features=features)
    if scheme == "hf":
      table = pq.read_table(path)
      with pa.ipc.new_stream(path.with_suffix(".arrow"), table.schema) as out:
        out.write_table(table)
      path.unlink()


def test_labels_may_be_texts_or_have_their_names_in_a_file(tmp_path, png):
  images = _images(png, range(3))
  _write(tmp_path / "text.parquet", {"image": images, "class": list("cab")})
  source = sources.open_source(f"parquet:{tmp_path}/text.parquet")
  assert source.class_names == ("a", "b", "c")
  assert [record.label for record in _all(source)] == [2, 0, 1]
  assert source[0].texts == ("c",)
  (tmp_path / "order.txt").write_text("b\na\n")
  source = sources.open_source(
    f"parquet:{tmp_path}/text.parquet?classes={tmp_path}/order.txt"
  )
  with pytest.raises(sources.BadRecord, match="bad_label"):
    source[0]
  assert [source[1].label, source[2].texts] == [1, ("b",)]
  _write(tmp_path / "number.parquet", {"image": images, "cls": [1, 0, 1]})
  address = f"parquet:{tmp_path}/number.parquet"
  with pytest.raises(sources.BadRecord) as caught:
    sources.open_source(address)[0]
  assert "?classes=FILE" in caught.value.hint
  (tmp_path / "names.txt").write_text("ant\nbee\n")
  source = sources.open_source(f"{address}?classes={tmp_path}/names.txt")
  assert [record.texts for record in _all(source)] == [
    ("bee",),
    ("ant",),
    ("bee",),
  ]


LIST_VIEW = pa.array([["x", "y"]], pa.list_view(pa.string()))


def _dictionary(values):
  return pa.array(values).dictionary_encode()


@pytest.mark.parametrize(
  ("columns", "options", "texts", "label"),
  [
    ({"img": IMAGE, "text": ["x"]}, "", ("x",), None),
    ({"image": NO_PATHS, "text": ["x"]}, "", ("x",), None),
    ({"jpg": pa.binary(), "txt": ["x"]}, "", ("x",), None),
    ({"pixels": pa.large_binary(), "about": ["x"]}, "", ("x",), None),
    ({"image": IMAGE, "title": ["x"], "url": ["u"]}, "", ("x",), None),
    (
      {"image": IMAGE, "caption_0": ["x"], "caption_1": ["y"]},
      "",
      ("x", "y"),
      None,
    ),
    ({"image": IMAGE, "answer": [["x", "y"]]}, "", ("x", "y"), None),
    ({"image": IMAGE, "text": _dictionary(["x"])}, "", ("x",), None),
    ({"image": IMAGE, "text": LIST_VIEW}, "", ("x", "y"), None),
    ({"image": IMAGE, "text": ["x"], "label": [4]}, "", ("x",), 4),
    ({"image": IMAGE, "text": ["x"], "a": ["y"]}, "caption=a,text", "yx", None),
    ({"image": IMAGE, "raw": [b"x"]}, "caption=raw", ("x",), None),
    ({"image": IMAGE, "mask": IMAGE, "text": ["x"]}, "", ("x",), None),
  ],
)
def test_columns_are_found_by_type_and_usual_names(
  tmp_path, png, columns, options, texts, label
):
  columns = {
    name: _images(png, [5 if name == "mask" else 3], kind)
    if isinstance(kind, pa.DataType)
    else kind
    for name, kind in columns.items()
  }
  _write(tmp_path / "a.parquet", columns)
  address = f"parquet:{tmp_path}/a.parquet" + (options and f"?{options}")
  (record,) = _all(sources.open_source(address))
  assert record.image == png(3)
  assert (record.texts, record.label) == (tuple(texts), label)


def _none(kind):
  return pa.array([], kind)


@pytest.mark.parametrize(
  ("columns", "options", "message"),
  [
    ({"n": [1], "text": ["x"]}, "", r"no column of images.*'n' \(int64\)"),
    ({"image": [b"x"], "n": [1]}, "", "neither captions nor labels"),
    ({"image": [b"x"], "a": ["x"], "b": ["x"]}, "", "neither captions nor"),
    ({"image": [b"x"], "file_name": ["1.jpg"]}, "", "neither captions nor"),
    ({"image": [b"x"], "original_path": ["x"]}, "", "neither captions nor"),
    ({"a": [b"x"], "b": [b"x"], "text": ["x"]}, "", "several columns may hold"),
    ({"image": [b"x"], "text": ["x"]}, "caption=txet", "Did you mean 'text'"),
    ({"image": [b"x"], "text": ["x"]}, "label=image", "cannot be the label"),
    ({"image": [b"x"], "text": [1]}, "caption=text", "cannot be the caption"),
    ({"image": [b"x"], "label": [0.5]}, "label=label", "or whole numbers"),
    ({"image": [b"x"], "text": ["x"]}, "root=/nowhere", "not a directory"),
    ({"image": [b"x"], "label": [0]}, "classes=/nowhere", "cannot be read"),
    ({"image": [b"x"], "text": ["x"]}, "captions=5", "Did you mean 'caption'"),
    ({"image": _none(pa.binary()), "label": _none(pa.int8())}, "", "no rows"),
    ({"image": _none(pa.string()), "text": _none(pa.string())}, "", "no rows"),
  ],
)
def test_a_table_that_cannot_be_read_is_a_clear_error(
  tmp_path, columns, options, message
):
  _write(tmp_path / "a.parquet", columns)
  address = f"parquet:{tmp_path}/a.parquet" + (options and f"?{options}")
  with pytest.raises(errors.UserError, match=message):
    sources.open_source(address)


def test_columns_of_the_same_name_are_said_to_be_left_out(tmp_path):
  columns = [pa.array([b"x"]), pa.array(["x"]), pa.array(["y"])]
  table = pa.table(columns, names=["image", "text", "text"])
  pq.write_table(table, tmp_path / "a.parquet")
  left_out = r"'image' \(binary\); left out are .* same name, such as 'text'\."
  with pytest.raises(errors.UserError, match=left_out):
    sources.open_source(f"parquet:{tmp_path}/a.parquet")


def test_rows_of_the_same_path_become_one_record_as_in_a_csv(
  tmp_path, png, read_all
):
  (tmp_path / "img").mkdir()
  for name in "ab":
    (tmp_path / "img" / name).write_bytes(png(ord(name)))
  os.symlink("/etc/passwd", tmp_path / "img" / "link")
  paths = ["a", "b", "a", "gone", None, "a", "link", "\0"]
  texts = [f"text {i}" for i in range(len(paths))]
  _write(tmp_path / "a.parquet", {"file_name": paths, "text": texts}, rows=2)
  with open(tmp_path / "a.csv", "w") as file:
    file.write("image,caption\n")
    file.writelines(f"{p or ''},{t}\n" for p, t in zip(paths, texts, strict=1))
  options = f"root={tmp_path}/img"
  found = sources.open_source(f"parquet:{tmp_path}/a.parquet?{options}")
  table = sources.open_source(f"csv:{tmp_path}/a.csv?{options}")
  assert read_all(found) == read_all(table)
  assert found[0].texts == ("text 0", "text 2", "text 5")
  assert found[0].key == "a"
  with pytest.raises(sources.BadRecord) as caught:
    found[2]
  assert f"{tmp_path}/img/gone was tried" in caught.value.hint
  assert len(sources.open_source(f"parquet:{tmp_path}/a.parquet")) == 6


def test_an_image_that_is_not_embedded_lies_beside_the_table(tmp_path, png):
  (tmp_path / "a.png").write_bytes(png(1))
  images = pa.array([{"bytes": None, "path": "a.png"}], IMAGE)
  _write(tmp_path / "a.parquet", {"image": images, "text": ["x"]})
  assert sources.open_source(f"parquet:{tmp_path}")[0].image == png(1)


def test_bad_rows_keep_their_slots(tmp_path, png, read_all):
  good = {"bytes": png(0), "path": None}
  image = [None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}]
  image += [good] * 6
  texts = [["x"]] * 3 + [None, [], [None, " "], ["y" * 2_000_000]]
  texts += [["x"] * 400_000, ["fine", None]]
  columns = {"image": pa.array(image, IMAGE), "captions": texts}
  _write(tmp_path / "a.parquet", columns)
  source = sources.open_source(f"parquet:{tmp_path}/a.parquet")
  assert read_all(source) == [
    *("missing_image", "missing_image", "empty_image", "missing_caption"),
    *("missing_caption", "empty_caption", "too_large", "too_large"),
    sources.Record(png(0), ("fine",), "a.parquet[8]"),
  ]


def test_text_that_is_no_utf_8_costs_its_row(tmp_path, png, read_all):
  raw = pa.array([b"\xff", b"fine"])
  text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
  columns = {"image": _images(png, range(2)), "text": text}
  _write(tmp_path / "a.parquet", columns)
  found = read_all(sources.open_source(f"parquet:{tmp_path}/a.parquet"))
  assert found[0] == "not_utf8" and found[1].texts == ("fine",)


def _files(tmp_path, captioned):
  for number in range(4):
    captioned(
      tmp_path / f"{number}.parquet", range(number * 3, number * 3 + 3), rows=2
    )
  return tmp_path / "1.parquet"


DAMAGES = {
  "bad_footer": lambda data: data[:-30],
  "empty": lambda data: b"",
  "lfs_pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\n",
  "not_parquet": lambda data: b"<html>not found</html>",
}


@pytest.mark.parametrize("reason", [*DAMAGES, "other_columns"])
def test_a_damaged_file_is_told_and_its_rows_count_as_lost(
  tmp_path, captioned, labelled, reason, caplog
):
  path = _files(tmp_path, captioned)
  if reason == "other_columns":
    labelled(path, range(5))
  else:
    path.write_bytes(DAMAGES[reason](path.read_bytes()))
  source = sources.open_source(f"parquet:{tmp_path}")
  assert [record.texts[0] for record in _all(source)] == [
    f"caption é {i}" for i in range(12) if not 3 <= i < 6
  ]
  assert source[3].key == "2.parquet[0]"
  lost = 5 if reason == "other_columns" else 3
  assert source.account.lost == {str(path): lost}
  account.tell(source, "x")
  says = f"{path} {account.WORDS[reason]}: about {lost} records lost."
  assert says in caplog.text
  with pytest.raises(errors.UserError, match="are lost to damage"):
    account.check(source, "x", max_bad_fraction=0.1)
  found = inspection.inspect(source)
  assert found["damages"] == [(str(path), 0, reason)]
  assert (found["good"], found["lost"]) == (9, lost)


def test_only_damaged_files_are_an_error(tmp_path, captioned):
  for number in range(2):
    path = captioned(tmp_path / f"{number}.parquet")
    path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(errors.UserError, match=r"0\.parquet has no readable"):
    sources.open_source(f"parquet:{tmp_path}")
  path.unlink()
  os.mkfifo(path)
  with pytest.raises(errors.UserError, match="neither a file nor"):
    sources.open_source(f"parquet:{path}")


def test_a_link_to_nowhere_is_told(tmp_path, captioned):
  captioned(tmp_path / "0.parquet")
  os.symlink("nowhere", tmp_path / "1.parquet")
  source = sources.open_source(f"parquet:{tmp_path}")
  assert [why for _, _, why in source.account.damages] == ["dangling_link"]


def test_a_damaged_row_group_costs_its_rows_only(tmp_path, captioned, read_all):
  path = captioned(tmp_path / "a.parquet", rows=2, compression="gzip")
  column = pq.ParquetFile(path).metadata.row_group(1).column(1)
  data = bytearray(path.read_bytes())
  start = column.data_page_offset
  data[start : start + column.total_compressed_size // 2] = b"\xff" * (
    column.total_compressed_size // 2
  )
  path.write_bytes(data)
  found = read_all(sources.open_source(f"parquet:{path}"))
  assert found[2:4] == ["damaged_record"] * 2
  assert [item.texts[0] for item in found[:2] + found[4:]] == [
    f"caption é {i}" for i in (0, 1, 4, 5, 6)
  ]


def test_a_file_that_is_cut_while_it_is_read_is_noticed(tmp_path, captioned):
  path = captioned(tmp_path / "a.parquet", rows=2)
  source = sources.open_source(f"parquet:{path}")
  source[0]
  os.truncate(path, 10)
  assert source[1].texts  # Of the row group that is kept.
  with pytest.raises(errors.UserError, match=r"a\.parquet has changed since"):
    source[2]


def test_flipped_bytes_never_end_in_a_traceback(tmp_path, captioned):
  path = captioned(tmp_path / "a.parquet", range(3), rows=2)
  data = path.read_bytes()
  rng = np.random.default_rng(0)
  outcomes = set()
  for number in range(150):
    changed = bytearray(data)
    for place in rng.integers(0, len(data), 1 + number % 5):
      changed[place] ^= 1 << rng.integers(8)
    # The footer, in which all is told, is hit often enough so.
    place = rng.integers(len(data) - 1500, len(data))
    changed[place] = rng.integers(256)
    path.write_bytes(changed)
    try:
      source = sources.open_source(f"parquet:{path}")
      items = [_item(source, i) for i in range(min(len(source), 9))]
      outcomes |= {item for item in items if isinstance(item, str)}
    except errors.UserError as error:
      assert len(str(error)) < 2000
      outcomes.add("error")
  assert {"error", "damaged_record"} <= outcomes


def _item(source, index):
  try:
    return source[index]
  except sources.BadRecord as error:
    return error.reason


def test_what_unpacks_to_more_than_is_allowed_is_not_unpacked(
  tmp_path, monkeypatch, read_all
):
  monkeypatch.setattr(row_groups, "MAX_GROUP_BYTES", 2**20)
  columns = {"image": [b"\0" * 50_000] * 200, "text": ["x"] * 200}
  path = tmp_path / "a.parquet"
  _write(path, columns, rows=200, compression="zstd")
  assert path.stat().st_size < 10_000
  found = read_all(sources.open_source(f"parquet:{path}"))
  kept = sum(not isinstance(item, str) for item in found)
  assert 0 < kept * 50_000 <= 2**20
  assert found[kept:] == ["too_large"] * (200 - kept)


def test_more_rows_than_a_file_can_hold_are_not_believed(tmp_path):
  nothing = pa.nulls(2**21, pa.string())
  path = tmp_path / "a.parquet"
  _write(path, {"image": nothing, "text": nothing}, rows=2**21)
  assert path.stat().st_size < 10_000
  with pytest.raises(errors.UserError, match="no readable footer"):
    sources.open_source(f"parquet:{path}")


def test_row_groups_are_unpacked_once_in_order_and_few_are_kept(
  tmp_path, captioned, monkeypatch
):
  path = captioned(tmp_path / "a.parquet", range(12), rows=3)
  unpacked = []
  plain = row_groups.ParquetFile.unpack

  def counted(self, group, columns):
    unpacked.append(group)
    return plain(self, group, columns)

  monkeypatch.setattr(row_groups.ParquetFile, "unpack", counted)
  source = sources.open_source(f"parquet:{path}")
  assert not unpacked
  with futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(source.__getitem__, range(12)))
  assert sorted(unpacked) == [0, 1, 2, 3]
  monkeypatch.setattr(row_groups, "KEPT_BYTES", 1)  # Only the last one stays.
  source = sources.open_source(f"parquet:{path}")
  unpacked.clear()
  for index in (0, 2, 3, 5, 0, 11, 10):
    source[index]
  assert unpacked == [0, 1, 0, 3]


def test_memory_does_not_grow_with_the_table(tmp_path, png, monkeypatch):
  monkeypatch.setattr(row_groups, "KEPT_BYTES", 2**18)
  noise = [np.random.default_rng(i).bytes(2**16) for i in range(80)]
  columns = {"image": noise, "text": ["x"] * len(noise)}
  _write(tmp_path / "a.parquet", columns, rows=2, use_dictionary=False)
  del columns
  source = sources.open_source(f"parquet:{tmp_path}/a.parquet")
  source[0]
  before = pa.total_allocated_bytes()
  tracemalloc.start()
  assert all(source[i].image == noise[i] for i in range(80))
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 2**20  # Of 5 MiB.
  assert pa.total_allocated_bytes() - before < 2**20


def test_large_row_groups_are_told(tmp_path, captioned, monkeypatch):
  path = captioned(tmp_path / "a.parquet")
  address = f"parquet:{path}?image=image&caption=captions"
  monkeypatch.setattr(row_groups, "KEPT_BYTES", 10)
  assert not account.of(sources.open_source(address)).sentences()
  monkeypatch.setattr(parquet, "LARGE_GROUP_BYTES", 10)
  (said,) = account.of(sources.open_source(address)).remarks()
  assert "`clip-jax data prepare` makes a copy" in said


def test_reading_is_safe_in_threads_and_in_other_processes(tmp_path, captioned):
  _files(tmp_path, captioned)
  source = sources.open_source(f"parquet:{tmp_path}/{{0..3}}.parquet")
  wanted = _all(source)
  copy = pickle.loads(pickle.dumps(source))
  assert copy.fingerprint == source.fingerprint
  order = np.random.default_rng(0).integers(0, 12, 300).tolist()
  with futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(copy.__getitem__, order)) == [wanted[i] for i in order]


def test_a_fingerprint_tells_tables_and_columns_apart(tmp_path, png):
  for name, rows in (("a", 3), ("b", 2), ("c", 3)):
    columns = {"image": _images(png, range(4)), "text": list("wxyz")}
    columns["title"] = list("wxyz") if name != "c" else list("wxzy")
    _write(tmp_path / name / "t.parquet", columns, rows=rows)
  addresses = [f"parquet:{tmp_path}/{name}" for name in "aab"]
  addresses[1] += "?caption=title"
  found = [sources.open_source(address).fingerprint for address in addresses]
  assert len(set(found)) == 3
  assert found[0] == sources.open_source(addresses[0]).fingerprint


LAYOUTS = {
  "beside": "{split}-0000{n}-of-00002.parquet",
  "old": "data/{split}-0000{n}-of-00002-0123456789abcdef.parquet",
  "one folder": "plain_text/{split}-0000{n}-of-00002.parquet",
  "converted": "default/{split}/000{n}.parquet",
  "folders": "{split}/{n}.parquet",
  "plain": "{split}{n}.parquet",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_directory_has_the_splits_that_its_files_tell(
  tmp_path, captioned, layout
):
  for start, split in enumerate(("train", "validation", "test")):
    for n in range(2):
      name = LAYOUTS[layout].format(split=split, n=n)
      captioned(tmp_path / name, [10 * start + n])
  address = f"parquet:{tmp_path}"

  def numbers(end):
    source = sources.open_source(address + end)
    return sorted(int(record.texts[0].split()[-1]) for record in _all(source))

  assert numbers("") == [0, 1, 10, 11, 20, 21]
  for end in ("/test", "?split=test", "/test?image=image"):
    assert numbers(end) == [20, 21]
  assert numbers("/train+validation") == [0, 1, 10, 11]
  assert numbers("?split=train") == [0, 1]
  parts = (numbers("/test?split=train"), numbers("/test?split=held_out"))
  assert sorted(parts[0] + parts[1]) == [20, 21]
  assert len(numbers("?split=held_out&held_out=0.5")) == 3
  with pytest.raises(errors.UserError, match="Known: test, train, validation"):
    numbers("/dev")
  with pytest.raises(errors.UserError, match=r"split=held_out&held_out=0\.2"):
    numbers("?split=held_out")
  with pytest.raises(errors.UserError, match="does not exist"):
    numbers("/test.parquet")
  assert splits.train_and_test(address) == (
    f"{address}/train",
    f"{address}/test",
  )
  with pytest.raises(errors.UserError, match="--train-data"):
    splits.train_and_test(f"{address}/test")


def test_files_without_the_names_of_splits_are_parted_by_a_share(
  tmp_path, captioned
):
  captioned(tmp_path / "own" / "pairs.parquet", range(10))
  captioned(tmp_path / "one" / "train.parquet", range(10))
  for place in ("own", "own/pairs.parquet", "one/train.parquet"):
    train, test = splits.train_and_test(f"parquet:{tmp_path}/{place}")
    assert train.endswith("?split=train") and test.endswith("?split=held_out")
    opened = sources.open_source(train), sources.open_source(test)
    assert list(map(len, opened)) == [8, 2]
  # Of a split that is called so and is all there is, too.
  parts = splits.train_and_test(f"parquet:{tmp_path}/one")
  assert [len(sources.open_source(part)) for part in parts] == [8, 2]
  assert len(sources.open_source(f"parquet:{tmp_path}/one?split=train")) == 10
  whole = sources.open_source(f"parquet:{tmp_path}/one")
  assert len(views.part(whole, "held_out")) == 2


def test_several_data_sets_in_a_directory_are_not_mixed(tmp_path, captioned):
  for name in ("cropped", "full"):
    captioned(tmp_path / name / "train-00000-of-00001.parquet")
  with pytest.raises(errors.UserError, match=r"2 data sets.*'cropped', 'full'"):
    sources.open_source(f"parquet:{tmp_path}")
  assert len(sources.open_source(f"parquet:{tmp_path}/full/train")) == N
  (tmp_path / "none").mkdir()
  with pytest.raises(errors.UserError, match=r"no \.parquet files"):
    sources.open_source(f"parquet:{tmp_path}/none")


def test_the_verbs_read_a_parquet_table(tmp_path, labelled, capsys):
  labelled(tmp_path / "data" / "train.parquet")
  address = f"parquet:{tmp_path}/data/train"
  assert cli.run(["data", "inspect", address, "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["labels"] == {"0": 3, "1": 2, "2": 2}
  assert "labels from 'label'" in found["choices"][0]
  out = tmp_path / "copy"
  assert cli.run(["data", "prepare", address, str(out)]) == 0
  copy = sources.open_source(f"arrayrecord:{out}")
  assert _all(copy) == _all(sources.open_source(address))
  assert copy.class_names == ("sea lion", "ant", "Bee")
  assert pathlib.Path(out, "dataset.json").is_file()


def _named(tmp_path, png, rows, *, numbers=False):
  """Opens a table of paths and classes, by their names or their numbers."""
  paths, labels = zip(*rows, strict=True)
  for name in set(paths):
    (tmp_path / name).write_bytes(png(ord(name)))
  if not numbers:
    _write(tmp_path / "a.parquet", {"image": paths, "label": labels}, rows=2)
    return sources.open_source(f"parquet:{tmp_path}/a.parquet")
  names = ("cat", "dog")
  (tmp_path / "names").write_text("\n".join(names))
  labels = [names.index(x.strip()) if x and x.strip() else -1 for x in labels]
  _write(tmp_path / "a.parquet", {"image": paths, "label": labels}, rows=2)
  return sources.open_source(
    f"parquet:{tmp_path}/a.parquet?classes={tmp_path}/names"
  )


@pytest.mark.parametrize("numbers", [False, True])
def test_rows_of_an_image_may_name_several_classes(
  tmp_path, png, read_all, numbers
):
  # One row at most tells the class: the record has it, whichever row it is.
  rows = [("a", None), ("b", "cat"), ("a", " dog"), ("b", "cat "), ("c", " ")]
  source = _named(tmp_path, png, rows, numbers=numbers)
  a, b, c = read_all(source)
  assert (a.texts, a.label, a.labels) == (("dog",), 1, None)
  assert (b.texts, b.label, b.labels) == (("cat",), 0, None)
  assert c == "missing_label"
  single = source.fingerprint
  source = _named(tmp_path, png, [*rows, ("a", "cat")], numbers=numbers)
  a, b, c = read_all(source)
  assert (a.texts, a.label, a.labels) == (("cat", "dog"), None, (0, 1))
  assert (b.texts, b.label, b.labels) == (("cat",), None, (0,))
  assert c == "missing_label"
  assert source.class_names == ("cat", "dog")
  assert account.of(source).remarks()[-1] == (
    "1 image has rows of several classes, and is of all of them."
  )
  assert source.fingerprint != single


def test_classes_are_named_as_in_a_table_of_text(tmp_path, png, read_all):
  labels = ["10", " 9", "9", "", None, "1", "\n"]
  _write(tmp_path / "a.parquet", {"img": _images(png, range(7)), "cls": labels})
  source = sources.open_source(f"parquet:{tmp_path}/a.parquet")
  assert source.class_names == ("1", "9", "10")
  found = [getattr(item, "label", item) for item in read_all(source)]
  missing = "missing_label"
  assert found == [2, 1, 1, missing, missing, 0, missing]


def test_a_class_without_a_name_is_no_caption(tmp_path, png, read_all):
  features = {"label": {"names": ["", "_", "a_b"], "_type": "ClassLabel"}}
  columns = {"image": _images(png, range(3)), "label": [0, 1, 2]}
  _write(tmp_path / "a.parquet", columns, features=features)
  source = sources.open_source(f"parquet:{tmp_path}/a.parquet")
  found = read_all(source)
  assert found[0] == "empty_caption"
  assert [record.texts for record in found[1:]] == [("_",), ("a b",)]


@pytest.mark.parametrize(
  ("captions", "texts"),
  [
    ([["one"], ["two", "three"]], [("one",), ("two", "three")]),
    ([b"one", b"\xff"], [("one",), "not_utf8"]),
  ],
)
def test_files_may_differ_in_the_type_of_their_captions(
  tmp_path, png, read_all, captions, texts
):
  none = {"image": _none(IMAGE), "caption": _none(pa.string())}
  _write(tmp_path / "0.parquet", none)
  some = {"image": _images(png, range(2)), "caption": captions}
  _write(tmp_path / "1.parquet", some)
  found = read_all(sources.open_source(f"parquet:{tmp_path}"))
  assert [getattr(item, "texts", item) for item in found] == texts


def test_captions_that_are_named_are_no_images(tmp_path, png, read_all):
  (tmp_path / "a").write_bytes(png(1))
  _write(tmp_path / "a.parquet", {"image": ["a"], "note": [b"a cat"]})
  address = f"parquet:{tmp_path}/a.parquet?caption=note"
  (record,) = read_all(sources.open_source(address))
  assert (record.image, record.texts) == (png(1), ("a cat",))


def test_a_label_that_no_number_holds_is_bad(tmp_path, png, read_all):
  labels = pa.array([0, 2**63 - 1, 2**63], pa.uint64())
  columns = {"image": _images(png, range(3)), "text": list("abc")}
  _write(tmp_path / "a.parquet", {**columns, "label": labels})
  found = read_all(sources.open_source(f"parquet:{tmp_path}/a.parquet"))
  labels = [getattr(item, "label", item) for item in found]
  assert labels == [0, 2**63 - 1, "bad_label"]


def test_files_of_no_split_are_told_with_each_split(tmp_path, captioned):
  for name in ("train", "test", "more"):
    captioned(tmp_path / f"{name}.parquet")
  for address in ("/train", "/test/", "?split=test"):
    source = sources.open_source(f"parquet:{tmp_path}{address}")
    assert source.account.left_out.first_names() == ["more.parquet"]
  assert not sources.open_source(f"parquet:{tmp_path}").account.left_out.counts


def test_folders_that_are_named_like_files_are_told(
  tmp_path, captioned, write_tar, png, read_all
):
  captioned(tmp_path / "0.parquet", range(2))
  members = [("a.png", png(0)), ("a.txt", b"text")]
  write_tar(tmp_path / "0.tar", members)
  for suffix, count in (("parquet", 2), ("tar", 1)):
    (tmp_path / f"1.{suffix}").mkdir()
    scheme = "wds" if suffix == "tar" else suffix
    for address in (f"{scheme}:{tmp_path}", f"{scheme}:{tmp_path}/*.{suffix}"):
      source = sources.open_source(address)
      assert len(read_all(source)) == count
      assert source.account.left_out.first_names() == [f"1.{suffix}/"]


def test_the_folders_that_spark_writes_hold_the_files(tmp_path, captioned):
  captioned(tmp_path / "pairs.parquet" / "part-00000.parquet", range(2))
  assert len(sources.open_source(f"parquet:{tmp_path}")) == 2
  assert len(sources.open_source(f"parquet:{tmp_path}/pairs.parquet")) == 2


def test_a_link_to_itself_is_one_damaged_file(tmp_path, captioned):
  captioned(tmp_path / "0.parquet", range(2))
  os.symlink("1.parquet", tmp_path / "1.parquet")
  source = sources.open_source(f"parquet:{tmp_path}")
  assert len(source) == 2
  (said,) = account.of(source).warnings()
  assert "links to a file that is not: about 2 records lost" in said
