"""What a sample of a WebDataset shard is, and what is wrong with others."""

import json
import pickle

import pytest

from clip_jax import errors
from clip_jax.data import sources


@pytest.fixture
def read(tmp_path, write_tar, read_all):
  """Returns the records (or reasons) of a tar with these members."""

  def run(members, options=""):
    path = write_tar(tmp_path / "some shard.tar", members)
    return read_all(sources.open_source(f"wds:{path}{options}"))

  return run


def test_text_json_and_label_files_make_a_record(read, png):
  (record,) = read(
    [
      ("./sub.d/0.1.ignored", b"?"),
      ("./sub.d/0.JPG", png(0)),
      ("sub.d/0.json", b'{"caption": "from json"}'),
      ("sub.d/0.txt", "\ufeff  from text é \n".encode()),
      ("sub.d/0.cls", b"12\n"),
    ]
  )
  assert record == sources.Record(png(0), ("from text é",), "sub.d/0", 12)


@pytest.mark.parametrize(
  ("fields", "texts"),
  [
    ({"caption": "one"}, ("one",)),
    ({"caption": ["one", " ", " two "]}, ("one", "two")),
    ({"captions": ["one", "two"], "url": "x"}, ("one", "two")),
  ],
)
def test_json_may_hold_one_or_several_captions(read, png, fields, texts):
  (record,) = read(
    [("a.webp", png(0)), ("a.json", json.dumps(fields).encode())]
  )
  assert record.texts == texts


def test_lines_are_captions_where_asked_for(read, png):
  members = [("a.png", png(0)), ("a.txt", b"one\n\n two\n")]
  assert read(members)[0].texts == ("one\n\n two",)
  assert read(members, "?captions=lines")[0].texts == ("one", "two")


IMAGE = ("a.png", b"\x89PNG")
TEXT = ("a.txt", b"text")
OTHER = ("o.txt", b"other")  # A sample of its own, without an image.


@pytest.mark.parametrize(
  ("members", "reasons"),
  [
    ([IMAGE], ["missing_caption"]),
    ([TEXT], ["missing_image"]),
    ([IMAGE, ("a.cls", b"3")], ["missing_caption"]),
    ([IMAGE, ("a.txt", b" \n")], ["empty_caption"]),
    ([IMAGE, ("a.json", b'{"caption": [" "]}')], ["empty_caption"]),
    ([IMAGE, ("a.json", b'{"url": "x"}')], ["missing_caption"]),
    ([IMAGE, ("a.json", b'{"caption": null}')], ["missing_caption"]),
    ([IMAGE, ("a.json", b'{"caption": 3}')], ["bad_json"]),
    ([IMAGE, ("a.json", b'["caption"]')], ["bad_json"]),
    ([IMAGE, ("a.json", b"{")], ["bad_json"]),
    ([IMAGE, ("a.json", b"[" * 100_000)], ["bad_json"]),
    ([IMAGE, ("a.json", b'{"caption": "\\ud800"}')], ["not_utf8"]),
    ([IMAGE, ("a.txt", b"\xff\xfe")], ["not_utf8"]),
    ([IMAGE, ("a.txt", b"a" * (2**20 + 1))], ["too_large"]),
    ([IMAGE, TEXT, ("a.cls", b"-1")], ["bad_label"]),
    ([IMAGE, TEXT, ("a.cls", b"cat")], ["bad_label"]),
    ([("a.png", b""), TEXT], ["empty_image"]),
    ([IMAGE, ("a.jpg", b"\xff"), TEXT], ["several_images"]),
    ([IMAGE, OTHER, TEXT], ["parts_not_adjacent", "missing_image"]),
    (
      [IMAGE, TEXT, OTHER, IMAGE, TEXT],
      [None, "missing_image", "duplicate_key"],
    ),
    ([IMAGE, TEXT, IMAGE, TEXT], [None, "duplicate_key"]),
    ([IMAGE, IMAGE, TEXT], ["missing_caption", "duplicate_key"]),
    ([("../a.png", b"x"), ("../a.txt", b"t")], ["unsafe_name"]),
    ([("/etc/a.png", b"x"), ("/etc/a.txt", b"t")], ["unsafe_name"]),
    ([("b\\a.png", b"x"), ("b\\a.txt", b"t")], ["unsafe_name"]),
    ([("a\n.png", b"x"), ("a\n.txt", b"t")], ["unsafe_name"]),
    ([("a\udcff.png", b"x"), ("a\udcff.txt", b"t")], ["unsafe_name"]),
    ([("n" * 256 + ".png", b"x")], ["unsafe_name"]),
  ],
)
def test_each_kind_of_bad_sample_keeps_its_slot(read, members, reasons):
  found = [item if isinstance(item, str) else None for item in read(members)]
  assert found == reasons


def test_a_bad_sample_has_a_key_that_leads_nowhere(tmp_path, write_tar):
  path = write_tar(tmp_path / "a.tar", [("../../evil.png", b"x")])
  source = sources.open_source(f"wds:{path}")
  with pytest.raises(sources.BadRecord, match="unsafe_name") as error:
    source[0]
  assert "/" not in error.value.key


def test_a_lost_header_or_end_is_named_as_the_reason(tmp_path, write_tar, png):
  members = [("a.png", png(0)), ("a.txt", b"text"), ("b.png", png(1))]
  members += [("b.txt", b"text")]
  path = write_tar(tmp_path / "a.tar", members)
  clean = path.read_bytes()
  for cut, reason in [(0, "damaged_header"), (1, "truncated")]:
    at = clean.index(b"b.txt")
    changed = clean[:at] if cut else clean[:at] + b"c" + clean[at + 1 :]
    path.write_bytes(changed)
    source = sources.open_source(f"wds:{path}")
    assert len(source) == 2
    assert source[0].texts == ("text",)
    with pytest.raises(sources.BadRecord, match=reason):
      source[1]
    assert source.damages == [
      (str(path), at, "no_end_marker" if cut else reason)
    ]


def test_a_shard_cut_after_it_was_opened_is_noticed(tmp_path, write_tar, png):
  path = write_tar(tmp_path / "a.tar", [("a.txt", b"t"), ("a.png", png(0))])
  source = sources.open_source(f"wds:{path}")
  path.write_bytes(path.read_bytes()[:1600])
  with pytest.raises(sources.BadRecord, match="truncated"):
    source[0]


def test_classes_and_prompts_beside_the_shards_are_used(
  tmp_path, write_tar, png
):
  (tmp_path / "test").mkdir()
  path = write_tar(
    tmp_path / "test" / "0.tar",
    [("a.png", png(0)), ("a.cls", b"1"), ("b.png", png(1)), ("b.cls", b"2")],
  )
  (tmp_path / "classnames.txt").write_text("tench\ngreat white shark\n")
  (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}.\n")
  source = sources.open_source(f"wds:{path}")
  assert source.class_names == ("tench", "great white shark")
  assert source.templates == ("a {}.",)
  assert source[0].texts == ("great white shark",)
  assert source[0].label == 1
  with pytest.raises(sources.BadRecord, match="bad_label"):
    source[1]
  (tmp_path / "own.txt").write_text("one\ntwo\nthree\n")
  own = sources.open_source(f"wds:{path}?classes={tmp_path / 'own.txt'}")
  assert own[1].texts == ("three",)


def test_shards_are_named_by_braces_globs_and_directories(
  tmp_path, write_tar, pairs, members, read_all
):
  records = pairs(6)
  folder = tmp_path / "with space"
  folder.mkdir()
  for i in range(3):
    write_tar(folder / f"{i + 8:04d}.tar", members(records[2 * i : 2 * i + 2]))
  for pattern in (
    "{0008..0010}.tar",
    "00{08,09,10}.tar",
    "*.tar",
    "00??.tar",
    "",
  ):
    source = sources.open_source(f"wds:{folder}/{pattern}")
    assert read_all(source) == records
  with pytest.raises(errors.UserError, match=r"0011\.tar' \(and 1 more\)"):
    sources.open_source(f"wds:{folder}/{{0008..0012}}.tar")
  with pytest.raises(errors.UserError, match="No file matches"):
    sources.open_source(f"wds:{folder}/x*.tar")
  with pytest.raises(errors.UserError, match="range"):
    sources.open_source(f"wds:{folder}/{{12..8}}.tar")
  with pytest.raises(errors.UserError, match="at most"):
    sources.open_source(f"wds:{folder}/{{0..99999999999}}.tar")


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b gzip or whatever " * 50])
def test_a_file_without_samples_is_an_error(tmp_path, content):
  (tmp_path / "empty.tar").write_bytes(content)
  with pytest.raises(errors.UserError, match=r"empty\.tar' holds no samples"):
    sources.open_source(f"wds:{tmp_path}/empty.tar")


def test_a_pickled_source_reads_the_same(tmp_path, write_tar, pairs, members):
  path = write_tar(tmp_path / "a.tar", members(pairs(3)))
  source = sources.open_source(f"wds:{path}")
  assert source[2] == pairs(3)[2]
  copy = pickle.loads(pickle.dumps(source))
  assert copy[2] == pairs(3)[2]
  assert copy.fingerprint == source.fingerprint


def test_the_fingerprint_depends_on_content_not_on_place(
  tmp_path, write_tar, pairs, members
):
  def fingerprint(folder, records):
    (tmp_path / folder).mkdir()
    path = write_tar(tmp_path / folder / "a.tar", members(records))
    return sources.open_source(f"wds:{path}").fingerprint

  assert fingerprint("one", pairs(3)) == fingerprint("two", pairs(3))
  assert fingerprint("three", pairs(4)) != fingerprint("four", pairs(3))
