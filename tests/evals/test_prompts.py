import numpy as np
import pytest

from clip_jax import errors
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


@pytest.mark.parametrize("templates", [b"{}", bytearray(b"a {}"), "{}", 3])
def test_templates_are_a_list_of_texts(templates):
  with pytest.raises(errors.UserError, match="must be a list of texts"):
    prompts.resolve(["cat"], templates)


def test_the_digest_tells_names_and_texts_apart():
  made = [
    prompts.resolve(labels, templates)
    for labels in (["cat", "dog"], ["dog", "cat"], ["cat", "do"])
    for templates in (["{}g"], ["{}"])
  ]
  assert len({one.digest for one in made}) == len(made)
  assert made[0].digest == prompts.resolve(["cat", "dog"], ["{}g"]).digest
