"""HuggingFace's ChineseCLIPModel: CLIP's image tower and a BERT for text.

A text is read at its first token, which BERT's pooler would follow; the model
has none, and projects the token itself. The defaults are those of transformers
5, `configuration_chinese_clip.py`.
"""

from clip_jax.convert.engine import fields
from clip_jax.convert.engine.fields import Field, Fixed
from clip_jax.convert.engine.names import Names
from clip_jax.convert.formats import bert
from clip_jax.convert.formats import huggingface_clip as clip
from clip_jax.convert.formats import huggingface_family as family

NAMES = Names(
  {
    **{"whole": clip.WHOLE, "image": clip.IMAGE, "block": clip.BLOCK},
    **{"text": bert.TOWER, "bert_block": bert.BLOCK},
  },
  variables={**family.PREFIXES, "norms": "norm"},
)
TEXT_FIELDS = (
  # The config knows one length, which is that of the table of positions.
  Field("max_position_embeddings", "context_length", in_weights=True),
  *bert.PLAIN,
  *bert.FIELDS,
  Fixed("pooling", "cls"),
  Fixed("normalize", False),
)


CHINESE_CLIP = family.HuggingFaceFamily(
  "chinese_clip",
  NAMES,
  (
    *family.classes("chinese_clip", "ChineseCLIPModel"),
    *fields.within("vision_config", "image", clip.VISION_FIELDS),
    *fields.within("text_config", "text", TEXT_FIELDS),
    *clip.ENDS,
  ),
  {**clip.DEFAULTS, "text_config": bert.DEFAULTS},
  tokenizer=bert.describe_tokenizer,
)
