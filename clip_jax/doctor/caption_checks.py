"""Checks for captions and images that repeat, and for empty or cut captions."""

import collections
import functools

import numpy as np

from clip_jax import tokenizer as tokenizer_lib
from clip_jax.doctor import sampling
from clip_jax.doctor.finding import OK, PROBLEM, WARNING, Finding

# A batch's pairs of equal captions are called negatives. Below this share the
# loss hardly notices; most of a web crawl's captions come once.
_MANY_DUPLICATES = 0.05
_MANY_CUT = 0.05
_SHOWN = 3


def check(
  sample: sampling.Sample,
  tokenizer: tokenizer_lib.Tokenizer,
  *,
  duplicates: str = "ignore",
  contrastive: bool = True,
) -> list[Finding]:
  """Checks the captions and images of the readable records of a sample.

  Args:
    sample: of the training pairs.
    tokenizer: the model's.
    duplicates: how the loss takes equal ones, see `losses.local_loss`.
    contrastive: whether the loss compares the pairs of a batch.
  """
  if not sample.texts:
    return []
  count = functools.partial(
    _duplicates, duplicates=duplicates, contrastive=contrastive
  )
  return [
    count("captions", sample.texts, show=True),
    count("images", sample.images, show=False),
    _lengths(sample.texts, tokenizer),
  ]


def _duplicates(
  what: str, values: list, *, duplicates: str, contrastive: bool, show: bool
) -> Finding:
  counts = collections.Counter(values)
  repeated = sum(n for n in counts.values() if n > 1)
  share = repeated / len(values)
  facts = {
    "sampled": len(values),
    "distinct": len(counts),
    "repeated_fraction": share,
  }
  if show:
    facts["most_common"] = [
      {"text": text, "times": times}
      for text, times in counts.most_common(_SHOWN)
      if times > 1
    ]
  name = f"duplicate {what}"
  if len(counts) == 1:
    return Finding(
      name,
      PROBLEM,
      f"Only one is distinct of {len(values)} sampled {what}: nothing can be "
      "learned. See that the address names the right column or files.",
      facts,
    )
  if contrastive and duplicates != "ignore":
    return Finding(
      name,
      OK,
      f"{share:.1%} of {len(values)} {what} come more than once; with "
      f"loss.duplicates={duplicates} equal ones are no negatives.",
      facts,
    )
  if contrastive and share > _MANY_DUPLICATES:
    return Finding(
      name,
      WARNING,
      f"{share:.0%} of {len(values)} sampled {what} come more than once; in a "
      "batch, equal ones are negatives of each other. Add "
      "--config.loss.duplicates=mask (or positive), or deduplicate.",
      facts,
    )
  return Finding(
    name, OK, f"{share:.1%} of {len(values)} {what} come more than once.", facts
  )


def _lengths(texts: list[str], tokenizer: tokenizer_lib.Tokenizer) -> Finding:
  empty = sum(not text for text in texts)
  share = float(tokenizer.rows(texts).cut.mean())
  facts = {
    "empty": empty,
    "cut_fraction": share,
    "mean_characters": float(np.mean([len(text) for text in texts])),
  }
  wrong = []
  if empty:
    wrong.append(
      f"{empty} of {len(texts)} sampled captions are empty: their images "
      "are trained to match an empty text. Leave these records out."
    )
  if share > _MANY_CUT:
    wrong.append(
      f"{share:.0%} of the captions are longer than the "
      f"{tokenizer.context_length} tokens that the model reads, and are cut."
    )
  if wrong:
    return Finding("caption lengths", WARNING, " ".join(wrong), facts)
  return Finding(
    "caption lengths", OK, f"{share:.1%} are cut at the context length.", facts
  )
