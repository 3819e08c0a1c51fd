"""HuggingFace's ChineseCLIPModel: CLIP's image tower and a BERT for text.

A text is read at its first token, which BERT's pooler would follow; the model
has none, and projects the token itself. The defaults are those of transformers
5, `configuration_chinese_clip.py`.
"""

from typing import Any

from clip_jax.convert import report as report_lib
from clip_jax.convert import tokenizer_files
from clip_jax.convert.engine import fields
from clip_jax.convert.engine.fields import Field, Fixed
from clip_jax.convert.engine.names import Names
from clip_jax.convert.formats import bert
from clip_jax.convert.formats import huggingface_clip as clip
from clip_jax.convert.formats.huggingface_family import (
  PREFIXES,
  HuggingFaceFamily,
  classes,
)

NAMES = Names(
  {
    **{"whole": clip.WHOLE, "image": clip.IMAGE, "block": clip.BLOCK},
    **{"text": bert.TOWER, "bert_block": bert.BLOCK},
  },
  variables={**PREFIXES, "legacy_norms": False},
)
TEXT_FIELDS = (
  # The config knows one length, which is that of the table of positions.
  Field("max_position_embeddings", "context_length", in_weights=True),
  *bert.PLAIN,
  *bert.FIELDS,
  Fixed("pooling", "cls"),
  Fixed("normalize", False),
)


def _tokenizer(
  files: dict[str, bytes], text: dict[str, Any], report: report_lib.Report
) -> dict[str, Any]:
  """Returns the description of BERT's tokenizer, which pads as the model."""
  where = "The directory of this ChineseCLIPModel"
  found = tokenizer_files.describe(
    files, cleaning="none", where=where, report=report
  )
  report.infer("tokenizer.cleaning", found["cleaning"], "format")
  bert.check_pad(text, found, where)
  return found


CHINESE_CLIP = HuggingFaceFamily(
  "chinese_clip",
  NAMES,
  (
    *classes("chinese_clip", "ChineseCLIPModel"),
    *fields.within("vision_config", "image", clip.VISION_FIELDS),
    clip.Grid(),
    *fields.within("text_config", "text", TEXT_FIELDS),
    *clip.ENDS,
  ),
  {**clip.DEFAULTS, "text_config": bert.DEFAULTS},
  tokenizer=_tokenizer,
)
