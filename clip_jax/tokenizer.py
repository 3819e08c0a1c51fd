"""Text to ids: CLIP's byte-pair encoding with its exact cleaning.

The merges are OpenAI's table in `assets/` (MIT, notice beside it); the encoder
is the `tokenizers` library built from that table. Captions come from the open
web, so every step is linear in the text and none raises on any `str`.
"""

import dataclasses
import functools
import hashlib
import html
import importlib.resources
import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import ftfy
import numpy as np
import regex
import tokenizers
from ftfy import fixes

from clip_jax import errors

MERGES_FILE = "clip_bpe_merges.txt"
START_ID = 49406
END_ID = 49407
VOCAB_SIZE = 49408

# The pieces that merges never cross: English contractions, runs of letters,
# single digits, runs of anything else. OpenAI's pattern also lists the control
# tokens, which lets a caption forge them; here a typed "<|endoftext|>" is text.
WORD = regex.compile(
  r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)

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


KINDS = ("clip_bpe",)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """Turns captions into rows of ids; a few fields, so cheap to pickle.

  A row is the start token, the text, the end token and zeros. A longer text is
  cut so that the end token is the last of the `context_length` ids.
  """

  kind: str = "clip_bpe"
  context_length: int = 77
  cleaning: str = "clip"
  pad_id: int = 0

  def __post_init__(self):
    if self.kind not in KINDS:
      raise errors.unknown("tokenizer", self.kind, KINDS)
    if self.cleaning not in CLEANINGS:
      raise errors.unknown("cleaning", self.cleaning, CLEANINGS)
    if self.context_length < 3:
      raise errors.UserError(
        f"context_length={self.context_length} leaves no room for text between "
        "the start and the end token; give at least 3."
      )

  def __call__(self, texts: str | Sequence[str]) -> np.ndarray:
    """Returns int32 ids (len(texts), context_length); one string is one row."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    ids = np.full((len(texts), self.context_length), self.pad_id, np.int32)
    for row, text in zip(ids, texts, strict=True):
      if not isinstance(text, str):
        raise errors.UserError(
          f"A caption must be a string, got {type(text).__name__}."
        )
      encoded = [START_ID, *self._encode(text), END_ID]
      row[: len(encoded)] = encoded
    return ids

  def _encode(self, text: str) -> list[int]:
    """Returns the ids of `text` alone, cut to what fits."""
    room = self.context_length - 2
    # Each word gives at least one id, so `room` words are enough, and the rest
    # of the text need not even be cleaned.
    pieces = itertools.islice(_words(CLEANINGS[self.cleaning](text)), room)
    return _engine().encode(list(pieces), is_pretokenized=True).ids[:room]

  @property
  def vocab_size(self) -> int:
    """The number of ids, the control tokens among them."""
    return VOCAB_SIZE

  @property
  def fingerprint(self) -> str:
    """The sha256 (hex) of the merges and of every field."""
    return hashlib.sha256(
      repr(self).encode() + _merges_text().encode()
    ).hexdigest()

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of one row of ids, up to its end token."""
    tokens, byte_of = _tokens_and_bytes()
    pieces = []
    for i in np.asarray(ids).ravel().tolist():
      if i == END_ID:
        break
      if not 0 <= i < VOCAB_SIZE:
        raise errors.UserError(f"Id {i} is outside the {VOCAB_SIZE} known ids.")
      if i != START_ID:
        pieces.append(tokens[i].replace("</w>", " "))
    data = bytes(byte_of[c] for c in "".join(pieces))
    return data.decode(errors="replace").rstrip(" ")


def make_tokenizer(
  kind: str = "clip_bpe", *, context_length: int = 77, **fields: Any
) -> Tokenizer:
  """Returns the tokenizer named `kind` for rows of `context_length` ids.

  Raises:
    UserError: `fields` names something that no tokenizer has.
  """
  known = [field.name for field in dataclasses.fields(Tokenizer) if field.init]
  for name in fields:
    if name not in known:
      raise errors.unknown("tokenizer field", name, known)
  return Tokenizer(kind=kind, context_length=context_length, **fields)


def _words(lines: Iterator[str]) -> Iterator[str]:
  for line in lines:
    for match in WORD.finditer(line):
      yield match.group()


def clean_clip(text: str) -> Iterator[str]:
  """Yields the lines of `text` as OpenAI cleaned it, read as far as needed.

  The steps are ftfy, HTML twice, white space and case. Line by line they give
  what they give for the whole, because none looks across a line's end, except
  that ftfy stops unescaping HTML after the first "<".
  """
  line, escaped = "", True
  for match in _SEGMENT.finditer(text):
    segment = match.group()
    escaped = escaped and "<" not in segment
    line += _fix(segment, unescape=escaped)
    if segment.endswith("\n"):
      yield _clean_line(line)
      line = ""
  yield _clean_line(line)


# A tokenizer's `cleaning`: what makes clean lines of a caption.
CLEANINGS = {"clip": clean_clip}


def _clean_line(line: str) -> str:
  if "&" in line:
    line = _unescape(_unescape(line))
  return " ".join(line.split()).lower()


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


@functools.cache
def _merges_text() -> str:
  asset = importlib.resources.files("clip_jax") / "assets" / MERGES_FILE
  return asset.read_text(encoding="utf-8")


@functools.cache
def _tokens_and_bytes() -> tuple[list[str], dict[str, int]]:
  """Returns every token by id, and the byte that each of their letters means.

  The table spells bytes as printable letters: the 188 printable Latin-1 bytes
  as themselves, and the others, in order, as the letters from U+0100 on.
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in printable]
  byte_of = {chr(b): b for b in printable}
  byte_of |= {chr(256 + i): b for i, b in enumerate(others)}
  letters = list(byte_of)
  # The first line names the table's version.
  merged = [line.replace(" ", "") for line in _merges_text().splitlines()[1:]]
  tokens = [*letters, *(letter + "</w>" for letter in letters), *merged]
  tokens += ["<|startoftext|>", "<|endoftext|>"]
  assert len(set(tokens)) == VOCAB_SIZE
  # Tokens end a word with "</w>", which `decode` has turned into a space.
  return tokens, byte_of | {" ": ord(" ")}


@functools.cache
def _engine() -> tokenizers.Tokenizer:
  """Builds the encoder, once a process and on first use.

  Only its one-text `encode` is used: it starts no threads, so worker processes
  may fork at any time.
  """
  tokens, _ = _tokens_and_bytes()
  engine = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=[
        tuple(line.split(" ")) for line in _merges_text().splitlines()[1:]
      ],
      end_of_word_suffix="</w>",
    )
  )
  engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  return engine
