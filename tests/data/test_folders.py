"""A folder says what it reads as what, and what it leaves out."""

import json
import os

import pytest

import memory_source
from clip_jax import errors
from clip_jax.data import alike, inspection, record, sources


@pytest.fixture
def folder(tmp_path, png):
  """Writes files; an image where no content is given. Opens the folder."""

  def write(files, options=""):
    for name, content in files.items():
      path = tmp_path / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(png(0) if content is None else content)
    return sources.open_source(f"folder:{tmp_path}{options}")

  return write


CLASSES = {f"{name}/{i}.png": None for name in ("cat", "dog") for i in range(5)}


@pytest.mark.parametrize(
  "stray",
  [
    {"cat/0.json": b'{"shapes": []}'},
    {"cat/0.txt": b"a note", "dog/4.json": b"{}"},
    # Labelme's, beside every image.
    {name.replace("png", "json"): b'{"shapes": []}' for name in CLASSES},
    {name.replace("png", "txt"): b"0 0.5 0.5 1e-1 .2" for name in CLASSES},
  ],
)
def test_stray_text_files_do_not_make_a_class_folder_one_of_captions(
  folder, stray
):
  source = folder(CLASSES | stray)
  assert source.class_names == ("cat", "dog")
  (note,) = source.account.notes
  have = "has" if len(stray) == 1 else "have"
  assert f"{len(stray)} of 10 images {have}" in note
  assert "?layout=captions" in note
  assert sum(source.account.left_out.counts.values()) == len(stray)
  captions = folder({}, "?layout=captions")
  assert captions.class_names is None and captions.account.notes == []


@pytest.mark.parametrize(
  ("names", "wanted"),
  [
    (("10", "9", "0"), ("0", "9", "10")),
    (("010", "9", "0"), ("0", "9", "010")),
    (("10", "9", "a"), ("10", "9", "a")),
  ],
)
def test_classes_that_are_numbers_have_the_order_of_numbers(
  folder, names, wanted
):
  source = folder({f"{name}/0.png": None for name in names})
  assert source.class_names == wanted
  of_key = {
    record.key: record.label for record in map(source.__getitem__, range(3))
  }
  assert of_key == {f"{x}/0.png": i for i, x in enumerate(wanted)}


def test_captions_of_most_images_are_read_and_the_decision_told(folder):
  texts = {f"cat/{i}.txt": b"a cat" for i in range(5)}
  source = folder(CLASSES | texts)
  assert source.class_names is None
  (note,) = source.account.notes
  assert "5 of 10 images" in note and "?layout=classes" in note
  assert folder({}, "?layout=classes").class_names == ("cat", "dog")


def test_json_files_with_captions_are_captions(folder):
  texts = {
    name.replace("png", "JSON"): json.dumps({"caption": "a cat"}).encode()
    for name in CLASSES
  }
  source = folder(CLASSES | texts)
  assert source.account.notes == []
  assert source[9].texts == ("a cat",)


def test_suffixes_in_capitals_are_read(folder):
  source = folder({"IMG_0.PNG": None, "IMG_0.TXT": b"a cat"})
  assert source[0].texts == ("a cat",)


@pytest.mark.parametrize(
  ("names", "told"),
  [
    (["train/cat/0.png", "val/cat/0.png"], True),
    (["train/cat/0.png", "train/dog/0.png"], True),
    (["train/0.png", "test/0.png"], True),
    (["data/train/a/0.png", "data/val/a/0.png"], True),
    (["cat/train/0.png", "dog/train/0.png"], True),
    (["a/b/c/train/cat/0.png", "a/b/c/val/cat/0.png"], True),
    (["train/0.png", "car/0.png"], False),  # One that runs on rails.
  ],
)
def test_splits_inside_of_a_folder_are_told(folder, tmp_path, names, told):
  source = folder(dict.fromkeys(names))
  assert len(source.account.notes) == told
  for note in source.account.notes:
    assert "train'" in note and "named like splits" in note
    nested = names[0].index("train")
    assert f"read {'together' if nested else 'as classes'}; folder:" in note


@pytest.mark.parametrize(
  ("names", "told"),
  [
    (["animals/cat/0.png", "animals/dog/0.png", "things/cat/0.png"], True),
    (["fold1/cat/0.png", "fold1/dog/0.png", "fold2/cat/0.png"], True),
    # Tiny-ImageNet has such a folder in each class.
    (["n01/images/0.png", "n02/images/0.png", "n03/images/0.png"], False),
    (["cat/0.png", "cat/1.png", "dog/0.png", "dog/a/1.png"], False),
  ],
)
def test_classes_within_other_folders_are_told(folder, tmp_path, names, told):
  source = folder(dict.fromkeys(names))
  assert len(source.account.notes) == told
  for note in source.account.notes:
    outer, inner, _ = names[0].split("/")
    assert f"such as '{outer}/{inner}', " in note
    assert f"give folder:{tmp_path / outer}, or move them up." in note


def test_classes_are_texts_whatever_their_folders_are_called(folder):
  source = folder({"caf\udce9_au_lait/0.png": None, "d/e\udcff.png": None})
  assert source.class_names == ("caf\ufffd au lait", "d")
  assert source[0].texts == ("caf\ufffd au lait",)
  assert source[1].key == "d/e\udcff.png"


def test_folders_without_an_image_are_told(folder, tmp_path):
  (tmp_path / "eel").mkdir()
  source = folder(CLASSES)
  assert source.class_names == ("cat", "dog")
  assert source.account.notes == [
    "Folders without an image are no classes: 'eel'."
  ]


def test_files_that_are_not_read_are_counted(folder):
  source = folder(
    {
      "cat/0.png": None,
      "cat/1.heic": b"x",
      "cat/2.cls": b"1",
      "cat/notes.md": b"x",
      "cat/._0.png": b"x",
      ".git/config": b"x",
      "Makefile": b"x",
    }
  )
  assert source.account.left_out.counts == {"cls": 1, "md": 1, "png": 1, "": 2}
  assert "1 .heic ('cat/1.heic'); convert" in source.account.sentences()[1]
  with pytest.raises(sources.BadRecord, match="unsupported_image"):
    source[1]


def test_a_name_that_is_an_image_suffix_alone_is_a_warning(folder):
  names = ("cat/.JPG", "cat/.hidden", "cat/raw")  # Of which one has a dot.
  source = folder({"cat/0.png": None, **dict.fromkeys(names, b"x")})
  (said, _) = source.account.warnings()
  assert said == "Named like images, but not read: 1 .jpg ('cat/.JPG')."
  assert source.account.left_out.counts == {"jpg": 1, "": 2}


def test_pictures_without_classes_are_told_how_to_be_searched(tmp_path):
  folder = tmp_path / "holidays"
  folder.mkdir()
  (folder / "1.jpg").write_bytes(b"JPEG")
  with pytest.raises(errors.UserError, match=f"embed` images:{folder}"):
    sources.open_source(f"folder:{folder}")


def test_a_folder_without_images_shows_what_it_holds(folder):
  with pytest.raises(errors.UserError, match=r"holds no images.*it is empty"):
    folder({})
  with pytest.raises(errors.UserError, match=r"'a\.mp4', 'b\.mp4', 'c\.mp4'\."):
    folder({f"{name}.mp4": b"x" for name in "abcd"})


def test_two_texts_of_an_image_are_a_bad_record(folder):
  source = folder({"a.png": None, "a.txt": b"one", "a.TXT": b"two"})
  with pytest.raises(sources.BadRecord, match="several_captions"):
    source[0]


def test_a_pair_beside_class_folders_names_the_other_layout(folder):
  source = folder(CLASSES | {"n.png": None, "n.txt": b"a note"})
  (note,) = source.account.notes
  assert "?layout=classes" in note and "once 'n.png' lies in one" in note


@pytest.mark.parametrize("several", [False, True])
def test_a_single_caption_is_told(tmp_path, png, write_tar, several):
  members = []
  for n in range(40):
    text = f"a thing {n == 39}" if several else "a thing"
    members += [(f"{n}.png", png(n % 3)), (f"{n}.txt", text.encode())]
  source = sources.open_source(f"wds:{write_tar(tmp_path / 'a.tar', members)}")
  notes = inspection.inspect(source)["notes"]
  assert [n for n in notes if "same caption, 'a thing'" in n] == [*notes]
  assert len(notes) == (0 if several else 1)
  found = [
    *(record.Record(png(0), ("one",), str(n)) for n in range(6)),
    record.Record(png(0), ("two" if several else "one",), "6"),
  ]
  only = alike.only_caption(memory_source.MemorySource(found))
  assert only == (None if several else "one")


def test_a_single_class_is_told(tmp_path, png):
  (tmp_path / "cat").mkdir()
  (tmp_path / "cat" / "a.png").write_bytes(png(0))
  source = sources.open_source(f"folder:{tmp_path}")
  assert any("one class, 'cat'" in note for note in source.account.notes)
  (tmp_path / "dog").mkdir()
  (tmp_path / "dog" / "a.png").write_bytes(png(1))
  assert not sources.open_source(f"folder:{tmp_path}").account.notes


def test_links_to_folders_that_are_read_already_are_told(folder, tmp_path):
  for name in CLASSES:
    (tmp_path / name).parent.mkdir(exist_ok=True)
  (tmp_path / "elk").symlink_to("cat")
  (tmp_path / "cat" / "self").symlink_to(".")
  source = folder(CLASSES, "?links=follow")
  assert source.class_names == ("cat", "dog")
  assert source.account.notes == [
    "Links to folders that are read by another name are not read again: "
    "'cat/self', 'elk'."
  ]


def test_a_link_to_itself_costs_no_other_image(folder, tmp_path, read_all):
  (tmp_path / "self").symlink_to("self")
  source = folder({"cat/a.png": None, "dog/b.png": None})
  assert [item.texts for item in read_all(source)] == [("cat",), ("dog",)]


def test_folders_that_cannot_be_opened_are_told(folder, tmp_path, monkeypatch):
  scandir = os.scandir

  def refuse(path):
    if os.fspath(path) == str(closed):
      raise PermissionError(13, "Permission denied", os.fspath(path))
    return scandir(path)

  monkeypatch.setattr(os, "scandir", refuse)
  closed = tmp_path / "cow"
  source = folder({f"{name}/a.png": None for name in ("cat", "cow", "dog")})
  assert source.class_names == ("cat", "dog")
  assert source.account.notes[0] == (
    "Folders that cannot be opened (Permission denied) are left out, with all "
    "that is in them: 'cow'."
  )
  closed = tmp_path
  with pytest.raises(PermissionError):
    folder({})


def test_options_are_checked_whatever_the_layout(folder):
  with pytest.raises(errors.UserError, match=r"captions=.*lines, text"):
    folder({"cat/a.png": None, "dog/b.png": None}, "?captions=line")


def test_a_class_is_never_called_by_nothing(folder, read_all):
  source = folder({"_/a.png": None, "a_b/b.png": None})
  assert [item.texts for item in read_all(source)] == [("_",), ("a b",)]
