"""HuggingFace's CLIPModel, and MetaClip2Model, which differs in its end token.

The defaults are those of transformers 5, `configuration_clip.py`: published
configs are sparse, and a field is written where it differs from them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from clip_jax.convert.engine import fields, kinds
from clip_jax.convert.engine.fields import Edge, Field, Fixed, Heads, Written
from clip_jax.convert.engine.names import Names
from clip_jax.convert.formats import huggingface_family as family

# Configs from before transformers 4.31 name this end token, which no tokenizer
# gives; CLIPTextModel then takes the largest id, and MetaClip2TextModel does
# not (transformers#24773, #39821).
LEGACY_END_ID = 2
VOCAB_SIZE = 49408
ACTIVATIONS = {"quick_gelu": "quick_gelu", **family.GELUS}

BLOCK = """
norm    layer_norm1         ln_1
norm    layer_norm2         ln_2
heads   self_attn.q_proj    attention/query
heads   self_attn.k_proj    attention/key
heads   self_attn.v_proj    attention/value
out     self_attn.out_proj  attention/out
linear  mlp.fc1             mlp/fc_in
linear  mlp.fc2             mlp/fc_out
"""
TEXT = """
-       embeddings.token_embedding.weight     token_embedding/embedding
-       embeddings.position_embedding.weight  position_embedding
stack   encoder.layers.{i}.                   blocks  block
norm    final_layer_norm                      ln_final
"""
# "pre_layrnorm" is their spelling.
IMAGE = """
-       embeddings.class_embedding            class_embedding
conv    embeddings.patch_embedding.weight     patch_kernel
-       embeddings.position_embedding.weight  position_embedding
norm    pre_layrnorm                          ln_pre
stack   encoder.layers.{i}.                   blocks  block
norm    post_layernorm                        ln_post
"""
WHOLE = """
-       logit_scale          log_scale
part    {text}               text   text
part    {image}              image  image
weight  visual_projection    image_projection
weight  text_projection      text_projection
"""
NAMES = Names(
  {"whole": WHOLE, "text": TEXT, "image": IMAGE, "block": BLOCK},
  variables=family.PREFIXES,
)


TOWER = (
  Field("hidden_size", "width", in_weights=True),
  Field("num_hidden_layers", "depth", in_weights=True),
  Heads("num_attention_heads", "heads"),
  Field("intermediate_size", "mlp_dim", in_weights=True),
  Field("layer_norm_eps", "norm_epsilon", kinds.EPSILON),
  Field("hidden_act", "activation", kinds.one_of(ACTIVATIONS)),
  Written("attention_dropout", 0.0),
)
TEXT_FIELDS = (
  Fixed("kind", "transformer", in_weights=True),
  Field("max_position_embeddings", "context_length", in_weights=True),
  Field("vocab_size", "vocab_size", in_weights=True),
  *TOWER,
)
PATCHES = (
  Field("patch_size", "patch_size", kinds.PIXELS, in_weights=True),
  Written("num_channels", 3, kinds.exactly(3)),
)
PIXELS = (*(Field("image_size", "image_size", kinds.PIXELS), *PATCHES, Edge()),)
VISION_FIELDS = (
  *family.structure(kind="vit"),
  *PIXELS,
  *TOWER,
  Fixed("pooling", "class"),
  *family.structure(class_token=True, class_position=True, registers=0),
  *family.structure(pre_norm=True, patch_bias=False, norm_after_pool=False),
)


@dataclasses.dataclass(frozen=True)
class EndToken(fields.Row):
  """The row of the token at which a text is read, and how it is found.

  Attributes:
    legacy: whether `LEGACY_END_ID` means the largest id.
  """

  legacy: bool
  ours: str = "text.pooling"
  theirs: str = "text_config.eos_token_id"

  def read(self, source: fields.ConfigReader, spec: dict[str, Any]) -> None:
    """Stores the pooling and the token's id."""
    end_id = source.read(self.theirs, kinds.TOKEN_ID)
    largest = self.legacy and end_id == LEGACY_END_ID
    pooling = "argmax" if largest else "eos"
    shown = pooling if largest else f"eos, first id {end_id}"
    source.note(self.ours, shown, self.theirs)
    eos_id = None if largest else end_id
    spec["text"] |= {"pooling": pooling, "eos_id": eos_id}

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes the ids of the end token and of the other control tokens."""
    end_id = _end_id(spec["text"])
    special = {"bos_token_id": 0, "pad_token_id": 1}
    if end_id == VOCAB_SIZE - 1:
      special = {"bos_token_id": end_id - 1, "pad_token_id": end_id}
    config["text_config"] |= {**special, "eos_token_id": end_id}

  def means_same(self, value: Any, found: Any) -> bool:
    """Whether both find the same token, as if the end token has the last id."""
    return value == found or (self.legacy and value == "argmax")

  def values(self, found: Any) -> tuple[Any, ...]:
    """Returns the poolings."""
    return ("argmax", "eos") if self.legacy else ("eos",)


def _end_id(text: Mapping[str, Any]) -> int:
  if text["pooling"] == "eos":
    return text["eos_id"]
  # The end token has the largest id of CLIP's vocabulary. Of another one no id
  # is known to be the end, and the legacy id says "the largest".
  full = text["vocab_size"] == VOCAB_SIZE
  return VOCAB_SIZE - 1 if full else LEGACY_END_ID


ENDS = (
  *family.structure(image_projection="linear", text_projection="linear"),
  Field("projection_dim", "embed_dim", in_weights=True),
  Written("text_config.projection_dim", lambda spec: spec["embed_dim"]),
  Written("vision_config.projection_dim", lambda spec: spec["embed_dim"]),
  Field(
    "logit_scale_init_value",
    "init_logit_scale",
    kinds.LOG_SCALE,
    in_weights=True,
    free=True,
  ),
  Fixed("init_logit_bias", None, in_weights=True),
  Fixed("embed_norm", "l2"),
  # The bound in training; the model itself has none.
  Fixed("max_logit_scale", 100.0, free=True),
)


def _family(name, architecture, *, legacy) -> family.HuggingFaceFamily:
  return family.HuggingFaceFamily(
    name,
    NAMES,
    (
      *family.classes(name, architecture),
      *fields.within("vision_config", "image", VISION_FIELDS),
      *fields.within("text_config", "text", TEXT_FIELDS),
      Fixed("text.causal", True),
      Fixed("text.eos_id", None, in_weights=True, free=True),
      EndToken(legacy),
      *ENDS,
    ),
    DEFAULTS,
  )


_TOWER = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
DEFAULTS = {
  "projection_dim": 512,
  "logit_scale_init_value": 2.6592,
  "text_config": family.tower(
    512,
    vocab_size=VOCAB_SIZE,
    max_position_embeddings=77,
    eos_token_id=VOCAB_SIZE - 1,
    **_TOWER,
  ),
  "vision_config": family.tower(
    768, num_channels=3, image_size=224, patch_size=32, **_TOWER
  ),
}
CLIP = _family("clip", "CLIPModel", legacy=True)
METACLIP_2 = _family("metaclip_2", "MetaClip2Model", legacy=False)
