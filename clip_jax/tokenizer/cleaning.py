"""Cleaning: how each family of tokenizers normalises a caption.

Captions come from the open web, so every step is linear in the text and none
raises on any `str`.
"""

import functools
import html
import itertools
import string
import unicodedata
from collections.abc import Callable, Iterator

import ftfy
import regex
import tokenizers
from ftfy import fixes

# What ftfy.fix_text repairs on its own: a line, or a million characters of it.
_SEGMENT = regex.compile(r"[^\n]{0,999999}\n|[^\n]{1,1000000}")

# ftfy's repairs in its order (ftfy 6, `fix_and_explain`), without NFC.
_FIXERS = (
  ftfy.fix_encoding,
  fixes.fix_c1_controls,
  fixes.fix_latin_ligatures,
  fixes.fix_character_width,
  fixes.uncurl_quotes,
  fixes.fix_line_breaks,
  fixes.fix_surrogates,
  fixes.remove_terminal_escapes,
  fixes.remove_control_chars,
)
# ftfy repeats its repairs until nothing changes, once a level of
# "&amp;amp;amp;…": quadratic in a hostile caption. Real ones need two passes.
_MAX_PASSES = 16

# NFC sorts a run of combining marks by insertion: quadratic in its length.
_LONG_MARKS = regex.compile(r"\p{M}{128,}")

# `int` refuses more than 4,300 digits; 20 are already beyond Unicode.
_LEADING_ZEROS = regex.compile(r"&#0{20,}(?=[0-9])")
_LONG_REFERENCE = regex.compile(r"(&#[0-9]{20})[0-9]+")

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LOWER_ASCII = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_SENTENCEPIECE_SPACE = "\u2581"


def clean_clip(text: str) -> Iterator[str]:
  """Yields the lines of `text` as OpenAI cleaned it, read as far as needed.

  The steps are ftfy, HTML twice, white space and case. Line by line they give
  what they give for the whole, because none looks across a line's end.
  """
  for line in clean_whitespace_ftfy(text):
    yield line.lower()


def clean_whitespace_ftfy(text: str) -> Iterator[str]:
  """Yields the lines of `text` as `clean_clip`, each in its own case.

  OpenCLIP's "whitespace", for tokenizers of HuggingFace's.
  """
  line, escaped = "", True
  for match in _SEGMENT.finditer(text):
    segment = match.group()
    # ftfy stops unescaping HTML after the first "<" of the whole text.
    escaped = escaped and "<" not in segment
    line += _fix(segment, unescape=escaped)
    if segment.endswith("\n"):
      yield _clean_line(line)
      line = ""
  yield _clean_line(line)


def clean_canonicalize(text: str) -> Iterator[str]:
  """Yields `text` as big_vision evaluates: "_" a space, no punctuation."""
  text = text.replace("_", " ").translate(_NO_PUNCTUATION).lower()
  yield " ".join(text.split())


def clean_canonicalize_ftfy(text: str) -> Iterator[str]:
  """Yields `text` as OpenCLIP's "canonicalize" does, repaired before."""
  return clean_canonicalize(" ".join(clean_whitespace_ftfy(text)))


def clean_hf_siglip(text: str) -> Iterator[str]:
  """Yields `text` as HuggingFace's SiglipTokenizer: "_" is deleted, too.

  That class puts SentencePiece's sign for a space before the text, and so keeps
  a space that the text itself starts with; SentencePiece would drop it.
  """
  text = text.replace(_SENTENCEPIECE_SPACE, " ").lower()
  text = text.translate(_NO_PUNCTUATION)
  words = " ".join(text.split())
  keeps_space = words and text[0].isspace()
  yield _SENTENCEPIECE_SPACE + words if keeps_space else words


def clean_lower_ascii(text: str) -> Iterator[str]:
  """Yields `text` as `tf.strings.lower` does: A to Z only (big_vision)."""
  yield text.translate(_LOWER_ASCII)


def clean_lower(text: str) -> Iterator[str]:
  """Yields `text` in Python's lower case (sentence-transformers)."""
  yield text.lower()


def clean_hf_lower(text: str) -> Iterator[str]:
  """Yields `text` in lower case letter by letter (HuggingFace's SigLIP 2)."""
  yield tokenizers.normalizers.Lowercase().normalize_str(text)


def clean_hf_clip(text: str) -> Iterator[str]:
  """Yields `text` as HuggingFace's CLIPTokenizer: neither ftfy nor HTML."""
  yield huggingface_clip().normalize_str(text)


def clean_none(text: str) -> Iterator[str]:
  """Yields `text` as it is."""
  yield text


# A tokenizer's `cleaning`: what makes clean lines of a caption.
CLEANINGS: dict[str, Callable[[str], Iterator[str]]] = {
  "clip": clean_clip,
  "hf_clip": clean_hf_clip,
  "canonicalize": clean_canonicalize,
  "canonicalize_ftfy": clean_canonicalize_ftfy,
  "whitespace_ftfy": clean_whitespace_ftfy,
  "hf_siglip": clean_hf_siglip,
  "hf_lower": clean_hf_lower,
  "lower": clean_lower,
  "lower_ascii": clean_lower_ascii,
  "none": clean_none,
}


def clean(text: str, *, name: str) -> Iterator[str]:
  """Yields the lines of `text` after the cleaning of that name.

  Half characters (lone surrogates) become U+FFFD, as ftfy has it.
  """
  try:
    text.encode()
  except UnicodeEncodeError:
    text = fixes.fix_surrogates(text)
  return CLEANINGS[name](text)


@functools.cache
def huggingface_clip() -> tokenizers.normalizers.Normalizer:
  """Returns the normalizer of HuggingFace's CLIPTokenizer."""
  normalizers = tokenizers.normalizers
  return normalizers.Sequence(
    [
      normalizers.NFC(),
      normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
      normalizers.Lowercase(),
    ]
  )


def _clean_line(line: str) -> str:
  if "&" in line:
    line = _unescape(_unescape(line))
  return " ".join(line.split())


def _fix(text: str, *, unescape: bool) -> str:
  """Repairs one segment as `ftfy.fix_text` does, in linear time."""
  if text.isascii() and "&" not in text and text.rstrip("\n").isprintable():
    return text  # Nothing that ftfy repairs.
  for _ in range(_MAX_PASSES):
    before = text
    if unescape:
      text = fixes.unescape_html(text)
    for fix in _FIXERS:
      text = fix(text)
    text = unicodedata.normalize("NFC", _LONG_MARKS.sub(_sort_marks, text))
    if text == before:
      break
  return text


def _sort_marks(match: regex.Match) -> str:
  """Returns a run of marks in canonical order, so that NFC has nothing to sort.

  The order is stable and stays between the marks of class 0, as Unicode's
  canonical ordering does, so NFC of the result is NFC of the run.
  """
  marks = "".join(
    itertools.chain(*(unicodedata.normalize("NFD", c) for c in match.group()))
  )
  runs = itertools.groupby(marks, lambda c: unicodedata.combining(c) > 0)
  return "".join(
    c for _, run in runs for c in sorted(run, key=unicodedata.combining)
  )


def _unescape(text: str) -> str:
  """Is `html.unescape` without its limit on a reference's digits."""
  text = _LEADING_ZEROS.sub("&#", text)
  return html.unescape(_LONG_REFERENCE.sub(r"\1", text))


def plain(text: str) -> str:
  """Returns a name as most tokenizers see it: lower case, single spaces."""
  return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
