"""One content in every format gives the same records; addresses are checked."""

import csv
import json
import os
import pathlib

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from clip_jax import errors
from clip_jax.cli import flags
from clip_jax.data import prepare, schemes, sources
from clip_jax.data.sources import captions

ROOT = pathlib.Path(__file__).parents[2]


def _write_files(root, records):
  root.mkdir()
  for record in records:
    (root / f"{record.key}.png").write_bytes(record.image)
    (root / f"{record.key}.txt").write_text(record.texts[0], "utf-8")


def _write_table(path, records, header, delimiter):
  with open(path, "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerow(header)
    for record in records:
      writer.writerow([f"{record.key}.png", record.texts[0]])


def test_every_scheme_is_told():
  page = (ROOT / "docs/data.md").read_text("utf-8")
  for scheme in schemes.SCHEMES:
    assert f"{scheme}:" in flags.DATA
    assert f"\n| `{scheme}:" in page


def test_every_format_gives_the_same_records(
  tmp_path, pairs, write_tar, members
):
  records = pairs(5)
  files = tmp_path / "files"
  _write_files(files, records)
  _write_table(files / "pairs.csv", records, ["filepath", "title"], ",")
  _write_table(files / "captions.txt", records, ["image", "caption"], ",")
  _write_table(tmp_path / "own.tsv", records, ["where", "what"], "\t")
  write_tar(tmp_path / "0.tar", members(records[:2]))
  write_tar(tmp_path / "1.tar", members(records[2:]))
  prepare.prepare(
    sources.open_source(f"wds:{tmp_path}/{{0..1}}.tar"), tmp_path / "prepared"
  )
  for address in (
    f"folder:{files}",
    f"csv:{files}/pairs.csv",
    f"csv:{files}/captions.txt",
    f"csv:{tmp_path}/own.tsv?image=where&caption=what&root={files}",
    f"wds:{tmp_path}/{{0..1}}.tar",
    f"arrayrecord:{tmp_path}/prepared",
    f"arrayrecord:{tmp_path}/prepared/*.array_record",
  ):
    source = sources.open_source(address)
    if address.startswith("folder"):
      # The tables in the folder are texts without an image.
      assert [source[i].key for i in range(1, 6)] == [r.key for r in records]
      found = [source[i] for i in range(1, 6)]
    else:
      found = [source[i] for i in range(len(source))]
    assert [(r.image, r.texts, r.label) for r in found] == [
      (r.image, r.texts, r.label) for r in records
    ], address
    with pytest.raises(IndexError):
      source[len(source)]
    with pytest.raises(IndexError):
      source[-1]


@pytest.mark.parametrize(
  ("address", "message"),
  [
    ("runs/demo", "no scheme"),
    ("wsd:a.tar", "Did you mean 'wds'"),
    ("wds:", "names no data"),
    ("wds:a.tar?caption=lines", "Did you mean 'captions'"),
    ("wds:nowhere.tar?captions=some", "nowhere.tar"),
    ("builtin:digit/train", "Did you mean 'digits'"),
    ("builtin:digits/unseen", "builtin:digits/test"),
    ("builtin:two_digits", "builtin:two_digits/unseen"),
    ("builtin:digits/train?a=b", "Unknown option of builtin:"),
    (
      "csv:a?classes=x",
      "classes= is an option of .*parquet:.*csv: takes image, ",
    ),
    ("wds:a.tar?root=x", "root= is an option of .*; wds: takes captions"),
    ("csv:a?image=x&sep=tab&image=y", "gives image= twice"),
    ("builtin:digits/train?split=train&split=held_out", "gives split= twice"),
    ("builtin:digits/train?split=test", "Known: held_out, train"),
    ("builtin:digits/train?held_out=0.1", "goes with split=train"),
    ("builtin:digits/train?split=train&held_out=1", "between 0 and 1"),
    ("csv:nowhere.csv", "not a file"),
    ("folder:nowhere", "not a directory"),
    ("arrayrecord:nowhere", "does not exist"),
  ],
)
def test_a_wrong_address_is_a_clear_error(address, message):
  with pytest.raises(errors.UserError, match=message):
    sources.open_source(address)


@pytest.mark.parametrize(
  ("address", "parts"),
  [
    ("wds:/a b/00??.tar", ("wds", "/a b/00??.tar", {})),
    (
      "csv:x?y.csv?sep=tab&root=/a%26b/c=d",
      ("csv", "x?y.csv", {"sep": "tab", "root": "/a&b/c=d"}),
    ),
    ("folder:C:/x", ("folder", "C:/x", {})),
  ],
)
def test_addresses_are_split_into_scheme_path_and_options(address, parts):
  assert sources.parse_address(address) == parts


def test_class_folders_give_labels_and_names(tmp_path, png):
  for i, name in enumerate(
    ["tiger_cat/x/1.png", "tiger_cat/0.PNG", "ant/2.jpeg", "ant/.hidden.png"]
  ):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(i))
  (tmp_path / "ant" / "notes.md").write_text("no image")
  source = sources.open_source(f"folder:{tmp_path}")
  assert source.class_names == ("ant", "tiger cat")
  assert [source[i] for i in range(len(source))] == [
    sources.Record(png(2), ("ant",), "ant/2.jpeg", 0),
    sources.Record(png(1), ("tiger cat",), "tiger_cat/0.PNG", 1),
    sources.Record(png(0), ("tiger cat",), "tiger_cat/x/1.png", 1),
  ]


def test_a_folder_that_links_to_itself_is_walked_once(tmp_path, png):
  (tmp_path / "ant").mkdir()
  (tmp_path / "ant" / "0.png").write_bytes(png(0))
  os.symlink(tmp_path, tmp_path / "ant" / "again")
  assert len(sources.open_source(f"folder:{tmp_path}")) == 1


def test_several_columns_of_a_text_table_are_refused_with_what_to_do(tmp_path):
  (tmp_path / "p.csv").write_text("image,alt,made\na.png,one,two\n")
  with pytest.raises(errors.UserError, match="from one column") as raised:
    sources.open_source(f"csv:{tmp_path}/p.csv?caption=alt,made")
  assert f'"csv:{tmp_path}/p.csv?caption=made": 1}}' in str(raised.value)
  with pytest.raises(errors.UserError, match="has no column 'alt,none'"):
    sources.open_source(f"csv:{tmp_path}/p.csv?caption=alt,none")


def test_a_folder_needs_images_in_classes_or_with_captions(tmp_path, png):
  with pytest.raises(errors.UserError, match="holds no images"):
    sources.open_source(f"folder:{tmp_path}")
  (tmp_path / "0.png").write_bytes(png(0))
  with pytest.raises(errors.UserError, match=r"outside.*'0\.png'"):
    sources.open_source(f"folder:{tmp_path}")
  with pytest.raises(errors.UserError, match="Known: captions, classes"):
    sources.open_source(f"folder:{tmp_path}?layout=flat")


def test_a_caption_folder_keeps_the_slots_of_bad_samples(
  tmp_path, png, read_all
):
  for name, data in {
    "a.png": png(0),
    "a.txt": b"text",
    "b.png": png(1),
    "c.txt": b"text",
    "d.png": b"",
    "d.txt": b"text",
    "e.jpg": png(2),
    "e.png": png(2),
    "e.txt": b"text",
    "sub/f.json": b'{"caption": ["one", "two"]}',
    "sub/f.gif": png(3),
    "g.txt": b"\xff",
    "g.png": png(4),
  }.items():
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
  items = read_all(sources.open_source(f"folder:{tmp_path}"))
  assert items == [
    sources.Record(png(0), ("text",), "a"),
    "missing_caption",
    "missing_image",
    "empty_image",
    "several_images",
    "not_utf8",
    sources.Record(png(3), ("one", "two"), "sub/f"),
  ]


def _table(tmp_path, text, encoding="utf-8"):
  path = tmp_path / "pairs with space.csv"
  path.write_bytes(text.encode(encoding, "surrogateescape"))
  return path


def test_rows_of_an_image_become_one_record(tmp_path, png, read_all):
  (tmp_path / "Images").mkdir()
  for i, name in enumerate("ab"):
    (tmp_path / "Images" / f"{name}.jpg").write_bytes(png(i))
  path = _table(
    tmp_path,
    "\ufeffimage,caption\n"
    'a.jpg,"One, two ."\n'
    "b.jpg,three\n"
    "a.jpg,four, not quoted\n"
    "\n"
    "a.jpg, \n",
  )
  assert read_all(sources.open_source(f"csv:{path}")) == [
    sources.Record(png(0), ("One, two .", "four, not quoted"), "a.jpg"),
    sources.Record(png(1), ("three",), "b.jpg"),
  ]


def test_bad_rows_keep_their_slots(tmp_path, png, read_all):
  (tmp_path / "a.jpg").write_bytes(png(0))
  (tmp_path / "dir.jpg").mkdir()
  path = _table(
    tmp_path,
    "n,filepath,title\n0,a.jpg,fine\n1,gone.jpg,x\n2,,no image\n3,dir.jpg,x\n"
    "4,a.jpg\n5,b.jpg, \n6,c.jpg,\udcff\n7,a.jpg/b,x\n8,,none\n",
  )
  assert read_all(sources.open_source(f"csv:{path}")) == [
    sources.Record(png(0), ("fine",), "a.jpg"),
    "missing_file",
    "missing_image",
    "not_a_file",
    "empty_caption",
    "not_utf8",
    "missing_file",
    "missing_image",
  ]


def test_a_wrong_column_is_an_error_that_lists_the_columns(tmp_path):
  path = _table(tmp_path, "url,words\na,b\n")
  with pytest.raises(errors.UserError, match=r"'url', 'words'.*image=COLUMN"):
    sources.open_source(f"csv:{path}")
  with pytest.raises(errors.UserError, match=r"no column 'word'.*caption=COL"):
    sources.open_source(f"csv:{path}?image=url&caption=word")


@pytest.mark.parametrize(
  ("text", "options", "message"),
  [
    ("", "", "is empty"),
    ("image,caption\n", "", "header and no rows"),
    ('image,caption\na,"never closed\nb,c\n', "", "quote=none"),
    ('image,caption\na,"x"y\n', "", "quote=none"),
    ("image,caption\na,b\n", "?sep=dot", "Known: comma"),
    ("image,caption\na,b\n", "?quote=all", "Known: none"),
    ("image,caption\na,b\n", "?root=/nowhere", "not a directory"),
  ],
)
def test_a_table_that_cannot_be_read_is_a_clear_error(
  tmp_path, text, options, message
):
  with pytest.raises(errors.UserError, match=message):
    sources.open_source(f"csv:{_table(tmp_path, text)}{options}")


def test_quotes_are_letters_where_asked_for(tmp_path, png):
  (tmp_path / "a").write_bytes(png(0))
  path = _table(tmp_path, 'image|caption\na|"x"y, z\n')
  source = sources.open_source(f"csv:{path}?sep=pipe&quote=none")
  assert source[0].texts == ('"x"y, z',)


def test_reading_is_safe_in_threads(tmp_path, pairs, write_tar, members):
  from concurrent import futures

  records = pairs(8)
  write_tar(tmp_path / "a.tar", members(records))
  prepare.prepare(sources.open_source(f"wds:{tmp_path}"), tmp_path / "copy")
  order = np.random.default_rng(0).integers(0, 8, 400).tolist()
  for address in (f"wds:{tmp_path}", f"arrayrecord:{tmp_path / 'copy'}"):
    source = sources.open_source(address)
    with futures.ThreadPoolExecutor(8) as pool:
      found = list(pool.map(source.__getitem__, order))
    assert found == [records[i] for i in order]


def test_the_root_of_a_table_is_relative_to_the_table_first(
  tmp_path, monkeypatch
):
  (tmp_path / "table" / "Images").mkdir(parents=True)
  (tmp_path / "here" / "Images").mkdir(parents=True)
  (tmp_path / "here" / "others").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  table = tmp_path / "table" / "pairs.csv"
  table.write_text("image,caption\na.png,a\n")
  image = (tmp_path / "table" / "Images" / "a.png", b"beside the table")
  other = (tmp_path / "here" / "others" / "a.png", b"from here")
  for root, (path, content) in {"Images": image, "others": other}.items():
    path.write_bytes(content)
    assert sources.open_source(f"csv:{table}?root={root}")[0].image == content


def test_rows_with_more_fields_than_the_header_are_told(tmp_path, png):
  (tmp_path / "a.png").write_bytes(png(0))
  table = tmp_path / "pairs.csv"
  table.write_text("image,caption,source\na.png,x,web\na.png,one, two,web\n")
  (note,) = sources.open_source(f"csv:{table}").account.notes
  assert "1 row has more fields than the header's 3, the first is row 2" in note


def test_a_caption_is_too_large_at_the_same_bytes_everywhere(
  tmp_path, png, write_tar, read_all
):
  most = captions.MAX_TEXT_BYTES
  texts = ["é" * (most // 2), "é" * (most // 2) + "x", "犬" * (most // 2)]
  files = tmp_path / "files"
  files.mkdir()
  members = []
  for i, text in enumerate(texts):
    (files / f"{i}.png").write_bytes(png(i))
    (files / f"{i}.txt").write_text(text, "utf-8")
    members += [(f"{i}.png", png(i)), (f"{i}.txt", text.encode())]
  write_tar(tmp_path / "a.tar", members)
  rows = [f'{i}.png,"{text}"' for i, text in enumerate(texts)]
  (files / "a.csv").write_text("\n".join(["image,caption", *rows]), "utf-8")
  table = pa.table({"image": [png(i) for i in range(3)], "caption": texts})
  pq.write_table(table, tmp_path / "a.parquet")
  coco = {
    "images": [{"id": i, "file_name": f"{i}.png"} for i in range(3)],
    "annotations": [
      {"image_id": i, "caption": text} for i, text in enumerate(texts)
    ],
  }
  (files / "coco.json").write_text(json.dumps(coco))
  for address in (
    f"wds:{tmp_path}/a.tar",
    f"csv:{files}/a.csv",
    f"parquet:{tmp_path}/a.parquet",
    f"coco:{files}/coco.json",
    f"folder:{files}",
  ):
    found = read_all(sources.open_source(address))[:3]
    assert found[0].texts == (texts[0],), address
    assert found[1:] == ["too_large"] * 2, address
