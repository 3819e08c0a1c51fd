import json

import numpy as np
import pytest

from clip_jax import errors
from clip_jax.app import limits
from clip_jax.evals import class_names, prompts


def embed(texts):
  """Gives each text a fixed direction that depends on all of its letters."""
  rows = []
  for text in texts:
    seed = sum(i * ord(c) for i, c in enumerate(text, start=1))
    rows.append(np.random.default_rng(seed).normal(size=5) * len(text))
  return np.array(rows)


def slow_class_embedding(texts):
  total = np.zeros(5)
  for row in embed(list(texts)):
    total += row / np.sqrt(np.sum(row**2))
  mean = total / len(texts)
  return mean / np.sqrt(np.sum(mean**2))


def test_class_embeddings_are_means_of_directions_over_names_and_templates():
  resolved = prompts.resolve(
    ["cat", ["dog", "hound", "pup"]], ["a {}.", "the {word}!"]
  )
  assert resolved.names == ("cat", "dog")
  assert resolved.texts[1] == (
    "a dog.",
    "the dog!",
    "a hound.",
    "the hound!",
    "a pup.",
    "the pup!",
  )
  got = prompts.class_embeddings(resolved, embed)
  want = [slow_class_embedding(texts) for texts in resolved.texts]
  # The result is stored as float32.
  np.testing.assert_allclose(got, want, atol=1e-7)
  # Had the prompts not been normalised one by one, it would show.
  plain = embed(list(resolved.texts[1])).mean(axis=0)
  assert not np.allclose(got[1], plain / np.linalg.norm(plain), atol=1e-3)


def test_many_prompts_are_embedded_in_parts_with_the_same_result(monkeypatch):
  resolved = prompts.resolve(["cat", "dog", "owl"], ["a {}", "b {}", "c {}"])
  whole = prompts.class_embeddings(resolved, embed)
  monkeypatch.setattr(prompts, "_PROMPTS_PER_CALL", 2)
  np.testing.assert_allclose(
    prompts.class_embeddings(resolved, embed), whole, atol=1e-7
  )


def test_a_dictionary_gives_full_prompts_which_no_template_changes():
  resolved = prompts.resolve(
    {"cat": ["a furry pet", "{whiskers}"], "dog": "it barks"}
  )
  assert resolved.names == ("cat", "dog")
  assert resolved.texts == (("a furry pet", "{whiskers}"), ("it barks",))


@pytest.mark.parametrize(
  "template, expected",
  [
    ("a {}.", "a cat."),
    ("{}", "cat"),
    ("a {label}, small", "a cat, small"),
    ('{{the}} "{}" {{end}}', '{the} "cat" {end}'),
  ],
)
def test_a_template_takes_any_one_plain_placeholder(template, expected):
  before, after = prompts.parse_template(template)
  assert before + "cat" + after == expected


@pytest.mark.parametrize(
  "template", ["no place", "{} and {}", "{:>10}", "{!r}", "{0.__class__}", "{"]
)
def test_a_template_without_exactly_one_plain_placeholder_is_refused(template):
  with pytest.raises(errors.UserError, match="exactly one placeholder"):
    prompts.resolve(["cat"], [template])


@pytest.mark.parametrize(
  "labels, message",
  [
    ([], "no labels"),
    (["cat", " "], "none of them empty"),
    (["cat", []], "none of them empty"),
    (["cat", 3], "none of them empty"),
    (["cat", "dog", "cat"], "more than once: cat"),
    ("cat", "must be a list"),
  ],
)
def test_labels_that_name_nothing_or_something_twice_are_refused(
  labels, message
):
  with pytest.raises(errors.UserError, match=message):
    prompts.resolve(labels)


def test_labels_are_read_from_the_command_line_and_from_files(tmp_path):
  text = tmp_path / "labels.txt"
  text.write_text("tench\n\n great white shark \n", encoding="utf-8-sig")
  listed = tmp_path / "labels.json"
  listed.write_text(json.dumps(["cat", ["dog", "hound"]]))
  by_name = tmp_path / "prompts.json"
  by_name.write_text(json.dumps({"cat": ["a cat"]}))
  assert prompts.read_labels("cat, dog ,owl") == ["cat", "dog", "owl"]
  assert prompts.read_labels(str(text)) == ["tench", "great white shark"]
  assert prompts.read_labels(str(listed)) == ["cat", ["dog", "hound"]]
  assert prompts.read_labels(str(by_name)) == {"cat": ["a cat"]}


def test_a_line_of_labels_ends_at_its_end_alone(tmp_path):
  file = tmp_path / "labels.txt"
  text = "cat\u2028x\r\n\x85dog\x0by\rowl, 2\n"
  file.write_bytes(text.encode())
  names = ["cat\u2028x", "dog\x0by", "owl, 2"]
  assert prompts.read_labels(str(file)) == names
  # As typed on the page, or in a shell as "$(cat labels.txt)".
  assert prompts.read_labels(text) == names
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
  assert prompts.read_labels(text) == names


@pytest.mark.parametrize(
  "text",
  [
    *('["cat", "dog"]', '"cat","dog"', '{"cat": "a cat"}', 'a, "b, c"'),
    *('("cat", "dog")', "('cat', 'dog')"),
  ],
)
def test_brackets_and_quotes_are_no_part_of_a_name(text):
  with pytest.raises(errors.UserError, match="have brackets or quotes"):
    prompts.read_labels(text)
  assert prompts.read_labels(f"{text}\nit's 5\" long") == [
    text,
    "it's 5\" long",
  ]


def test_templates_are_read_from_the_command_line_and_from_files(tmp_path):
  text = tmp_path / "templates.txt"
  text.write_text("a {}, small\nthe {}\n")
  assert prompts.read_templates("a {}, small") == ("a {}, small",)
  assert prompts.read_templates(str(text)) == ("a {}, small", "the {}")


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("missing.txt", None, "does not exist"),
    ("broken.json", b"[1,", "cannot read labels"),
    ("latin.txt", b"caf\xe9", "no UTF-8"),
    ("number.json", b"3", "list or object"),
  ],
)
def test_a_file_of_labels_that_cannot_be_read_is_named(
  tmp_path, name, content, message
):
  path = tmp_path / name
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(errors.UserError, match=message) as caught:
    prompts.read_labels(str(path))
  assert name in str(caught.value)


def test_it_is_told_how_a_label_is_read_that_is_a_path_too(
  tmp_path, monkeypatch, caplog
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "one").mkdir()
  assert prompts.read_labels("one") == ["one"]
  (tmp_path / "one.txt").mkdir()
  with pytest.raises(errors.UserError, match=r"'one\.txt' is a directory"):
    prompts.read_labels("one.txt")
  assert "'one' is a directory here, too, and is read as one label" in (
    caplog.text
  )
  caplog.clear()
  (tmp_path / "two").write_text("a\nb\n")
  assert prompts.read_labels("two") == ["a", "b"]
  assert "The labels are read from the file 'two'" in caplog.text
  caplog.clear()
  assert prompts.read_labels(tmp_path / "two") == ["a", "b"]
  assert prompts.read_labels("one,two") == ["one", "two"]
  assert not caplog.text
  for path in (".", ".."):  # These are no names.
    with pytest.raises(errors.UserError, match="look like a path, and are a"):
      prompts.read_labels(path)


@pytest.mark.parametrize("directory", [False, True])
def test_labels_that_look_like_a_path_are_no_label(tmp_path, directory):
  path = tmp_path / "labels"
  if directory:
    path.mkdir()
  with pytest.raises(errors.UserError, match="look like a path"):
    prompts.read_labels(str(path))
  assert prompts.read_labels("and/or,not") == ["and/or", "not"]


@pytest.mark.parametrize("name, content", [("t.txt", "\n"), ("t.json", "[]")])
def test_no_templates_are_an_error(tmp_path, name, content):
  (tmp_path / name).write_text(content)
  with pytest.raises(errors.UserError, match="no templates"):
    prompts.read_templates(str(tmp_path / name))


def test_names_by_class_are_put_into_the_templates(tmp_path):
  path = tmp_path / "labels.json"
  path.write_text('{"names": {"n01": ["tench", "Tinca"], "n02": "shark"}}')
  labels = prompts.read_labels(str(path))
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
  resolved = prompts.resolve(prompts.read_labels(str(path)))
  assert resolved.texts == (("a list of names",),)


def test_the_class_index_of_keras_holds_names_by_id(tmp_path):
  path = tmp_path / "imagenet_class_index.json"
  path.write_text(
    '{"0": ["n01440764", "tench"], "1": ["n01484850", "great_white_shark"]}'
  )
  labels = prompts.read_labels(path)
  assert labels == {"n01440764": "tench", "n01484850": "great white shark"}
  assert prompts.resolve(labels, ["a {}"]).texts[1] == ("a great white shark",)


def test_full_prompts_that_look_like_names_are_told(tmp_path, caplog):
  path = tmp_path / "names.json"
  path.write_text('{"n1": "eight", "n2": "nine"}')
  prompts.read_labels(path)
  assert "are full prompts, as they stand: 'eight'" in caplog.text
  caplog.clear()
  path.write_text('{"n1": "the number eight", "n2": ["nine"]}')
  prompts.read_labels(path)
  assert not caplog.text


def test_a_template_beside_full_prompts_is_refused():
  labels = {"dog": ["a dog barks"], "cat": "a cat purrs"}
  with pytest.raises(errors.UserError, match="leave the template out"):
    prompts.resolve(labels, ["a {}"])


@pytest.mark.parametrize(
  ("labels", "names", "want"),
  [
    (["b", "a"], ["a", "b"], ["a", "b"]),
    (["C", "d_e", "x"], ["d e", "c"], ["d_e", "C", "x"]),
    (["cafe\u0301", "b"], ["b", "caf\u00e9"], ["b", "cafe\u0301"]),
    (["2", "1", "10"], ["01", "02"], ["1", "2", "10"]),
    ([["dog", "hound"], "a"], ["a", "Dog"], ["a", ["dog", "hound"]]),
    # Names that stand for several, and those of which one is missing.
    (["a", "A"], ["a", "A"], ["a", "A"]),
    (["a", "A", "b"], ["B", "a."], None),
    (["a", "c"], ["a", "b"], None),
    (["a"], ["a", "b"], None),
  ],
)
def test_labels_go_by_name_where_only_their_spelling_differs(
  labels, names, want
):
  assert class_names.in_order(labels, names) == want


def test_classes_called_by_wordnet_ids_have_names():
  found = class_names.of_wordnet(["n01484850", "n01440764"])
  assert found is not None
  assert list(found) == ["n01484850", "n01440764"]
  assert found["n01440764"] == ("tench",)
  assert class_names.of_wordnet(["n01484850", "n00000001"]) is None
  assert class_names.of_wordnet([]) is None


def test_the_digest_tells_names_and_texts_apart():
  made = [
    prompts.resolve(labels, templates)
    for labels in (["cat", "dog"], ["dog", "cat"], ["cat", "do"])
    for templates in (["{}g"], ["{}"])
  ]
  assert len({one.digest for one in made}) == len(made)
  assert made[0].digest == prompts.resolve(["cat", "dog"], ["{}g"]).digest


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
  labels = prompts.read_labels(str(path))
  assert labels == (
    ["cat,dog"] if told is None and "json" in name else prompts.lines(text)
  )
  assert (told or "is a label, as it stands") in caplog.text or told is None
  assert bool(caplog.records) == (told is not None)
