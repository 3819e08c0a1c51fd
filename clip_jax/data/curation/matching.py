"""Finds the queries of a list in captions.

MetaCLIP's rule (arXiv 2309.16671, section 3): spaces are put around punctuation
and around the whole caption, and a query matches where it stands between two
spaces. Capitals count. Such a query is a row of whole words of the caption, so
that a dictionary of rows of words finds the same ones. Queries get spaces
around their own punctuation, too: without them "St. Louis" could match nothing.

Where each language has a list of its own (MetaCLIP 2, arXiv 2507.22062), each
character of a script that is written without spaces counts as a word, so that
such queries match wherever they stand.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_PUNCTUATION = re.compile(r"([,.;:?!`])")
_MARK = re.compile(r"[^\w\s]|_")
SPACES = str.maketrans("\t\n\r", "   ")
# Thai and Lao, Tibetan, Burmese, Khmer, kana, Han.
_UNSPACED = re.compile(
  "([\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff"
  "\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)


def spaced(text: str) -> str:
  """Returns `text` with a space on both sides of each punctuation mark."""
  return _PUNCTUATION.sub(r" \1 ", text).translate(SPACES)


def _marks_apart(text: str) -> str:
  """Returns `text` with spaces around all but letters and digits."""

  def spaces(match):
    # Vowel signs and accents of their own are parts of words.
    part = unicodedata.category(match[0]).startswith("M")
    return match[0] if part else f" {match[0]} "

  return _MARK.sub(spaces, text)


class Matcher:
  """Finds which of the queries a caption holds; picklable."""

  def __init__(
    self,
    queries: Sequence[str],
    *,
    ignore_case: bool = False,
    characters: bool = False,
    marks: bool = False,
  ):
    """Makes the dictionary.

    Args:
      queries: each once; a match is told by its position.
      ignore_case: whether capitals make no difference.
      characters: whether those of scripts without spaces are words, and any
        number of spaces is one.
      marks: whether brackets, quotes, hyphens and all else that is no letter
        and no digit is set apart, as punctuation is.
    """
    self._characters = characters
    self._set_apart = _marks_apart if marks else str
    self._fold = str.casefold if ignore_case else str
    self._numbers: dict[str, list[int]] = {}
    lengths: dict[str, set[int]] = {}
    for number, query in enumerate(queries):
      words = self._words(query.strip(), strip=True)
      self._numbers.setdefault(" ".join(words), []).append(number)
      lengths.setdefault(words[0], set()).add(len(words))
    self._lengths = {word: tuple(sorted(n)) for word, n in lengths.items()}

  def _words(self, text: str, *, strip: bool = False) -> list[str]:
    text = spaced(self._set_apart(self._fold(text)))
    if self._characters:
      return _UNSPACED.sub(r" \1 ", text).split()
    return (text.strip(" ") if strip else text).split(" ")

  def find(self, texts: Iterable[str]) -> list[int]:
    """Returns the positions of the queries in any of `texts`, ascending."""
    found: set[int] = set()
    for text in texts:
      words = self._words(text)
      for start, word in enumerate(words):
        for length in self._lengths.get(word, ()):
          row = " ".join(words[start : start + length])
          found.update(self._numbers.get(row, ()))
    return sorted(found)
