"""Records whose texts are the names of their classes."""

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np

from clip_jax.data import record as record_lib
from clip_jax.data.sources import strings, views


def in_order(names: Iterable[str]) -> list[str]:
  """Returns the names of classes in the order of their numbers.

  Names that are numbers are ordered as such: a list of names for 0, 1, …, 10
  has them so.
  """
  ordered = sorted(names)
  if all(name.isascii() and name.isdecimal() for name in ordered):
    # As int orders them, which takes no more than 4,300 digits.
    ordered.sort(key=lambda name: (len(name.lstrip("0")), name.lstrip("0")))
  return ordered


class Classified(views.View):
  """Records of one class each; or, where one has several, of any number.

  Attributes:
    classes: the first class of each record, int (n,); -1 where it has none.
  """

  def __init__(
    self, source: record_lib.Source, texts: strings.Pieces, bounds: np.ndarray
  ):
    """Numbers the classes.

    Args:
      source: the records.
      texts: all of theirs.
      bounds: record i has the texts from bound i to bound i + 1.
    """
    super().__init__(source, "classes")
    names = {text.strip() for text in texts} - {""}
    self.class_names = tuple(in_order(filter(_is_unicode, names)))
    self._numbers = {name: i for i, name in enumerate(self.class_names)}
    self.classes = np.full(len(source), -1)
    self._several = False
    for index, (first, end) in enumerate(itertools.pairwise(bounds.tolist())):
      own = {self._numbers.get(texts[i].strip(), -1) for i in range(first, end)}
      if own := own - {-1}:
        self.classes[index] = min(own)
        self._several |= len(own) > 1

  def __getitem__(self, index: int) -> record_lib.Record:
    try:
      record = self._source[index]
    except record_lib.BadRecord as error:
      if error.reason in ("missing_caption", "empty_caption"):
        raise record_lib.BadRecord("missing_label", error.key) from None
      raise
    labels = tuple(sorted({self._numbers[text] for text in record.texts}))
    return dataclasses.replace(
      record,
      texts=tuple(self.class_names[label] for label in labels),
      label=None if self._several else labels[0],
      labels=labels if self._several else None,
    )


def _is_unicode(text: str) -> bool:
  """Whether a text was UTF-8; others make bad records."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True
