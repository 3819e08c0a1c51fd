"""HuggingFace's SiglipModel, and SigLIP 2's at a fixed resolution.

A `Siglip2Model` (NaFlex) takes images of any shape as lists of patches; at the
square that its position embeddings were made for, it is a SiglipModel whose
patch embedding is a linear layer. The defaults are those of transformers 5.
`engine/names.py` explains the tables.
"""

import dataclasses
import math
from typing import Any

from clip_jax import errors
from clip_jax.convert.engine import fields, kinds
from clip_jax.convert.engine.fields import Field, Fixed, Written
from clip_jax.convert.engine.names import Names
from clip_jax.convert.formats import huggingface_clip as clip
from clip_jax.convert.formats import huggingface_family as family
from clip_jax.convert.formats import huggingface_tokenizer as tokenizers
from clip_jax.models import clip as model

WHOLE = """
box     logit_scale      log_scale
box     logit_bias       logit_bias
part    {text}           text   text
linear  text_model.head  text_projection
part    {image}          image  image
"""
IMAGE = """
conv     embeddings.patch_embedding.weight     patch_kernel  if not naflex
patches  embeddings.patch_embedding.weight     patch_kernel  if naflex
-        embeddings.patch_embedding.bias       patch_bias
-        embeddings.position_embedding.weight  position_embedding
stack    encoder.layers.{i}.                   blocks  block
norm     post_layernorm                        ln_post
part     head.                                 map_head  head
"""
HEAD = """
-        probe               probe
in_proj  attention.in_proj   attention/query,key,value
out      attention.out_proj  attention/out
norm     layernorm           ln
linear   mlp.fc1             mlp/fc_in
linear   mlp.fc2             mlp/fc_out
"""
TABLES = {
  **{"whole": WHOLE, "text": clip.TEXT, "image": IMAGE},
  **{"block": clip.BLOCK, "head": HEAD},
}


class LogitBias(Fixed):
  """The row of the initial logit bias; the weights hold the trained one."""

  def means_same(self, value: Any, found: Any) -> bool:
    """Whether both have a bias, or neither."""
    return value is not None


class EmbedDim(Field):
  """The row of the embedding's width; the default is the text tower's width."""

  def read(self, source: fields.ConfigReader, spec: dict[str, Any]) -> None:
    """Reads the field."""
    if source.get(self.theirs) is None:
      spec[self.ours] = spec["text"]["width"]
    else:
      super().read(source, spec)

  def check(self, source: fields.ConfigReader, spec: dict[str, Any]) -> None:
    """Raises UserError unless it is the image tower's width."""
    width = spec["image"]["width"]
    if spec[self.ours] != width:
      raise errors.UserError(
        f"{source.where(self.theirs)}: projection_size={spec[self.ours]} must "
        f"be the image tower's hidden_size, {width}: that tower has no "
        "projection. Correct the file."
      )


_NUM_PATCHES = kinds.checked(
  "a square number, for a fixed resolution",
  lambda x: math.isqrt(kinds.INTEGER.read(x)) ** 2 == x,
  math.isqrt,
)


class NaflexGrid(fields.Row):
  """The row of a NaFlex model's fixed image size; after that of patches."""

  ours = "image.image_size"
  theirs = "vision_config.num_patches"

  def read(self, source: fields.ConfigReader, spec: dict[str, Any]) -> None:
    """Stores the image size that fits the position embeddings' square."""
    side = source.read(self.theirs, _NUM_PATCHES)
    source.report.warnings.append(
      f"This model takes images of any shape (NaFlex); here it is fixed to its "
      f"own grid of {side} by {side} patches, to which images are squashed."
    )
    image_size = side * spec["image"]["patch_size"]
    spec["image"] |= {"image_size": image_size, "drop_edge": False}
    source.report.infer(self.ours, image_size, "format")

  def write(self, spec: dict[str, Any], config: dict[str, Any]) -> None:
    """Writes the number of patches."""
    image = spec["image"]
    side = image["image_size"] // image["patch_size"]
    config["vision_config"]["num_patches"] = side * side


_HEAD = dataclasses.replace(
  kinds.exactly(True),
  allowed="true: without it, this tower gives no feature of a whole image, "
  "only of patches",
)
VISION_FIELDS = (
  *family.structure(kind="vit"),
  Written("vision_use_head", True, _HEAD),
  *clip.TOWER,
  Fixed("pooling", "map"),
  *family.structure(class_token=False, class_position=False, registers=0),
  *family.structure(pre_norm=False, patch_bias=True, norm_after_pool=False),
)


def _family(name, architecture, *, grid, pixels, processor):
  """Returns a family; `pixels` are the defaults of the grid's fields."""
  return family.HuggingFaceFamily(
    name,
    Names(TABLES, variables={**family.PREFIXES, "naflex": name == "siglip2"}),
    (
      *family.classes(name, architecture),
      *grid,
      *fields.within("vision_config", "image", VISION_FIELDS),
      *fields.within("text_config", "text", clip.TEXT_FIELDS),
      Fixed("text.causal", False),
      Fixed("text.pooling", "last"),
      Fixed("text.eos_id", None, in_weights=True, free=True),
      # The tower knows no special token; ids that exist keep transformers
      # quiet.
      Written("text_config.bos_token_id", None),
      Written("text_config.eos_token_id", 1),
      Written("text_config.pad_token_id", 0),
      *family.structure(image_projection="none", text_projection="linear_bias"),
      EmbedDim("text_config.projection_size", "embed_dim", in_weights=True),
      Fixed(
        "init_logit_scale",
        model.SIGLIP_INIT_LOGIT_SCALE,
        in_weights=True,
        free=True,
      ),
      LogitBias(
        "init_logit_bias", model.SIGLIP_INIT_LOGIT_BIAS, in_weights=True
      ),
      # big_vision's adds 1e-8 to the length, which is below float32.
      Fixed("embed_norm", "l2", also=("l2_plus_1e-8",)),
      Fixed("max_logit_scale", None, free=True),
    ),
    {
      "text_config": family.tower(
        768,
        vocab_size=32000,
        max_position_embeddings=64,
        projection_size=None,
        **_TOWER,
      ),
      "vision_config": family.tower(
        768,
        num_channels=3,
        patch_size=16,
        vision_use_head=True,
        **_TOWER,
        **pixels,
      ),
    },
    processor=processor,
    tokenizer=tokenizers.siglip,
    legacy_parts=False,
  )


_TOWER = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
SIGLIP = _family(
  "siglip",
  "SiglipModel",
  grid=fields.within("vision_config", "image", clip.PIXELS),
  pixels={"image_size": 224},
  processor="SiglipImageProcessor",
)
SIGLIP2 = _family(
  "siglip2",
  "Siglip2Model",
  grid=(
    *fields.within("vision_config", "image", clip.PATCHES),
    NaflexGrid(),
  ),
  pixels={"num_patches": 256},
  processor="Siglip2ImageProcessor",
)
