import numpy as np
import pytest

from clip_jax import errors
from clip_jax.evals import embedding_model, retrieval


def _model(embed_images, embed_texts):
  return embedding_model.Functions(embed_images, embed_texts, preprocess=None)


def slow_ranks(queries, candidates, positives):
  """Sorts all candidates of each query and looks for its first positive."""
  ranks = []
  for query, own in zip(queries, positives, strict=True):
    scores = [float(np.dot(query, c)) for c in candidates]
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    ranks.append(min(order.index(i) for i in own))
  return np.array(ranks)


def slow_summary(ranks):
  summary = {f"r@{k}": np.mean([r < k for r in ranks]) for k in (1, 5, 10)}
  return summary | {"median_rank": np.median([r + 1 for r in ranks])}


def make_data(seed, *, images=23, integers=False):
  """Several captions an image, from one to six, in mixed order."""
  rng = np.random.default_rng(seed)
  image_of_text = np.repeat(np.arange(images), rng.integers(1, 7, size=images))
  rng.shuffle(image_of_text)
  shape = (images, 6)
  if integers:  # Many equal scores, and every product is exact.
    image = rng.integers(0, 2, size=shape).astype(np.float32)
    noise = rng.integers(0, 2, size=(len(image_of_text), 6))
  else:
    image = rng.normal(size=shape).astype(np.float32)
    noise = 1.3 * rng.normal(size=(len(image_of_text), 6))
  text = (image[image_of_text] + noise).astype(np.float32)
  return image, text, image_of_text


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize("scores_per_block", [1, 200, 1 << 24])
def test_ranks_match_a_sort_with_several_captions_an_image(
  monkeypatch, integers, scores_per_block
):
  monkeypatch.setattr(retrieval, "_SCORES_PER_BLOCK", scores_per_block)
  image, text, image_of_text = make_data(1, integers=integers)
  np.testing.assert_array_equal(
    retrieval.text_to_image_ranks(text, image, image_of_text),
    slow_ranks(text, image, [[i] for i in image_of_text]),
  )
  owned = [np.flatnonzero(image_of_text == i) for i in range(len(image))]
  np.testing.assert_array_equal(
    retrieval.image_to_text_ranks(image, text, image_of_text),
    slow_ranks(image, text, owned),
  )


def test_recall_and_median_rank_match_their_definitions():
  image, text, image_of_text = make_data(2)
  image /= np.linalg.norm(image, axis=1, keepdims=True)
  text /= np.linalg.norm(text, axis=1, keepdims=True)
  got = retrieval.recall(image, text, image_of_text)
  owned = [np.flatnonzero(image_of_text == i) for i in range(len(image))]
  want = {
    "text_to_image": slow_summary(
      slow_ranks(text, image, [[i] for i in image_of_text])
    ),
    "image_to_text": slow_summary(slow_ranks(image, text, owned)),
    "images": 23,
    "texts": len(text),
  }
  assert got == want
  assert 0 < got["text_to_image"]["r@1"] < got["text_to_image"]["r@10"] < 1


def test_equal_captions_are_hits_where_they_are_told(monkeypatch):
  monkeypatch.setattr(retrieval, "_SCORES_PER_BLOCK", 200)
  image, text, image_of_text = make_data(5)
  ids = np.random.default_rng(0).integers(0, 30, len(text))
  ids[0] = 30
  texts_of = [np.flatnonzero(ids == number) for number in ids]
  np.testing.assert_array_equal(
    retrieval.text_to_image_ranks(text, image, image_of_text, text_ids=ids),
    slow_ranks(text, image, [image_of_text[equal] for equal in texts_of]),
  )
  owned = [
    np.flatnonzero(np.isin(ids, ids[image_of_text == i]))
    for i in range(len(image))
  ]
  np.testing.assert_array_equal(
    retrieval.image_to_text_ranks(image, text, image_of_text, text_ids=ids),
    slow_ranks(image, text, owned),
  )


@pytest.mark.parametrize(
  "texts, images, repeated",
  [
    (["a", "b", "c"], [0, 1, 2], 0),
    (["a", "a", "c"], [0, 0, 1], 0),  # Within an image it does no harm.
    (["a", "b", "a", "a"], [0, 0, 1, 1], 3),
  ],
)
def test_captions_of_several_images_are_counted(
  texts, images, repeated, caplog
):
  embeds = {text: np.eye(4)[i] for i, text in enumerate("abc")}
  own = [
    tuple(t for t, i in zip(texts, images, strict=True) if i == image)
    for image in range(max(images) + 1)
  ]
  for duplicates, first in (("hits", 1.0), ("misses", None)):
    found = retrieval.evaluate(
      None,
      model=_model(
        lambda images: images,
        lambda texts: np.stack([embeds[text] for text in texts]),
      ),
      batches=[{"image": np.stack([embeds[t[0]] for t in own]), "texts": own}],
      duplicates=duplicates,
    )
    assert found["repeated_texts"] == repeated
    assert found["duplicates"] == duplicates
    if first and repeated != 3:
      assert found["image_to_text"]["r@1"] == first
  if repeated == 3:  # The second "a" is after the first: a miss.
    assert found["image_to_text"]["r@1"] == 0.5
  assert (f"{repeated} of {len(texts)} captions" in caplog.text) == bool(
    repeated
  )


def test_any_of_an_images_captions_counts_once():
  image = np.eye(2)
  text = np.array([[0, 1.0], [1, 0], [0, 1]])  # The first caption is wrong.
  got = retrieval.recall(image, text, np.array([0, 0, 1]))
  # Image 1 meets the wrong caption first, since it stands earlier.
  assert got["image_to_text"]["r@1"] == 0.5
  assert got["text_to_image"]["r@1"] == 2 / 3


def test_the_order_of_captions_does_not_matter():
  image, text, image_of_text = make_data(3)
  order = np.random.default_rng(4).permutation(len(text))
  assert retrieval.recall(image, text, image_of_text) == retrieval.recall(
    image, text[order], image_of_text[order]
  )


def test_an_image_without_captions_is_refused():
  with pytest.raises(errors.UserError, match="3 images, 1 of them without"):
    retrieval.recall(np.eye(3), np.eye(3)[:2], np.array([0, 2]))


def test_embeddings_that_are_not_finite_are_refused():
  with pytest.raises(errors.UserError, match="1 of 2 text embeddings"):
    retrieval.recall(
      np.eye(2), np.array([[1, 0], [np.nan, 1]]), np.array([0, 1])
    )


def embed_images(images):
  return np.eye(4)[images[:, 0, 0, 0]]


def make_batches():
  images = np.zeros((3, 2, 2, 3), np.uint8)
  images[:, 0, 0, 0] = [0, 1, 2]
  return [
    {"image": images[:2], "texts": [("a0", "b0"), ("a1",)]},
    {"image": images[:0], "texts": []},
    {"image": images[2:], "texts": [("a2", "b1", "c2")]},
  ]


def test_evaluate_puts_the_template_around_every_caption(monkeypatch):
  monkeypatch.setattr(retrieval, "_TEXTS_PER_CALL", 4)
  asked = []

  def embed_texts(texts):
    asked.extend(texts)
    return np.eye(4)[[int(text.strip("!")[-1]) for text in texts]]

  got = retrieval.evaluate(
    None,
    model=_model(embed_images, embed_texts),
    batches=make_batches(),
    templates=["see {}!"],
  )
  assert asked == [f"see {c}!" for c in ["a0", "b0", "a1", "a2", "b1", "c2"]]
  assert (got["images"], got["texts"]) == (3, 6)
  assert got["image_to_text"]["r@1"] == 1
  assert got["text_to_image"]["r@1"] == 5 / 6  # "b1" belongs to image 2.


@pytest.mark.parametrize(
  "options, message",
  [
    ({"labels": ["cat"]}, "no labels"),
    ({"templates": ["a {}", "b {}"]}, "one template"),
    ({"batches": []}, "no image"),
  ],
)
def test_evaluate_refuses_what_makes_no_sense(options, message):
  arguments = {"batches": make_batches()} | options
  with pytest.raises(errors.UserError, match=message):
    retrieval.evaluate(
      None, model=_model(embed_images, np.asarray), **arguments
    )
