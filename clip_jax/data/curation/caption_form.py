"""What a caption looks like: its characters, and the domains it names."""

import itertools
import re
import unicodedata
from collections.abc import Iterator

_URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
_NO_DOMAIN = re.compile(r"[^\w.-]+")
_LONGEST_DOMAIN = 253  # RFC 1035, section 2.3.4, without the root's dot.


def _characters(text: str) -> int:
  """Returns the number of characters that are no spaces; at least 1."""
  return max(1, sum(map(len, text.split())))


def letters(text: str) -> float:
  """Returns the share of letters and their marks, from 0 to 1."""
  count = sum(unicodedata.category(c)[0] in "LM" for c in text)
  return count / _characters(text)


def digits(text: str) -> float:
  """Returns the share of decimal digits, of any script, from 0 to 1."""
  return sum(map(str.isdecimal, text)) / _characters(text)


def urls(text: str) -> float:
  """Returns the share of URLs, by their characters, from 0 to 1."""
  return sum(map(len, _URL.findall(text))) / _characters(text)


def run(text: str) -> int:
  """Returns the length of the longest run of one character; no space."""
  return max(
    (
      sum(1 for _ in row)
      for character, row in itertools.groupby(text)
      if not character.isspace()
    ),
    default=0,
  )


def domains(text: str) -> Iterator[str]:
  """Yields each domain in `text` and those that it is a part of, in lower case.

  "https://img.example.com/a" gives "img.example.com", "example.com", "com".
  """
  for token in _NO_DOMAIN.split(text.lower()):
    name = token.strip(".-")
    if "." in name and len(name) <= _LONGEST_DOMAIN:
      parts = name.split(".")
      for start in range(len(parts)):
        yield ".".join(parts[start:])
