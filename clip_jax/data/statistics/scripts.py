"""The script that a caption is written in, by Unicode's blocks."""

import bisect
import collections

NONE, OTHER = "none", "other"
# First and last code point of blocks, from Blocks.txt of Unicode 16. Blocks of
# one script are joined, with unassigned code points between them.
_BLOCKS = """
0041-024F Latin
0370-03FF Greek
0400-052F Cyrillic
0530-058F Armenian
0590-05FF Hebrew
0600-06FF Arabic
0700-074F Syriac
0750-077F Arabic
0780-07BF Thaana
07C0-07FF NKo
0870-08FF Arabic
0900-097F Devanagari
0980-09FF Bengali
0A00-0A7F Gurmukhi
0A80-0AFF Gujarati
0B00-0B7F Oriya
0B80-0BFF Tamil
0C00-0C7F Telugu
0C80-0CFF Kannada
0D00-0D7F Malayalam
0D80-0DFF Sinhala
0E00-0E7F Thai
0E80-0EFF Lao
0F00-0FFF Tibetan
1000-109F Myanmar
10A0-10FF Georgian
1100-11FF Hangul
1200-139F Ethiopic
13A0-13FF Cherokee
1400-167F Canadian
1780-17FF Khmer
1800-18AF Mongolian
18B0-18FF Canadian
1C80-1C8F Cyrillic
1C90-1CBF Georgian
1E00-1EFF Latin
1F00-1FFF Greek
2C60-2C7F Latin
2D00-2D2F Georgian
2D80-2DDF Ethiopic
2DE0-2DFF Cyrillic
2E80-2FDF Han
3005-3007 Han
3040-309F Hiragana
30A0-30FF Katakana
3100-312F Bopomofo
3130-318F Hangul
31A0-31BF Bopomofo
31F0-31FF Katakana
3400-4DBF Han
4E00-9FFF Han
A640-A69F Cyrillic
A720-A7FF Latin
A8E0-A8FF Devanagari
A960-A97F Hangul
A9E0-A9FF Myanmar
AA60-AA7F Myanmar
AB00-AB2F Ethiopic
AB30-AB6F Latin
AB70-ABBF Cherokee
AC00-D7FF Hangul
F900-FAFF Han
FB00-FB06 Latin
FB13-FB17 Armenian
FB1D-FB4F Hebrew
FB50-FDFF Arabic
FE70-FEFE Arabic
FF21-FF5A Latin
FF65-FF9F Katakana
FFA0-FFDC Hangul
20000-3FFFF Han
"""
_ROWS = [line.split() for line in _BLOCKS.split("\n") if line]
_RANGES = [[int(end, 16) for end in row[0].split("-")] for row in _ROWS]
_FIRST = [first for first, _ in _RANGES]
SCRIPTS = (NONE, OTHER, *sorted({script for _, script in _ROWS}))


def of_letter(letter: str) -> str:
  """Returns the script of one letter."""
  code = ord(letter)
  row = bisect.bisect_right(_FIRST, code) - 1
  if row < 0 or code > _RANGES[row][1]:
    return OTHER
  return _ROWS[row][1]


def of_text(text: str) -> str:
  """Returns the script of most letters of a text, the first of equal ones.

  `NONE` where it has no letter, `OTHER` where most are of no block that is
  known here. Marks, digits and symbols do not count.
  """
  if text.isascii():
    return "Latin" if any(map(str.isalpha, text)) else NONE
  counts = collections.Counter(map(of_letter, filter(str.isalpha, text)))
  return min(counts, key=lambda name: (-counts[name], name), default=NONE)
