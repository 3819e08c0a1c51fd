"""Copies in ArrayRecord files: complete or absent, and true to the source."""

import fcntl
import json
import os
import pickle
import struct

import numpy as np
import pytest

from clip_jax import cli, errors
from clip_jax.data import copying, inspection, prepare, sources
from clip_jax.data.curation import making
from clip_jax.data.sources import array_record


@pytest.fixture
def mixed(pairs, list_source):
  """Returns a source with labels, names, a bad slot and a broken image."""
  items = pairs(4, label=1)
  items.insert(2, "missing_caption")
  items.append(sources.Record(b"<html>", ("x", "é\ud83d\ude00"[:1]), "web"))
  source = list_source(items)
  source.class_names = ("ant", "bee")
  source.templates = ("a {}.",)
  return source


def test_a_copy_holds_the_same_slots_names_and_reasons(
  mixed, read_all, tmp_path
):
  summary = prepare.prepare(mixed, tmp_path / "copy", address="test:mixed")
  copy = sources.open_source(f"arrayrecord:{tmp_path / 'copy'}")
  # What is no image is not copied.
  assert read_all(copy) == [*read_all(mixed)[:5], "not_an_image"]
  assert copy.class_names == mixed.class_names
  assert copy.templates == mixed.templates
  with pytest.raises(sources.BadRecord) as error:
    copy[2]
  assert error.value.key == "slot2"
  assert summary["written"]
  assert summary["records"] == 6
  assert summary["bad"] == {"missing_caption": 1, "not_an_image": 1}
  assert read_all(pickle.loads(pickle.dumps(copy))) == read_all(copy)


@pytest.mark.parametrize("kind", ["link", "dangling link", "mount point"])
def test_a_name_that_no_directory_can_take_is_refused_before_the_work(
  kind, mixed, tmp_path, monkeypatch
):
  out = tmp_path / "out"
  (tmp_path / "empty").mkdir()
  if kind == "mount point":
    out.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == out)
  else:
    out.symlink_to(tmp_path / ("empty" if kind == "link" else "nothing"))
  with pytest.raises(errors.UserError, match=kind.split("dangling ")[-1]):
    prepare.prepare(mixed, out, on_record=lambda done: pytest.fail("worked"))
  assert not list(tmp_path.glob(".*"))
  # A link to a copy that was made is as good as that.
  prepare.prepare(mixed, tmp_path / "made")
  (tmp_path / "other").symlink_to("made")
  assert not prepare.prepare(mixed, tmp_path / "other")["written"]


def test_bad_records_are_dropped_on_request(mixed, read_all, tmp_path):
  summary = prepare.prepare(mixed, tmp_path / "copy", drop_bad=True)
  copy = sources.open_source(f"arrayrecord:{tmp_path / 'copy'}")
  assert read_all(copy) == [
    r for r in read_all(mixed)[:5] if r != "missing_caption"
  ]
  assert summary["bad"] == {"missing_caption": 1, "not_an_image": 1}


def test_a_large_copy_has_several_files(mixed, read_all, tmp_path):
  summary = prepare.prepare(mixed, tmp_path / "copy", shard_bytes=600)
  assert len(summary["files"]) > 2
  assert sum(file["records"] for file in summary["files"]) == 6
  for address in ("copy", "copy/*.array_record"):
    copy = sources.open_source(f"arrayrecord:{tmp_path}/{address}")
    assert read_all(copy)[:5] == read_all(mixed)[:5]


def test_preparing_again_does_nothing_and_never_overwrites(
  mixed, list_source, pairs, tmp_path
):
  out = tmp_path / "copy"
  prepare.prepare(mixed, out, address="test:mixed")
  before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
  assert not prepare.prepare(mixed, out)["written"]
  assert before == {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
  other = list_source(pairs(2))
  other.fingerprint = "other"
  with pytest.raises(errors.UserError, match="made from 'test:mixed'"):
    prepare.prepare(other, out)
  with pytest.raises(errors.UserError, match="nothing is overwritten"):
    prepare.prepare(mixed, out, drop_bad=True)
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "thesis.txt").write_text("x")
  with pytest.raises(errors.UserError, match="in use"):
    prepare.prepare(mixed, tmp_path / "mine")
  assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_the_copy_appears_complete_or_not_at_all(mixed, tmp_path):
  def fail(done):
    assert not (tmp_path / "copy").exists()
    if done == 4:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    prepare.prepare(mixed, tmp_path / "copy", on_record=fail)
  assert os.listdir(tmp_path) == []
  # What a killed run leaves behind is cleared away.
  (tmp_path / ".copy.partial").mkdir()
  (tmp_path / ".copy.partial" / "00007.array_record").write_text("left over")
  prepare.prepare(mixed, tmp_path / "copy")
  assert os.listdir(tmp_path) == ["copy"]
  assert sorted(os.listdir(tmp_path / "copy")) == [
    "00000.array_record",
    "dataset.json",
  ]


def test_what_was_found_stays_until_the_copy_is_on_the_disk(
  tmp_path, monkeypatch
):
  def stop(path):
    raise OSError(5, "Input/output error")

  found = tmp_path / ".copy.partial" / prepare.FOUND / "part"

  def run():
    with prepare.partial_directory(tmp_path / "copy") as partial:
      found.parent.mkdir(exist_ok=True)
      found.touch()
      prepare.finish(partial, tmp_path / "copy", {"shard": b""})

  with monkeypatch.context() as patch, pytest.raises(OSError, match="Input"):
    patch.setattr(copying, "sync", stop)
    run()
  assert sorted(p.name for p in found.parent.parent.iterdir()) == [
    *(".lock", "found"),
  ]
  assert found.exists()
  run()
  assert os.listdir(tmp_path) == ["copy"]
  assert os.listdir(tmp_path / "copy") == ["shard"]


@pytest.mark.parametrize("out", [".", "", "./", "/", "..", "x/..", "~/.."])
def test_a_place_without_a_name_is_refused(out, mixed, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.UserError, match="no name of its own"):
    prepare.prepare(mixed, out)
  with pytest.raises(errors.UserError, match="no name of its own"):
    making.make([], out, making.Rule())
  assert os.listdir(tmp_path) == []


def test_two_processes_do_not_write_the_same_copy(mixed, tmp_path):
  (tmp_path / ".copy.partial").mkdir()
  with open(tmp_path / ".copy.partial" / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(errors.UserError, match="Another process"):
      prepare.prepare(mixed, tmp_path / "copy")


def test_two_copies_are_equal_byte_by_byte(mixed, tmp_path):
  for name in ("one", "two"):
    prepare.prepare(mixed, tmp_path / name)
  for name in ("00000.array_record", "dataset.json"):
    assert (tmp_path / "one" / name).read_bytes() == (
      tmp_path / "two" / name
    ).read_bytes()


@pytest.mark.parametrize("drop_bad", [True, False])
def test_nothing_usable_is_an_error(list_source, tmp_path, drop_bad):
  with pytest.raises(errors.UserError, match=r"usable record.*1 truncated"):
    prepare.prepare(
      list_source(["truncated"]), tmp_path / "copy", drop_bad=drop_bad
    )
  assert os.listdir(tmp_path) == []


def test_bit_flips_cost_one_record_and_never_go_unseen(
  list_source, pairs, tmp_path
):
  records = pairs(12)
  prepare.prepare(list_source(records), tmp_path / "copy")
  path = tmp_path / "copy" / "00000.array_record"
  clean = path.read_bytes()
  filled = [i for i in range(0, len(clean), 64) if any(clean[i : i + 64])]
  rng = np.random.default_rng(0)
  hits = 0
  for _ in range(60):
    data = bytearray(clean)
    data[int(rng.choice(filled)) + int(rng.integers(64))] ^= 1 << int(
      rng.integers(8)
    )
    path.write_bytes(data)
    try:
      source = sources.open_source(f"arrayrecord:{tmp_path / 'copy'}")
    except errors.UserError:
      hits += 1  # The file's own header or index.
      continue
    bad = 0
    for i, record in enumerate(records):
      try:
        assert source[i] == record
      except sources.BadRecord as error:
        assert error.reason == "damaged_record"
        assert error.key == f"00000.array_record[{i}]"
        bad += 1
    assert bad in (0, 1, 12)
    hits += bad > 0
  assert hits > 30


@pytest.mark.parametrize("damage", ["missing", "shorter", "other"])
def test_a_copy_that_is_not_whole_is_refused(mixed, tmp_path, damage):
  prepare.prepare(mixed, tmp_path / "copy")
  path = tmp_path / "copy" / "00000.array_record"
  if damage == "missing":
    path.unlink()
  elif damage == "shorter":
    path.write_bytes(path.read_bytes()[:-1])
  else:
    path = tmp_path / "copy" / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
  message = "version" if damage == "other" else r"00000\.array_record"
  with pytest.raises(errors.UserError, match=message):
    sources.open_source(f"arrayrecord:{tmp_path / 'copy'}")


def test_files_of_other_kinds_are_refused(tmp_path):
  from array_record.python import array_record_module

  path = tmp_path / "x.array_record"
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  writer.write(b"something else")
  writer.close()
  with pytest.raises(errors.UserError, match="other records than clip_jax's"):
    sources.open_source(f"arrayrecord:{path}")
  path.write_bytes(b"not even that")
  with pytest.raises(errors.UserError, match="not a whole ArrayRecord file"):
    sources.open_source(f"arrayrecord:{path}")


@pytest.mark.parametrize(
  "record",
  [
    sources.Record(b"", ("",), ""),
    sources.Record(b"\0" * 9, ("a", "\u2028 \U0001f600"), "k/é", 0),
    sources.Record(b"CLIPJAX1", ("x",) * 50, "k", 10**9),
  ],
)
def test_records_are_encoded_and_decoded(record):
  assert array_record.decode(array_record.encode(record)) == record
  with pytest.raises((ValueError, sources.BadRecord)):
    array_record.decode(array_record.encode(record)[:14])


@pytest.mark.parametrize(
  "changes",
  [{"texts": "ab"}, {"texts": {"a": 1}}, {"label": -1}, {"label": 1.0}],
)
def test_a_header_of_another_form_is_none(changes):
  header = json.dumps({"key": "k", "texts": ["a"], **changes}).encode()
  data = b"CLIPJAX1" + struct.pack("<I", len(header)) + header + b"image"
  with pytest.raises(ValueError, match="a record of clip_jax"):
    array_record.decode(data)


def test_more_records_than_bytes_are_not_believed(mixed, tmp_path):
  prepare.prepare(mixed, tmp_path / "copy")
  place = tmp_path / "copy" / "dataset.json"
  content = json.loads(place.read_text())
  content["files"][0]["records"] = 10**19
  place.write_text(json.dumps(content))
  with pytest.raises(errors.UserError, match="its files are not what"):
    sources.open_source(f"arrayrecord:{tmp_path}/copy")


def test_inspecting_says_what_is_in_the_data(mixed, tmp_path, write_tar):
  done = []
  found = inspection.inspect(mixed, first=2, on_record=done.append)
  assert done == list(range(1, 7))
  first = found.pop("first")
  assert found == {
    "records": 6,
    "good": 4,
    "bad": {"missing_caption": 1, "not_an_image": 1},
    "bad_keys": [("slot2", "missing_caption"), ("web", "not_an_image")],
    "hints": {},
    "damages": [],
    "left_out": {},
    "left_out_names": {},
    "unread": {},
    "unread_names": {},
    "lost": 0,
    "lost_by_file": {},
    "notes": [],
    "choices": [],
    "texts": 4,
    "class_names": ("ant", "bee"),
    "templates": ("a {}.",),
    "labels": {1: 4},
    "image_bytes": sum(len(mixed[i].image) for i in (0, 1, 3, 4)),
  }
  assert (
    inspection.inspect(mixed, most_bad=1)["bad_keys"] == found["bad_keys"][:1]
  )
  assert [item["key"] for item in first] == ["key000", "key001"]
  assert (first[0]["width"], first[0]["height"]) == (9, 11)
  json.dumps(found | {"first": first})
  path = write_tar(tmp_path / "a.tar", [("a.txt", b"x")])
  path.write_bytes(path.read_bytes()[:1024])
  damaged = inspection.inspect(sources.open_source(f"wds:{path}"))
  assert damaged["damages"] == [(str(path), 1024, "no_end_marker")]


def test_the_command_shows_some_bad_records_and_counts_the_rest(
  tmp_path, capsys
):
  for i in range(23):
    (tmp_path / f"{i:02}.png").write_bytes(b"no image")
    (tmp_path / f"{i:02}.txt").write_text("a cat")
  # Nothing is good.
  assert cli.run(["data", "inspect", f"folder:{tmp_path}"]) == 1
  lines = capsys.readouterr().out.splitlines()
  assert "bad: 23 not_an_image" in lines
  assert len([line for line in lines if "not_an_image" in line]) == 1 + 20
  assert "  and 3 more; --json lists 23" in lines


@pytest.mark.parametrize(
  ("verb", "entry", "file"),
  [
    (["filter", "--min-words", "1"], "filter", "dataset.json"),
    (["dedupe"], "dedupe", "dataset.json"),
    (["dedupe", "--report-only"], "dedupe", "report.json"),
    (
      ["curate", "--queries", "queries.txt", "--max-per-query", "9"],
      *("curation", "dataset.json"),
    ),
  ],
)
def test_what_a_copy_says_of_itself_is_not_believed_when_it_was_edited(
  tmp_path, monkeypatch, write_tar, png, capsys, verb, entry, file
):
  monkeypatch.chdir(tmp_path)
  members = [(f"{i}.{s}", d) for i in range(2) for s, d in _parts(png(i))]
  write_tar(tmp_path / "a.tar", members)
  (tmp_path / "queries.txt").write_text("cat\n")
  name, *flags = verb
  command = ["data", name, "wds:a.tar", "out", *flags, "--json"]

  def run():
    cli.main(command)
    return json.loads(capsys.readouterr().out)

  first = run()
  assert first["written"] and run() == first | {"written": False}
  good = (tmp_path / "out" / file).read_text()
  for key in json.loads(good)[entry]:
    for value in (None, "x"):
      edited = json.loads(good)
      if value is None:
        del edited[entry][key]
      else:
        edited[entry][key] = value
      (tmp_path / "out" / file).write_text(json.dumps(edited))
      with pytest.raises(SystemExit):
        cli.main(command)
      said = capsys.readouterr().err
      assert "is damaged or was changed. Remove it" in said, (key, value)


def _parts(image):
  return ("png", image), ("txt", b"a cat on a mat")


def test_a_pipe_among_files_of_records_is_not_waited_at(mixed, tmp_path):
  prepare.prepare(mixed, tmp_path / "copy")
  (tmp_path / "copy" / "dataset.json").unlink()
  os.mkfifo(tmp_path / "copy" / "00001.array_record")
  with pytest.raises(errors.UserError, match="is not a regular file"):
    sources.open_source(f"arrayrecord:{tmp_path}/copy")
