"""What a sample of a WebDataset shard is, and what is wrong with others."""

import csv
import json
import os
import pickle
import tarfile

import pyarrow as pa
import pytest
from pyarrow import parquet

from clip_jax import cli, errors
from clip_jax.data import inspection, prepare, record, sources
from clip_jax.data.sources import kept_index


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
    ([IMAGE, TEXT, ("a.cls", b"\xef\xbb\xbf1")], [None]),
    ([("a.png", b""), TEXT], ["empty_image"]),
    ([IMAGE, ("a.jpg", b"\xff"), TEXT], ["several_images"]),
    (
      [
        (f"{key}.{suffix}", b"x")
        for key in "ab"
        for suffix in ("png", "en.txt", "de.txt")
      ],
      ["several_captions"] * 2,
    ),
    ([IMAGE, OTHER, TEXT], ["parts_not_adjacent", "missing_image"]),
    (
      [IMAGE, TEXT, OTHER, IMAGE, TEXT],
      [None, "missing_image", "duplicate_key"],
    ),
    ([IMAGE, TEXT, IMAGE, TEXT], [None, "duplicate_key"]),
    ([IMAGE, IMAGE, TEXT], ["missing_caption", "duplicate_key"]),
    ([("../a.png", b"x"), ("../a.txt", b"t")], ["unsafe_name"]),
    ([("/etc/a.png", b"x"), ("/etc/a.txt", b"t")], ["unsafe_name"]),
    ([("a\n.png", b"x"), ("a\n.txt", b"t")], ["unsafe_name"]),
    ([("a\x85.png", b"x"), ("a\x85.txt", b"t")], ["unsafe_name"]),
    ([("a.heic", b"x"), TEXT], ["unsupported_image"]),
    ([("a.HEIC", b"x")], ["unsupported_image"]),
    ([("a.pcx", b"x"), TEXT], ["unsupported_image"]),
    ([IMAGE, ("a.heic", b"x"), TEXT], [None]),
  ],
)
def test_each_kind_of_bad_sample_keeps_its_slot(read, members, reasons):
  found = [item if isinstance(item, str) else None for item in read(members)]
  assert found == reasons


LEGAL_KEYS = (
  "犬\u3000写真",
  "Screenshot\u202fPM",
  "a\u00a0b",
  "soft\u00adhyphen",
  "\U0001f468\u200d\U0001f469\u200d\U0001f467",
  "not utf-8 \udcff\udce9",
  "back\\slash",
  "dots...",
)


@pytest.mark.parametrize("kind", ["wds", "folder", "csv"])
def test_keys_may_hold_anything_but_controls(tmp_path, write_tar, png, kind):
  long = "/".join(["directory" * 5] * 8)  # More than 255 bytes.
  keys = [*LEGAL_KEYS, f"{long}/image"]
  refused = ["new\nline", "escape\x1b[2J"]
  folder = tmp_path / "folder"
  if kind == "wds":
    write_tar(
      tmp_path / "a.tar",
      [(f"{k}.{s}", png(0)) for k in keys + refused for s in ("png", "cls")],
    )
    address = f"wds:{tmp_path}/a.tar"
  else:
    for key in keys + refused:
      path = folder / f"{key}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(png(0))
      path.with_suffix(".txt").write_text("a text")
    address = f"folder:{folder}"
  if kind == "csv":
    with open(tmp_path / "a.csv", "w", errors="surrogateescape") as file:
      rows = csv.writer(file)
      rows.writerow(["image", "caption"])
      rows.writerows([f"{key}.png", "a text"] for key in keys + refused)
    address = f"csv:{tmp_path}/a.csv?root=folder"
  source = sources.open_source(address)
  found, bad = [], {}
  for index in range(len(source)):
    try:
      found.append(source[index].key.removesuffix(".png"))
    except sources.BadRecord as error:
      bad[error.key.removesuffix(".png")] = error.reason
  if kind == "wds":  # Its labels are no labels; the names are what matters.
    found = [key for key, reason in bad.items() if reason == "bad_label"]
    bad = {key: bad[key] for key in bad if key not in found}
  assert sorted(found) == sorted(keys)
  assert bad == dict.fromkeys(refused, "unsafe_name")


def test_a_listing_shows_names_escaped(tmp_path, write_tar, capsys):
  names = ["a\u3000b.png", "c\udcff.png", "../d.png", "e\x1b[2J.png", "f\\.png"]
  path = write_tar(tmp_path / "a.tar", [(name, b"x") for name in names])
  assert cli.run(["data", "inspect", f"wds:{path}", "--json"]) in (0, 1)
  out = capsys.readouterr().out
  out.encode("utf-8")
  assert "c\\xff" in [key for key, _ in json.loads(out)["bad_keys"]]
  assert cli.run(["data", "inspect", f"wds:{path}"]) in (0, 1)
  out = capsys.readouterr().out
  for shown in ("a\\u3000b: ", "c\\xff: ", "../d: ", "e\\x1b[2J: ", "f\\\\: "):
    assert f"  {shown}" in out


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
    assert source.account.damages == [
      (str(path), at, "no_end_marker" if cut else reason)
    ]


def test_a_shard_cut_after_it_was_opened_is_noticed(tmp_path, write_tar, png):
  path = write_tar(tmp_path / "a.tar", [("a.txt", b"t"), ("a.png", png(0))])
  source = sources.open_source(f"wds:{path}")
  path.write_bytes(path.read_bytes()[:1600])
  with pytest.raises(errors.UserError, match=r"a\.tar has changed since"):
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
  # Other files that a plain * names are no shards; a link to nothing is one.
  (folder / "notes.txt").write_text("three shards")
  assert read_all(sources.open_source(f"wds:{folder}/*")) == records
  (folder / "0011.tar").symlink_to("gone.tar")
  for pattern in ("*", "*.tar", ""):
    source = sources.open_source(f"wds:{folder}/{pattern}")
    assert read_all(source) == records
    (told,) = source.account.warnings()
    assert (
      "0011.tar is not there, or links to a file that is not: about 2" in told
    )
  (folder / "0011.tar").unlink()
  with pytest.raises(errors.UserError, match=r"0011\.tar' \(and 1 more\)"):
    sources.open_source(f"wds:{folder}/{{0008..0012}}.tar")
  with pytest.raises(errors.UserError, match="No file matches"):
    sources.open_source(f"wds:{folder}/x*.tar")
  with pytest.raises(errors.UserError, match="range"):
    sources.open_source(f"wds:{folder}/{{12..8}}.tar")
  with pytest.raises(errors.UserError, match="at most"):
    sources.open_source(f"wds:{folder}/{{0..99999999999}}.tar")


@pytest.mark.parametrize(
  ("content", "says"),
  [
    (b"", "is empty"),
    (bytes(10240), "is empty"),
    (b"\x1f\x8b gzip or whatever " * 50, "is compressed"),
    (b"<html>not found</html>" * 50, "damaged header"),
  ],
)
def test_a_file_without_samples_is_an_error(tmp_path, content, says):
  (tmp_path / "empty.tar").write_bytes(content)
  with pytest.raises(errors.UserError) as caught:
    sources.open_source(f"wds:{tmp_path}/empty.tar")
  assert "empty.tar' holds no samples" in str(caught.value)
  assert says in str(caught.value)
  assert ("compressed" in str(caught.value)) == (says == "is compressed")


def test_where_no_member_fits_three_names_are_shown(tmp_path, write_tar):
  names = [f"{i}.mp4" for i in range(5)]
  path = write_tar(tmp_path / "a.tar", [(name, b"x") for name in names])
  with pytest.raises(errors.UserError, match=r"'0\.mp4', '1\.mp4', '2\.mp4'\."):
    sources.open_source(f"wds:{path}")
  with pytest.raises(errors.UserError, match=r"no \.tar files.*'b\.tgz'"):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.tgz").write_bytes(b"x")
    sources.open_source(f"wds:{tmp_path}/b")


@pytest.mark.parametrize("glob", ["", "/*"])
@pytest.mark.parametrize("kind", ["wds", "parquet", "arrayrecord"])
def test_files_that_look_like_more_of_the_data_are_told(
  tmp_path, write_tar, png, kind, glob
):
  folder = tmp_path / "all"
  folder.mkdir()
  tar = write_tar(tmp_path / "a.tar", [("a.png", png(0)), ("a.txt", b"a")])
  if kind == "wds":
    first = folder / "0.tar"
    first.write_bytes(tar.read_bytes())
  elif kind == "parquet":
    first = folder / "0.parquet"
    table = pa.table({"image": [png(0)], "caption": ["a"]})
    parquet.write_table(table, first)
  else:
    source = sources.open_source(f"wds:{tar}")
    folder.rmdir()
    prepare.prepare(source, folder, address="a")
    (first,) = folder.glob("*.array_record")
  data, suffix = first.read_bytes(), first.suffix
  (folder / f"1{suffix}.part").write_bytes(data)
  (folder / "more").mkdir()
  (folder / "more" / f"2{suffix}").write_bytes(data)
  (folder / "notes").mkdir()
  (folder / "notes" / "list.txt").write_bytes(b"")
  source = sources.open_source(f"{kind}:{folder}{glob}")
  assert len(source) == 1
  assert source.account.left_out.counts == {"part": 1, "": 1}
  assert source.account.left_out.names[""] == ["more/"]
  if kind == "arrayrecord" and not glob:  # A copy of records of its own.
    (folder / f"3{suffix}").write_bytes(data)
    told = sources.open_source(f"{kind}:{folder}").account.remarks()
    assert f"1 {suffix} ('3{suffix}')" in told[0]


@pytest.mark.parametrize("glob", ["", "/*"])
def test_what_is_no_tar_beside_tars_but_holds_data_is_told(
  tmp_path, write_tar, png, glob
):
  write_tar(tmp_path / "0.tar", [("a.png", png(0)), ("a.txt", b"a")])
  for name in ("b.PNG", "c.Heic", "d.zip", "0_stats.json", "notes.md"):
    (tmp_path / name).write_bytes(b"{}")
  (tmp_path / "far" / "below").mkdir(parents=True)
  write_tar(tmp_path / "far" / "below" / "1.tar", [("b.png", png(0))])
  found = sources.open_source(f"wds:{tmp_path}{glob}").account
  assert found.left_out.counts == {"png": 1, "heic": 1, "zip": 1, "": 1}
  assert found.left_out.names[""] == ["far/"]
  (said,) = found.warnings()
  assert "not read: 1 .png ('b.PNG'), 1 .heic ('c.Heic')" in said


def test_files_that_the_names_of_the_others_count_are_told(
  tmp_path, write_tar, png
):
  def note(address):
    notes = sources.open_source(address).account.notes
    return next((n for n in notes if "not there" in n), None)

  table = pa.table({"image": [png(0)], "caption": ["a"]})
  name = "{}-{:05d}-of-00004{}.parquet"
  for split, number, digest in (
    *(("train", i, "-0123456789abcdef") for i in (0, 3)),
    *(("test", i, "") for i in range(4)),
  ):
    parquet.write_table(table, tmp_path / name.format(split, number, digest))
  address = f"parquet:{tmp_path}"
  first = "as 'train-00001-of-00004.parquet'; get them"
  for each in (address, f"{address}/train", f"{address}/train-*.parquet"):
    assert note(each).startswith("2 files that the names") and first in note(
      each
    )
  # What is complete, and what was named file by file.
  assert note(f"{address}/test") is None
  assert note(f"{address}/{name.format('test', 2, '')}") is None
  tars = tmp_path / "tars"
  tars.mkdir()
  for number in (1, 2):
    write_tar(tars / f"a-{number:05d}-of-00003.tar", [("a.png", png(0))])
  assert "1 file that the names of the others count is" in note(f"wds:{tars}")
  assert note(f"wds:{tars}/a-{{00001..00002}}-of-00003.tar") is None
  # Some count from one on.
  write_tar(tars / "a-00003-of-00003.tar", [("a.png", png(0))])
  assert note(f"wds:{tars}") is None
  (tars / "a-00002-of-00003.tar").unlink()
  assert "as 'a-00002-of-00003.tar'" in note(f"wds:{tars}")


def test_images_in_other_formats_are_told(tmp_path, write_tar, png):
  path = write_tar(tmp_path / "a.tar", [("a.png", png(0)), ("b.HEIC", b"x")])
  found = sources.open_source(f"wds:{path}").account
  (said,) = found.sentences()
  assert "are not read: 1 .heic ('b.HEIC'); convert them" in said
  told = found.to_dict()
  assert told["unread"] == {"heic": 1}
  assert told["unread_names"] == {"heic": ["b.HEIC"]}


def test_members_that_are_not_read_are_counted(tmp_path, write_tar, png):
  members = [("a.png", png(0)), ("a.txt", b"a"), ("a.mask.png", png(1))]
  members += [(f"{i}.img", b"x") for i in range(3)] + [("README", b"x")]
  members += [("._a.png", b"x"), ("a.heic", b"x")]
  write_tar(tmp_path / "a.tar", members)
  (tmp_path / "b.tar.gz").write_bytes(b"x")
  source = sources.open_source(f"wds:{tmp_path}")
  assert len(source) == 1
  told = source.account.to_dict()
  assert told["left_out"] == {"png": 2, "img": 3, "": 1, "heic": 1, "gz": 1}
  assert told["left_out_names"]["img"] == ["0.img", "1.img"]
  images, others = source.account.sentences()
  assert images.startswith("Named like images, but not read")
  assert "2 .png ('a.mask.png', '._a.png')" in images
  assert "1 .heic ('a.heic')" in images and ".img" not in images
  assert "3 .img ('0.img', '1.img')" in others
  assert "1 without a suffix ('README')" in others


@pytest.mark.parametrize("folder", [False, True])
def test_captions_one_a_line_are_proposed(tmp_path, write_tar, png, folder):
  lines = [b"one\ntwo\n", b"one\r\ntwo\r\nthree", "one\u2028on\x85".encode()]
  lines.append(b"one\ntwo\n\n")
  members = [
    member
    for i, text in enumerate(lines)
    for member in [(f"{i}.png", png(i)), (f"{i}.txt", text)]
  ]
  if folder:
    for name, data in members:
      (tmp_path / name).write_bytes(data)
    address = f"folder:{tmp_path}"
  else:
    address = f"wds:{write_tar(tmp_path / 'a.tar', members)}"
  source = sources.open_source(address)
  (note,) = source.account.notes
  assert "3 of 4 captions" in note and "?captions=lines" in note
  assert sources.open_source(f"{address}?captions=text").account.notes == []
  lines = sources.open_source(f"{address}?captions=lines")
  assert lines.account.notes == []
  assert [len(lines[i].texts) for i in range(4)] == [2, 3, 1, 2]


def test_classes_that_are_no_text_are_an_error(tmp_path, write_tar, png):
  path = write_tar(tmp_path / "a.tar", [("a.png", png(0)), ("a.cls", b"1")])
  (tmp_path / "classnames.txt").write_bytes(b"caf\xe9\n")
  with pytest.raises(errors.UserError, match=r"classnames\.txt is not UTF-8"):
    sources.open_source(f"wds:{path}")


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


def test_labels_without_names_say_what_they_need(tmp_path, write_tar, png):
  write_tar(tmp_path / "a.tar", [("0.png", png(0)), ("0.cls", b"3")])
  with pytest.raises(record.BadRecord) as caught:
    sources.open_source(f"wds:{tmp_path}/a.tar")[0]
  assert caught.value.reason == "missing_caption"
  assert "label 3" in caught.value.hint and "?classes=FILE" in caught.value.hint


def test_class_names_given_twice_are_told(tmp_path, write_tar, png):
  write_tar(tmp_path / "a.tar", [("0.png", png(0)), ("0.cls", b"1")])
  (tmp_path / "classnames.txt").write_text("missile\rsunglasses\r\nMissile\n")
  found = inspection.inspect(sources.open_source(f"wds:{tmp_path}/a.tar"))
  assert "the same name" in found["notes"][-1]
  assert "'missile'." in found["notes"][-1]


def test_a_blank_line_among_class_names_is_an_error(tmp_path, write_tar, png):
  path = write_tar(tmp_path / "a.tar", [("a.png", png(0)), ("a.cls", b"1")])
  names = tmp_path / "names.txt"
  names.write_bytes(b"cat\r\n\r\ndog\n")
  with pytest.raises(errors.UserError, match=r"Line 2 .* is blank"):
    sources.open_source(f"wds:{path}?classes={names}")
  names.write_bytes(b"cat\r\ndog\n\n\n")
  source = sources.open_source(f"wds:{path}?classes={names}")
  assert source.class_names == ("cat", "dog")


def test_a_few_texts_of_several_lines_are_told_too(tmp_path, write_tar, png):
  members = [
    member
    for i in range(12)
    for member in [
      (f"{i}.png", png(i)),
      (f"{i}.txt", b"one\ntwo\n" if i < 2 else b"one\n"),
    ]
  ]
  path = write_tar(tmp_path / "a.tar", members)
  (note,) = sources.open_source(f"wds:{path}").account.notes
  assert "2 of 12 captions" in note and "?captions=lines" in note


def test_one_text_of_several_lines_among_hundreds_is_told(
  tmp_path, write_tar, png
):
  members = [
    member
    for i in range(400)
    for member in [
      (f"{i:03d}.png", png(0)),
      (f"{i:03d}.txt", b"one\ntwo" if i == 201 else b"one"),
    ]
  ]
  path = write_tar(tmp_path / "a.tar", members)
  (note,) = sources.open_source(f"wds:{path}").account.notes
  assert "1 of 400 captions" in note and "?captions=lines" in note


@pytest.mark.parametrize("opened", [False, True])
def test_a_tar_that_was_replaced_is_noticed(tmp_path, write_tar, png, opened):
  path = tmp_path / "a.tar"
  write_tar(path, [("a.png", png(0)), ("a.txt", b"one"), ("b.png", png(1))])
  source = sources.open_source(f"wds:{path}")
  if opened:
    assert source[0].texts == ("one",)
  write_tar(path, [("c.png", png(2)), ("c.txt", b"two"), ("b.png", png(3))])
  os.utime(path, (1, 1))
  for each in (source, pickle.loads(pickle.dumps(source))):
    with pytest.raises(errors.UserError, match=r"a\.tar has changed since"):
      each[0]


def test_a_replaced_tar_is_noticed_where_times_have_coarse_steps(
  tmp_path, write_tar, png, monkeypatch
):
  # As on a network's disk: the size and all times are those of before.
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(kept_index, "LEAST_BYTES", 0)
  monkeypatch.setattr(kept_index, "SETTLED_SECONDS", -1e9)
  stamp = kept_index._stamp
  monkeypatch.setattr(
    kept_index,
    "_stamp",
    lambda paths, **how: [
      [size, 0, 0] for size, *_ in stamp(paths, **how) or ()
    ],
  )
  path = tmp_path / "a.tar"
  write_tar(path, [("a.png", png(0)), ("a.txt", b"a longer text")])
  os.utime(path, (1, 1))
  assert sources.open_source(f"wds:{path}")[0].texts == ("a longer text",)
  size = path.stat().st_size
  write_tar(path, [("a.txt", b"short"), ("a.png", png(0))])
  os.utime(path, (1, 1))
  assert path.stat().st_size == size
  with pytest.raises(errors.UserError, match=r"a\.tar has changed since"):
    sources.open_source(f"wds:{path}")[0]
  assert sources.open_source(f"wds:{path}")[0].texts == ("short",)


@pytest.mark.parametrize("inner", ["0.tar", "d/shard.TAR.gz", "x.tgz"])
def test_a_tar_of_tars_says_to_unpack_it(tmp_path, write_tar, inner):
  path = write_tar(tmp_path / "a.tar", [(inner, b"x"), ("README", b"y")])
  with pytest.raises(errors.UserError, match="unpack it by `tar -xf`"):
    sources.open_source(f"wds:{path}")


def test_a_tar_without_samples_says_nothing_of_tars(tmp_path, write_tar):
  path = write_tar(tmp_path / "a.tar", [("a.tar.md5", b"x"), ("b.npz.gz", b"")])
  with pytest.raises(errors.UserError, match="holds no samples") as caught:
    sources.open_source(f"wds:{path}")
  assert "unpack" not in str(caught.value)


def test_parts_that_are_apart_say_how_to_pack_them(read_all, tmp_path, capsys):
  with tarfile.open(tmp_path / "a.tar", "w") as tar:
    for name in ("0.png", "1.png", "0.txt", "1.txt"):
      tar.addfile(tarfile.TarInfo(name))
  with pytest.raises(SystemExit):
    cli.main(["data", "inspect", f"wds:{tmp_path}/a.tar"])
  assert (
    "parts_not_adjacent: the parts of a sample must follow one another"
    in (capsys.readouterr().out)
  )
