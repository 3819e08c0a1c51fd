"""Measures each record for `clip-jax data stats`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax import preprocess
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.data import record as record_lib
from clip_jax.data.curation import balancing, language
from clip_jax.data.statistics import scripts

# Ids of a caption, with begin and end, are counted up to this many.
MOST_TOKENS = 4096
CONTEXT = 77  # Paper, section 2.4: 76; OpenAI's models have 77.
_DIGEST = np.dtype("<u8"), (2,)
_CAPTION = [
  ("characters", "<i4"),
  ("words", "<i4"),
  ("tokens", "<i4"),
  ("script", "u1"),
  ("digest", *_DIGEST),
]


_COLUMNS = {
  "width": np.dtype("<i4"),
  "height": np.dtype("<i4"),
  "bytes": np.dtype("<i8"),
  "format": np.dtype("S12"),
  "mode": np.dtype("S12"),
  "digest": np.dtype(_DIGEST),
}


def languages() -> tuple[str, ...]:
  """Returns the names of `language` in a caption's row; none without letters.

  Raises:
    UserError: the library is missing.
  """
  return (scripts.NONE, *language.known())


class Examine:
  """Measures one record; picklable, and pure, as `survey` asks for."""

  def __init__(
    self,
    *,
    limits: preprocess.Limits = preprocess.DEFAULT_LIMITS,
    decode: bool = False,
    by_language: bool = False,
  ):
    """Prepares.

    Args:
      limits: images beyond these are bad.
      decode: decode every image, which also finds those that are damaged
        behind their header.
      by_language: find out the language of each caption, too.
    """
    self.columns: Mapping[str, np.dtype] = _COLUMNS
    self._languages = languages() if by_language else ()
    fields = [*_CAPTION, ("language", "u1")] if by_language else _CAPTION
    self.ragged: Mapping[str, np.dtype] = {"captions": np.dtype(fields)}
    self._limits = limits
    self._decode = decode
    self._tokenizer = tokenizer_lib.make_tokenizer(
      "clip_bpe", context_length=MOST_TOKENS
    )
    self.identity: Any = [
      *(repr(limits), decode, self._tokenizer.fingerprint, by_language),
    ]

  def __call__(self, record: record_lib.Record) -> dict[str, Any]:
    """Returns a value for each column; raises ImageError for a bad image."""
    header = preprocess.read_header(record.image, limits=self._limits)
    if self._decode:
      preprocess.decode(record.image, limits=self._limits)
    return {
      "width": header.width,
      "height": header.height,
      "bytes": len(record.image),
      "format": header.format.encode(),
      "mode": header.mode.encode(),
      "digest": balancing.digest(record.image),
      "captions": [self._of_caption(text) for text in record.texts],
    }

  def _of_caption(self, text: str) -> tuple:
    ids = self._tokenizer(text)[0]
    script = scripts.of_text(text)
    spoken = []
    if self._languages:
      name = script if script == scripts.NONE else language.of(text)
      spoken.append(self._languages.index(name))
    return (
      len(text),
      len(text.split()),
      int(np.argmax(ids == tokenizer_lib.END_ID)) + 1,
      scripts.SCRIPTS.index(script),
      balancing.digest(text.encode("utf-8", "surrogatepass")),
      *spoken,
    )
