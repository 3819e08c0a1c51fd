"""A part of the data is held out, and classes become captions."""

import collections
import logging
import pickle

import pytest

from clip_jax import errors
from clip_jax.data import account, inspection, prepare, sources
from clip_jax.data.sources import views

COUNTS = {"tabby cat": 10, "été": 3, "ant": 2, "one": 1}


@pytest.fixture
def folder(tmp_path, png):
  for name, count in COUNTS.items():
    for i in range(count):
      path = tmp_path / "my pictures" / name / f"IMG {i}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(png(i))
  return f"folder:{tmp_path / 'my pictures'}"


def _keys(address):
  source = sources.open_source(address)
  return [source[i].key for i in range(len(source))]


def test_both_parts_make_the_whole_and_every_class_is_in_both(folder):
  train = _keys(f"{folder}?split=train")
  held_out = _keys(f"{folder}?split=held_out")
  assert sorted(train + held_out) == sorted(_keys(folder))
  classes = collections.Counter(key.split("/")[0] for key in held_out)
  # A fifth, at least one of two, never the only one.
  assert classes == {"tabby cat": 2, "été": 1, "ant": 1}
  source = sources.open_source(f"{folder}?split=held_out")
  assert source.class_names == ("ant", "one", "tabby cat", "été")
  assert source.class_names[source[0].label] == source[0].texts[0] == "ant"


def test_a_table_with_classes_holds_out_what_a_folder_does_and_no_other_table(
  folder, tmp_path
):
  rows = [f"{key},{key.split('/')[0]}\n" for key in reversed(_keys(folder))]
  (tmp_path / "t.csv").write_text("image,label\n" + "".join(rows))
  table = f"csv:{tmp_path / 't.csv'}?root=my pictures&split=held_out"
  held_out = sorted(_keys(f"{folder}?split=held_out"))
  assert sorted(_keys(f"{table}&label=label")) == held_out
  # Of captions a share of all is held out (docs/data.md).
  assert sorted(_keys(f"{table}&caption=label")) != held_out


def test_records_that_come_or_go_move_few_others(folder, tmp_path, png):
  before = set(_keys(f"{folder}?split=held_out"))
  for i in range(10, 15):
    path = tmp_path / "my pictures" / "tabby cat" / f"IMG {i}.png"
    path.write_bytes(png(i))
  after = set(_keys(f"{folder}?split=held_out"))
  assert len(after) == len(before) + 1
  assert len(before - after) <= 1


@pytest.mark.parametrize(
  ("options", "count"),
  [("split=held_out&held_out=0.5", 716), ("split=train&held_out=0.01", 1419)],
)
def test_any_scheme_has_parts_of_any_share(options, count):
  address = f"builtin:digits/train?{options}"
  source = sources.open_source(address)
  assert len(sources.open_source("builtin:digits/train")) == 1433
  assert len(source) == count
  assert len({source[i].key for i in range(40)}) == 40


def test_parts_differ_in_their_fingerprints_and_can_be_sent_to_workers(folder):
  parts = [
    sources.open_source(f"{folder}{options}")
    for options in (
      "",
      "?split=train",
      "?split=held_out",
      "?split=train&held_out=0.3",
    )
  ]
  assert len({part.fingerprint for part in parts}) == 4
  for part in parts:
    again = pickle.loads(pickle.dumps(part))
    assert len(again) == len(part) and again[1] == part[1]
    with pytest.raises(IndexError):
      part[len(part)]


def test_a_part_is_inspected_and_prepared_like_any_data(folder, tmp_path):
  source = sources.open_source(f"{folder}?split=held_out")
  assert inspection.inspect(source)["good"] == 4
  prepare.prepare(source, tmp_path / "out", address=folder)
  assert len(sources.open_source(f"arrayrecord:{tmp_path / 'out'}")) == 4


def test_what_has_no_second_record_cannot_be_parted(tmp_path, png):
  (tmp_path / "ant").mkdir()
  (tmp_path / "ant" / "0.png").write_bytes(png(0))
  with pytest.raises(errors.UserError, match="Of 1 record none can be held"):
    sources.open_source(f"folder:{tmp_path}?split=train")


def test_an_address_that_names_its_split_has_no_other():
  for address, part in (
    ("folder:a b", "folder:a b?split=train&held_out=0.25"),
    ("csv:t.csv?root=x", "csv:t.csv?root=x&split=train&held_out=0.25"),
  ):
    assert sources.split_address(address, "train", 0.25) == part
  # The same share: of 500,018 records, six digits would hold out one fewer.
  exact = sources.split_address("csv:t.csv", "held_out", 1 / 3)
  assert exact == "csv:t.csv?split=held_out&held_out=0.3333333333333333"
  with pytest.raises(errors.UserError, match=r"data\.held_out=0"):
    sources.split_address("folder:a?split=train", "train", 0.25)


def test_a_class_becomes_a_caption(folder):
  source = sources.open_source(folder)
  captioned = views.Captioned(source, ("a photo of a ", "."))
  assert captioned[0].texts == ("a photo of a ant.",)
  assert (captioned[0].image, captioned[0].label) == (source[0].image, 0)
  assert captioned.fingerprint != source.fingerprint
  assert len(captioned) == len(source)


def test_a_part_has_its_share_of_what_is_lost(tmp_path, write_tar, png, caplog):
  for shard in range(3):
    members = [
      member
      for i in range(10)
      for member in [(f"{shard}{i}.png", png(i)), (f"{shard}{i}.txt", b"x")]
    ]
    write_tar(tmp_path / f"{shard}.tar", [*members, ("README", b"x")])
  (tmp_path / "1.tar").write_bytes(b"")
  address = f"wds:{tmp_path}"
  assert account.of(sources.open_source(address)).lost_records == 10
  told = set()
  for split, lost in (("train", 8), ("held_out", 2)):
    source = sources.open_source(f"{address}?split={split}")
    assert account.of(source).lost_records == lost
    account.check(source, split, max_bad_fraction=0.334)
    with caplog.at_level(logging.INFO):
      told.update(account.tell(source, split, told=told))
  # What is the same of both parts is said once.
  assert caplog.text.count(f"{tmp_path}/1.tar is empty: about 10 records") == 1
  assert caplog.text.count("Not read") == 1
  whole = sources.without_split(f"{address}?captions=text")
  part = f"{address}?captions=text&split=train&held_out=0.5"
  assert sources.without_split(part) == whole
