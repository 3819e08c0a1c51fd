"""Applies the rules that look at one pair alone."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clip_jax import preprocess
from clip_jax.data import record as record_lib
from clip_jax.data.curation import (
  balancing,
  caption_form,
  language,
  matching,
)
from clip_jax.data.curation import rules as rules_lib

PASSED = -1
CODE = {name: number for number, name in enumerate(rules_lib.NAMES)}
# What the last rules need: all pairs, or a model.
_LATER = ("max_caption_repeats", "min_score", "keep_share")

# The rules about one caption: whether it keeps the limit that it is given.
CAPTION: Mapping[str, Callable[[str, Any], bool]] = {
  "min_chars": lambda text, limit: len(text) >= limit,
  "max_chars": lambda text, limit: len(text) <= limit,
  "min_words": lambda text, limit: len(text.split()) >= limit,
  "max_words": lambda text, limit: len(text.split()) <= limit,
  "min_letters": lambda text, limit: caption_form.letters(text) >= limit,
  "max_digits": lambda text, limit: caption_form.digits(text) <= limit,
  "max_urls": lambda text, limit: caption_form.urls(text) <= limit,
  "max_run": lambda text, limit: caption_form.run(text) <= limit,
  "languages": lambda text, limit: language.of(text) in limit,
}


# Rules that once meant something else.
_VERSIONS = {"block_words": 2}  # 2: brackets and quotes part words.


def versions(rules: rules_lib.Rules) -> list[tuple[str, int]]:
  """Returns the versions of those given rules that have meant something else.

  What was filtered by the rules of before is not taken for theirs.
  """
  return [item for item in _VERSIONS.items() if item[0] in rules.given()]


class Examine:
  """Applies the rules about one pair; picklable, for other processes."""

  columns: Mapping[str, np.dtype] = {"rule": np.dtype(np.int8)}
  ragged: Mapping[str, np.dtype] = {
    "captions": np.dtype(np.uint64),
    "stays": np.dtype(bool),
  }

  def __init__(self, rules: rules_lib.Rules, limits: preprocess.Limits):
    given = {k: v for k, v in rules.given().items() if k not in _LATER}
    self._rules = given
    self._limits = limits
    self._domains = {name.lower().strip(".") for name in rules.block_domains}
    self._words = matching.Matcher(
      rules.block_words, ignore_case=True, characters=True, marks=True
    )
    self.identity = (
      *(sorted(given.items()), limits.max_pixels),
      *versions(rules),
    )

  def __call__(self, record: record_lib.Record) -> Mapping[str, Any]:
    """Returns the first broken rule or -1, and of captions which stay."""
    width, height = preprocess.check_header(record.image, limits=self._limits)
    texts = [text.strip() for text in record.texts]
    stays = [True] * len(texts)
    broken = self._of_pair(width, height, record)
    for name, keeps in CAPTION.items():
      if broken is None and name in self._rules:
        limit = self._rules[name]
        stays = [
          stay and keeps(text, limit)
          for stay, text in zip(stays, texts, strict=True)
        ]
        broken = None if any(stays) else name
    return {
      "rule": PASSED if broken is None else CODE[broken],
      "captions": [balancing.hash_text(text) for text in texts],
      "stays": stays,
    }

  def _of_pair(
    self, width: int, height: int, record: record_lib.Record
  ) -> str | None:
    """Returns the first rule about the pair as a whole that it breaks."""
    low, high = sorted((width, height))
    rules = self._rules
    if low < rules.get("min_side", 0):
      return "min_side"
    if high > rules.get("max_side", math.inf):
      return "max_side"
    # Not a product, whose rounding would decide where they are equal.
    if high / low > rules.get("max_aspect", math.inf):
      return "max_aspect"
    if self._domains and any(
      name in self._domains
      for text in (record.key, *record.texts)
      for name in caption_form.domains(text)
    ):
      return "block_domains"
    if "block_words" in rules and self._words.find(record.texts):
      return "block_words"
    return None
