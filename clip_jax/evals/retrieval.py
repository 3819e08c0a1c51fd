"""Retrieval: recall of a text's image and of an image's texts."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from clip_jax import errors, terminal
from clip_jax.evals import embedding_model
from clip_jax.evals import prompts as prompts_lib

_LOGGER = logging.getLogger(__name__)

CUTOFFS = (1, 5, 10)  # Paper, Table 13.
_SCORES_PER_BLOCK = 1 << 24  # 64 MiB of float32.
_TEXTS_PER_CALL = 1024


def text_to_image_ranks(
  text_embeds: np.ndarray,
  image_embeds: np.ndarray,
  image_of_text: np.ndarray,
  *,
  text_ids: np.ndarray | None = None,
) -> np.ndarray:
  """Returns the number of images before the first of each text's own.

  Args:
    text_embeds: (texts, embed).
    image_embeds: (images, embed).
    image_of_text: the image of each text, (texts,).
    text_ids: equal numbers for equal texts, (texts,); a text's own images are
      then those of all its equals. None takes every text as different.
  """
  image_of_text = np.asarray(image_of_text)
  if text_ids is None:
    text_ids = np.arange(len(image_of_text))
  images = [image_of_text[texts] for texts in _grouped(text_ids)]
  own = [images[number] for number in text_ids]
  return _ranks(text_embeds, image_embeds, own)


def image_to_text_ranks(
  image_embeds: np.ndarray,
  text_embeds: np.ndarray,
  image_of_text: np.ndarray,
  *,
  text_ids: np.ndarray | None = None,
) -> np.ndarray:
  """Returns the number of texts before the first of each image's own.

  An image may have any number of texts from one up. With `text_ids` the equals
  of its texts are its own too.
  """
  own = _grouped(image_of_text)
  if text_ids is not None:
    equals, numbers = _grouped(text_ids), np.asarray(text_ids)
    own = [
      np.concatenate([equals[number] for number in np.unique(numbers[texts])])
      for texts in own
    ]
  return _ranks(image_embeds, text_embeds, own)


def _grouped(numbers: np.ndarray) -> list[np.ndarray]:
  """Returns the places of each number from 0 up, in their order."""
  order = np.argsort(numbers, kind="stable")
  return np.split(order, np.cumsum(np.bincount(numbers))[:-1])


def _ranks(
  queries: np.ndarray, candidates: np.ndarray, own: Sequence[np.ndarray]
) -> np.ndarray:
  """Returns the number of candidates before the best own; ties by index."""
  ranks = np.empty(len(queries), np.int64)
  for rows, scores in _blocks(queries, candidates):
    counts = [len(candidates_of_row) for candidates_of_row in own[rows]]
    query = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate(own[rows])
    own_scores = scores[query, place]
    best = np.full(len(counts), -np.inf, scores.dtype)
    np.maximum.at(best, query, own_scores)
    first = np.full(len(counts), len(candidates))
    at_best = own_scores == best[query]
    np.minimum.at(first, query[at_best], place[at_best])
    ranks[rows] = [
      # A row stays in the cache, the whole block does not.
      np.count_nonzero(row > top) + np.count_nonzero(row[:end] == top)
      for row, top, end in zip(scores, best, first, strict=True)
    ]
  return ranks


def _blocks(
  queries: np.ndarray, candidates: np.ndarray
) -> Iterable[tuple[slice, np.ndarray]]:
  """Yields the scores (rows, candidates) of a few queries at a time."""
  queries = np.asarray(queries, np.float32)
  candidates = np.asarray(candidates, np.float32)
  step = max(1, _SCORES_PER_BLOCK // max(1, len(candidates)))
  for start in range(0, len(queries), step):
    rows = slice(start, min(start + step, len(queries)))
    yield rows, queries[rows] @ candidates.T


def summarise(ranks: np.ndarray) -> dict[str, float]:
  """Returns recall at 1, 5 and 10 (fractions) and the median rank.

  Ranks count from 1. Of an even number of queries the median is the mean of
  the two in the middle, so that it may end in .5; much other code rounds that
  down to a whole rank.
  """
  recalls = {f"r@{k}": float(np.mean(ranks < k)) for k in CUTOFFS}
  return recalls | {"median_rank": float(np.median(ranks)) + 1}


def recall(
  image_embeds: np.ndarray,
  text_embeds: np.ndarray,
  image_of_text: np.ndarray,
  *,
  text_ids: np.ndarray | None = None,
) -> dict[str, Any]:
  """Returns recall both ways; an image counts as found with any of its texts.

  Args:
    image_embeds: (images, embed).
    text_embeds: (texts, embed).
    image_of_text: the image of each text, (texts,).
    text_ids: as in `text_to_image_ranks`.

  Raises:
    UserError: there is no image, or an image has no text.
  """
  images, texts = len(image_embeds), len(text_embeds)
  counts = np.bincount(image_of_text, minlength=images)
  if not images or len(counts) > images or not counts.all():
    raise errors.UserError(
      "Retrieval needs images that each have a text; got "
      f"{terminal.counted(images, 'image')}, "
      f"{int(np.sum(counts == 0))} of them without."
    )
  image_embeds = prompts_lib.normalize(image_embeds, what="image")
  text_embeds = prompts_lib.normalize(text_embeds, what="text")
  given = (image_of_text,)
  return {
    "text_to_image": summarise(
      text_to_image_ranks(text_embeds, image_embeds, *given, text_ids=text_ids)
    ),
    "image_to_text": summarise(
      image_to_text_ranks(image_embeds, text_embeds, *given, text_ids=text_ids)
    ),
    "images": images,
    "texts": texts,
  }


def numbered(texts: Sequence[str]) -> np.ndarray:
  """Returns equal numbers for equal texts, from 0 in order of appearance."""
  numbers: dict[str, int] = {}
  return np.array([numbers.setdefault(t, len(numbers)) for t in texts], int)


def count_repeated(text_ids: np.ndarray, image_of_text: np.ndarray) -> int:
  """Returns the number of texts that equal one of another image."""
  pairs = np.unique(np.stack([text_ids, image_of_text]), axis=1)
  images = np.bincount(pairs[0])
  return int((images[text_ids] > 1).sum())


def evaluate(
  source: Any,
  *,
  model: embedding_model.EmbeddingModel,
  batches: Iterable[dict[str, Any]],
  labels: prompts_lib.Labels | None = None,
  templates: Sequence[str] | None = None,
  duplicates: str = "hits",
) -> dict[str, Any]:
  """Returns recall at 1, 5 and 10 and the median rank of `source`, both ways.

  `repeated_texts` counts the texts that another image has too. No model can
  tell which of these images is meant.

  Args:
    source: the data; not used.
    model: to measure.
    batches: the data's images and texts.
    labels: must be None; retrieval has no labels.
    templates: at most one, put around every caption; the paper's retrieval
      (Table 13) writes "a photo of {}".
    duplicates: one of `names.RETRIEVAL_DUPLICATES`: whether an equal text of
      another image is as good as a text's own.

  Raises:
    UserError: labels or several templates are given, or there is no image.
  """
  before, after = around_captions(source, labels=labels, templates=templates)
  image_embeds, texts, image_of_text = [], [], []
  images = 0
  for batch in batches:
    image_embeds.append(model.embed_images(batch["image"]))
    for own in batch["texts"]:
      texts.extend(before + text + after for text in own)
      image_of_text.extend([images] * len(own))
      images += 1
  if not images:
    raise errors.UserError("There is no image to retrieve.")
  text_embeds = [
    model.embed_texts(texts[start : start + _TEXTS_PER_CALL])
    for start in range(0, len(texts), _TEXTS_PER_CALL)
  ]
  text_ids, owners = numbered(texts), np.asarray(image_of_text)
  found = recall(
    np.concatenate(image_embeds),
    np.concatenate(text_embeds),
    owners,
    text_ids=text_ids if duplicates == "hits" else None,
  )
  repeated = count_repeated(text_ids, owners)
  if repeated:
    _LOGGER.warning(
      "%d of %d captions are also another image's; equal captions count as %s "
      "(--duplicates).",
      repeated,
      len(texts),
      duplicates,
    )
  return {
    **found,
    "repeated_texts": repeated,
    "duplicates": duplicates,
    "protocol": f"retrieval: captions as {before + '{}' + after!r}, the best "
    "of a query's own candidates counts, ties by position; equal captions of "
    f"other images are {duplicates}",
  }


def around_captions(
  source: Any,
  *,
  labels: prompts_lib.Labels | None = None,
  templates: Sequence[str] | None = None,
) -> tuple[str, str]:
  """Returns the words of the template before and after every caption.

  Raises:
    UserError: labels or several templates are given.
  """
  del source
  if labels is not None:
    raise errors.UserError("Retrieval takes no labels, only captions.")
  if templates is not None and len(templates) != 1:
    raise errors.UserError(
      f"Retrieval takes one template around each caption, got {len(templates)}."
    )
  if templates is None:
    return "", ""
  return prompts_lib.parse_template(templates[0])
