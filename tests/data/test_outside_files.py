"""Files that a table or a folder names: pipes, devices, links and strangers."""

import csv
import gzip
import json
import os
import pickle
import socket
import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from clip_jax import cli, errors, preprocess, regular_files
from clip_jax.data import inspection, prepare, record, sources
from clip_jax.data.sources import array_record


@pytest.fixture
def odd_files(tmp_path, png):
  """Returns a folder of things that are no image, and a table of them."""
  secret = tmp_path / "secret.png"
  secret.write_bytes(png(9))
  root = tmp_path / "data"
  root.mkdir()
  (root / "good.png").write_bytes(png(0))
  (root / "inside.png").symlink_to("good.png")
  (root / "outside.png").symlink_to(secret)
  (root / "loop.png").symlink_to("loop.png")
  (root / "gone.png").symlink_to("nowhere.png")
  os.mkfifo(root / "pipe.png")
  (root / "pipe_link.png").symlink_to("pipe.png")
  (root / "null.png").symlink_to("/dev/null")
  (root / "dir.png").mkdir()
  rows = {
    "good.png": None,
    "inside.png": None,
    "outside.png": "link_leads_outside",
    "loop.png": "missing_file",
    "gone.png": "missing_file",
    "pipe.png": "not_a_file",
    "pipe_link.png": "not_a_file",
    "null.png": "not_a_file",
    "dir.png": "not_a_file",
    "/dev/zero": "not_a_file",
    "/dev/stdin": "not_a_file",
    "/proc/self/environ": "empty_image",
    "../secret.png": "unsafe_name",
    "dir.png/../good.png": "unsafe_name",
    str(secret): None,
  }
  (root / "pairs.csv").write_text(
    "".join(f"{name},x\n" for name in ("image,caption", *rows)).replace(
      "caption,x", "caption", 1
    )
  )
  return root, rows


def _reasons(source):
  reasons = []
  for i in range(len(source)):
    try:
      source[i]
      reasons.append(None)
    except sources.BadRecord as error:
      reasons.append(error.reason)
  return reasons


def test_a_table_opens_regular_files_only(odd_files, monkeypatch):
  root, rows = odd_files
  read, write = os.pipe()
  monkeypatch.setattr(sys, "stdin", None)
  saved = os.dup(0)
  os.dup2(read, 0)  # /dev/stdin would be waited for.
  try:
    found = _reasons(sources.open_source(f"csv:{root / 'pairs.csv'}"))
  finally:
    os.dup2(saved, 0)
    for descriptor in (saved, read, write):
      os.close(descriptor)
  assert dict(zip(rows, found, strict=True)) == rows


def test_links_lead_outside_on_request(odd_files, png):
  root, rows = odd_files
  address = f"csv:{root / 'pairs.csv'}?links=follow"
  source = sources.open_source(address)
  number = list(rows).index("outside.png")
  assert source[number].image == png(9)
  found = dict(zip(rows, _reasons(source), strict=True))
  assert found["loop.png"] == "missing_file"
  assert found["../secret.png"] is None
  assert found["dir.png/../good.png"] is None


def test_a_table_and_a_tar_agree_on_names_that_climb(
  tmp_path, write_tar, png, capsys
):
  (tmp_path / "x.png").write_bytes(png(0))
  (tmp_path / "data").mkdir()
  table = tmp_path / "data" / "t.csv"
  table.write_text("image,caption\n../x.png,a\n")
  members = [("../x.png", png(0)), ("../x.txt", b"a")]
  tar = write_tar(tmp_path / "data" / "t.tar", members)
  for address in (f"csv:{table}", f"wds:{tar}"):
    assert cli.run(["data", "inspect", address]) == 1
    out = capsys.readouterr().out
    assert "../x" in out
    assert "unsafe_name: a name may hold no `..`" in out
    assert "?links=follow" in out
  assert cli.run(["data", "inspect", f"csv:{table}?links=follow"]) == 0


@pytest.mark.parametrize("layout", ["classes", "captions"])
def test_links_out_of_a_folder_are_refused_unless_asked_for(
  layout, tmp_path, png
):
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "elsewhere" / "b.png").write_bytes(png(1))
  root = tmp_path / "data" / "ant"
  root.mkdir(parents=True)
  (root / "a.png").write_bytes(png(0))
  (root / "b.png").symlink_to(tmp_path / "elsewhere" / "b.png")
  if layout == "captions":
    for name in "ab":
      (root / f"{name}.txt").write_text("text")
  (tmp_path / "link").symlink_to(tmp_path / "data")
  (root / "up").symlink_to(tmp_path)  # Its files are not listed even.
  for place in ("data", "link"):
    address = f"folder:{tmp_path / place}"
    assert _reasons(sources.open_source(address)) == [
      None,
      "link_leads_outside",
    ]
    with pytest.raises(sources.BadRecord) as caught:
      sources.open_source(address)[1]
    assert "add ?links=follow to the address" in caught.value.hint
    note, *_ = sources.open_source(address).account.notes
    assert "'ant/up'; add ?links=follow" in note
    source = sources.open_source(f"{address}?links=follow&layout={layout}")
    assert _reasons(source)[:2] == [None, None]
    assert len(source) > 2
  with pytest.raises(ValueError, match="Known: follow"):
    sources.open_source(f"{address}?links=all")


def test_a_folder_of_links_alone_says_that_they_lead_outside(tmp_path, png):
  (tmp_path / "elsewhere").mkdir()
  (tmp_path / "elsewhere" / "a.png").write_bytes(png(0))
  root = tmp_path / "data"
  root.mkdir()
  (root / "ant").symlink_to(tmp_path / "elsewhere")
  with pytest.raises(errors.UserError, match=r"'ant'; add \?links=follow"):
    sources.open_source(f"folder:{root}")
  source = sources.open_source(f"folder:{root}?links=follow")
  assert source.class_names == ("ant",)


@pytest.mark.parametrize("link", ["ant", "cat", "bee/ant"])
def test_a_folder_is_read_by_its_own_name_not_by_a_links(link, tmp_path, png):
  for name in ("bee", "bug"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.png").write_bytes(png(0))
  (tmp_path / link).symlink_to(tmp_path / "bug")
  source = sources.open_source(f"folder:{tmp_path}?layout=classes")
  assert [source[i].label for i in range(len(source))] == [0, 1]
  assert source.class_names == ("bee", "bug")


def test_a_socket_is_no_regular_file(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with socket.socket(socket.AF_UNIX) as listener:
    listener.bind("s")
    with pytest.raises(regular_files.NotRegularError):
      regular_files.open_regular("s")


def test_an_image_that_is_a_pipe_is_refused_at_once(tmp_path):
  os.mkfifo(tmp_path / "pipe.png")
  with pytest.raises(preprocess.ImageError, match="not a regular file"):
    preprocess.decode(tmp_path / "pipe.png")


def test_a_strangers_table_carries_no_file_into_a_copy(tmp_path, png):
  (tmp_path / "passwd").write_text("root:x:0:0:a secret of this machine\n")
  # Nor one that only begins as an image.
  (tmp_path / "fake").write_bytes(b"\xff\xd8\xff\xe0 a secret, too")
  (tmp_path / "good.png").write_bytes(png(0))
  table = tmp_path / "pairs.csv"
  table.write_text(
    f"image,caption\n{tmp_path}/passwd,x\n{tmp_path}/fake,x\ngood.png,x\n"
    "/etc/passwd,x\n"
  )
  source = sources.open_source(f"csv:{table}")
  summary = prepare.prepare(source, tmp_path / "copy")
  assert summary["bad"] == {"not_an_image": 2, "truncated": 1}
  for path in (tmp_path / "copy").iterdir():
    assert b"secret" not in path.read_bytes()
    assert b"root:" not in path.read_bytes()


def _run(*words):
  """Returns the exit code of a command."""
  return cli.run([*words, "--json"])


def _table(tmp_path, text, png, encoding="utf-8"):
  for i, name in enumerate("abc"):
    (tmp_path / name).write_bytes(png(i))
  path = tmp_path / "pairs.csv"
  path.write_bytes(text.encode(encoding))
  return path


def test_a_quote_that_swallows_rows_is_told(tmp_path, png, capsys):
  path = _table(
    tmp_path,
    'image,caption\nc,"one, two"\n\na,"5 inch\nb,x\nc,7"\nb,last\n',
    png,
  )
  source = sources.open_source(f"csv:{path}")
  assert len(source) == 3
  (note,) = source.account.notes
  assert note.startswith("Row 2 (lines 4 to 6)")
  assert "?quote=none" in note
  assert _run("data", "inspect", f"csv:{path}") == 0
  assert json.loads(capsys.readouterr().out)["notes"] == [note]
  path.write_text('image,caption\na,"5\nb,7"\nb,"x\nc,7"\n')
  (note,) = sources.open_source(f"csv:{path}").account.notes
  assert "contains the separator, and so has 1 more row. If" in note
  path.write_text('image,caption\na,"two\nlines"\nb,"one, two"\n')
  assert not sources.open_source(f"csv:{path}").account.notes


@pytest.mark.parametrize(
  ("captions", "told"),
  [
    (["['a cat', 'it sleeps']", '["a dog"]', "[]"], 3),
    (["['a cat', 'it sleeps']", '["a dog"]', "a bird"], 2),
    (["['a cat']", "[sic] a dog", "a bird [left]"], 0),
  ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_lists_that_were_written_as_texts_are_told(
  tmp_path, png, kind, captions, told
):
  names = [f"{i}.png" for i in range(3)]
  for name in names:
    (tmp_path / name).write_bytes(png(1))
  path = tmp_path / f"table.{kind}"
  if kind == "csv":
    with path.open("w", newline="") as file:
      rows = zip(names, captions, strict=True)
      csv.writer(file).writerows([("image", "caption"), *rows])
  else:
    table = pa.table({"image_path": names, "caption": captions})
    parquet.write_table(table, path)
  source = sources.open_source(f"{kind}:{path}")
  assert [source[i].texts for i in range(3)] == [(x,) for x in captions]
  notes = [x for x in source.account.notes if "written as a text" in x]
  assert len(notes) == bool(told)
  for note in notes:
    assert note.startswith(f"{told} of 3 captions looked at are lists")


@pytest.mark.parametrize(
  ("captions", "told"),
  [
    (["a nan bread", "None of it", "null hypothesis"], ""),
    (
      ["a dog", "nan", "None"],
      "2 of 3 captions looked at stand for none, such",
    ),
    (["a dog", "a cat", " NULL "], "1 of 3 captions looked at stands for none"),
  ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_captions_that_stand_for_none_are_told(
  tmp_path, png, kind, captions, told
):
  names = [f"{i}.png" for i in range(3)]
  for name in names:
    (tmp_path / name).write_bytes(png(1))
  path = tmp_path / f"table.{kind}"
  if kind == "csv":
    rows = zip(["image", *names], ["caption", *captions], strict=True)
    path.write_text("".join(f"{a},{b}\n" for a, b in rows))
  else:
    table = pa.table({"image_path": names, "caption": captions})
    parquet.write_table(table, path)
  source = sources.open_source(f"{kind}:{path}")
  assert [source[i].texts for i in range(3)] == [(x.strip(),) for x in captions]
  notes = [x for x in source.account.notes if "for none, such as" in x]
  assert len(notes) == bool(told)
  assert all(note.startswith(told) for note in notes)


def test_rows_without_a_caption_are_told(tmp_path, png):
  path = _table(tmp_path, "image,caption\na,one\na,\na\nb,two\n", png)
  source = sources.open_source(f"csv:{path}")
  (note,) = source.account.notes
  assert note.startswith("2 rows have no caption, the first for the image 'a'")
  assert source[0].texts == ("one",)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_recognised_and_told(tmp_path, png, encoding):
  path = _table(tmp_path, "image,caption\na,caf\u00e9 \u72ac\n", png, encoding)
  source = sources.open_source(f"csv:{path}")
  assert source[0].texts == ("caf\u00e9 \u72ac",)
  (note,) = source.account.notes
  assert "read as UTF-16" in note


def test_bytes_that_are_no_utf_16_cost_one_row(tmp_path, png):
  path = _table(tmp_path, "image,caption\na,one\nb,two\n", png, "utf-16-le")
  content = path.read_bytes()
  broken = content.replace("n".encode("utf-16-le") + b"e\0\n", b"\0\xd8e\0\n")
  assert broken != content
  path.write_bytes(broken)
  source = sources.open_source(f"csv:{path}")
  assert _reasons(source) == ["not_utf8", None]


def test_a_long_field_costs_one_row(tmp_path, png):
  path = _table(
    tmp_path,
    f"image,caption\na,{'x' * 2_000_000}\nb,{'y' * 200_000}\nb,z\n"
    f"{'n' * 2_000_000},x\n",
    png,
  )
  source = sources.open_source(f"csv:{path}")
  assert _reasons(source) == ["too_large", None, "missing_image"]
  assert source[1].texts == ("y" * 200_000, "z")


def test_inspect_shows_the_path_that_was_tried(tmp_path, png, capsys):
  path = _table(tmp_path, "image,caption\nimg/a,x\nimg/b,x\n", png)
  assert _run("data", "inspect", f"csv:{path}") == 1
  found = json.loads(capsys.readouterr().out)
  assert found["good"] == 0
  (hint,) = found["hints"].values()
  assert f"{tmp_path}/img/a was tried" in hint
  assert "?root=DIR" in hint


@pytest.mark.parametrize("verb", ["inspect", "prepare"])
def test_max_pixels_is_a_flag_of_the_data_verbs(tmp_path, png, capsys, verb):
  path = _table(tmp_path, "image,caption\na,x\n", png)
  out = [str(tmp_path / "copy")] if verb == "prepare" else []
  # No record is good.
  assert _run("data", verb, f"csv:{path}", *out, "--max-pixels", "3") == 1
  found = json.loads(capsys.readouterr().out)
  assert found["bad"] == {"too_many_pixels": 1}
  if verb == "inspect":
    (hint,) = found["hints"].values()
    assert "--max-pixels N" in hint and "data.max_pixels" in hint


def test_a_pipe_as_config_of_a_model_is_refused_at_once(tmp_path):
  os.mkfifo(tmp_path / "config.json")
  done = subprocess.run(
    [
      *(sys.executable, "-m", "clip_jax", "convert"),
      *(tmp_path, tmp_path / "out", "--to", "clip-jax"),
    ],
    capture_output=True,
    timeout=60,
  )
  assert done.returncode == 1
  assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["b.tar", "sizes.json", "classnames.txt"])
def test_a_pipe_among_shards_is_not_waited_for(tmp_path, write_tar, png, name):
  (tmp_path / "data").mkdir()
  write_tar(tmp_path / "data/a.tar", [("a.png", png(0)), ("a.cls", b"0")])
  os.mkfifo(tmp_path / "data" / name)
  address = f"wds:{tmp_path}/data"
  if name == "classnames.txt":  # Beside shards, what is no file is passed over.
    address += f"?classes={tmp_path}/data/{name}"
  done = subprocess.run(
    [sys.executable, "-m", "clip_jax", "data", "inspect", address],
    capture_output=True,
    timeout=60,
  )
  assert b"Traceback" not in done.stderr
  if name == "sizes.json":
    assert b"1 record," in done.stdout
  else:
    assert done.returncode == 1
    assert f"{name} is not a regular file".encode() in done.stderr


@pytest.mark.parametrize("classes", ["nowhere.txt", ".", "empty.txt"])
def test_classes_that_cannot_be_read_are_named(
  tmp_path, write_tar, png, classes
):
  write_tar(tmp_path / "a.tar", [("a.png", png(0)), ("a.cls", b"0")])
  (tmp_path / "empty.txt").write_text("\n")
  path = tmp_path / classes
  with pytest.raises(ValueError, match=f"{path} (cannot be read|names no)"):
    sources.open_source(f"wds:{tmp_path}/a.tar?classes={path}")


@pytest.mark.parametrize(
  "data", [gzip.compress(b"image,caption\n", mtime=0), b"PAR1\0"]
)
def test_a_table_that_is_no_text_is_called_so(tmp_path, data):
  (tmp_path / "pairs.csv").write_bytes(data)
  with pytest.raises(ValueError, match="is no text"):
    sources.open_source(f"csv:{tmp_path}/pairs.csv")


def test_backslashes_in_a_path_are_told(tmp_path, png):
  path = _table(tmp_path, "image,caption\nimg\\a,x\n", png)
  with pytest.raises(sources.BadRecord) as caught:
    sources.open_source(f"csv:{path}")[0]
  assert "write / in place of the backslashes" in caught.value.hint


def test_prepare_says_why_records_are_bad(tmp_path, png, capsys):
  path = _table(tmp_path, "image,caption\na,x\nnowhere,x\nb,\n", png)
  assert cli.run(["data", "prepare", f"csv:{path}", str(tmp_path / "out")]) == 0
  assert (
    "3 records, 2 of them bad (1 missing_file, 1 empty_caption)"
    in capsys.readouterr().out
  )


@pytest.mark.parametrize(
  "table",
  [
    "filepath;title\n0.png;a, b\n",
    "image_name| comment_number| comment\n0.png| 0| a, b\n",
    "sep=;\nimage;caption\n0.png;a, b\n",
    "\ufeffsep=,\r\nFilepath,Title\r\n0.png,a, b\r\n",
    "IMAGE\tCAPTION\n0.png\ta, b\n",
    'file_name,text\n0.png,"a, b"\n',
  ],
)
def test_other_separators_and_capitals_are_known(tmp_path, png, table):
  (tmp_path / "0.png").write_bytes(png(0))
  (tmp_path / "pairs.csv").write_text(table, newline="")
  (record,) = sources.open_source(f"csv:{tmp_path}/pairs.csv")
  assert [text.strip() for text in record.texts] == ["a, b"]


def test_a_column_of_the_very_name_goes_first(tmp_path, png):
  (tmp_path / "0.png").write_bytes(png(0))
  path = tmp_path / "pairs.csv"
  path.write_text("Image,image,Caption,caption\n1.png,0.png,wrong,right\n")
  (record,) = sources.open_source(f"csv:{path}")
  assert record.texts == ("right",)
  path.write_text("Image,IMAGE,caption\n1.png,0.png,a\n")
  with pytest.raises(errors.UserError, match="no column 'filepath' or 'image'"):
    sources.open_source(f"csv:{path}")


@pytest.mark.parametrize(
  ("header", "options", "text", "told"),
  [
    ("image,Caption,title", "", "right", "from the column 'title', not from"),
    ("image,Caption,title", "?caption=Caption", "left", None),
    ("image,caption,Caption", "", "left", "'Caption'; choose with ?caption="),
    ("image,caption,filepath", "", "left", "The images are read from"),
    ("image,caption,notes", "", "left", None),
  ],
)
def test_columns_that_might_be_meant_as_well_are_told(
  tmp_path, png, header, options, text, told
):
  (tmp_path / "x.png").write_bytes(png(0))
  table = tmp_path / "pairs.csv"
  last = "x.png" if header.endswith("filepath") else "right"
  table.write_text(f"{header}\nx.png,left,{last}\n")
  source = sources.open_source(f"csv:{table}{options}")
  assert source[0].texts == (text,)
  assert [told in note for note in source.account.notes] == [True] * bool(told)


@pytest.mark.parametrize("options", ["", "?caption=caption"])
def test_two_columns_of_one_name_are_refused(tmp_path, options):
  table = tmp_path / "pairs.csv"
  table.write_text("image,caption,caption\nx.png,a,b\n")
  with pytest.raises(errors.UserError, match=r"2 columns .* 'caption'; rename"):
    sources.open_source(f"csv:{table}{options}")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
  ("scheme", "name"),
  [
    *(("wds", "a.tar"), ("csv", "a.csv"), ("coco", "a.json")),
    *(("parquet", "a.parquet"), ("hf", "data.arrow")),
  ],
)
def test_a_pointer_of_git_lfs_is_called_so(tmp_path, scheme, name):
  (tmp_path / name).write_bytes(POINTER)
  with pytest.raises(errors.UserError, match="is a pointer of Git LFS"):
    sources.open_source(f"{scheme}:{tmp_path / name}")


def test_an_image_that_is_a_pointer_of_git_lfs_is_called_so(tmp_path, png):
  (tmp_path / "cat").mkdir()
  (tmp_path / "cat" / "0.png").write_bytes(POINTER)
  (tmp_path / "cat" / "1.png").write_bytes(png(1))
  found = inspection.inspect(sources.open_source(f"folder:{tmp_path}"))
  assert found["bad"] == {"lfs_pointer": 1}
  assert "git lfs pull" in found["hints"]["lfs_pointer"]


@pytest.mark.parametrize("kind", ["parquet", "arrayrecord"])
def test_a_container_that_was_replaced_is_noticed(tmp_path, pairs, png, kind):
  def write(word):
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
      columns = {"image": [png(0)] * 4, "caption": [f"a {word}"] * 4}
      parquet.write_table(pa.table(columns), path, row_group_size=1)
    else:
      path = tmp_path / f"a{array_record.SUFFIX}"
      writer = array_record.Writer(str(path))
      for _ in range(4):
        writer.write(
          array_record.encode(record.Record(png(0), (f"a {word}",), "k"))
        )
      writer.close()
    return path

  path = write("dog")
  source = sources.open_source(f"{kind}:{path}")
  assert source[0].texts == ("a dog",)
  worker = pickle.dumps(source)
  path.unlink()
  write("cat")
  os.utime(path, (1, 1))
  for each in (pickle.loads(worker), source):
    with pytest.raises(errors.UserError, match="has changed since"):
      each[3]


def _address_of(path, text):
  path.write_text(text, "utf-8")
  return f"csv:{path}"


def test_a_table_of_thousands_of_columns_has_a_short_error(tmp_path):
  names = [f"column {i}" for i in range(5000)] + ["x" * 90_000]
  address = _address_of(tmp_path / "a.csv", ",".join(reversed(names)) + "\n1\n")
  with pytest.raises(errors.UserError, match="and 4981 more") as raised:
    sources.open_source(address)
  assert "'column 4999'" in str(raised.value)
  assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
  "text, told", [("", "is empty"), ("\n\nimage,caption\n", "an empty line")]
)
def test_a_table_says_what_its_first_line_is(tmp_path, text, told):
  with pytest.raises(errors.UserError, match=told):
    sources.open_source(_address_of(tmp_path / "a.csv", text))


def test_a_byte_order_mark_that_stands_twice_is_no_part_of_a_name(tmp_path):
  rows = "\ufeff\ufeffimage,caption\na.png,a cat\n"
  source = sources.open_source(_address_of(tmp_path / "a.csv", rows))
  assert len(source) == 1


@pytest.mark.parametrize(("missing", "advised"), [(1, False), (3, True)])
def test_a_root_is_advised_where_most_images_are_missing(
  tmp_path, png, missing, advised
):
  lines = [f"{n}.png,a picture" for n in range(4)]
  (tmp_path / "p.csv").write_text("image,caption\n" + "\n".join(lines))
  for n in range(missing, 4):
    (tmp_path / f"{n}.png").write_bytes(png(n))
  found = inspection.inspect(sources.open_source(f"csv:{tmp_path}/p.csv"))
  assert found["bad"] == {"missing_file": missing}
  assert "0.png was tried" in found["hints"]["missing_file"]
  assert ("?root=DIR" in found["hints"]["missing_file"]) == advised
