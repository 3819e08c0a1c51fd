"""Tests of the indexes by which large data are opened."""

import hashlib
import os
import pickle
import random
import threading

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from clip_jax import errors
from clip_jax.data import sources
from clip_jax.data.sources import (
  grouping,
  kept_index,
  row_groups,
  shard,
  strings,
  table,
  table_lines,
  table_rows,
)

_ATOMS = (
  *('"', '"', '""', ",", ",", "\n", "\r\n", "\r", " ", "a", "x y", "é", "猫"),
  *("\u3000", "\xa0", "\x85", "\u2028", "\x1c", "\0", "\udc80", "\udce3", ""),
)
_HEADERS = ("image,caption\n", "caption,image\r\n", "filepath,n,title\r")
_FIELDS = (
  "a.jpg",
  "b.jpg",
  "",
  " a.jpg ",
  "猫.jpg",
  "a dog, asleep",
  'a "b" c',
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """Keeps indexes of any size, at once, in a folder of the test's own."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(kept_index, "LEAST_BYTES", 0)
  monkeypatch.setattr(kept_index, "SETTLED_SECONDS", -1e9)
  return tmp_path / "cache"


def _table_text(rng: random.Random) -> str:
  wild, text = rng.random() / 2, rng.choice(_HEADERS)
  for _ in range(rng.randrange(1, 12)):
    fields = []
    for _ in range(rng.choice([1, 2, 2, 3, 4])):
      field = rng.choice(_FIELDS)
      if rng.random() < wild:
        field = "".join(rng.choices(_ATOMS, k=rng.randrange(6)))
      if rng.random() < 0.3:
        field = '"' + field.replace('"', '""') + '"'
      fields.append(field)
    text += ",".join(fields) + rng.choice(["\n", "\n", "\r\n", "\r", "\n\n"])
  return text if rng.random() < 0.6 else text.rstrip("\r\n")


def _by_csv(path: str, options: dict[str, str]):
  """Reads a table row by row with csv, and groups it by a dict."""
  notes: list[str] = []
  groups: dict[str | int, list[str]] = {}
  try:
    for number, pair in enumerate(table.read_pairs(path, options, notes)):
      groups.setdefault(pair[0] or number, []).append(pair[1])
  except errors.UserError as error:
    return str(error)
  if not groups:
    return f"csv:{path} has a header and no rows."
  names = [name if isinstance(name, str) else "" for name in groups]
  bounds = np.cumsum([0, *map(len, groups.values())])
  texts = [text for own in groups.values() for text in own]
  digest = hashlib.sha256(strings.Strings(names).tobytes())
  digest.update(bounds.tobytes() + strings.Strings(texts).tobytes())
  return names, bounds.tolist(), texts, digest.hexdigest(), notes


def _by_index(path: str, options: dict[str, str]):
  try:
    opened = table.open_table(path, options)
  except errors.UserError as error:
    return str(error)
  texts = list(opened.texts)
  names = [opened.names[i] for i in range(len(opened))]
  notes = opened.account.notes
  return names, opened.bounds.tolist(), texts, opened.fingerprint, notes


def test_blocks_of_a_table_are_read_as_csv_reads_it(tmp_path, monkeypatch):
  rng = random.Random(0)
  refused = 0
  for number in range(250):
    path = str(tmp_path / f"{number}.csv")
    with open(path, "wb") as file:
      file.write(b"\xef\xbb\xbf" * (number % 5 == 0))
      file.write(strings.encode(_table_text(rng)))
    options = {"quote": "none"} if number % 4 == 0 else {}
    # Blocks that end within rows, and one that has all.
    monkeypatch.setattr(table_rows, "_BLOCK_BYTES", (1, 40, 2**16)[number % 3])
    expected = _by_csv(path, options)
    assert _by_index(path, options) == expected
    refused += isinstance(expected, str)
  assert 10 < refused < 150


def test_rows_that_are_too_long_are_the_same_for_csv(tmp_path, monkeypatch):
  monkeypatch.setattr(table_lines, "MAX_TEXT_BYTES", 20)
  path = tmp_path / "a.csv"
  long = "é" * 11  # 22 bytes.
  path.write_text(
    f"image,caption\na.jpg,{long}\n{long},b\nb.jpg,{'é' * 10}\na.jpg,ok\n"
  )
  opened = table.open_table(str(path), {})
  assert [opened.names[i] for i in range(3)] == ["a.jpg", "", "b.jpg"]
  assert list(opened.texts) == ["ok", "b", "é" * 10]
  assert opened.bounds.tolist() == [0, 1, 2, 3]


def _write(path, rows=50, word="dog"):
  lines = (f"{i % 7}.jpg,a {word} {i}\n" for i in range(rows))
  path.write_text("image,caption\n" + "".join(lines))


def _refuse(*_, **__):
  raise AssertionError("it is made again")


def test_a_second_start_reads_the_kept_index(tmp_path, monkeypatch):
  path = tmp_path / "a.csv"
  _write(path)
  first = _by_index(str(path), {})
  monkeypatch.setattr(table, "_index", _refuse)
  assert _by_index(str(path), {}) == first
  with pytest.raises(AssertionError, match="again"):  # Other options.
    table.open_table(str(path), {"quote": "none"})


def test_a_changed_table_is_indexed_anew(tmp_path):
  path = tmp_path / "a.csv"
  _write(path, word="dog")
  before = path.stat()
  old = _by_index(str(path), {})
  _write(path, word="cat")
  # Of the same size and time; the time of the change itself is the system's.
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
  assert path.stat().st_size == before.st_size
  new = _by_index(str(path), {})
  assert new == _by_csv(str(path), {}) != old


def test_samples_tell_a_change_that_times_do_not(tmp_path, monkeypatch):
  path = tmp_path / "a.csv"
  _write(path, rows=500, word="dog")
  stamp = kept_index._stamp([str(path)], sampled=True)
  assert stamp == kept_index._stamp([str(path)], sampled=True)
  _write(path, rows=500, word="cat")
  changed = kept_index._stamp([str(path)], sampled=True)
  assert stamp[0][3] != changed[0][3]


def test_a_table_that_has_just_changed_is_not_kept(
  tmp_path, monkeypatch, cache
):
  monkeypatch.setattr(kept_index, "SETTLED_SECONDS", 60)
  _write(tmp_path / "a.csv")
  table.open_table(str(tmp_path / "a.csv"), {})
  assert not list(cache.rglob("*"))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_index_is_made_again(tmp_path, cache, damage):
  path = tmp_path / "a.csv"
  _write(path)
  first = _by_index(str(path), {})
  (kept,) = (cache / "clip_jax" / "indexes").iterdir()
  data = bytearray(kept.read_bytes())
  data[len(data) // 2] ^= 1
  kept.write_bytes({"flip": data, "cut": data[:50], "empty": b""}[damage])
  assert _by_index(str(path), {}) == first


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, cache):
  cache.write_text("a file where the folder should be")
  _write(tmp_path / "a.csv")
  opened = table.open_table(str(tmp_path / "a.csv"), {})
  assert len(opened) == 7
  again = pickle.loads(pickle.dumps(opened))
  assert list(again.names) == list(opened.names)


def test_a_full_disk_leaves_nothing_behind(tmp_path, cache, monkeypatch):
  _write(tmp_path / "a.csv")

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", full)
  assert len(table.open_table(str(tmp_path / "a.csv"), {})) == 7
  assert not list((cache / "clip_jax" / "indexes").iterdir())


def test_a_kept_index_is_pickled_by_its_place(tmp_path, cache):
  path = tmp_path / "a.csv"
  _write(path, rows=3000)
  opened = table.open_table(str(path), {})
  packed = pickle.dumps(opened)
  assert len(packed) < 2000
  assert list(pickle.loads(packed).texts) == list(opened.texts)
  (kept,) = (cache / "clip_jax" / "indexes").iterdir()
  kept.unlink()  # Then by its content.
  again = pickle.loads(pickle.dumps(opened))
  assert list(again.texts) == list(opened.texts)


def test_workers_get_the_index_that_was_opened(tmp_path, cache):
  path = tmp_path / "a.csv"
  _write(path)
  opened = table.open_table(str(path), {})
  packed = pickle.dumps(opened)
  (kept,) = (cache / "clip_jax" / "indexes").iterdir()
  same = kept.read_bytes()
  kept.unlink()
  kept_index.kept_files.write(kept, same[32:], most_bytes=2**20)
  # Another start has made the same one: no reason to stop.
  assert list(pickle.loads(packed).texts) == list(opened.texts)
  inode = kept.stat().st_ino
  with kept.open("r+b") as file:  # As of a number that is used again.
    file.write(hashlib.sha256(same[32:] + b"0").digest() + same[32:] + b"0")
  assert kept.stat().st_ino == inode
  with pytest.raises(errors.UserError, match="removed or replaced"):
    pickle.loads(packed)
  assert len(pickle.dumps(opened)) > len(packed)  # By its content.


def test_indexes_made_at_once_do_no_harm(tmp_path):
  path = tmp_path / "a.csv"
  _write(path, rows=3000)
  found: list[str] = []

  def start():
    found.append(table.open_table(str(path), {}).fingerprint)

  threads = [threading.Thread(target=start) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(found) == 4 and set(found) == {_by_csv(str(path), {})[3]}


def test_a_table_that_changes_while_it_is_open_is_told(tmp_path):
  path = tmp_path / "a.csv"
  _write(path)
  opened = table.open_table(str(path), {})
  with path.open("a") as file:
    file.write("9.jpg,more\n")
  with pytest.raises(errors.UserError, match="has changed since"):
    opened[0]


def test_a_second_start_reads_no_tar(
  tmp_path, write_tar, members, pairs, read_all, monkeypatch
):
  paths = [
    write_tar(tmp_path / f"{name}.tar", members(pairs(count)))
    for name, count in (("a", 3), ("b", 5))
  ]
  data = bytearray(paths[1].read_bytes())
  data[0:512] = b"\xff" * 512
  paths[1].write_bytes(data)
  (tmp_path / "note.tar").write_bytes(b"")
  address = f"wds:{tmp_path}"
  first = sources.open_source(address)
  monkeypatch.setattr(shard, "index_shard", _refuse)
  second = sources.open_source(address)
  assert second.fingerprint == first.fingerprint
  assert second.account.damages == first.account.damages
  assert second.account.lost == first.account.lost
  assert second.account.left_out.names == first.account.left_out.names
  assert read_all(second) == read_all(first)
  assert read_all(pickle.loads(pickle.dumps(second))) == read_all(first)
  assert len(pickle.dumps(second)) < 2500
  paths[0].touch()
  with pytest.raises(AssertionError, match="again"):
    sources.open_source(address)


def _by_dict(names):
  groups: dict[object, list[int]] = {}
  for row, name in enumerate(names):
    groups.setdefault(name, []).append(row)
  order = [row for rows in groups.values() for row in rows]
  return order, np.cumsum([0, *map(len, groups.values())]).tolist()


def _group(hashes):
  order, bounds = grouping.group(hashes)
  rows = range(hashes.shape[1]) if order is None else order.tolist()
  return list(rows), bounds.tolist()


@pytest.mark.parametrize("different", [1, 40, 10**9])
def test_rows_are_grouped_as_by_a_dict(different):
  rng = random.Random(different)
  names = [
    b"x" * rng.choice([0, 1, 6, 7, 8, 9, 31, 510, 600])
    + b"%d" % rng.randrange(different)
    for _ in range(400)
  ]
  sizes = np.array(list(map(len, names)))
  hashes = grouping.hash_names(b"".join(names), np.cumsum(sizes) - sizes, sizes)
  assert _group(hashes) == _by_dict(names)


def test_names_with_half_a_hash_in_common_stay_apart():
  pairs = [(5, 1), (5, 3), (7, 1), (5, 1), (5, 3), (8, 9)]
  assert _group(np.array(pairs, np.uint64).T) == _by_dict(pairs)


@pytest.mark.parametrize(
  "kind",
  [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
  ],
  ids=str,
)
def test_paths_of_a_parquet_table_are_grouped_as_by_a_dict(
  tmp_path, kind, monkeypatch
):
  monkeypatch.setattr(row_groups.captions_lib, "MAX_TEXT_BYTES", 20)
  names = ["a.jpg", None, "b.jpg", "", "a.jpg", "x" * 21, None, "x" * 21, "猫"]
  columns = {"filepath": pa.array(names, kind), "caption": pa.array(["c"] * 9)}
  path = tmp_path / "a.parquet"
  pq.write_table(pa.table(columns), path, row_group_size=4)
  opened = sources.open_source(f"parquet:{path}")
  keys = [n if n and len(n) < 21 else row for row, n in enumerate(names)]
  assert (opened._order.tolist(), opened._bounds.tolist()) == _by_dict(keys)


def test_paths_that_are_no_utf8_are_records_by_themselves(tmp_path):
  names = [b"\xff.jpg", b"a.jpg", b"\xff.jpg", b"a.jpg"]
  bad = pa.array(names, pa.binary())
  texts = pa.Array.from_buffers(pa.string(), 4, bad.buffers())
  path = tmp_path / "a.parquet"
  pq.write_table(pa.table({"filepath": texts, "caption": texts}), path)
  opened = sources.open_source(f"parquet:{path}?caption=caption")
  assert opened._bounds.tolist() == [0, 1, 3, 4]


def test_tables_with_long_fields_are_read_at_the_same_time(tmp_path):
  path = tmp_path / "pairs.csv"
  path.write_text(f"image,caption\na.png,short\nb.png,{'long ' * 30_000}\n")
  one, other = (table.read_pairs(str(path), {}, []) for _ in range(2))
  next(one)
  next(other)
  assert [len(text) for _, text in one] == [150_000]
  # Python's limit on fields is the process's.
  assert [len(text) for _, text in other] == [150_000]
