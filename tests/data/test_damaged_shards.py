"""Damaged shards: every record that they lost is counted and told."""

import collections
import json
import logging
import os
import random

import pytest

from clip_jax import cli, errors
from clip_jax.data import account, ledger, prepare, sources
from clip_jax.data.sources import missing, tar

CONFIG = "tests/configs/tiny_bow.py"
SHARDS, RECORDS = 3, 50
KINDS = ("cut", "removed", "inserted", "flipped", "zeroed", "shifted", "tail")
# 300 of them were run once; the usual tests take a few.
SETS = int(os.environ.get("CLIP_JAX_FUZZ_TARS", 21))


def _damage(data, kind, rng):
  used = len(data)
  while not data[used - tar.BLOCK : used].strip(b"\0"):
    used -= tar.BLOCK
  at = rng.randrange(used)
  count = rng.choice([1, 2, 3, 100, 511, 512, 1024, rng.randrange(1, 9000)])
  count = min(count, used - at)
  if kind == "cut":
    return data[: at // tar.BLOCK * tar.BLOCK if at % 2 else at]
  if kind == "removed":
    return data[:at] + data[at + count :]
  if kind == "inserted":
    return data[:at] + rng.randbytes(count) + data[at:]
  if kind == "flipped":
    return data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
  if kind == "zeroed":
    return data[:at] + bytes(count) + data[at + count :]
  if kind == "shifted":
    return b"x" + data if at % 2 else data[1:]
  return data[:at] + bytes(len(data) - at)


@pytest.fixture
def shards(tmp_path, write_tar, png):
  """Writes shards of as many records each; the wanted records by key."""

  def write(sizes, *, name="{:06d}".format):
    wanted = {}
    for shard, count in enumerate(sizes):
      members = []
      for i in range(sum(sizes[:shard]), sum(sizes[:shard]) + count):
        key, image, text = name(i), png(i % 7), f"caption number {i}"
        wanted[key] = (image, text)
        members += [(f"{key}.png", image), (f"{key}.txt", text.encode())]
      write_tar(tmp_path / f"{shard:04d}.tar", members)
    return wanted

  return write


def _change(path, change):
  path.write_bytes(change(path.read_bytes()))


def _read(source):
  good, bad = {}, collections.Counter()
  for index in range(len(source)):
    try:
      record = source[index]
      good[record.key] = (record.image, record.texts[0])
    except sources.BadRecord as error:
      bad[error.reason] += 1
  return good, bad


@pytest.mark.parametrize("number", sorted({*range(SETS), 97}))
def test_every_lost_record_is_counted_and_told(
  tmp_path, shards, number, caplog
):
  rng = random.Random(number)
  names = [f"{rng.randrange(2**40):x}-n" for _ in range(SHARDS * RECORDS)]
  by_number = number // len(KINDS) % 2 == 0
  kind = KINDS[number % len(KINDS)]
  wanted = shards(
    [RECORDS] * SHARDS, name="{:06d}".format if by_number else names.__getitem__
  )
  path = tmp_path / f"{rng.randrange(SHARDS):04d}.tar"
  _change(path, lambda data: _damage(data, kind, rng))
  source = sources.open_source(f"wds:{tmp_path}")
  good, bad = _read(source)
  if kind not in ("flipped", "zeroed", "tail"):  # Of data, which no sum guards.
    assert all(good[key] == wanted[key] for key in good)
  lost, counted = len(wanted) - len(good), account.of(source).lost_records
  if kind == "tail" and not counted:
    # Zeros no longer than an end marker's: as if the shard held no more.
    assert lost <= bad.total() + 8
    return
  assert lost <= bad.total() + counted <= lost + 2
  with caplog.at_level(logging.WARNING):
    said = account.tell(source, "wds")
  if counted:
    assert f"about {counted} record" in said[0] and path.name in said[0]
    assert said[0] in caplog.text


@pytest.mark.parametrize(
  "content", [b"", bytes(10240), b"\x1f\x8bxx", b"<html>"]
)
def test_a_shard_without_samples_counts_as_many_as_the_others(
  tmp_path, shards, content
):
  shards([6, 6, 6, 2])
  _change(tmp_path / "0001.tar", lambda _: content)
  source = sources.open_source(f"wds:{tmp_path}")
  assert len(source) == 14
  assert account.of(source).lost == {str(tmp_path / "0001.tar"): 6}


def _cut_at_record(count):
  def cut(data):
    return data[: data.index(b"%06d.png" % count)]

  return cut


@pytest.mark.parametrize(
  ("sizes", "lost"),
  [
    ([20, 20, 20, 9], 13),  # The last one holds what is left over.
    ([20, 20, 18, 4], 12),  # The mean of the others.
    ([20], None),
  ],
)
def test_a_shard_without_its_end_is_held_against_the_others(
  tmp_path, shards, sizes, lost
):
  shards(sizes)
  _change(tmp_path / "0000.tar", _cut_at_record(7))
  found = account.of(sources.open_source(f"wds:{tmp_path}"))
  assert found.lost == {str(tmp_path / "0000.tar"): lost}
  assert found.lost_records == (1 if lost is None else lost)
  (said,) = found.sentences()
  assert "without an end marker" in said
  assert ("not known, at least 1" in said) == (lost is None)


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("0000_stats.json", {"count": 30, "successes": 20}),
    ("sizes.json", {"0000.tar": 20}),
  ],
)
def test_what_is_written_beside_a_shard_says_what_it_held(
  tmp_path, shards, name, content
):
  shards([20])
  (tmp_path / name).write_text(json.dumps(content))
  assert account.of(sources.open_source(f"wds:{tmp_path}")).lost == {}
  _change(tmp_path / "0000.tar", _cut_at_record(7))
  source = sources.open_source(f"wds:{tmp_path}")
  assert account.of(source).lost_records == 13
  for damaged in ("[" * 9999, '{"0000.tar": "x"}', "\xff", "9" * 9999):
    (tmp_path / name).write_text(damaged, "latin-1")
    source = sources.open_source(f"wds:{tmp_path}")
    assert account.of(source).lost == {str(tmp_path / "0000.tar"): None}


def test_a_writer_that_leaves_out_the_end_loses_nothing(tmp_path, shards):
  shards([9, 9, 4])
  for path in tmp_path.glob("*.tar"):
    _change(
      path,
      lambda data: data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512),
    )
  found = account.of(sources.open_source(f"wds:{tmp_path}"))
  assert [reason for _, _, reason in found.damages] == ["no_end_marker"] * 3
  assert found.lost_records == 0
  # Shards that hold this and that may have been cut, all of them.
  _change(tmp_path / "0001.tar", _cut_at_record(12))
  found = account.of(sources.open_source(f"wds:{tmp_path}"))
  assert list(found.lost.values()) == [None] * 3


def test_bytes_behind_the_end_cost_nothing(tmp_path, shards):
  shards([9])
  _change(tmp_path / "0000.tar", lambda data: data + b"\n")
  found = account.of(sources.open_source(f"wds:{tmp_path}"))
  assert [reason for _, _, reason in found.damages] == ["trailing_bytes"]
  assert found.lost_records == 0


def test_keys_that_are_no_numbers_are_counted_by_headers(tmp_path, shards):
  shards([30], name=lambda i: f"{i * 7919 % 30}-n")

  def change(data):
    first = data.index(b"%d-n.png" % (5 * 7919 % 30))
    end = data.index(b"%d-n.png" % (9 * 7919 % 30))
    part = data[first:end].replace(b"-n.", b"_n.")  # No checksum is right.
    return data[:first] + part + data[end:]

  _change(tmp_path / "0000.tar", change)
  source = sources.open_source(f"wds:{tmp_path}")
  assert len(source) == 26
  assert account.of(source).lost_records == 4


def test_a_hole_is_counted_by_the_bytes_that_the_other_records_take(
  tmp_path, shards
):
  shards([20], name=lambda i: f"q{i * 7919 % 20}-n")
  path = tmp_path / "0000.tar"

  def change(data):
    first, end = (data.index(b"q%d-n.png" % (i * 7919 % 20)) for i in (3, 15))
    return data[:first] + bytes(end - first) + data[end:]

  _change(path, change)
  source = sources.open_source(f"wds:{path}")
  # Neither the hole nor the padding at the end holds records.
  assert len(source) == 8 and account.of(source).lost_records == 12


def test_training_tells_lost_records_and_stops_over_the_limit(
  tmp_path, shards, capsys
):
  shards([40, 40, 40])
  _change(tmp_path / "0001.tar", _cut_at_record(60))
  address = f"wds:{tmp_path}"
  command = ["train", f"--config={CONFIG}", f"--workdir={tmp_path}/run"]
  assert cli.run([*command, f"--config.data.train={address}"]) == 1
  told = capsys.readouterr().err
  assert "0001.tar ends without an end marker" in told
  assert "about 20 records lost" in told
  assert "about 20 of 120 records are lost" in told
  assert "data.max_bad_fraction=0.01 allows 1.2" in told
  assert not (tmp_path / "run").exists()
  # Twenty of 120 are a sixth; one bad record more is too many.
  book = ledger.Ledger(
    tmp_path / "ledger.jsonl", records=100, max_bad_fraction=0.17, lost=20
  )
  book.check(0, 0)
  with pytest.raises(errors.UserError, match="and 20 records lost"):
    book.check(1, 16)


def test_a_copy_has_lost_what_its_source_has(tmp_path, shards, capsys):
  shards([8, 8])
  _change(tmp_path / "0000.tar", _cut_at_record(3))
  address = f"wds:{tmp_path}"
  assert (
    cli.run(["data", "prepare", address, f"{tmp_path}/copy", "--json"]) == 0
  )
  answer = capsys.readouterr()
  assert "about 5 records lost" in answer.err
  assert json.loads(answer.out)["lost"] == 5
  copy = sources.open_source(f"arrayrecord:{tmp_path}/copy")
  with pytest.raises(errors.UserError, match="about 5 of 16 records are lost"):
    account.check(copy, "copy", max_bad_fraction=0.3)
  account.check(copy, "copy", max_bad_fraction=5 / 16)
  source = sources.open_source(address)
  prepare.prepare(source, tmp_path / "good", drop_bad=True)
  good = sources.open_source(f"arrayrecord:{tmp_path}/good")
  assert account.of(good).lost_records == 0


def test_inspecting_tells_damages_and_what_they_cost(tmp_path, shards, capsys):
  shards([8, 8])
  _change(tmp_path / "0000.tar", _cut_at_record(3))
  address = f"wds:{tmp_path}"
  assert cli.run(["data", "inspect", address, "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["lost"] == 5 and found["records"] == 11
  ((path, _, reason),) = found["damages"]
  assert (path, reason) == (str(tmp_path / "0000.tar"), "no_end_marker")
  assert cli.run(["data", "inspect", address]) == 0
  assert "lost: about 5, which" in capsys.readouterr().out


def test_one_more_of_what_is_wrong_is_called_one():
  left_out = account.LeftOut()
  for number in range(11):
    left_out.add(f"a.x{number}")
  found = account.Account(
    left_out, damages=[("0.tar", 5, "zeros"), ("0.tar", 9, "zeros")]
  )
  assert found.remarks()[0].endswith(" and 1 more suffix.")
  assert " and 1 more damaged place: no sign" in found.warnings()[0]
  lost = account.Account(lost={"0.tar": 1}, damages=[("1.tar", 5, "zeros")])
  assert lost.warnings(most_files=1)[1].endswith("have lost about 1 record.")


def test_the_estimate_of_no_shards_is_nothing():
  assert missing.lost_records([]) == []


@pytest.mark.parametrize(
  "words",
  [
    "prepare wds:cut.tar out",
    "stats wds:cut.tar",
    "queries wds:cut.tar out.txt --min-count 1",
    "curate wds:cut.tar out --queries q.txt --max-per-query 9",
    "filter wds:cut.tar out --min-side 1",
    "dedupe wds:cut.tar out",
    "dedupe wds:whole.tar out --against wds:cut.tar --report-only",
  ],
)
def test_each_action_tells_what_a_damaged_tar_has_lost(
  tmp_path, members, pairs, write_tar, capsys, monkeypatch, words
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "q.txt").write_text("caption\n")
  whole = write_tar(tmp_path / "whole.tar", members(pairs(6))).read_bytes()
  (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 99])
  assert cli.run(["data", *words.split()]) == 0
  assert "cut.tar ends within" in capsys.readouterr().err
