"""What the arrays of a big_vision checkpoint say about its model.

Shapes say all of the architecture but a text tower's pooling; the rest is what
big_vision's models have, and goes into the report as "format". Of text towers
that is known where they are SigLIP's: two towers with a bias for the sigmoid
loss, and a vocabulary of big_vision's. Others must be told.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import engine, portable, positions
from clip_jax.convert import report as report_lib
from clip_jax.convert.axes import Axes
from clip_jax.convert.engine import family, fields
from clip_jax.convert.formats import big_vision_names as names
from clip_jax.convert.tensor import Tensor

# What shapes do not say, which is the same in all models of a kind.
UNSEEN: dict[str, dict[str, dict[str, Any]]] = {
  "image": {"vit": {"norm_epsilon": 1e-6}},
  "text": {
    "transformer": {"norm_epsilon": 1e-6, "causal": False},
    "bert": {"norm_epsilon": 1e-12, "pad_id": 0, "pooling": "cls"},
  },
}
# What their names would show.
STRUCTURE: dict[str, dict[str, Any]] = {
  "vit": {
    "norm_after_pool": False,
    "pre_norm": False,
    "patch_bias": True,
    "registers": 0,
  },
  "transformer": {},
  "bert": {"normalize": False},
}
# The usual value of what two towers share, and what else is the same to
# float32. A head comes and goes.
ENDS = {
  "image_projection": ("linear_bias", "none"),
  "text_projection": ("linear_bias", "none"),
  "embed_norm": ("l2_plus_1e-8", "l2"),
}
ACTIVATION = "gelu_tanh"
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
# By big_vision's names, with the id that pads.
TOKENIZERS = {
  name: {
    "kind": "sentencepiece",
    "cleaning": "lower_ascii",  # `tf.strings.lower`, as in training.
    "pad_id": pad_id,
    "start_id": None,
    "end_id": 1,
    "file": "tokenizer.model",
  }
  for name, pad_id in (("c4_en", 1), ("mc4", 1), ("gemma", 0))
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
# What messages call what must be told, and the flag that tells it.
_SILENT = {
  "text.pooling": ("how its tokens become one vector", "--pooling last"),
  "tokenizer": ("its tokenizer", "--tokenizer c4_en, mc4 or gemma"),
}
_INIT_LOGIT_SCALE = 10.0  # SigLIP's and LiT's `temperature_init`.
_INIT_LOGIT_BIAS = -10.0  # SigLIP's `bias_init`.


def describe(
  tensors: Mapping[str, Tensor],
  layout: Mapping[str, Any],
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
    options.activation or ACTIVATION,
    "flag" if options.activation else "format",
  )
  spec: dict[str, Any] = {}
  if layout["image"]:
    spec |= {"image": _image(axis, tensors, layout, report), **PREPROCESSING}
    shown = "squash, bilinear without antialiasing, mean and std 0.5"
    report.infer("preprocessing", shown, "format")
  if layout["text"]:
    prefix = names.prefix_of(layout, "text") + names.BERT
    if any(key.startswith(prefix) for key in tensors):
      spec["text"] = _bert(axis, layout, report)
      spec["tokenizer"] = dict(_WORDPIECE)
      report.infer("tokenizer", "BERT's", "format")
    else:
      text = spec["text"] = _transformer(axis, layout)
      told = _told(tensors, layout, text["vocab_size"], options, name)
      for field, (value, source) in told.items():
        report.infer(field, value, source)
      text["pooling"] = told["text.pooling"][0]
      spec["tokenizer"] = dict(TOKENIZERS[told["tokenizer"][0]])
  for tower in engine.towers(spec):
    kind = spec[tower]["kind"]
    for field, value in UNSEEN[tower][kind].items():
      spec[tower][field] = report.infer(f"{tower}.{field}", value, "format")
    spec[tower] |= {**STRUCTURE[kind], "activation": activation}
  if len(engine.towers(spec)) == 2:
    spec |= _ends(axis, tensors, layout, spec, report)
  return engine.resolve(spec)


def _encoder(axis, layout, tower) -> dict[str, Any]:
  """Returns the sizes of a pre-norm encoder."""
  this, block = layout[tower], names.encoder_of(layout, tower)
  first = f"{block}/" if this["scan"] else f"{block}_0/"
  query = f"{first}{this['attention']}/query/kernel"
  hidden = f"{first}{this['mlp']}/Dense_0/kernel"
  rank = 3 + this["scan"]
  if this["scan"]:
    depth = axis(query, 0, rank=rank)
  else:
    depth = axis.count(rf"^{block}_(\d{{1,4}})/")
  return {
    "width": axis(query, rank - 3, rank=rank),
    "depth": depth,
    "heads": axis(query, rank - 2, rank=rank),
    "mlp_dim": axis(hidden, rank - 2, rank=rank - 1),
  }


def _image(axis, tensors, layout, report) -> dict[str, Any]:
  this, prefix = layout["image"], names.prefix_of(layout, "image")
  kernel, key = f"{prefix}embedding/kernel", prefix + this["positions"]
  if key not in tensors:
    raise errors.UserError(
      f"The image tower has no {key}: computed positions (sincos2d) are not "
      "supported."
    )
  class_token = f"{prefix}cls" in tensors
  class_position = False
  if this["flat_patches"]:
    cells = axis(key, 0, rank=3) * axis(key, 1, rank=3)
    patch = axis.square(axis(kernel, 0, rank=2) // 3, kernel)
  else:
    patch, cells = axis(kernel, 0, rank=4), axis(key, 1, rank=3)
    # Older models have a position for the class token, before the patches'.
    class_position = class_token and round(cells**0.5) ** 2 != cells
  side = positions.old_grid(cells - class_position)[0]
  size = report.infer(
    "image.image_size",
    _image_size(patch, side),
    "format" if (patch, side) in IMAGE_SIZES else "shape",
  )
  if size % patch:
    report.warnings.append(
      f"Images are {size} pixels a side, of which patches of {patch} leave "
      f"out the last {size % patch}, as in training."
    )
  pooling = "class" if class_token else "gap"
  if f"{prefix}{this['map_head']}probe" in tensors:
    pooling = "map"
  return {
    "kind": "vit",
    "image_size": size,
    "patch_size": patch,
    **_encoder(axis, layout, "image"),
    "pooling": pooling,
    "class_token": class_token,
    "class_position": class_position,
    "drop_edge": size % patch != 0,
  }


def _image_size(patch: int, side: int) -> int:
  return IMAGE_SIZES.get((patch, side), patch * side)


def _transformer(axis, layout) -> dict[str, Any]:
  """Returns the text tower without its pooling."""
  prefix = names.prefix_of(layout, "text")
  positions_key = f"{prefix}{layout['text']['positions']}"
  return {
    "kind": "transformer",
    "context_length": axis(positions_key, 1, rank=3),
    "vocab_size": axis(f"{prefix}Embed_0/embedding", 0, rank=2),
    **_encoder(axis, layout, "text"),
  }


def _told(
  tensors, layout, vocab_size, options, name
) -> dict[str, tuple[str, str]]:
  """Returns the pooling and the tokenizer, each with where it comes from."""
  prefix = names.prefix_of(layout, "text")
  found = {}
  if f"{prefix}{layout['text']['map_head']}probe" in tensors:
    found["text.pooling"] = ("map", "shape")
  elif options.pooling is not None:
    if options.pooling != "last":
      raise errors.UserError(
        f"{name}: text.pooling={options.pooling!r} of a Transformer over texts "
        "is not supported; it must be the last token's, or a MAP head."
      )
    found["text.pooling"] = ("last", "flag")
  elif is_siglip(vocab_size, has_bias=f"{layout['root']}b" in tensors):
    found["text.pooling"] = ("last", "format")
  if options.tokenizer is not None:
    if options.tokenizer not in TOKENIZERS:
      raise errors.unknown("tokenizer", options.tokenizer, TOKENIZERS)
    found["tokenizer"] = (options.tokenizer, "flag")
  elif vocab_size in VOCABULARIES:
    found["tokenizer"] = (VOCABULARIES[vocab_size], "format")
  silent = [_SILENT[field] for field in _SILENT if field not in found]
  if silent:
    raise errors.AmbiguousError(
      f"{name} does not say {' nor '.join(what for what, _ in silent)}, and "
      f"its text tower (vocabulary {vocab_size}) is not known to be SigLIP's.",
      flags=" and ".join(flag for _, flag in silent),
    )
  return found


def _bert(axis, layout, report) -> dict[str, Any]:
  prefix = names.prefix_of(layout, "text")
  query = prefix + names.BERT_QUERY
  layer = query.removesuffix("attention_block/attention_layer/query/kernel")
  embedding = (
    f"{prefix}{names.BERT}embedder/embedders_{{}}_ids/embedding".format
  )
  width = axis(embedding("token"), 1, rank=2)
  if layout["text"]["flat_heads"]:
    if width % BERT_HEAD_DIM:
      raise errors.UserError(
        f"The text tower is {width} wide, and {query} is a matrix: BERT has "
        f"one head for {BERT_HEAD_DIM} of the width, which does not divide it."
      )
    heads, source = width // BERT_HEAD_DIM, "format"
  else:
    heads, source = axis(query, 1, rank=3), "shape"
  length = axis(embedding("position"), 0, rank=2)
  return {
    "kind": "bert",
    "context_length": length,
    "vocab_size": axis(embedding("token"), 0, rank=2),
    "width": width,
    "depth": axis.count(rf"^{layer.removesuffix('0/')}(\d{{1,4}})/"),
    "heads": report.infer("text.heads", heads, source),
    "mlp_dim": axis(f"{layer}mlp_block/mlp/dense_layer/kernel", 1, rank=2),
    "positions": length,
    "token_types": axis(embedding("segment"), 0, rank=2),
  }


def is_siglip(vocab_size: int, *, has_bias: bool) -> bool:
  """Whether a Transformer over texts is taken for SigLIP's, as published."""
  return has_bias and vocab_size in VOCABULARIES


def usual_tokenizer(text: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the tokenizer of big_vision's models with such a text tower.

  It is empty where the vocabulary is none of theirs: a reader must be told.
  """
  if text["kind"] == "bert":
    return dict(_WORDPIECE)
  return dict(TOKENIZERS.get(VOCABULARIES.get(text["vocab_size"]), {}))


def _ends(axis, tensors, layout, spec, report) -> dict[str, Any]:
  """Returns what the two towers share."""
  found, dims = {}, {}
  for tower in ("image", "text"):
    prefix = names.prefix_of(layout, tower)
    if f"{prefix}pre_logits/kernel" in tensors:
      raise errors.UserError(
        f"The {tower} tower has {prefix}pre_logits (rep_size), a layer with "
        "tanh before its projection, which is not supported."
      )
    head = f"{prefix}head/kernel"
    with_head, without = ENDS[f"{tower}_projection"]
    found[f"{tower}_projection"] = with_head if head in tensors else without
    dims[tower] = spec[tower]["width"]
    if head in tensors:
      dims[tower] = axis(head, 1, rank=2)
  if dims["image"] != dims["text"]:
    raise errors.UserError(
      f"The towers end in {dims['image']} (image) and {dims['text']} (text) "
      "numbers: they share no space."
    )
  has_bias = f"{layout['root']}b" in tensors
  return {
    **found,
    "embed_dim": dims["image"],
    "embed_norm": report.infer("embed_norm", ENDS["embed_norm"][0], "format"),
    "init_logit_scale": _INIT_LOGIT_SCALE,
    "init_logit_bias": _INIT_LOGIT_BIAS if has_bias else None,
    "max_logit_scale": report.infer("max_logit_scale", None, "format"),
  }


def refusals(spec: dict[str, Any]) -> list[str]:
  """Returns what of a description big_vision's models cannot be."""
  return [
    family.refusal(field, fields.get(spec, field), allowed)
    for field, allowed in _allowed(spec)
    if fields.get(spec, field) not in allowed
  ]


def _allowed(spec: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
  """Yields the fields that shapes do not say, and the values that they have."""
  towers = engine.towers(spec)
  for tower in towers:
    this, kinds = spec[tower], UNSEEN[tower]
    kind = this["kind"]
    yield f"{tower}.kind", tuple(kinds)
    if kind not in kinds:
      continue
    fixed = {"activation": ACTIVATION, **kinds[kind], **STRUCTURE[kind]}
    for field, value in fixed.items():
      yield f"{tower}.{field}", (value,)
    if kind == "vit":
      patch = this["patch_size"]
      size = _image_size(patch, this["image_size"] // patch)
      yield "image.class_token", (this["pooling"] == "class",)
      yield "image.image_size", (size,)
    elif kind == "transformer":
      yield "text.pooling", ("last", "map")
    else:
      yield "text.positions", (this["context_length"],)
  if len(towers) == 2:
    yield from ENDS.items()
