"""What the arrays of a big_vision checkpoint say about its model.

Shapes say all of the architecture but a text tower's pooling; the rest is what
big_vision's models have, and goes into the report as "format". Of text towers
that is known where they are SigLIP's: two towers with a bias for the sigmoid
loss, and a vocabulary of big_vision's. Others must be told.
"""

from collections.abc import Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import big_vision_layout as layouts
from clip_jax.convert import engine, portable, positions
from clip_jax.convert import report as report_lib
from clip_jax.convert.axes import Axes
from clip_jax.convert.tensor import Tensor

BERT_HEAD_DIM = 64  # Of BERT's every size; its kernels do not show it.

# Trained on images that patches do not fill: (patch, grid) -> pixels.
IMAGE_SIZES = {(14, 27): 384}  # So400m/14 at 384: 6 pixels are left over.

# `value_range(-1, 1)` after `tf.image.resize`, which does not antialias.
PREPROCESSING = {
  "image_mean": (0.5, 0.5, 0.5),
  "image_std": (0.5, 0.5, 0.5),
  "interpolation": "bilinear",
  "antialias": False,
  "resize": "squash",
  "fill": 0,
  "crop_rounding": "round",
  "crop_fraction": 1.0,
  "convert_rgb": "before",
}

_SENTENCEPIECE = {
  "kind": "sentencepiece",
  "cleaning": "lower_ascii",  # `tf.strings.lower`, as in training.
  "start_id": None,
  "end_id": 1,
  "file": "tokenizer.model",
}
# By big_vision's names.
TOKENIZERS = {
  "c4_en": {**_SENTENCEPIECE, "pad_id": 1},
  "mc4": {**_SENTENCEPIECE, "pad_id": 1},
  "gemma": {**_SENTENCEPIECE, "pad_id": 0},
}
VOCABULARIES = {32_000: "c4_en", 250_000: "mc4", 256_000: "gemma"}
# Rows begin with [CLS] of BERT's uncased vocabulary and end without [SEP].
_WORDPIECE = {
  "kind": "wordpiece",
  "cleaning": "none",
  "lowercase": True,
  "pad_id": 0,
  "start_id": 101,
  "end_id": None,
  "file": "vocab.txt",
}

_INIT_LOGIT_SCALE = 10.0  # SigLIP's and LiT's `temperature_init`.
_INIT_LOGIT_BIAS = -10.0  # SigLIP's `bias_init`.


def describe(
  tensors: Mapping[str, Tensor],
  layout: layouts.Layout,
  options: portable.Options,
  *,
  report: report_lib.Report,
  name: str,
) -> dict[str, Any]:
  """Returns the description that the arrays' shapes imply.

  Args:
    tensors: of a checkpoint, by their names.
    layout: that was found in them.
    options: with the activation, where it is not the usual one, and with the
      pooling and the tokenizer of a text tower that is not SigLIP's.
    report: takes what the shapes do not say.
    name: what messages call the checkpoint.

  Raises:
    UserError: the model is not supported, or an array misses an axis.
    AmbiguousError: the text tower is not SigLIP's, and its pooling or its
      tokenizer was not told.
  """
  axis = Axes({key: x.shape for key, x in tensors.items()}, name)
  activation = report.infer(
    "activation",
    options.activation or "gelu_tanh",
    "flag" if options.activation else "format",
  )
  spec: dict[str, Any] = {}
  if layout.image is not None:
    image = _describe_vit(axis, tensors, layout, report)
    spec["image"] = {**image, "activation": activation}
    spec |= PREPROCESSING
    report.infer(
      "preprocessing",
      "squash, bilinear without antialiasing, mean and std 0.5",
      "format",
    )
  if layout.text is not None:
    prefix = layouts.tower_prefix(layout, "text")
    is_bert = any(key.startswith(prefix + layouts.BERT) for key in tensors)
    if is_bert:
      text = _describe_bert(axis, layout, report)
      spec["tokenizer"] = dict(_WORDPIECE)
      report.infer("tokenizer", "BERT's", "format")
    else:
      text = _describe_transformer(axis, layout, report)
      told = _told_of_text(tensors, layout, text["vocab_size"], options, name)
      for field, (value, source) in told.items():
        report.infer(field, value, source)
      text["pooling"] = told["text.pooling"][0]
      spec["tokenizer"] = dict(TOKENIZERS[told["tokenizer"][0]])
    spec["text"] = {**text, "activation": activation}
  if len(engine.towers(spec)) == 2:
    spec |= _describe_head(axis, tensors, layout, spec, report)
  return engine.resolve(spec)


def _describe_blocks(axis, layout, tower) -> dict[str, Any]:
  """Returns the sizes of a pre-norm encoder."""
  this = getattr(layout, tower)
  block = layouts.block_prefix(layout, tower)
  query = f"{block}{this.attention}/query/kernel"
  if this.scan:
    depth = axis(query, 0, rank=4)
  else:
    depth = axis.count(rf"^{block.removesuffix('_0/')}_(\d{{1,4}})/")
  rank = 3 + this.scan
  hidden = f"{block}{this.mlp}/Dense_0/kernel"
  return {
    "width": axis(query, rank - 3, rank=rank),
    "depth": depth,
    "heads": axis(query, rank - 2, rank=rank),
    "mlp_dim": axis(hidden, rank - 2, rank=rank - 1),
  }


def _describe_vit(axis, tensors, layout, report) -> dict[str, Any]:
  prefix = layouts.tower_prefix(layout, "image")
  kernel = f"{prefix}embedding/kernel"
  key = prefix + layout.image.positions
  if key not in tensors:
    raise errors.UserError(
      f"The image tower has no {key}: computed positions (sincos2d) are not "
      "supported."
    )
  has_class = f"{prefix}cls" in tensors
  if layout.image.flat_patches:
    cells = axis(key, 0, rank=3) * axis(key, 1, rank=3)
    patch = axis.square(axis(kernel, 0, rank=2) // 3, kernel)
  else:
    patch = axis(kernel, 0, rank=4)
    cells = axis(key, 1, rank=3)
  # Older models have a position for the class token, before the patches'.
  side = round(cells**0.5)
  class_position = has_class and side * side != cells
  side = positions.old_grid(cells - class_position)[0]
  size = report.infer(
    "image.image_size",
    IMAGE_SIZES.get((patch, side), patch * side),
    "format" if (patch, side) in IMAGE_SIZES else "shape",
  )
  if size % patch:
    report.warnings.append(
      f"Images are {size} pixels a side, of which patches of {patch} leave "
      f"out the last {size % patch}, as in training."
    )
  report.infer("image.norm_epsilon", 1e-6, "format")
  pooling = "gap"
  if f"{prefix}{layout.image.map_head}probe" in tensors:
    pooling = "map"
  elif has_class:
    pooling = "class"
  return {
    "kind": "vit",
    "image_size": size,
    "patch_size": patch,
    **_describe_blocks(axis, layout, "image"),
    "norm_epsilon": 1e-6,
    "pooling": pooling,
    "norm_after_pool": False,
    "class_token": has_class,
    "class_position": class_position,
    "registers": 0,
    "pre_norm": False,
    "patch_bias": True,
    "drop_edge": size % patch != 0,
  }


def _describe_transformer(axis, layout, report) -> dict[str, Any]:
  """Returns the text tower without its pooling."""
  prefix = layouts.tower_prefix(layout, "text")
  return {
    "kind": "transformer",
    "context_length": axis(f"{prefix}{layout.text.positions}", 1, rank=3),
    "vocab_size": axis(f"{prefix}Embed_0/embedding", 0, rank=2),
    **_describe_blocks(axis, layout, "text"),
    "norm_epsilon": report.infer("text.norm_epsilon", 1e-6, "format"),
    "causal": report.infer("text.causal", False, "format"),
  }


def _told_of_text(
  tensors: Mapping[str, Tensor],
  layout: layouts.Layout,
  vocab_size: int,
  options: portable.Options,
  name: str,
) -> dict[str, tuple[str, str]]:
  """Returns the pooling and the tokenizer, each with where it comes from."""
  prefix = layouts.tower_prefix(layout, "text")
  known = VOCABULARIES.get(vocab_size)
  found = {}
  if f"{prefix}{layout.text.map_head}probe" in tensors:
    found["text.pooling"] = ("map", "shape")
  elif options.pooling is not None:
    if options.pooling != "last":
      raise errors.UserError(
        f"{name}: text.pooling={options.pooling!r} of a Transformer over texts "
        "is not supported; it must be the last token's, or a MAP head."
      )
    found["text.pooling"] = ("last", "flag")
  elif is_siglip(vocab_size, has_bias=f"{layout.root}b" in tensors):
    found["text.pooling"] = ("last", "format")
  if options.tokenizer is not None:
    if options.tokenizer not in TOKENIZERS:
      raise errors.unknown("tokenizer", options.tokenizer, TOKENIZERS)
    found["tokenizer"] = (options.tokenizer, "flag")
  elif known is not None:
    found["tokenizer"] = (known, "format")
  silent = [field for field in _SILENT if field not in found]
  if silent:
    raise errors.AmbiguousError(
      f"{name} does not say {' nor '.join(_SILENT[x][0] for x in silent)}, and "
      f"its text tower "
      f"(vocabulary {vocab_size}) is not known to be SigLIP's.",
      flags=" and ".join(_SILENT[what][1] for what in silent),
    )
  return found


# What messages call what must be told, and the flag that tells it.
_SILENT = {
  "text.pooling": ("how its tokens become one vector", "--pooling last"),
  "tokenizer": ("its tokenizer", "--tokenizer c4_en, mc4 or gemma"),
}


def _describe_bert(axis, layout, report) -> dict[str, Any]:
  bert = layouts.tower_prefix(layout, "text") + layouts.BERT
  embedding = f"{bert}embedder/embedders_{{}}_ids/embedding".format
  layers = f"{bert}encoder_block/layer_sequence/layers_"
  query = f"{layers}0/attention_block/attention_layer/query/kernel"
  width = axis(embedding("token"), 1, rank=2)
  if layout.text.flat_heads:
    if width % BERT_HEAD_DIM:
      raise errors.UserError(
        f"The text tower is {width} wide, and {query} is a matrix: BERT has "
        f"one head for {BERT_HEAD_DIM} of the width, which does not divide it."
      )
    heads, source = width // BERT_HEAD_DIM, "format"
  else:
    heads, source = axis(query, 1, rank=3), "shape"
  length = axis(embedding("position"), 0, rank=2)
  hidden = f"{layers}0/mlp_block/mlp/dense_layer/kernel"
  return {
    "kind": "bert",
    "context_length": length,
    "vocab_size": axis(embedding("token"), 0, rank=2),
    "width": width,
    "depth": axis.count(rf"^{layers}(\d{{1,4}})/"),
    "heads": report.infer("text.heads", heads, source),
    "mlp_dim": axis(hidden, 1, rank=2),
    "norm_epsilon": report.infer("text.norm_epsilon", 1e-12, "format"),
    "positions": length,
    "token_types": axis(embedding("segment"), 0, rank=2),
    "pad_id": report.infer("text.pad_id", 0, "format"),
    "pooling": report.infer("text.pooling", "cls", "format"),
  }


def is_siglip(vocab_size: int, *, has_bias: bool) -> bool:
  """Whether a Transformer over texts is taken for SigLIP's, as published."""
  return has_bias and vocab_size in VOCABULARIES


def usual_tokenizer(text: dict[str, Any]) -> dict[str, Any]:
  """Returns the tokenizer of big_vision's models with such a text tower.

  It is empty where the vocabulary is none of theirs: a reader must be told.
  """
  if text["kind"] == "bert":
    return dict(_WORDPIECE)
  return dict(TOKENIZERS.get(VOCABULARIES.get(text["vocab_size"]), {}))


def _describe_head(axis, tensors, layout, spec, report) -> dict[str, Any]:
  """Returns what the two towers share."""
  found, dims = {}, {}
  for tower in ("image", "text"):
    prefix = layouts.tower_prefix(layout, tower)
    if f"{prefix}pre_logits/kernel" in tensors:
      raise errors.UserError(
        f"The {tower} tower has {prefix}pre_logits (rep_size), a layer with "
        "tanh before its projection, which is not supported."
      )
    has_head = f"{prefix}head/kernel" in tensors
    found[f"{tower}_projection"] = "linear_bias" if has_head else "none"
    dims[tower] = spec[tower]["width"]
    if has_head:
      dims[tower] = axis(f"{prefix}head/kernel", 1, rank=2)
  if dims["image"] != dims["text"]:
    raise errors.UserError(
      f"The towers end in {dims['image']} (image) and {dims['text']} (text) "
      "numbers: they share no space."
    )
  has_bias = f"{layout.root}b" in tensors
  return {
    **found,
    "embed_dim": dims["image"],
    "embed_norm": report.infer("embed_norm", "l2_plus_1e-8", "format"),
    "init_logit_scale": _INIT_LOGIT_SCALE,
    "init_logit_bias": _INIT_LOGIT_BIAS if has_bias else None,
    "max_logit_scale": report.infer("max_logit_scale", None, "format"),
  }
