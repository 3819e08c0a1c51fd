"""Describes the model of a big_vision checkpoint by its arrays.

The architecture follows from shapes, except a text tower's pooling; the rest is
taken from big_vision's own models, and noted in the report as "format". A text
tower is taken for SigLIP's if the model has two towers, a bias for the sigmoid
loss and a vocabulary of big_vision's; for others, the user must give pooling
and tokenizer.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import engine, positions
from clip_jax.convert.engine import family
from clip_jax.convert.engine.sizes import Sizes
from clip_jax.convert.formats import big_vision_names as names
from clip_jax.convert.source_reading import SourceReading
from clip_jax.convert.tensor import Tensor
from clip_jax.models import clip

# Fields that shapes do not show; they are the same in all models of a kind.
ACTIVATION = "gelu_tanh"
_SIGLIP = "ViT-B-16-SigLIP"
_ENCODER_FACTS = "activation norm_epsilon"
_VIT_FACTS = f"{_ENCODER_FACTS} norm_after_pool pre_norm patch_bias registers"
_FIXED = {
  "image": {"vit": family.published(_SIGLIP, "image", _VIT_FACTS)},
  "text": {
    "transformer": family.published(
      *(_SIGLIP, "text", f"{_ENCODER_FACTS} causal"),
    ),
    "bert": {
      "activation": ACTIVATION,
      "norm_epsilon": 1e-12,
      "pad_id": 0,
      "pooling": "cls",
      "normalize": False,
    },
  },
}
# Those of them that are reported; the others show in the arrays' names.
_REPORTED = ("norm_epsilon", "causal", "pad_id", "pooling")
_ENCODER = """
width    {block}_0/{attention}/query/kernel  0 of 3
heads    {block}_0/{attention}/query/kernel  1 of 3
depth    {block}_{i}/
mlp_dim  {block}_0/{mlp}/Dense_0/kernel      1 of 2
"""
_SCANNED = """
depth    {block}/{attention}/query/kernel    0 of 4
width    {block}/{attention}/query/kernel    1 of 4
heads    {block}/{attention}/query/kernel    2 of 4
mlp_dim  {block}/{mlp}/Dense_0/kernel        2 of 3
"""
_PATCHES = """
patch_size  {start}embedding/kernel          0 of 4
cells       {start}{positions}               1 of 3
"""
_FLAT_PATCHES = """
numbers     {start}embedding/kernel          0 of 2
rows        {start}{positions}               0 of 3
cols        {start}{positions}               1 of 3
"""
_TEXT = """
context_length  {start}{positions}           1 of 3
vocab_size      {start}Embed_0/embedding     0 of 2
"""
_BERT = """
width           {embed}_token_ids/embedding     1 of 2
vocab_size      {embed}_token_ids/embedding     0 of 2
context_length  {embed}_position_ids/embedding  0 of 2
token_types     {embed}_segment_ids/embedding   0 of 2
depth           {layers}_{i}/
mlp_dim         {layers}_0/mlp_block/mlp/dense_layer/kernel  1 of 2
"""
# Default values of what two towers share, and other values that are equal to
# them in float32. A projection may be missing.
ENDS = {
  "image_projection": ("linear_bias", "none"),
  "text_projection": ("linear_bias", "none"),
  "embed_norm": ("l2_plus_1e-8", "l2"),
}
BERT_HEAD_DIM = 64  # The same in all sizes of BERT; its kernels do not show it.
# Models whose image size is not a multiple of the patch: (patch, grid) -> size.
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
# Tokenizers by big_vision's names, with the id of padding.
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
# What a user may have to give: its name in messages, and its flag.
_TO_GIVE = {
  "text.pooling": ("how its tokens become one vector", "--pooling last"),
  "tokenizer": ("its tokenizer", "--tokenizer c4_en, mc4 or gemma"),
}


def describe(
  tensors: Mapping[str, Tensor],
  layout: Mapping[str, Any],
  reading: SourceReading,
) -> dict[str, Any]:
  """Returns the description that the arrays' shapes imply.

  Args:
    tensors: the checkpoint's arrays by name.
    layout: the layout of their names.
    reading: the checkpoint that is read; its options have the activation, if
      it is not the usual one, and the pooling and the tokenizer of a text tower
      that is not SigLIP's.

  Raises:
    UserError: the model is not supported, or an array misses an axis.
    AmbiguousError: the text tower is not SigLIP's, and the options lack its
      pooling or its tokenizer.
  """
  read, report = Sizes(tensors, reading.name), reading.report
  given = reading.options.activation
  activation = report.infer(
    "activation", given or ACTIVATION, "flag" if given else "format"
  )
  spec: dict[str, Any] = {}
  if layout["image"]:
    spec |= {"image": _image(read, tensors, layout, report), **PREPROCESSING}
    shown = "squash, bilinear without antialiasing, mean and std 0.5"
    report.infer("preprocessing", shown, "format")
  if layout["text"]:
    start = names.prefix_of(layout, "text")
    if any(key.startswith(start + names.BERT) for key in tensors):
      spec["text"] = _bert(read, layout, report)
      spec["tokenizer"] = dict(_WORDPIECE)
      report.infer("tokenizer", "BERT's", "format")
    else:
      text = {"kind": "transformer"}
      text |= read(_TEXT, start=start, positions=layout["text"]["positions"])
      vocab_size = text["vocab_size"]
      found = _pooling_and_tokenizer(tensors, layout, vocab_size, reading)
      for field, (value, source) in found.items():
        report.infer(field, value, source)
      text["pooling"] = found["text.pooling"][0]
      spec["text"] = {**text, **_encoder(read, layout, "text")}
      spec["tokenizer"] = dict(TOKENIZERS[found["tokenizer"][0]])
  for tower in engine.towers(spec):
    fixed = _FIXED[tower][spec[tower]["kind"]]
    spec[tower] |= {**fixed, "activation": activation}
    for field in _REPORTED:
      if field in fixed:
        report.infer(f"{tower}.{field}", fixed[field], "format")
  if len(engine.towers(spec)) == 2:
    spec |= _ends(read, tensors, layout, spec, report)
  return engine.resolve(spec)


def _encoder(read: Sizes, layout, tower) -> dict[str, int]:
  """Returns the sizes of a pre-norm encoder."""
  this = layout[tower]
  return read(
    _SCANNED if this["scan"] else _ENCODER,
    block=names.encoder_of(layout, tower),
    attention=this["attention"],
    mlp=this["mlp"],
  )


def _image(read: Sizes, tensors, layout, report) -> dict[str, Any]:
  this, start = layout["image"], names.prefix_of(layout, "image")
  key = start + this["positions"]
  if key not in tensors:
    raise errors.UserError(
      f"The image tower has no {key}: computed positions (sincos2d) are not "
      "supported."
    )
  class_token = f"{start}cls" in tensors
  class_position = False
  if this["flat_patches"]:
    sizes = read(_FLAT_PATCHES, start=start, positions=this["positions"])
    patch = read.square(sizes["numbers"] // 3, f"{start}embedding/kernel")
    cells = sizes["rows"] * sizes["cols"]
  else:
    sizes = read(_PATCHES, start=start, positions=this["positions"])
    patch, cells = sizes["patch_size"], sizes["cells"]
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
  if f"{start}{this['map_head']}probe" in tensors:
    pooling = "map"
  return {
    "kind": "vit",
    "image_size": size,
    "patch_size": patch,
    **_encoder(read, layout, "image"),
    "pooling": pooling,
    "class_token": class_token,
    "class_position": class_position,
    "drop_edge": size % patch != 0,
  }


def _image_size(patch: int, side: int) -> int:
  return IMAGE_SIZES.get((patch, side), patch * side)


def _pooling_and_tokenizer(
  tensors, layout, vocab_size, reading
) -> dict[str, tuple[str, str]]:
  """Returns (value, its source) of "text.pooling" and of "tokenizer"."""
  options, name = reading.options, reading.name
  prefix = names.prefix_of(layout, "text")
  found = {}
  if f"{prefix}{layout['text']['map_head']}probe" in tensors:
    found["text.pooling"] = ("map", "shape")
  elif options.pooling is not None:
    if options.pooling != "last":
      raise errors.UserError(
        f"{name}: --pooling {options.pooling} is not supported for a "
        "Transformer over texts; give --pooling last."
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
  missing = [_TO_GIVE[field] for field in _TO_GIVE if field not in found]
  if missing:
    raise errors.AmbiguousError(
      f"{name} does not say {' nor '.join(what for what, _ in missing)}, and "
      f"its text tower (vocabulary {vocab_size}) is not known to be SigLIP's.",
      flags=" and ".join(flag for _, flag in missing),
    )
  return found


def _bert(read: Sizes, layout, report) -> dict[str, Any]:
  start = names.prefix_of(layout, "text")
  query = start + names.BERT_QUERY
  sizes = read(
    _BERT,
    embed=f"{start}{names.BERT}embedder/embedders",
    layers=query[: query.index("_0/attention_block")],
  )
  if layout["text"]["flat_heads"]:
    if sizes["width"] % BERT_HEAD_DIM:
      raise errors.UserError(
        f"The text tower is {sizes['width']} wide, and {query} is a matrix: "
        f"BERT has one head for {BERT_HEAD_DIM} of the width, which does not "
        "divide it."
      )
    heads, source = sizes["width"] // BERT_HEAD_DIM, "format"
  else:
    heads, source = read(f"heads {query} 1 of 3")["heads"], "shape"
  return {
    "kind": "bert",
    **sizes,
    "heads": report.infer("text.heads", heads, source),
    "positions": sizes["context_length"],
  }


def is_siglip(vocab_size: int, *, has_bias: bool) -> bool:
  """Whether a text Transformer is taken for a published one of SigLIP."""
  return has_bias and vocab_size in VOCABULARIES


def usual_tokenizer(text: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the tokenizer of big_vision's models with such a text tower.

  It is {} if they have no such vocabulary; the user must then give it.
  """
  if text["kind"] == "bert":
    return dict(_WORDPIECE)
  return dict(TOKENIZERS.get(VOCABULARIES.get(text["vocab_size"], ""), {}))


def _ends(read: Sizes, tensors, layout, spec, report) -> dict[str, Any]:
  """Returns the fields of the description that are about both towers."""
  found, dims = {}, {}
  for tower in ("image", "text"):
    start = names.prefix_of(layout, tower)
    if f"{start}pre_logits/kernel" in tensors:
      raise errors.UserError(
        f"The {tower} tower has {start}pre_logits (rep_size), a layer with "
        "tanh before its projection, which is not supported."
      )
    head = f"{start}head/kernel"
    with_head, without = ENDS[f"{tower}_projection"]
    found[f"{tower}_projection"] = with_head if head in tensors else without
    dims[tower] = spec[tower]["width"]
    if head in tensors:
      dims |= read(f"{tower} {head} 1 of 2")
  if dims["image"] != dims["text"]:
    raise errors.UserError(
      f"The towers' embeddings have {dims['image']} (image) and "
      f"{dims['text']} (text) dimensions; they must be equal. Fetch or "
      "make the file again."
    )
  has_bias = f"{layout['root']}b" in tensors
  return {
    **found,
    "embed_dim": dims["image"],
    "embed_norm": report.infer("embed_norm", ENDS["embed_norm"][0], "format"),
    "init_logit_scale": clip.SIGLIP_INIT_LOGIT_SCALE,  # And LiT's.
    "init_logit_bias": clip.SIGLIP_INIT_LOGIT_BIAS if has_bias else None,
    "max_logit_scale": report.infer("max_logit_scale", None, "format"),
  }


def refusals(spec: dict[str, Any]) -> list[str]:
  """Returns messages about what of a description big_vision does not have."""
  return family.not_allowed(spec, _allowed(spec))


def _allowed(spec: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
  """Yields (field, allowed values) for the fields that shapes do not show."""
  yield from family.fixed_fields(spec, _FIXED)
  for tower in engine.towers(spec):
    this = spec[tower]
    if this["kind"] == "vit":
      patch = this["patch_size"]
      size = _image_size(patch, this["image_size"] // patch)
      yield "image.class_token", (this["pooling"] == "class",)
      yield "image.image_size", (size,)
    elif this["kind"] == "transformer":
      yield "text.pooling", ("last", "map")
    elif this["kind"] == "bert":
      yield "text.positions", (this["context_length"],)
  if len(engine.towers(spec)) == 2:
    yield from ENDS.items()
