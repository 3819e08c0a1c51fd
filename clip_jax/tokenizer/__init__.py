"""Text to ids: CLIP's byte-pair encoding, SentencePiece, WordPiece.

What a family does to a text before it is cut (`cleaning`), its control ids, its
padding and its length are explicit fields of a `Tokenizer`. Captions come from
the open web: every step is linear in the text, none raises on any `str`, and a
typed control token is text.
"""

from clip_jax.tokenizer.cleaning import CLEANINGS, clean_clip, plain
from clip_jax.tokenizer.clip_bpe import (
  END_ID,
  MERGES_FILE,
  START_ID,
  VOCAB_SIZE,
  huggingface_clip,
  merges_text,
  vocabulary,
)
from clip_jax.tokenizer.cuts import Cuts
from clip_jax.tokenizer.given import texts as listed_texts
from clip_jax.tokenizer.tokenizing import (
  KINDS,
  Tokenizer,
  make_tokenizer,
  read_json,
)

__all__ = [
  "CLEANINGS",
  "END_ID",
  "KINDS",
  "MERGES_FILE",
  "START_ID",
  "VOCAB_SIZE",
  "Cuts",
  "Tokenizer",
  "clean_clip",
  "huggingface_clip",
  "listed_texts",
  "make_tokenizer",
  "merges_text",
  "plain",
  "read_json",
  "vocabulary",
]
