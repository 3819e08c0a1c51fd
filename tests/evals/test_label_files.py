import json

import pytest

from clip_jax import errors
from clip_jax.app import limits
from clip_jax.evals import class_names, label_files, prompts


def test_labels_are_read_from_the_command_line_and_from_files(tmp_path):
  text = tmp_path / "labels.txt"
  text.write_text("tench\n\n great white shark \n", encoding="utf-8-sig")
  listed = tmp_path / "labels.json"
  listed.write_text(json.dumps(["cat", ["dog", "hound"]]))
  by_name = tmp_path / "prompts.json"
  by_name.write_text(json.dumps({"cat": ["a cat"]}))
  assert label_files.read_labels("cat, dog ,owl") == ["cat", "dog", "owl"]
  assert label_files.read_labels(str(text)) == ["tench", "great white shark"]
  assert label_files.read_labels(str(listed)) == ["cat", ["dog", "hound"]]
  assert label_files.read_labels(str(by_name)) == {"cat": ["a cat"]}


def test_a_line_of_labels_ends_at_its_end_alone(tmp_path):
  file = tmp_path / "labels.txt"
  text = "cat\u2028x\r\n\x85dog\x0by\rowl, 2\n"
  file.write_bytes(text.encode())
  names = ["cat\u2028x", "dog\x0by", "owl, 2"]
  assert label_files.read_labels(str(file)) == names
  # As typed on the page, or in a shell as "$(cat labels.txt)".
  assert label_files.read_labels(text) == names
  assert limits.listed(text, "labels", most=3) == names


@pytest.mark.parametrize(
  "text, names",
  [
    ("cat, dog\n", ["cat", "dog"]),
    ("and/or\r\nboth", ["and/or", "both"]),
    ("\n\ncat\n", ["cat"]),
    ("cat,,dog", ["cat", "", "dog"]),  # Which is refused where it is used.
  ],
)
def test_one_line_of_names_is_parted_by_commas(text, names):
  assert label_files.read_labels(text) == names


@pytest.mark.parametrize(
  "text",
  [
    *('["cat", "dog"]', '"cat","dog"', '{"cat": "a cat"}', 'a, "b, c"'),
    *('("cat", "dog")', "('cat', 'dog')"),
  ],
)
def test_brackets_and_quotes_are_no_part_of_a_name(text):
  with pytest.raises(errors.UserError, match="have brackets or quotes"):
    label_files.read_labels(text)
  assert label_files.read_labels(f"{text}\nit's 5\" long") == [
    text,
    "it's 5\" long",
  ]


def test_templates_are_read_from_the_command_line_and_from_files(tmp_path):
  text = tmp_path / "templates.txt"
  text.write_text("a {}, small\nthe {}\n")
  assert label_files.read_templates("a {}, small") == ("a {}, small",)
  assert label_files.read_templates(str(text)) == ("a {}, small", "the {}")


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("missing.txt", None, "does not exist"),
    ("broken.json", b"[1,", "cannot read labels"),
    ("latin.txt", b"caf\xe9", "no UTF-8"),
    ("number.json", b"3", "list or object"),
    ("twice.json", b'{"a": "b", "a": "c"}', "the key 'a' occurs twice"),
    ("names.json", b'{"names": {"a": "b", "a": "c"}}', "'a' occurs twice"),
  ],
)
def test_a_file_of_labels_that_cannot_be_read_is_named(
  tmp_path, name, content, message
):
  path = tmp_path / name
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(errors.UserError, match=message) as caught:
    label_files.read_labels(str(path))
  assert name in str(caught.value)


def test_it_is_told_how_a_label_is_read_that_is_a_path_too(
  tmp_path, monkeypatch, caplog
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "one").mkdir()
  assert label_files.read_labels("one") == ["one"]
  (tmp_path / "one.txt").mkdir()
  with pytest.raises(errors.UserError, match=r"'one\.txt' is a directory"):
    label_files.read_labels("one.txt")
  assert "'one' is a directory here, too, and is read as one label" in (
    caplog.text
  )
  caplog.clear()
  (tmp_path / "two").write_text("a\nb\n")
  assert label_files.read_labels("two") == ["a", "b"]
  assert "The labels are read from the file 'two'" in caplog.text
  caplog.clear()
  assert label_files.read_labels(tmp_path / "two") == ["a", "b"]
  assert label_files.read_labels("one,two") == ["one", "two"]
  assert not caplog.text
  for path in (".", ".."):  # These are no names.
    with pytest.raises(errors.UserError, match="look like a path, and are a"):
      label_files.read_labels(path)


@pytest.mark.parametrize("directory", [False, True])
def test_labels_that_look_like_a_path_are_no_label(tmp_path, directory):
  path = tmp_path / "labels"
  if directory:
    path.mkdir()
  with pytest.raises(errors.UserError, match="look like a path"):
    label_files.read_labels(str(path))
  assert label_files.read_labels("and/or,not") == ["and/or", "not"]


@pytest.mark.parametrize("name, content", [("t.txt", "\n"), ("t.json", "[]")])
def test_no_templates_are_an_error(tmp_path, name, content):
  (tmp_path / name).write_text(content)
  with pytest.raises(errors.UserError, match="no templates"):
    label_files.read_templates(str(tmp_path / name))


def test_names_by_class_are_put_into_the_templates(tmp_path):
  path = tmp_path / "labels.json"
  path.write_text('{"names": {"n01": ["tench", "Tinca"], "n02": "shark"}}')
  labels = label_files.read_labels(str(path))
  resolved = prompts.resolve(labels, ["a {}", "the {}"])
  assert resolved.names == ("n01", "n02")
  assert resolved.texts == (
    ("a tench", "the tench", "a Tinca", "the Tinca"),
    ("a shark", "the shark"),
  )
  turned = class_names.in_order(labels, ("n02", "n01"))
  assert turned is not None
  assert prompts.resolve(turned, ["{}"]).texts == (
    ("shark",),
    ("tench", "Tinca"),
  )
  # A class may be called so: its value is then a text or a list.
  path.write_text('{"names": ["a list of names"]}')
  resolved = prompts.resolve(label_files.read_labels(str(path)))
  assert resolved.texts == (("a list of names",),)


def test_the_class_index_of_keras_holds_names_by_id(tmp_path):
  path = tmp_path / "imagenet_class_index.json"
  path.write_text(
    '{"0": ["n01440764", "tench"], "1": ["n01484850", "great_white_shark"]}'
  )
  labels = label_files.read_labels(path)
  assert labels == {"n01440764": "tench", "n01484850": "great white shark"}
  assert prompts.resolve(labels, ["a {}"]).texts[1] == ("a great white shark",)
  path.write_text('{"0": ["n01440764", "tench"], "1": ["n01440764", "ray"]}')
  with pytest.raises(errors.UserError, match="more than once: n01440764"):
    label_files.read_labels(path)


def test_full_prompts_that_look_like_names_are_told(tmp_path, caplog):
  path = tmp_path / "names.json"
  path.write_text('{"n1": "eight", "n2": "nine"}')
  label_files.read_labels(path)
  assert "are full prompts, as they stand: 'eight'" in caplog.text
  caplog.clear()
  path.write_text('{"n1": "the number eight", "n2": ["nine"]}')
  label_files.read_labels(path)
  assert not caplog.text


@pytest.mark.parametrize(
  ("name", "text", "told"),
  [
    ("l.txt", "cat,dog,bird\n", "1 in all, and the first is 'cat,dog,bird'"),
    ("l.txt", "cat;dog", "1 in all, and the first is 'cat;dog'"),
    ("l.csv", "id,name\n0,cat\n", "2 in all, and the first is 'id,name'"),
    ("l.txt", '[\n"cat",\n"dog"\n]', "4 in all, and the first is '['"),
    ("l.txt", "a snow leopard\n", None),
    ("l.txt", "tench, Tinca tinca\ngoldfish, Carassius auratus\n", None),
    ("l.json", '["cat,dog"]', None),
  ],
)
def test_lines_that_look_like_several_labels_are_told(
  tmp_path, caplog, name, text, told
):
  path = tmp_path / name
  path.write_text(text)
  labels = label_files.read_labels(str(path))
  assert labels == (
    ["cat,dog"] if told is None and "json" in name else label_files.lines(text)
  )
  assert (told or "is a label, as it stands") in caplog.text or told is None
  assert bool(caplog.records) == (told is not None)
