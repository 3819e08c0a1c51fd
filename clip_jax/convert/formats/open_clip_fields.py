"""OpenCLIP's `open_clip_config.json`: its fields as rows, read and written.

Every field is either known or refused by its name: one that is passed over
would be a model that computes something else. An image tower is OpenCLIP's own
or timm's, a text tower its own or a BERT; each kind has its rows. The defaults
are those of `CLIPVisionCfg` and `CLIPTextCfg` (open_clip 3.3.0).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from clip_jax.convert import config_file
from clip_jax.convert.engine import fields
from clip_jax.convert.engine.family import Family
from clip_jax.convert.engine.fields import Field, Fixed
from clip_jax.convert.engine.names import Names
from clip_jax.convert.formats import open_clip_berts
from clip_jax.convert.formats import open_clip_rows as rows_lib
from clip_jax.convert.formats.open_clip_rows import (
  FLAG,
  MODEL,
  TEXT,
  VISION,
  Option,
  Other,
  only,
  without_effect,
)
from clip_jax.models import clip, resnet, variants

# Their default, log(1 / 0.07).
INIT_LOG_SCALE = math.log(clip.INIT_LOGIT_SCALE)
_MAX_LOG_SCALE = 80.0  # Just within float32.
# Their `clean` to ours, and what comes nearest to those that they lack.
CLEANINGS = {
  "lower": "clip",
  "canonicalize": "canonicalize_ftfy",
  "whitespace": "whitespace_ftfy",
}
NEAREST = {
  "hf_clip": "lower",
  "hf_lower": "lower",
  "lower": "lower",
  "lower_ascii": "lower",
  "canonicalize": "canonicalize",
  "hf_siglip": "canonicalize",
  "none": "whitespace",
}


def _log(scale: float) -> float:
  log = math.log(scale) if scale > 0 else math.inf
  return INIT_LOG_SCALE if math.isclose(log, INIT_LOG_SCALE) else log


def _scale(log: Any) -> float:
  if abs(fields.NUMBER.read(log)) > _MAX_LOG_SCALE:
    raise ValueError
  return math.exp(log)


def _depths(depths: Any) -> list[int]:
  if len(depths) != 4:
    raise ValueError
  return [_DEPTH.read(depth) for depth in depths]


def _cleaning(ours: str) -> str:
  known = {v: k for k, v in CLEANINGS.items()}
  return known.get(ours) or NEAREST[ours]


_WIDTH = fields.up_to(config_file.MAX_WIDTH)
_DEPTH = fields.up_to(config_file.MAX_DEPTH)
_STAGES = fields.Kind(
  "four numbers of blocks",
  _depths,
  # Of another number of stages, what is written is read as another model.
  lambda ours: [*ours, 1, 1, 1, 1][:4],
  ("four stages",),
)
_STRING = fields.checked("text", lambda x: type(x) is str)
_NAME = fields.checked("text, or null", lambda x: x is None or type(x) is str)
_BIAS = fields.checked(
  "a finite number, or null", lambda x: x is None or fields.is_number(x)
)
_SECTION = fields.checked(
  "a JSON object, or null", lambda x: x is None or isinstance(x, dict)
)
_CHANNELS = fields.Kind(
  "three numbers, red, green and blue",
  lambda x: config_file.channels(x, "channels"),
)
_INVERSE = fields.one_of({False: True, True: False})
_IMAGE_POOLINGS = fields.one_of({"tok": "class", "avg": "gap"})
_TEXT_POOLINGS = fields.one_of({x: x for x in ("argmax", "last", "eos")})
_POOLERS = fields.one_of(
  {
    "mean_pooler": "mean",
    "cls_pooler": "pooler",
    "cls_last_hidden_state_pooler": "cls",
  }
)
_RATIO = dataclasses.replace(
  fields.NUMBER, allowed="a number above 0 that makes an MLP, 64 at most"
)
_HEAD_WIDTH = dataclasses.replace(
  fields.INTEGER, allowed="a whole number from 1 on, the width at most"
)
_APPROXIMATE = fields.one_of({"none": "gelu", "tanh": "gelu_tanh"})

# Parts of their own attention blocks and heads: known where they are off.
_OFF = (
  only("ls_init_value", None),
  only("block_type", None, "default"),
  *(
    only(name, False)
    for name in (
      *("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner"),
      *("scale_attn", "scale_fc", "output_tokens"),
    )
  ),
)
_TRANSFORMER = (
  Option("layers", "depth", _DEPTH, in_weights=True, default=12, always=True),
  rows_lib.Derived(
    "mlp_ratio",
    "mlp_dim",
    _RATIO,
    in_weights=True,
    default=4.0,
    reads=rows_lib.mlp_dim,
    writes=lambda tower: rows_lib.mlp_ratio(tower["width"], tower["mlp_dim"]),
  ),
  rows_lib.Activation(
    "act_kwargs.approximate", "activation", _APPROXIMATE, default="none"
  ),
  Option("norm_kwargs.eps", "norm_epsilon", fields.EPSILON, default=1e-5),
)
_EVERY_IMAGE = (
  Option("patch_dropout", "patch_dropout", fields.NUMBER, default=0.0),
  Other("attn_pooler_queries"),
  Other("attn_pooler_heads"),
)
_SIZE = Option(
  "image_size", "image_size", fields.PIXELS, default=224, always=True
)
_TIMM = (
  Other("image_size", 224, fields.PIXELS),
  Other("timm_model_name", None, _STRING),
  Other("timm_proj", "linear", fields.one_of(rows_lib.TIMM_HEADS)),
  Other("timm_proj_bias", False, FLAG),
  Other("timm_pool", "avg", _STRING),
  Other("timm_model_pretrained"),
  Other("timm_drop"),
  Other("timm_drop_path"),
  *_EVERY_IMAGE,
)
_NO_TIMM = tuple(Other(row.theirs) for row in _TIMM[1:8])
_VIT = (
  Fixed("kind", "vit"),
  _SIZE,
  Option("patch_size", "patch_size", fields.PIXELS, default=16, always=True),
  rows_lib.Edge(),
  Option("width", "width", _WIDTH, in_weights=True, default=768, always=True),
  rows_lib.HeadWidth(
    "head_width",
    "heads",
    _HEAD_WIDTH,
    default=resnet.HEAD_DIM,
    reads=rows_lib.heads,
    writes=lambda tower: tower["width"] // tower["heads"],
  ),
  *_TRANSFORMER,
  Option("no_ln_pre", "pre_norm", _INVERSE, default=False),
  Option("pool_type", "pooling", _IMAGE_POOLINGS, default="tok"),
  # A norm of one token is the same before and after it is taken.
  rows_lib.Derived(
    "final_ln_after_pool",
    "norm_after_pool",
    FLAG,
    default=False,
    reads=lambda after, tower: after and tower["pooling"] == "gap",
    writes=lambda tower: tower["norm_after_pool"],
  ),
  # Fixed sines and cosines are stored as any positions are.
  only("pos_embed_type", "learnable", "sin_cos_2d"),
  Fixed("class_token", True),
  Fixed("class_position", True),
  Fixed("registers", 0),
  Fixed("patch_bias", False),
  *_OFF,
  only("attentional_pool", False),
  *_EVERY_IMAGE,
)
_RESNET = (
  Fixed("kind", "resnet"),
  _SIZE,
  Option("layers", "depths", _STAGES, default=None),
  Option("width", "width", _WIDTH, in_weights=True, default=768, always=True),
  rows_lib.ResNetSizes(),
  only("head_width", resnet.HEAD_DIM),
  Other("patch_size", written=None),
  Other("patch_dropout", 0.0, fields.NUMBER),
  *_OFF,
  only("attentional_pool", False),
  *_EVERY_IMAGE[1:],
)
_EVERY_TEXT = (
  Option("context_length", "context_length", default=77, always=True),
  Other("pad_id"),  # Only a mask of padding reads it, which no config turns on.
  Other("final_ln_after_pool"),
)
_OWN_TEXT = (
  Fixed("kind", "transformer"),
  Option("vocab_size", "vocab_size", default=49408, always=True),
  Option("width", "width", _WIDTH, in_weights=True, default=512, always=True),
  rows_lib.OptionalHeads("heads", "heads", default=8, always=True),
  *_TRANSFORMER,
  Option("no_causal_mask", "causal", _INVERSE, default=False),
  Option("pool_type", "pooling", _TEXT_POOLINGS, default="argmax"),
  rows_lib.Derived(
    "eos_id",
    "eos_id",
    fields.TOKEN_ID,
    default=2,
    reads=lambda eos_id, tower: eos_id if tower["pooling"] == "eos" else None,
    writes=lambda tower: tower["eos_id"] if tower["pooling"] == "eos" else 2,
  ),
  Other("proj_type", "linear", fields.exactly("linear", "none")),
  Other("proj_bias", False, FLAG),
  *_OFF,
  only("embed_cls", False),
)
_BERT = (
  Option(
    "hf_pooler_type", "pooling", _POOLERS, default="mean_pooler", always=True
  ),
  Other("hf_model_name", None, _STRING),
  Other("hf_model_config", None, _SECTION),
  Other("hf_model_pretrained", True),
)
_NO_BERT = tuple(
  Other(name) for name in (*(row.theirs for row in _BERT), "hf_proj_type")
)
_BERT_PROJECTION = Option(
  f"{TEXT}.hf_proj_type",
  "text_projection",
  fields.one_of({"linear": "linear", "mlp": "mlp", None: "none"}),
  in_weights=True,
  default="mlp",
  always=True,
)


# Rows by the kind of an image tower.
IMAGES: dict[str, tuple[fields.Row, ...]] = {
  "vit": (
    *fields.within(VISION, "image", (*_VIT, *_NO_TIMM)),
    Fixed("image_projection", "linear", in_weights=True),
  ),
  "resnet": (
    *fields.within(
      VISION,
      "image",
      (*_RESNET, *_NO_TIMM, *without_effect(_VIT, beside=_RESNET)),
    ),
    Fixed("image_projection", "none", in_weights=True),
  ),
  "timm": (
    *fields.within(
      VISION, "image", (*_TIMM, *without_effect(_VIT, beside=_TIMM))
    ),
    rows_lib.TimmTower(),
  ),
}
# Rows by the kind of a text tower; a BERT's come before its `BertTower`.
TEXTS: dict[str, tuple[fields.Row, ...]] = {
  "transformer": (
    *fields.within(TEXT, "text", (*_EVERY_TEXT, *_OWN_TEXT, *_NO_BERT)),
    rows_lib.TextProjection(),
  ),
  "bert": (
    *fields.within(
      TEXT,
      "text",
      (
        *_EVERY_TEXT,
        *_BERT,
        *without_effect(_OWN_TEXT, beside=(*_EVERY_TEXT, *_BERT)),
      ),
    ),
    _BERT_PROJECTION,
  ),
}


def _tokenizer(clean: str, *rows: fields.Row) -> tuple[fields.Row, ...]:
  """Returns the rows of a tokenizer that cleans so by default."""
  kind = dataclasses.replace(fields.one_of(CLEANINGS), write=_cleaning)
  kwargs = f"{TEXT}.tokenizer_kwargs"
  return (
    Option(f"{kwargs}.clean", "tokenizer.cleaning", kind, default=clean),
    only(f"{TEXT}.tokenizer_mode", None, ""),
    *rows,
  )


_TOKENIZER, _KWARGS = f"{TEXT}.hf_tokenizer_name", f"{TEXT}.tokenizer_kwargs"
# Rows by whether the tokenizer is CLIP's own or files beside the config. With
# `local-dir:` open_clip takes the directory, whatever the name is.
TOKENIZERS: dict[bool, tuple[fields.Row, ...]] = {
  True: _tokenizer(
    "lower",
    Other(_TOKENIZER, None, _NAME),
    only(f"{_KWARGS}.reduction_mask", "", None),
    only(f"{_KWARGS}.additional_special_tokens", None),
  ),
  False: _tokenizer(
    "whitespace",
    Other(_TOKENIZER, None, _STRING, written="."),
    rows_lib.StripEnd(f"{_KWARGS}.strip_sep_token", False, FLAG),
    only(f"{_KWARGS}.language", None),
  ),
}
# What their preprocessing always does; another rounding or antialiasing makes
# a small difference, of which an export warns.
ALWAYS = {"antialias": True, "crop_rounding": "round", "convert_rgb": "after"}
_PREPROCESSING = (
  *(
    Option(
      f"preprocess_cfg.{name}",
      f"image_{name}",
      _CHANNELS,
      default=list(variants.DEFAULTS[f"image_{name}"]),
      always=True,
    )
    for name in ("mean", "std")
  ),
  *(
    Option(
      f"preprocess_cfg.{theirs}",
      ours,
      fields.one_of({name: name for name in names}),
      default=names[0],
      always=True,
    )
    for theirs, ours, names in (
      ("interpolation", "interpolation", ("bicubic", "bilinear")),
      ("resize_mode", "resize", ("shortest", "squash", "longest")),
    )
  ),
  Option(
    "preprocess_cfg.fill_color",
    "fill",
    fields.checked("a whole number", lambda x: type(x) is int),
    default=0,
    always=True,
  ),
  only("preprocess_cfg.mode", "RGB"),
  Other("preprocess_cfg.size"),  # The image tower's size counts.
  *(Fixed(ours, value, free=True) for ours, value in ALWAYS.items()),
  Fixed("crop_fraction", 1.0),
)
_WHOLE = (
  Field(f"{MODEL}.embed_dim", "embed_dim", _WIDTH, in_weights=True),
  Other(rows_lib.QUICK_GELU, False, FLAG),
  Option(
    f"{MODEL}.init_logit_scale",
    "init_logit_scale",
    fields.Kind("the logarithm of a scale", _scale, _log),
    free=True,
    default=INIT_LOG_SCALE,
  ),
  Option(
    f"{MODEL}.init_logit_bias",
    "init_logit_bias",
    _BIAS,
    default=None,
  ),
  # The first shows in the weights' shapes, the second is about Python.
  Other(f"{MODEL}.nonscalar_logit_scale"),
  Other(f"{MODEL}.output_dict"),
  # Differences below what float32 can show.
  Fixed("embed_norm", "l2", also=("l2_plus_1e-8",)),
  *_PREPROCESSING,
  rows_lib.Ends(),
)


def family(
  image: str,
  text: str,
  *,
  own_tokenizer: bool,
  bert_config: Callable[[str], dict[str, Any]] = open_clip_berts.BERTS.get,
) -> Family:
  """Returns the rows of models with these towers.

  Args:
    image: one of `IMAGES`.
    text: one of `TEXTS`.
    own_tokenizer: whether the tokenizer is CLIP's own.
    bert_config: returns the config of a HuggingFace model by its name.
  """
  custom = image == "timm" or text == "bert"
  rows = (
    only(f"{MODEL}.multimodal_cfg", None),  # Says most about the model.
    *IMAGES[image],
    *TEXTS[text],
    *((rows_lib.BertTower(bert_config),) if text == "bert" else ()),
    *TOKENIZERS[own_tokenizer],
    Other(
      f"{MODEL}.custom_text",
      False,
      FLAG,
      written=True if custom else rows_lib.NOTHING,
    ),
    *_WHOLE,
  )
  defaults: dict[str, Any] = {}
  for row in rows:
    if isinstance(row, Option | Other):
      fields.put(defaults, row.theirs, row.default)
  return Family("open-clip", Names({"whole": ""}), rows, defaults)
