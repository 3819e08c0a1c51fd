"""Class embeddings are kept, found again, and never taken for others."""

import os
import time
import types

import numpy as np
import pytest

from clip_jax import inference
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.evals import prompts, text_weights

LABELS = prompts.resolve(
  [f"name {i}" for i in range(8)], ["a {}", "b {}", "c {}"]
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(text_weights, "WORTH_KEEPING", 2)
  return tmp_path / "clip_jax" / "classes"


class Model:
  """Counts how many texts it embeds and how many are only looked at."""

  def __init__(self, fingerprint="one"):
    self.fingerprint = fingerprint
    self.embedded = self.noted = 0

  def embed_texts(self, texts):
    self.embedded += len(texts)
    seeds = [len(self.fingerprint) + sum(map(ord, text)) for text in texts]
    return np.stack([np.random.default_rng(s).normal(size=3) for s in seeds])

  def note(self, texts):
    self.noted += len(texts)

  def classes(self, resolved=LABELS):
    return text_weights.class_embeddings(
      resolved,
      self.embed_texts,
      fingerprint=lambda: self.fingerprint,
      note_texts=self.note,
    )


def test_embeddings_are_kept_and_used_again(folder):
  model = Model()
  first = model.classes()
  want = prompts.class_embeddings(LABELS, Model().embed_texts)
  np.testing.assert_array_equal(first, want)
  assert (model.embedded, model.noted) == (24, 0)
  np.testing.assert_array_equal(model.classes(), want)
  assert (model.embedded, model.noted) == (24, 24)
  assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
  "change", ["model", "template", "name", "precision", "devices"]
)
def test_whatever_they_depend_on_tells_them_apart(folder, change, monkeypatch):
  Model().classes()
  model, resolved = Model(), LABELS
  if change == "model":
    model = Model("another")
  elif change == "precision":
    monkeypatch.setattr(text_weights.programs, "options", lambda: "others")
  elif change == "devices":
    monkeypatch.setattr(text_weights.jax, "device_count", lambda: 3)
  else:
    texts = (*LABELS.texts[:-1], ("a name 7", "b name 7", "c name 8"))
    names = (*LABELS.names[:-1], "other")
    resolved = prompts.Prompts(
      LABELS.names if change == "template" else names,
      texts if change == "template" else LABELS.texts,
    )
  model.classes(resolved)
  assert (model.embedded, model.noted) == (24, 0)
  assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_made_anew(folder, damage):
  want = Model().classes()
  (path,) = folder.iterdir()
  content = bytearray(path.read_bytes())
  content[-1] ^= damage == "flipped"
  whole = {"cut": content[:-5], "empty": b"", "foreign": b"x" * 99}
  path.write_bytes(whole.get(damage, content))
  for embedded in (24, 0):
    model = Model()
    np.testing.assert_array_equal(model.classes(), want)
    assert model.embedded == embedded


def test_few_prompts_are_not_kept(folder, monkeypatch):
  monkeypatch.setattr(text_weights, "WORTH_KEEPING", 25)
  Model().classes()
  assert not folder.exists()


def test_a_folder_that_cannot_be_used_is_no_error(folder):
  folder.parent.parent.mkdir(exist_ok=True)
  folder.parent.write_text("no folder")
  assert Model().classes().shape == (8, 3)


def test_those_unused_for_longest_go_first(folder, monkeypatch):
  Model().classes()
  (first,) = folder.iterdir()
  os.utime(first, (time.time() - 9,) * 2)
  monkeypatch.setattr(
    text_weights, "MOST_BYTES", int(1.5 * first.stat().st_size)
  )
  Model("two").classes()
  (left,) = folder.iterdir()
  assert left != first


def test_a_models_own_kept_embeddings_count_the_texts_that_are_cut(folder):
  calls = []

  class Stub:
    logit_scale, fingerprint = 2.0, "stub"
    check_towers = staticmethod(lambda *_: None)
    needed_preprocess = staticmethod(lambda: None)
    embed_images = score_texts = None
    module = types.SimpleNamespace(contrastive=True)

    def embed_texts(self, texts, cuts):
      return Model().embed_texts(texts)

    def tokenize(self, texts, cuts):
      calls.append((len(texts), cuts))

  cuts = tokenizer_lib.Cuts()
  functions = inference.Clip.for_evaluation(Stub(), cuts)
  one, two = functions.embed_classes(LABELS), functions.embed_classes(LABELS)
  np.testing.assert_array_equal(one, two)
  assert calls == [(24, cuts)]
