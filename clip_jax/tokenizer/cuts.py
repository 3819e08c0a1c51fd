"""Counts texts that were cut at the context length; warns once."""

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

# A logger of our own: without a handler, it shows the message and no more.
_LOGGER = logging.getLogger(__name__)
_SHOWN = 40  # Characters of the first text that was cut.


@dataclasses.dataclass
class Cuts:
  """Counts texts that were cut, and warns of them once.

  Attributes:
    what: the name of the texts in the warning.
    texts: number of texts that were looked at.
    cut: number of those that were cut.
  """

  what: str = "texts"
  texts: int = 0
  cut: int = 0
  _first: str = ""
  _told: bool = False

  def add(self, texts: Sequence[str], cut: np.ndarray) -> None:
    """Counts `texts`; `cut` bool (n,) says which of them were cut."""
    if cut.any() and not self.cut:
      self._first = texts[int(cut.argmax())]
    self.texts += len(texts)
    self.cut += int(cut.sum())

  def tell(self, context_length: int) -> None:
    """Logs the counts, unless nothing was cut or it was told before."""
    if self._told or not self.cut:
      return
    self._told = True
    _LOGGER.warning(
      "%d of %d %s %s longer than the %d tokens that the model reads, and "
      "the rest was cut off; the first of them begins %r.",
      self.cut,
      self.texts,
      self.what,
      "is" if self.cut == 1 else "are",
      context_length,
      self._first[:_SHOWN],
    )
