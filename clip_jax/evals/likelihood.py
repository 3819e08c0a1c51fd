"""Scores of classes by models that predict captions (paper, section 2.3).

A prompt's score is its log-probability given the image; that of a class is the
mean over its prompts.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from scipy import sparse

from clip_jax import errors
from clip_jax.evals import embedding_model
from clip_jax.evals import prompts as prompts_lib

Scored = tuple[np.ndarray, np.ndarray]  # Scores (n, classes), labels (n,).


def scores(
  batches: Iterable[dict[str, Any]],
  score_texts: embedding_model.ScoreTexts,
  prompts: prompts_lib.Prompts,
  *,
  subtract_prior: bool = False,
) -> Iterator[Scored]:
  """Yields the scores (n, classes) and the labels (n,) of each batch.

  Args:
    batches: dicts of "image" and "label".
    score_texts: the model's.
    prompts: the texts of each class.
    subtract_prior: whether to subtract, from the log-probability of each unit
      (a word, or a text), the logarithm of its mean probability over all
      images, so that what is likely with any image counts less. The first
      scores are then yielded after the last image.

  Raises:
    UserError: a score is not finite.
  """
  counts = [len(texts) for texts in prompts.texts]
  flat = [text for texts in prompts.texts for text in texts]
  classes = np.repeat(np.arange(len(counts)), counts)
  likelihoods = score_texts(flat)
  units, texts, each = likelihoods.weights
  prompts_of = np.repeat(counts, counts)  # Prompts of a text's class.
  weights = sparse.csr_array(
    (each / prompts_of[texts], (classes[texts], units)),
    (len(counts), 1 + units.max()),
  )
  # The logarithm of each unit's probabilities, summed over images: (units,).
  total, images = np.float64(-np.inf), 0
  held: list[Scored] = []
  for batch in batches:
    found = np.asarray(likelihoods.of_images(batch["image"]), np.float64)
    scored = (weights @ found.T).T, np.asarray(batch["label"])
    _check_finite(scored[0])
    if not subtract_prior:
      yield scored
      continue
    held.append(scored)
    total = np.logaddexp(total, np.logaddexp.reduce(found, axis=0))
    images += len(found)
  if held:
    prior = weights @ (total - np.log(images))  # (classes,)
    for found, labels in held:
      yield found - prior, labels


def _check_finite(found: np.ndarray) -> None:
  if not np.isfinite(found).all():
    raise errors.UserError(
      "The model gives scores that are not finite; its parameters are damaged "
      "or its training diverged. Use an earlier checkpoint."
    )
