"""Measures each record for `clip-jax data stats`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clip_jax import preprocess
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.data import record as record_lib
from clip_jax.data.curation import balancing
from clip_jax.data.statistics import scripts

# Ids of a caption, with begin and end, are counted up to this many.
MOST_TOKENS = 4096
CONTEXT = 77  # Paper, section 2.4: 76; OpenAI's models have 77.
_DIGEST = np.dtype("<u8"), (2,)
CAPTION = np.dtype(
  [
    ("characters", "<i4"),
    ("words", "<i4"),
    ("tokens", "<i4"),
    ("script", "u1"),
    ("digest", *_DIGEST),
  ]
)


_COLUMNS = {
  "width": np.dtype("<i4"),
  "height": np.dtype("<i4"),
  "bytes": np.dtype("<i8"),
  "format": np.dtype("S12"),
  "mode": np.dtype("S12"),
  "digest": np.dtype(_DIGEST),
}


class Examine:
  """Measures one record; picklable, and pure, as `survey` asks for."""

  def __init__(
    self,
    *,
    limits: preprocess.Limits = preprocess.DEFAULT_LIMITS,
    decode: bool = False,
  ):
    """Prepares.

    Args:
      limits: images beyond these are bad.
      decode: decode every image, which also finds those that are damaged
        behind their header.
    """
    self.columns: Mapping[str, np.dtype] = _COLUMNS
    self.ragged: Mapping[str, np.dtype] = {"captions": CAPTION}
    self._limits = limits
    self._decode = decode
    self._tokenizer = tokenizer_lib.make_tokenizer(
      "clip_bpe", context_length=MOST_TOKENS
    )
    self.identity: Any = [repr(limits), decode, self._tokenizer.fingerprint]

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
    return (
      len(text),
      len(text.split()),
      int(np.argmax(ids == tokenizer_lib.END_ID)) + 1,
      scripts.SCRIPTS.index(scripts.of_text(text)),
      balancing.digest(text.encode("utf-8", "surrogatepass")),
    )
