"""Scores of models that predict captions: how likely a class's texts are.

For the paper's comparison of objectives (section 2.3). A class of several
prompts has the mean of their scores.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from scipy import sparse

from clip_jax import errors
from clip_jax.evals import embedding_model
from clip_jax.evals import prompts as prompts_lib

Scored = tuple[np.ndarray, np.ndarray]


def scores(
  batches: Iterable[dict[str, Any]],
  score_texts: embedding_model.ScoreTexts,
  prompts: prompts_lib.Prompts,
  *,
  subtract_prior: bool = False,
) -> Iterator[Scored]:
  """Yields the scores (n, classes) and the labels (n,) of each batch.

  Args:
    batches: of images and labels.
    score_texts: of the model.
    prompts: of the classes.
    subtract_prior: from the log-probability of each unit (a word, or a text)
      subtract the logarithm of its mean probability over all images, so that
      what is likely in any picture counts less. Then all scores are held until
      the last image has been seen.

  Raises:
    UserError: a score is not finite.
  """
  counts = [len(several) for several in prompts.texts]
  flat = [text for several in prompts.texts for text in several]
  owners = np.repeat(np.arange(len(counts)), counts)
  mean = sparse.csr_array(
    (1 / np.repeat(counts, counts), (np.arange(len(flat)), owners))
  )  # (texts, classes)
  likelihoods = score_texts(flat)
  # (classes, units)
  weights = sparse.csr_array(sparse.csr_array(likelihoods.weights @ mean).T)
  total, images = np.float64(-np.inf), 0  # Becomes (units,).
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
