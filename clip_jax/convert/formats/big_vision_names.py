"""The names of big_vision's arrays, whose axes are like ours.

Names changed over the years, and differ between the two ways of stacking
layers. The names of one checkpoint are described by its layout, which is plain
data: it is found in the names, and the same names can be made from it.
"""

import re
from collections.abc import Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert.engine.names import FLAX, Names

BERT = "BertEncoder_0/"
# In BERT's first layer: a matrix, or an array with an axis for heads.
BERT_QUERY = (
  f"{BERT}encoder_block/layer_sequence/layers_0/attention_block/"
  "attention_layer/query/kernel"
)
# Where parameters are in a training checkpoint, now and formerly.
_ROOTS = ("params/", "opt/target/")
# The prefix of a tower beside another one, and names that show that tower.
_PREFIXES = {"image": "img/", "text": "txt/"}
_MARKS = {
  "image": ("embedding/kernel",),
  "text": (
    "Embed_0/embedding",
    f"{BERT}embedder/embedders_token_ids/embedding",
  ),
}
_ENCODERS = {"image": "Transformer/", "text": "Encoder_0/"}
# Names of a tower's position embedding, newest first; the first found counts.
_POSITIONS = {
  "image": (
    "pos_embedding",
    "Transformer/pos_embedding",
    "Transformer/posembed_input/pos_embedding",
  ),
  "text": ("pos_embedding",),
}
# What today's towers have:
# - scan: layers lie on a leading axis instead of under numbered names;
# - attention, mlp, norms: modules of a block; older releases count on;
# - map_head: prefix of the attention pool, once none;
# - flat_patches: NaFlex's shapes: the patch kernel is a matrix and positions
#   have rows and cols;
# - flat_heads: BERT's kernels are matrices.
_TOWER = {
  "positions": "pos_embedding",
  "scan": False,
  "attention": "MultiHeadDotProductAttention_0",
  "mlp": "MlpBlock_0",
  "norms": ["LayerNorm_0", "LayerNorm_1"],
  "map_head": "MAPHead_0/",
  "flat_patches": False,
  "flat_heads": False,
}
# What big_vision writes today for a model of two towers.
MODERN: dict[str, Any] = {
  "root": "params/",
  **{part: {"prefix": p, **_TOWER} for part, p in _PREFIXES.items()},
}

WHOLE = """
box     {root}t                       log_scale
box     {root}b                       logit_bias        if init_logit_bias!=None
part    {root}{image[prefix]}         image  image
part    {root}{text[prefix]}          text   text       if text.kind!=bert
part    {root}{text[prefix]}BertEncoder_0/  text  bert  if text.kind=bert
linear  {root}{image[prefix]}head  image_projection  if image_projection!=none
linear  {root}{text[prefix]}head   text_projection   if text_projection!=none
"""
IMAGE = """
-             embedding/kernel  patch_kernel        if not flat_patches
flat_patches  embedding/kernel  patch_kernel        if flat_patches
-             embedding/bias    patch_bias
box           {positions}       position_embedding  if not flat_patches
grid          {positions}       position_embedding  if flat_patches
box2          cls               class_embedding     if class_token
stack         Transformer/encoderblock_{i}/  blocks    block  if not scan
stack         Transformer/encoderblock/      blocks    block  if scan
norm          Transformer/encoder_norm       ln_post
part          {map_head}                     map_head  head   if pooling=map
"""
TEXT = """
-             Embed_0/embedding            token_embedding/embedding
box           {positions}                  position_embedding
stack         Encoder_0/encoderblock_{i}/  blocks    block  if not scan
stack         Encoder_0/encoderblock/      blocks    block  if scan
norm          Encoder_0/encoder_norm       ln_final
part          {map_head}                   map_head  head   if pooling=map
"""
BLOCK = """
norm       {norms[0]}     ln_1
attention  {attention}    attention
norm       {norms[1]}     ln_2
linear     {mlp}/Dense_0  mlp/fc_in
linear     {mlp}/Dense_1  mlp/fc_out
"""
# It is newer than the last change of the blocks' names.
HEAD = """
-          probe                           probe
attention  MultiHeadDotProductAttention_0  attention
norm       LayerNorm_0                     ln
linear     MlpBlock_0/Dense_0              mlp/fc_in
linear     MlpBlock_0/Dense_1              mlp/fc_out
"""
# flaxformer's names.
BERT_TOWER = """
-      embedder/embedders_token_ids/embedding     token_embedding/embedding
-      embedder/embedders_position_ids/embedding  position_embedding
-      embedder/embedders_segment_ids/embedding   token_type_embedding
norm   layer_norm                                 ln_embed
stack  encoder_block/layer_sequence/layers_{i}/   blocks  bert_block
"""
BERT_BLOCK = """
part    attention_block/attention_layer/  attention  bert_heads
linear  attention_block/dense_layer    attention/out  if not flat_heads
out     attention_block/dense_layer    attention/out  if flat_heads
norm    attention_block/layer_norm     ln_1
linear  mlp_block/mlp/dense_layer      mlp/fc_in
linear  mlp_block/dense_layer          mlp/fc_out
norm    mlp_block/layer_norm           ln_2
"""
BERT_HEADS = """
linear  query  query  if not flat_heads
linear  key    key    if not flat_heads
linear  value  value  if not flat_heads
heads   query  query  if flat_heads
heads   key    key    if flat_heads
heads   value  value  if flat_heads
"""
NAMES = Names(
  {
    **{"whole": WHOLE, "image": IMAGE, "text": TEXT},
    **{"block": BLOCK, "head": HEAD},
    **{"bert": BERT_TOWER, "bert_block": BERT_BLOCK, "bert_heads": BERT_HEADS},
  },
  kinds=FLAX,
  variables=MODERN,
)


def find(shapes: Mapping[str, tuple[int, ...]], name: str) -> dict[str, Any]:
  """Returns the layout of a checkpoint, with None for a missing tower.

  Args:
    shapes: shapes of its arrays by name.
    name: the checkpoint's name in messages.

  Raises:
    UserError: it has no known tower.
  """
  root = next((r for r in _ROOTS if any(k.startswith(r) for k in shapes)), "")
  layout: dict[str, Any] = {"root": root}
  for tower, marks in _MARKS.items():
    prefixes = (
      prefix
      for prefix in (_PREFIXES[tower], "")
      if any(root + prefix + mark in shapes for mark in marks)
    )
    prefix = next(prefixes, None)
    layout[tower] = None if prefix is None else {"prefix": prefix}
  towers = [part for part in _MARKS if layout[part]]
  if not towers:
    shown = ", ".join(list(shapes)[:5])
    raise errors.UserError(
      f"{name} holds no model of big_vision's: neither an image tower "
      "(…embedding/kernel) nor a text tower (…Embed_0/embedding, …BertEncoder_0"
      f"/…); it has {shown or 'nothing'}, … ."
    )
  if layout["image"] == layout["text"]:
    raise errors.UserError(
      f"{name} has an image tower and a text tower with the same prefix; the "
      "prefixes of two towers must be img/ and txt/."
    )
  for tower in towers:
    layout[tower] |= _find_tower(tower, shapes, prefix_of(layout, tower))
  return layout


# Modules of a block: how many it has, and their field in a layout.
_MODULES = {
  "MultiHeadDotProductAttention": (1, "attention"),
  "MlpBlock": (1, "mlp"),
  "LayerNorm": (2, "norms"),
}


def _find_tower(tower, shapes, prefix) -> dict[str, Any]:
  encoder = f"{prefix}{_ENCODERS[tower]}encoderblock"
  scan = any(name.startswith(f"{encoder}/") for name in shapes)
  block = re.escape(f"{encoder}/" if scan else f"{encoder}_0/")
  found = {**_TOWER, "scan": scan}
  for kind, (count, field) in _MODULES.items():
    matches = (re.match(rf"{block}({kind}_\d{{1,2}})/", key) for key in shapes)
    modules = sorted({m[1] for m in matches if m}, key=lambda x: (len(x), x))
    if len(modules) == count:  # They can be told apart.
      found[field] = modules if count > 1 else modules[0]
  positions = (p for p in _POSITIONS[tower] if prefix + p in shapes)
  found["positions"] = next(positions, _POSITIONS[tower][0])
  if f"{prefix}probe" in shapes:
    found["map_head"] = ""
  for field, kernel in (
    ("flat_patches", "embedding/kernel"),
    ("flat_heads", BERT_QUERY),
  ):
    found[field] = len(shapes.get(prefix + kernel, ())) == 2
  return found


def prefix_of(layout: Mapping[str, Any], tower: str) -> str:
  """Returns the prefix of a tower's names, with the root."""
  return layout["root"] + layout[tower]["prefix"]


def encoder_of(layout: Mapping[str, Any], tower: str) -> str:
  """Returns the prefix of the names of a tower's blocks, before the number."""
  return f"{prefix_of(layout, tower)}{_ENCODERS[tower]}encoderblock"
