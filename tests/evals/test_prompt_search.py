"""Templates are chosen on one split and measured on another."""

from typing import Any

import numpy as np
import pytest

import colours
import memory_source
from clip_jax import errors
from clip_jax.evals import embedding_model, prompt_search, prompts, tasks


def slow_choice(embeds, labels, sums):
  """The greedy search, one image and one class at a time."""

  def top1(subset):
    right = 0
    for embed, label in zip(embeds, labels, strict=True):
      scores = []
      for c in range(sums.shape[1]):
        total = sum(sums[t][c] for t in subset)
        scores.append(float(embed @ total / np.linalg.norm(total)))
      right += scores.index(max(scores)) == label
    return right / len(labels)

  chosen = []
  while True:
    rest = [t for t in range(len(sums)) if t not in chosen]
    found = {t: top1([*chosen, t]) for t in rest}
    best = max(found, key=found.get, default=None)
    if best is None or (chosen and found[best] <= top1(chosen)):
      return tuple(chosen), top1(chosen), [top1([t]) for t in range(len(sums))]
    chosen.append(best)


@pytest.mark.parametrize("seed", range(4))
def test_the_greedy_choice_is_that_of_a_slow_search(seed, monkeypatch):
  monkeypatch.setattr(prompt_search, "_SCORES_PER_BLOCK", 50)
  rng = np.random.default_rng(seed)
  true = rng.normal(size=(5, 7))
  sums = true + 1.2 * rng.normal(size=(6, 5, 7))
  labels = rng.integers(0, 5, 60)
  embeds = true[labels] + rng.normal(size=(60, 7))
  embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
  got = prompt_search.choose(embeds, labels, sums)
  chosen, top1, single = slow_choice(embeds, labels, sums)
  assert (got.chosen, got.top1, list(got.single)) == (chosen, top1, single)
  assert got.top1 > max(got.single)  # More than one was of use.


def test_the_sums_of_all_templates_are_those_of_the_ensemble():
  def embed(texts):
    seeds = [sum(map(ord, text)) for text in texts]
    return np.stack([np.random.default_rng(s).normal(size=3) for s in seeds])

  labels, templates = ["cat", ["dog", "hound"]], ["a {}", "the {}"]
  sums = sum(
    prompts.class_sums(prompts.resolve(labels, [one]), embed)
    for one in templates
  )
  whole = prompts.class_embeddings(prompts.resolve(labels, templates), embed)
  want = sums / np.linalg.norm(sums, axis=1, keepdims=True)
  np.testing.assert_allclose(whole, want, atol=1e-7)  # Stored as float32.


@pytest.fixture
def data(tmp_path):
  """A folder of two splits with two images of each of three colours."""
  for split in ("train", "test"):
    for axis, name in enumerate(("red", "green", "blue")):
      for i in range(2):
        colours.save(tmp_path / split / name / f"{i}.png", axis)
  return tmp_path


class Model:
  """Knows colours by their names, unless the template says "not"."""

  def functions(self):
    return embedding_model.Functions(
      colours.embed_images, self.texts, colours.SPEC
    )

  def texts(self, texts):
    rows = []
    for text in texts:
      names = ("red", "green", "blue")
      axis = next(i for i, name in enumerate(names) if name in text)
      rows.append(np.roll(np.eye(3)[axis], 1 if "not" in text else 0))
    return np.array(rows)


def evaluate(data, templates, *, address="", **options):
  path = data / "templates.txt"
  path.write_text("\n".join(templates))
  return prompt_search.evaluate(
    address or f"folder:{data}",
    Model().functions(),
    templates=str(path),
    **options,
  )


def test_templates_are_chosen_on_the_training_split(data):
  got = evaluate(data, ["not {}", "a {}", "not a {}"])
  assert (got["task"], got["top1"], got["examples"]) == ("zero_shot", 1, 6)
  search = got["search"]
  assert (search["train_top1"], search["train_examples"]) == (1, 6)
  assert search["chosen"] == ["a {}"]
  assert [one["train_top1"] for one in search["templates"]] == [0, 1, 0]
  assert search["train_data"].endswith("train")
  alone = tasks.evaluate(
    "zero_shot",
    f"folder:{data / 'test'}",
    Model().functions(),
    templates="a {}",
  )
  assert alone["prompts_hash"] == got["prompts_hash"]


def test_what_makes_no_search_is_refused(data):
  same = f"folder:{data / 'test'}"
  with pytest.raises(errors.UserError, match="both to choose"):
    evaluate(data, ["a {}"], address=same, train_data=same)
  other = f"folder:{data}/train/../test/?layout=classes"
  with pytest.raises(errors.UserError, match=r"^6 of the 6 .* both to choose"):
    evaluate(data, ["a {}"], address=same, train_data=other)
  with pytest.raises(errors.UserError, match="exactly one placeholder"):
    evaluate(data, ["a {}", "no place"])
  labels = data / "labels.json"
  labels.write_text('{"red": "a red", "green": "a green", "blue": "a blue"}')
  with pytest.raises(errors.UserError, match="full prompts"):
    evaluate(data, ["a {}"], labels=str(labels))
  (data / "test" / "red").rename(data / "test" / "dark red")
  with pytest.raises(errors.UserError, match="different classes: dark red"):
    evaluate(data, ["a {}"])


def test_labels_by_number_need_classes_of_one_order():
  def opened(address, *names, labels):
    source: Any = memory_source.MemorySource([])
    source.class_names = names
    return tasks.Evaluation("zero_shot", address, source, labels, ["a {}"])

  labels = ["one", "two"]
  train = opened("x", "cat", "dog", labels=labels)
  test = opened("y", "dog", "cat", labels=labels)
  with pytest.raises(
    errors.UserError, match="number their classes differently"
  ):
    prompt_search._check(train, test)
  prompt_search._check(train, opened("y", "cat", "dog", labels=labels))
  labels[:] = ["Dog", "Cat"]
  prompt_search._check(train, test)
