"""CLIP's byte-pair encoding.

The merges are OpenAI's table in `assets/` (MIT, notice beside it); the encoder
is the `tokenizers` library built from that table.
"""

import functools
import importlib.resources
import itertools
from collections.abc import Iterator, Sequence

import regex
import tokenizers

from clip_jax.tokenizer import cleaning

MERGES_FILE = "clip_bpe_merges.txt"
START_ID = 49406
END_ID = 49407
VOCAB_SIZE = 49408

# The pieces that merges never cross: English contractions, runs of letters,
# single digits, runs of anything else. OpenAI's pattern also lists the control
# tokens, which lets a caption forge them; here a typed "<|endoftext|>" is text.
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
WORD = regex.compile(_PIECES, regex.IGNORECASE)


class ClipBpe:
  """Encodes clean text with OpenAI's merges.

  Only the one-text `encode` of the library is used: it starts no threads, so
  worker processes may fork at any time.
  """

  vocab_size = VOCAB_SIZE

  def encode(self, lines: Iterator[str], *, room: int) -> list[int]:
    """Returns at most `room` ids of the text."""
    # Each word gives at least one id, so `room` words are enough, and the rest
    # of the text need not even be cleaned.
    pieces = itertools.islice(_words(lines), room)
    return _engine().encode(list(pieces), is_pretokenized=True).ids[:room]

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of `ids`."""
    tokens, byte_of = _tokens_and_bytes()
    pieces = [tokens[i].replace("</w>", " ") for i in ids]
    data = bytes(byte_of[c] for c in "".join(pieces))
    return data.decode(errors="replace").rstrip(" ")


class HuggingFaceClipBpe(ClipBpe):
  """Encodes text that was cleaned as HuggingFace does, with its words.

  They are those of another regular expressions' engine, with other ideas of
  letters and white space, and contractions are told by lower case only.
  """

  def encode(self, lines: Iterator[str], *, room: int) -> list[int]:
    """Returns at most `room` ids of the text."""
    return _huggingface_engine().encode(" ".join(lines)).ids[:room]


def _words(lines: Iterator[str]) -> Iterator[str]:
  for line in lines:
    for match in WORD.finditer(line):
      yield match.group()


@functools.cache
def merges_text() -> str:
  """Returns the table of merges, a line with its version first."""
  asset = importlib.resources.files("clip_jax") / "assets" / MERGES_FILE
  return asset.read_text(encoding="utf-8")


def vocabulary() -> dict[str, int]:
  """Returns the id of each token, as a HuggingFace `vocab.json` has them."""
  tokens, _ = _tokens_and_bytes()
  return {token: i for i, token in enumerate(tokens)}


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
  merged = [line.replace(" ", "") for line in merges_text().splitlines()[1:]]
  tokens = [*letters, *(letter + "</w>" for letter in letters), *merged]
  tokens += ["<|startoftext|>", "<|endoftext|>"]
  assert len(set(tokens)) == VOCAB_SIZE
  # Tokens end a word with "</w>", which `decode` has turned into a space.
  return tokens, byte_of | {" ": ord(" ")}


@functools.cache
def _engine() -> tokenizers.Tokenizer:
  engine = tokenizers.Tokenizer(_model())
  engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  return engine


@functools.cache
def _huggingface_engine() -> tokenizers.Tokenizer:
  engine = tokenizers.Tokenizer(_model())
  engine.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(_PIECES), behavior="removed", invert=True
      ),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  return engine


def huggingface_clip() -> str:
  """Returns a tokenizer.json of CLIPTokenizer's steps from text to pieces."""
  engine = tokenizers.Tokenizer.from_str(_huggingface_engine().to_str())
  engine.normalizer = cleaning.huggingface_clip()
  return engine.to_str()


def _model() -> tokenizers.models.BPE:
  return tokenizers.models.BPE(
    vocab=vocabulary(),
    merges=[tuple(line.split(" ")) for line in merges_text().splitlines()[1:]],
    end_of_word_suffix="</w>",
  )
