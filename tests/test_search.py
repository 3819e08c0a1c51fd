import collections
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc

import jax
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from clip_jax import errors, search
from clip_jax.search import builder, entry_table, index_files
from clip_jax.search.on_device import DeviceIndex


def units(seed, rows, dim=5):
  x = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def make_index(directory, embeds, *, parts=3, dtype="float32", **facts):
  """Writes an index whose record i has the key "k{i}" and two captions."""
  rows = np.array_split(np.arange(len(embeds)), parts)
  batches = [
    {
      "image": embeds[part],
      "key": [f"k{i}" for i in part],
      "texts": [(f"caption {i}", "zweite\n\u2028Zeile é") for i in part],
      "path": [f"data/k{i}.png" for i in part],
    }
    for part in rows
  ]
  return search.build(
    directory,
    batches=lambda start: (batch for batch in batches[start:]),
    embed_images=lambda images: images,
    model="/models/m",
    fingerprint="f00d",
    dtype=dtype,
    facts=facts,
  )


def slow_search(embeds, query, k):
  scores = [float(np.dot(row, query)) for row in embeds]
  return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]


@pytest.mark.parametrize("rows_per_chunk", [1, 7, 1000])
@pytest.mark.parametrize("k", [1, 4, 29, 100])
@pytest.mark.parametrize("ties", [False, True])
def test_search_matches_a_sort_of_all_scores(rows_per_chunk, k, ties):
  embeds, queries = units(0, 29), units(1, 3)
  if ties:  # Small integers: exact products, many of them equal.
    embeds, queries = np.round(2 * embeds), np.round(2 * queries)
    assert len(set((embeds @ queries[0]).tolist())) < 15
  rows, scores = search.nearest(
    embeds, queries, k=k, rows_per_chunk=rows_per_chunk
  )
  assert rows.shape == scores.shape == (3, min(k, 29))
  for query, own_rows, own_scores in zip(queries, rows, scores, strict=True):
    assert own_rows.tolist() == slow_search(embeds, query, k)
    # Rounding of float32 sums of five products.
    np.testing.assert_allclose(
      own_scores, embeds[own_rows] @ query, rtol=1e-6, atol=1e-6
    )


def test_many_queries_are_answered_as_each_by_itself(tmp_path):
  embeds, queries = units(2, 300), units(3, 9)
  make_index(tmp_path, embeds)
  index = search.Index(tmp_path)
  many = index.search_many(queries, k=5)
  for query, hits in zip(queries, many, strict=True):
    assert [hit.index for hit in hits] == slow_search(embeds, query, 5)
    assert [hit.key for hit in index.search(query, k=5)] == [
      hit.key for hit in hits
    ]
  assert index.search_many(queries[:0], k=5) == []
  assert index.key(299) == "k299"
  for position in (-1, 300):
    with pytest.raises(IndexError, match="not from 0 to 299"):
      index.key(position)
  rows, scores = search.nearest(embeds, queries[:0], k=5)
  assert rows.shape == scores.shape == (0, 5)


@pytest.mark.parametrize(
  "dtype, atol", [("float32", 0), ("float16", 5e-4), ("int8", 6e-3)]
)
def test_an_index_gives_back_what_was_put_in(tmp_path, dtype, atol):
  embeds = units(2, 11)
  meta = make_index(tmp_path / "index", embeds, dtype=dtype, data="builtin:x")
  index = search.Index(tmp_path / "index")
  # float16 has 11 bits: half a unit in the last place of a value below 1. int8
  # has steps of at most 1 / 127, of which half, and a little for the length.
  rows = index_files.floats(index.embeds)
  np.testing.assert_allclose(rows, embeds, rtol=0, atol=atol)
  assert index.meta == meta
  assert (meta["model"], meta["data"]) == ("/models/m", "builtin:x")
  hits = index.search(embeds[7], k=3)
  assert hits[0].key == "k7"
  assert hits[0].captions == ("caption 7", "zweite\n\u2028Zeile é")
  assert hits[0].path == "data/k7.png"
  assert [hit.index for hit in hits] == slow_search(embeds, embeds[7], 3)


@pytest.mark.parametrize("rows, k", [(300, 5), (17, 17), (3, 10), (300, 40)])
@pytest.mark.parametrize("approximate", [False, True])
def test_devices_find_what_the_host_finds(tmp_path, rows, k, approximate):
  # Small integers: exact products, many of them equal.
  embeds, queries = np.round(2 * units(2, rows)), np.round(2 * units(3, 4))
  make_index(tmp_path, embeds, dtype="float16")
  index = search.Index(tmp_path)
  for devices in (jax.devices()[:1], jax.devices()):
    on_device = DeviceIndex(index, devices=devices, rows_per_chunk=16)
    found = on_device.search_many(queries, k=k, approximate=approximate)
    if not approximate:  # On CPUs it is exact, but for the order of ties.
      assert found == index.search_many(queries, k=k)
    for hits, query in zip(found, queries, strict=True):
      wanted = np.sort(embeds @ query)[::-1][:k]
      assert [hit.score for hit in hits] == wanted.tolist()


def test_the_embeddings_are_an_ordinary_npy_file(tmp_path):
  embeds = units(3, 6)
  meta = make_index(tmp_path, embeds)
  name = meta["files"]["embeddings"]["name"]
  np.testing.assert_array_equal(np.load(tmp_path / name), embeds)


def test_the_records_are_an_ordinary_parquet_table(tmp_path, monkeypatch):
  monkeypatch.setattr(entry_table, "ROWS_PER_GROUP", 4)
  embeds = units(3, 11)
  meta = make_index(tmp_path, embeds)
  path = tmp_path / meta["files"]["records"]["name"]
  read = parquet.read_table(path)
  assert read.to_pylist() == [
    {
      "key": f"k{i}",
      "captions": [f"caption {i}", "zweite\n\u2028Zeile é"],
      "path": f"data/k{i}.png",
    }
    for i in range(11)
  ]
  assert parquet.ParquetFile(path).metadata.num_row_groups == 3
  (hits,) = search.Index(tmp_path).search_many(embeds[:1], k=11)
  assert sorted((hit.index, hit.key) for hit in hits) == [
    (i, f"k{i}") for i in range(11)
  ]


def test_names_that_are_no_utf8_are_written_as_json_has_them(tmp_path):
  names = ("caf\udce9.jpg", "\ud800")
  with search.Builder(tmp_path, model="", fingerprint="") as made:
    made.add(units(5, 2), [search.Entry(n, (n,), n) for n in names])
  index = search.Index(tmp_path)
  assert [index.key(i) for i in range(2)] == ["caf\\udce9.jpg", "\\ud800"]
  assert index.key(0) == entry_table.text(names[0])


def test_texts_are_not_all_in_memory(tmp_path):
  rows, batches = entry_table.ROWS_PER_GROUP, 10
  caption = "a" * 3000  # 30 MB of all batches.
  tracemalloc.start()
  try:
    with search.Builder(tmp_path, model="", fingerprint="") as made:
      for batch in range(batches):
        names = [f"{batch} {i}" for i in range(rows)]
        entries = [search.Entry(n, (f"{n} {caption}",)) for n in names]
        made.add(units(5, rows), entries)
    del entries
    hits = search.Index(tmp_path).search(units(5, rows)[3], k=batches)
    _, most = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert sorted(hit.key for hit in hits) == [f"{i} 3" for i in range(batches)]
  assert most < 20e6  # A group is 3 MB, some times over; all are 31 MB.


def _of_version_1(directory):
  """Makes an index as it was before there was a table."""
  meta = make_index(directory, units(4, 6)) | {"version": 1}
  entry = meta["files"]["records"]
  path = directory / entry["name"]
  entry["name"] = entry["name"].replace("parquet", "jsonl")
  path.rename(directory / entry["name"])
  (directory / "meta.json").write_text(json.dumps(meta))


def test_an_older_index_stays_until_another_is_whole(tmp_path):
  _of_version_1(tmp_path)
  before = _content(tmp_path)
  with pytest.raises(errors.UserError, match="version 1, this program reads 2"):
    search.Index(tmp_path)
  broken = units(7, 9)
  broken[8, 1] = np.nan
  with pytest.raises(errors.UserError, match="not finite"):
    make_index(tmp_path, broken)
  assert _content(tmp_path) == before
  make_index(tmp_path, units(5, 4))
  assert len(search.Index(tmp_path)) == 4
  assert len(list(tmp_path.iterdir())) == 3


def test_a_new_build_replaces_the_index_and_leaves_nothing_of_the_old(tmp_path):
  make_index(tmp_path, units(4, 6))
  (tmp_path / ".partial-123-dead").write_bytes(b"left by a killed build")
  make_index(tmp_path, units(5, 4))
  assert len(search.Index(tmp_path)) == 4
  assert len(list(tmp_path.iterdir())) == 3


def test_a_reader_keeps_the_index_that_it_opened(tmp_path):
  old = units(4, 6)
  make_index(tmp_path, old)
  index = search.Index(tmp_path)
  wanted = index.search(old[3], k=4)
  make_index(tmp_path, units(5, 4))
  np.testing.assert_array_equal(index.embeds, old)
  assert index.search(old[3], k=4) == wanted
  assert [hit.key for hit in search.Index(tmp_path).search(old[3], k=9)] != [
    hit.key for hit in wanted
  ]


def test_the_same_index_built_again_is_the_same(tmp_path):
  embeds = units(4, 6)
  first = make_index(tmp_path, embeds)
  assert make_index(tmp_path, embeds) == first
  assert len(search.Index(tmp_path)) == 6


@pytest.mark.parametrize("had_index", [False, True])
def test_a_failed_build_leaves_the_directory_as_it_was(tmp_path, had_index):
  directory = tmp_path / "index"
  if had_index:
    make_index(directory, units(6, 5))
  broken = units(7, 9)
  broken[8, 1] = np.nan
  before = sorted(directory.iterdir()) if had_index else None
  with pytest.raises(errors.UserError, match="'k8' is not finite"):
    make_index(directory, broken)
  if had_index:
    assert sorted(directory.iterdir()) == before
    assert len(search.Index(directory)) == 5
  else:
    assert not directory.exists()


def test_a_build_that_fails_at_its_end_keeps_the_old_index(
  tmp_path, monkeypatch
):
  make_index(tmp_path, units(6, 5))
  real = os.replace

  def fail_on_meta(source, target):
    if str(target).endswith(index_files.META):
      raise OSError(28, "No space left on device")
    real(source, target)

  monkeypatch.setattr(builder.os, "replace", fail_on_meta)
  # Once with other content, and once with what the old index holds.
  for seed in (7, 6):
    with pytest.raises(OSError, match="No space"):
      make_index(tmp_path, units(seed, 5))
    assert len(search.Index(tmp_path)) == 5
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.slow
def test_a_build_killed_at_any_write_leaves_the_old_index_or_the_new(tmp_path):
  make_index(tmp_path / "index", units(8, 5), version_of="old")
  script = textwrap.dedent(
    """
    import os, signal, sys
    import numpy as np
    from clip_jax import search
    from clip_jax.search import builder
    left = int(sys.argv[2])
    def counted(function):
      def call(*arguments):
        global left
        left -= 1
        if left < 0:
          os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
      return call
    builder.os.replace = counted(os.replace)
    builder.os.fsync = counted(os.fsync)
    builder.SECONDS_TO_KEEP = 0
    batch = {"image": np.ones((3, 5)), "key": list("abc"),
             "texts": [("t",)] * 3, "path": [""] * 3}
    search.build(
      sys.argv[1],
      batches=lambda start: (batch for _ in range(start, 2)),
      embed_images=lambda images: images, model="", fingerprint="",
      goes_on_as=sys.argv[3], facts={"version_of": "new"})
    """
  )
  for goes_on_as in ("", "x"):
    seen = []
    for calls in range(24):
      make_index(tmp_path / "index", units(8, 5), version_of="old")
      command = [sys.executable, "-c", script, tmp_path / "index", str(calls)]
      done = subprocess.run([*command, goes_on_as], check=False)
      index = search.Index(tmp_path / "index")
      seen.append(index.meta["version_of"])
      assert len(index) == (5 if seen[-1] == "old" else 6)
      if done.returncode == 0:
        break
      assert done.returncode == -signal.SIGKILL
    assert seen[0] == "old" and seen[-1] == "new"
    assert len(list((tmp_path / "index").iterdir())) == 3


class _Stopped(BaseException):
  """As Ctrl-C."""


def _build(directory, embeds, *, stop_after=None, key="same", **fields):
  """Builds by batches of two rows; returns how many were embedded."""
  embedded = []

  def batches(start):
    for i in range(start, len(embeds) // 2):
      counts["bad"] += 1
      if len(embedded) == stop_after:
        raise _Stopped
      rows = slice(2 * i, 2 * i + 2)
      names = [f"k{row}" for row in range(rows.start, rows.stop)]
      more = {"texts": [("t",)] * 2, "path": ["a", "b"]}
      yield {"image": embeds[rows], "key": names, **more}

  def embed(images):
    embedded.append(images)
    return images

  counts = collections.Counter()
  try:
    search.build(
      directory,
      batches=batches,
      embed_images=embed,
      model="m",
      fingerprint="f",
      goes_on_as=key,
      counts=counts,
      facts={"bad": counts},
      **fields,
    )
  except _Stopped:
    assert stop_after is not None
  return len(embedded)


def _content(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def kept_at_once(monkeypatch):
  monkeypatch.setattr(builder, "SECONDS_TO_KEEP", 0)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_build_goes_on_where_it_was_stopped(tmp_path, kept_at_once, dtype):
  embeds = units(9, 14)
  assert _build(tmp_path / "whole", embeds, dtype=dtype) == 7
  index = tmp_path / "index"
  # Each one does what is left; the batch that was not kept is done again.
  assert _build(index, embeds, stop_after=3, dtype=dtype) == 3
  with pytest.raises(errors.UserError, match="no index"):
    search.Index(index)
  assert _build(index, embeds, stop_after=2, dtype=dtype) == 2
  assert _build(index, embeds, dtype=dtype) == 2
  assert _content(index) == _content(tmp_path / "whole")
  assert search.Index(index).meta["bad"] == {"bad": 7}


@pytest.mark.parametrize("at", ["batch", "commit", "digest"])
def test_a_build_that_failed_goes_on(tmp_path, kept_at_once, monkeypatch, at):
  embeds, index = units(9, 14), tmp_path / "index"
  _build(tmp_path / "whole", embeds)
  full, calls = OSError(28, "No space left on device"), []

  def fail(function, after):
    def call(*arguments):
      calls.append(arguments)
      if len(calls) > after:
        raise full
      return function(*arguments)

    return call

  with monkeypatch.context() as patch, pytest.raises(OSError, match="space"):
    if at == "batch":  # Of each one three files are synced.
      patch.setattr(builder, "_sync", fail(builder._sync, 4 * 3))
    elif at == "commit":
      patch.setattr(builder, "_sync", fail(builder._sync, 7 * 3))
    else:
      patch.setattr(index_files, "sha256", fail(index_files.sha256, 1))
    _build(index, embeds)
  assert _build(index, embeds) == (3 if at == "batch" else 0)
  assert _content(index) == _content(tmp_path / "whole")


def test_what_would_fail_again_is_not_kept(tmp_path, kept_at_once):
  embeds = units(9, 14)
  embeds[12, 1] = np.nan
  with pytest.raises(errors.UserError, match="'k12' is not finite"):
    _build(tmp_path / "index", embeds)
  assert not (tmp_path / "index").exists()


def test_another_build_does_not_go_on(tmp_path, kept_at_once):
  embeds = units(9, 14)
  for fields in ({"key": "other"}, {"dtype": "float16"}, {"key": ""}):
    assert _build(tmp_path / "index", embeds, stop_after=3) == 3
    assert _build(tmp_path / "index", embeds, **fields) == 7
    assert len(list((tmp_path / "index").iterdir())) == 3


@pytest.mark.parametrize("part", ["journal", "embeddings", "records"])
@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_what_a_kill_left_is_not_taken_where_it_is_damaged(
  tmp_path, kept_at_once, part, content
):
  embeds = units(9, 14)
  _build(tmp_path / "whole", embeds)
  index = tmp_path / "index"
  _build(index, embeds, stop_after=4)
  (path,) = index.glob(f"*-{part}")
  path.unlink()
  if content is not None:
    path.write_bytes(content)
  assert _build(index, embeds) == 7
  assert _content(index) == _content(tmp_path / "whole")


def test_a_damaged_line_that_a_kill_left_is_told_once(tmp_path, kept_at_once):
  embeds = units(9, 14)
  _build(tmp_path / "whole", embeds)
  index = tmp_path / "index"
  _build(index, embeds, stop_after=4)
  (path,) = index.glob("*-records")
  path.write_bytes(path.read_bytes().replace(b'"k2"', b'"k2\x00'))
  with pytest.raises(errors.UserError, match=r"damaged; it is removed"):
    _build(index, embeds)
  assert _build(index, embeds) == 7
  assert _content(index) == _content(tmp_path / "whole")


def test_a_link_in_place_of_what_was_kept_is_not_followed(
  tmp_path, kept_at_once
):
  embeds = units(9, 14)
  _build(tmp_path / "index", embeds, stop_after=4)
  (path,) = (tmp_path / "index").glob("*-embeddings")
  path.rename(tmp_path / "elsewhere")
  path.symlink_to(tmp_path / "elsewhere")
  with pytest.raises(errors.UserError, match="is a link"):
    _build(tmp_path / "index", embeds)


@pytest.mark.parametrize("name", ["notes.txt", "meta.json"])
def test_a_directory_of_something_else_is_left_alone(tmp_path, name):
  (tmp_path / name).write_text("{}")
  with pytest.raises(errors.UserError, match="left alone"):
    make_index(tmp_path, units(9, 3))
  assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_root_of_all_files_is_left_alone():
  with pytest.raises(errors.UserError, match=r"^/ is no index .* left alone"):
    search.check_replaceable("/")


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "meta.json")
  with pytest.raises(errors.UserError, match="left alone"):
    make_index(tmp_path, units(9, 3))


def test_a_file_is_no_place_for_an_index(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(errors.UserError, match="is a file"):
    make_index(tmp_path / "file", units(9, 3))


def test_an_index_of_nothing_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match="no record"):
    make_index(tmp_path / "index", units(9, 0), parts=1)


def flip_bit(path):
  content = bytearray(path.read_bytes())
  content[-2] ^= 1
  path.write_bytes(bytes(content))


@pytest.mark.parametrize("part", ["embeddings", "records"])
@pytest.mark.parametrize(
  "damage, message",
  [
    (flip_bit, "does not match its size or checksum"),
    (lambda path: path.write_bytes(path.read_bytes()[:-3]), "does not match"),
    (lambda path: path.unlink(), "is missing"),
  ],
)
def test_a_damaged_file_is_named_and_can_be_built_again(
  tmp_path, part, damage, message
):
  meta = make_index(tmp_path, units(10, 4))
  damage(tmp_path / meta["files"][part]["name"])
  with pytest.raises(errors.UserError, match=message) as caught:
    search.Index(tmp_path)
  assert meta["files"][part]["name"] in str(caught.value)
  make_index(tmp_path, units(10, 4))
  assert len(search.Index(tmp_path)) == 4


@pytest.mark.parametrize(
  "change, message",
  [
    ({"count": 5}, "damaged"),
    ({"count": "4"}, "count must be a int"),
    ({"version": 1}, "format version 1, this program reads 2. Make the index"),
    ({"format": "faiss"}, "no index"),
    ({"files": {}}, "files.embeddings"),
    (
      {"files": {"embeddings": {"name": "../x.npy"}, "records": {}}},
      "files.embeddings",
    ),
  ],
)
def test_a_meta_file_that_does_not_fit_is_refused(tmp_path, change, message):
  meta = make_index(tmp_path, units(11, 4))
  (tmp_path / "meta.json").write_text(json.dumps(meta | change))
  with pytest.raises(errors.UserError, match=message):
    search.Index(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff"])
def test_a_meta_file_that_is_no_json_object_is_refused(tmp_path, content):
  (tmp_path / "meta.json").write_bytes(content)
  with pytest.raises(errors.UserError, match=r"meta\.json"):
    search.Index(tmp_path)


def test_pickled_embeddings_are_never_loaded(tmp_path):
  meta = make_index(tmp_path, units(12, 4))
  entry = meta["files"]["embeddings"]
  path = tmp_path / entry["name"]
  np.save(path, np.array([{"a": 1}] * 4, object), allow_pickle=True)
  with path.open("rb") as file:
    entry |= {"bytes": path.stat().st_size, "sha256": index_files.sha256(file)}
  (tmp_path / "meta.json").write_text(json.dumps(meta))
  with pytest.raises(errors.UserError, match="damaged"):
    search.Index(tmp_path)


def replace_table(path, content):
  """Makes the table of an index anew, its checksum with it."""
  meta = json.loads((path / "meta.json").read_text())
  entry = meta["files"]["records"]
  (path / entry["name"]).write_bytes(content)
  with (path / entry["name"]).open("rb") as file:
    entry |= {"bytes": len(content), "sha256": index_files.sha256(file)}
  (path / "meta.json").write_text(json.dumps(meta))


def as_parquet(rows):
  """A table of keys, captions and paths, without any check of ours."""
  kinds = (pa.string(), pa.list_(pa.string()), pa.string())
  columns = [
    pa.array(own, kind)
    for own, kind in zip(zip(*rows, strict=True), kinds, strict=True)
  ]
  file = io.BytesIO()
  parquet.write_table(pa.table(columns, schema=entry_table.SCHEMA), file)
  return file.getvalue()


def _not_utf8(content):
  return content.replace(b"captionX", b"caption\xff")


@pytest.mark.parametrize(
  "content, message",
  [
    (as_parquet([("a", ["x"], "")] * 3), "3 records for 4 embeddings"),
    (as_parquet([("a", ["x"], "")] * 4)[:-9] + b"x" * 9, "bad_footer"),
    (b"PAR1", "bad_footer"),
    (b'{"key": "a"}\n' * 4, "bad_footer"),
    (as_parquet([("a", ["x"], "")] * 4).replace(b"path", b"tree"), "columns"),
  ],
)
def test_a_table_that_is_none_is_refused(tmp_path, content, message):
  make_index(tmp_path, units(12, 4))
  replace_table(tmp_path, content)
  with pytest.raises(errors.UserError, match=f"damaged: .*{message}"):
    search.Index(tmp_path)


@pytest.mark.parametrize(
  "content",
  [
    _not_utf8(as_parquet([("a", ["captionX"], "")] * 4)),
    as_parquet([("a", [None], "")] * 4),
    b"PAR1" + 20 * b"\xff" + as_parquet([("a", ["x" * 9], "")] * 4)[24:],
  ],
)
def test_a_record_that_is_none_is_an_error_when_it_is_found(tmp_path, content):
  make_index(tmp_path, units(12, 4))
  replace_table(tmp_path, content)
  with pytest.raises(errors.UserError, match="damaged: record"):
    search.Index(tmp_path).search(units(1, 1)[0], k=2)


@pytest.mark.parametrize("part", ["embeddings", "records"])
@pytest.mark.parametrize(
  "name", ["/etc/passwd", "../outside.npy", ".partial-1/../../outside.npy"]
)
def test_names_in_an_index_never_lead_out_of_it(tmp_path, part, name):
  meta = make_index(tmp_path / "index", units(12, 4))
  (tmp_path / "index" / ".partial-1").mkdir()
  (tmp_path / "outside.npy").write_bytes(b"secret")
  meta["files"][part]["name"] = name
  (tmp_path / "index" / "meta.json").write_text(json.dumps(meta))
  with pytest.raises(errors.UserError, match=f"files.{part}"):
    search.Index(tmp_path / "index")


@pytest.mark.parametrize("name", ["meta.json", "embeddings", "records"])
@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_only_files_of_the_index_itself_are_opened(tmp_path, name, kind):
  meta = make_index(tmp_path / "index", units(12, 4))
  name = meta["files"].get(name, {"name": name})["name"]
  path = tmp_path / "index" / name
  path.rename(tmp_path / "outside")
  if kind == "link":
    path.symlink_to(tmp_path / "outside")
  elif kind == "pipe":
    os.mkfifo(path)
  else:
    path.mkdir()
  with pytest.raises(
    errors.UserError, match=f"{name} is (a link|not a regular file)"
  ):
    search.Index(tmp_path / "index")


def test_int8_keeps_directions_and_devices_agree(tmp_path):
  embeds, queries = units(21, 70, dim=32), units(22, 3, dim=32)
  embeds[5] = 0  # Has no direction, and no division by its length.
  make_index(tmp_path, embeds, dtype="int8")
  index = search.Index(tmp_path)
  assert index.embeds.dtype == np.int8
  codes = [[int(v) for v in row] for row in np.asarray(index.embeds)]
  for row, own in zip(embeds, codes, strict=True):
    largest = max(map(abs, row.tolist())) or 1
    # Rounding of float32 may take the other of two equally near numbers.
    assert all(
      abs(c - 127 * x / largest) <= 0.5001
      for c, x in zip(own, row, strict=True)
    )
  scores = [
    [
      sum(c * float(x) for c, x in zip(own, query, strict=True))
      / (sum(c * c for c in own) ** 0.5 or 1)
      for own in codes
    ]
    for query in queries
  ]
  on_devices = DeviceIndex(index, rows_per_chunk=16)
  for found in (index.search_many(queries), on_devices.search_many(queries)):
    for hits, wanted in zip(found, scores, strict=True):
      assert [hit.index for hit in hits] == sorted(
        range(70), key=lambda i: -wanted[i]
      )[:10]
      # Rounding of float32 sums of 32 products.
      np.testing.assert_allclose(
        [hit.score for hit in hits], sorted(wanted)[:-11:-1], atol=1e-6
      )


def test_two_builds_of_one_index_do_not_mix(tmp_path):
  make_index(tmp_path, units(4, 6))
  with search.Builder(tmp_path, model="", fingerprint="") as first:
    first.add(units(5, 3), [search.Entry("k", ("t",))] * 3)
    with pytest.raises(errors.UserError, match="is writing"):
      make_index(tmp_path, units(6, 7))
    assert len(search.Index(tmp_path)) == 6
  assert len(search.Index(tmp_path)) == 3
  make_index(tmp_path, units(6, 7))
  assert len(search.Index(tmp_path)) == 7
  assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("place", ["empty", "file"])
def test_what_is_no_index_is_said_to_be_none(tmp_path, place):
  path = tmp_path / place
  if place == "empty":
    path.mkdir()
  if place == "file":
    path.write_text("")
  with pytest.raises(errors.UserError, match="no index"):
    search.Index(path)


def test_an_index_of_a_mistyped_name_is_named(tmp_path):
  make_index(tmp_path / "pets_index", units(4, 6))
  with pytest.raises(errors.UserError) as mistyped:
    search.Index(tmp_path / "pets_idx")
  said = str(mistyped.value)
  assert said.startswith(f"{tmp_path}/pets_idx does not exist.")
  assert f"{tmp_path}/pets_index" in said.removeprefix(str(tmp_path))


@pytest.mark.parametrize(
  "query, k, message",
  [
    (np.ones(5), 0, "at least 1"),
    (np.ones(5), 1.5, "a whole number"),
    (np.ones(5), True, "a whole number"),
    (np.ones(5, complex), 1, "real numbers, got complex128"),
    (np.array(["1"] * 5), 1, "real numbers"),
    (np.ones(6), 1, "the model that made the index"),
    (np.array([1, 2, np.nan, 4, 5]), 1, "not finite"),
  ],
)
def test_a_query_that_cannot_be_answered_is_refused(
  tmp_path, query, k, message
):
  make_index(tmp_path, units(13, 4))
  with pytest.raises(errors.UserError, match=message):
    search.Index(tmp_path).search(query, k=k)


def test_the_index_remembers_its_model_and_knows_it_again(tmp_path):
  make_index(tmp_path, units(14, 4), step=600)
  index = search.Index(tmp_path)
  assert index.model_path() == "/models/m"
  assert index.model_path("/elsewhere") == "/elsewhere"
  index.check_model("/elsewhere", "f00d")
  with pytest.raises(errors.UserError, match=r"not the one.*step 600"):
    index.check_model("/elsewhere", "beef")


def test_an_index_of_something_else_is_told_before_it_is_replaced(
  tmp_path, caplog
):
  for data in (None, b"no JSON", b"[]"):  # Nothing, or nothing that is known.
    if data is not None:
      (tmp_path / "meta.json").write_bytes(data)
    search.tell_replaced(tmp_path, fingerprint="a", data="folder:x")
  assert not caplog.records
  meta = make_index(tmp_path / "index", units(4, 6), data="folder:x")
  known = {"fingerprint": meta["fingerprint"], "data": meta["data"]}
  search.tell_replaced(tmp_path / "index", **known)
  assert not caplog.records
  for other in ({"fingerprint": "other"}, {"data": "folder:other"}):
    search.tell_replaced(tmp_path / "index", **known | other)
  assert caplog.text.count("an index of 6 images") == 2
