"""The fields of OpenCLIP's `open_clip_config.json`, as rows.

Unknown fields are errors: if one were ignored, the model might compute
something else. An image tower is OpenCLIP's own or timm's, a text tower its own
or a BERT; each kind has its rows. The defaults are those of `CLIPVisionCfg` and
`CLIPTextCfg` (open_clip 3.3.0).
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from clip_jax.convert.engine import fields, kinds
from clip_jax.convert.engine.fields import (
  Derived,
  Edge,
  Field,
  Fixed,
  Heads,
  Other,
  Written,
  only,
)
from clip_jax.convert.engine.names import Names
from clip_jax.convert.formats import open_clip_named
from clip_jax.convert.formats import open_clip_rows as rows_lib
from clip_jax.convert.formats.open_clip_rows import (
  MODEL,
  TEXT,
  VISION,
  Optional,
)
from clip_jax.models import clip, resnet, variants

# Their default, log(1 / 0.07).
INIT_LOG_SCALE = math.log(clip.INIT_LOGIT_SCALE)
# Their `clean` to ours, and ours to theirs or to the nearest of theirs.
CLEANINGS = {
  "lower": "clip",
  "canonicalize": "canonicalize_ftfy",
  "whitespace": "whitespace_ftfy",
}
NEAREST = {
  **{ours: theirs for theirs, ours in CLEANINGS.items()},
  "hf_clip": "lower",
  "hf_lower": "lower",
  "lower": "lower",
  "lower_ascii": "lower",
  "canonicalize": "canonicalize",
  "hf_siglip": "canonicalize",
  "none": "whitespace",
}


def _log(scale: float) -> float:
  log = kinds.LOG_SCALE.write(scale)
  return INIT_LOG_SCALE if math.isclose(log, INIT_LOG_SCALE) else log


def _multiple_for_resnet(unit: int, kind: fields.Kind) -> fields.Kind:
  return kinds.checked(
    f"a multiple of {unit} for a ResNet",
    lambda value: kind.read(value) % unit == 0,
    kind.read,
  )


_STAGES = dataclasses.replace(
  kinds.checked(
    "four numbers of blocks",
    lambda depths: len(depths) == 4,
    lambda depths: [kinds.DEPTH.read(depth) for depth in depths],
  ),
  # Of another number of stages, what is written is read as another model.
  write=lambda ours: [*ours, 1, 1, 1, 1][:4],
  values=("four stages",),
)
_LEVEL = kinds.checked(
  "a whole level from 0 to 255", lambda x: type(x) is int and 0 <= x <= 255
)
_BIAS = kinds.or_null(kinds.NUMBER)
_OBJECT = kinds.checked("a JSON object", lambda x: isinstance(x, dict))
_INVERSE = kinds.one_of({False: True, True: False})
EOS_ID = 2  # The default of `eos_id`.
_IMAGE_POOLINGS = kinds.one_of({"tok": "class", "avg": "gap"})
_TEXT_POOLINGS = kinds.choice("argmax", "last", "eos")
_POOLERS = kinds.one_of(
  {
    "mean_pooler": "mean",
    "cls_pooler": "pooler",
    "cls_last_hidden_state_pooler": "cls",
  }
)
_BERT_PROJECTIONS = kinds.one_of(
  {"linear": "linear", "mlp": "mlp", None: "none"}
)
_HEAD_WIDTH = dataclasses.replace(
  kinds.INTEGER, allowed="a whole number from 1 on, the width at most"
)
_APPROXIMATE = kinds.one_of({"none": "gelu", "tanh": "gelu_tanh"})
_CLEAN = dataclasses.replace(kinds.one_of(CLEANINGS), write=NEAREST.__getitem__)

_size = functools.partial(Field, in_weights=True)  # The weights show it, too.

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
  _size("layers", "depth", kinds.DEPTH),
  Derived(
    *("mlp_ratio", "mlp_dim", kinds.RATIO),
    in_weights=True,
    decode=kinds.mlp_dim,
    encode=lambda x: rows_lib.mlp_ratio(x["width"], x["mlp_dim"]),
  ),
  rows_lib.Activation("act_kwargs.approximate", "activation", _APPROXIMATE),
  Field("norm_kwargs.eps", "norm_epsilon", kinds.EPSILON),
)
_POOLER = (Other("attn_pooler_queries"), Other("attn_pooler_heads"))
_DROPOUT = Optional("patch_dropout", "patch_dropout", kinds.NUMBER)
_TIMM_FIELDS = (
  Other("timm_model_name", kinds.TEXT),
  Other("timm_proj", kinds.one_of(open_clip_named.TIMM_HEADS)),
  Other("timm_proj_bias", kinds.FLAG),
  Other("timm_pool", kinds.TEXT),
  Other("timm_model_pretrained"),
  Other("timm_drop"),
  Other("timm_drop_path"),
)
_TIMM = (
  Other("image_size", kinds.PIXELS),
  *(*_TIMM_FIELDS, _DROPOUT, *_POOLER),
)
_NO_TIMM = tuple(Other(row.theirs) for row in _TIMM_FIELDS)
_VIT = (
  Fixed("kind", "vit"),
  Field("image_size", "image_size", kinds.PIXELS),
  Field("patch_size", "patch_size", kinds.PIXELS),
  Edge(),
  _size("width", "width", kinds.WIDTH),
  rows_lib.HeadWidth(
    *("head_width", "heads", _HEAD_WIDTH),
    decode=lambda width, x: kinds.INTEGER.read(x["width"] // width),
    encode=lambda x: x["width"] // x["heads"],
  ),
  *_TRANSFORMER,
  Field("no_ln_pre", "pre_norm", _INVERSE),
  Field("pool_type", "pooling", _IMAGE_POOLINGS),
  Derived(  # For one token it is the same.
    *("final_ln_after_pool", "norm_after_pool", kinds.FLAG),
    decode=lambda after, x: after and x["pooling"] == "gap",
    encode=lambda x: x["norm_after_pool"],
  ),
  # Fixed sines and cosines are stored as any positions are.
  only("pos_embed_type", "learnable", "sin_cos_2d"),
  Fixed("class_token", True),
  Fixed("class_position", True),
  Fixed("registers", 0),
  Fixed("patch_bias", False),
  only("attentional_pool", False),
  *(*_OFF, _DROPOUT, *_POOLER),
)
_RESNET = (
  Fixed("kind", "resnet"),
  Field("image_size", "image_size", _multiple_for_resnet(32, kinds.PIXELS)),
  Field("layers", "depths", _STAGES),
  _size("width", "width", _multiple_for_resnet(2, kinds.WIDTH)),
  only("head_width", resnet.HEAD_DIM),
  Written("patch_size", None),
  Other("patch_dropout", kinds.NUMBER),
  only("attentional_pool", False),
  *(*_OFF, *_POOLER),
)
_EVERY_TEXT = (
  Field("context_length", "context_length"),
  Other("pad_id"),  # Only a mask of padding reads it, which no config turns on.
  Other("final_ln_after_pool"),
)
_OWN_TEXT = (
  Fixed("kind", "transformer"),
  Field("vocab_size", "vocab_size"),
  _size("width", "width", kinds.WIDTH),
  Heads("heads", "heads"),
  *_TRANSFORMER,
  Field("no_causal_mask", "causal", _INVERSE),
  Field("pool_type", "pooling", _TEXT_POOLINGS),
  Derived(  # Only this pooling needs it.
    *("eos_id", "eos_id", kinds.TOKEN_ID),
    decode=lambda found, x: found if x["pooling"] == "eos" else None,
    encode=lambda x: x["eos_id"] if x["pooling"] == "eos" else EOS_ID,
  ),
  only("proj_type", "linear", "none"),
  Other("proj_bias", kinds.FLAG),
  *_OFF,
  only("embed_cls", False),
)
_BERT = (
  Field("hf_pooler_type", "pooling", _POOLERS),
  Other("hf_model_name", kinds.TEXT),
  Other("hf_model_config", kinds.or_null(_OBJECT)),
  Other("hf_model_pretrained"),
)
_NO_BERT = tuple(
  Other(name) for name in (*(row.theirs for row in _BERT), "hf_proj_type")
)


_image = functools.partial(fields.within, VISION, "image")
_text = functools.partial(fields.within, TEXT, "text")
# Rows by the kind of an image tower.
IMAGES: dict[str, tuple[fields.Row, ...]] = {
  "vit": (
    *_image((*_VIT, *_NO_TIMM)),
    Fixed("image_projection", "linear", in_weights=True),
  ),
  "resnet": (
    *_image((*_RESNET, *_NO_TIMM)),
    Fixed("image_projection", "none", in_weights=True),
  ),
  "timm": (*_image(_TIMM), open_clip_named.TimmTower()),
}
# Rows by the kind of a text tower; a BERT's come before its `BertTower`.
TEXTS: dict[str, tuple[fields.Row, ...]] = {
  "transformer": (
    *_text((*_EVERY_TEXT, *_OWN_TEXT, *_NO_BERT)),
    rows_lib.TextProjection(),
  ),
  "bert": (
    *_text((*_EVERY_TEXT, *_BERT)),
    _size(f"{TEXT}.hf_proj_type", "text_projection", _BERT_PROJECTIONS),
  ),
}
_TOKENIZER, _KWARGS = f"{TEXT}.hf_tokenizer_name", f"{TEXT}.tokenizer_kwargs"
_EVERY_TOKENIZER = only(f"{TEXT}.tokenizer_mode", None, "")
_CLEANING = Optional(f"{_KWARGS}.clean", "tokenizer.cleaning", _CLEAN)
# Rows by whether the tokenizer is CLIP's own or files beside the config. With
# `local-dir:` open_clip takes the directory, whatever the name is.
TOKENIZERS: dict[bool, tuple[fields.Row, ...]] = {
  True: (
    *(_CLEANING, _EVERY_TOKENIZER),
    Other(_TOKENIZER, kinds.or_null(kinds.TEXT)),
    only(f"{_KWARGS}.reduction_mask", "", None),
    only(f"{_KWARGS}.additional_special_tokens", None),
  ),
  False: (
    *(Other(_TOKENIZER, kinds.TEXT), Written(_TOKENIZER, ".")),
    *(_CLEANING, _EVERY_TOKENIZER),
    rows_lib.StripEnd(f"{_KWARGS}.strip_sep_token", kinds.FLAG),
    only(f"{_KWARGS}.language", None),
  ),
}
# What their preprocessing always does; another rounding or antialiasing makes
# a small difference, of which an export warns.
ALWAYS = {"antialias": True, "crop_rounding": "round", "convert_rgb": "after"}
_PRE, _CUSTOM = "preprocess_cfg", f"{MODEL}.custom_text"


_FILTERS = kinds.choice("bicubic", "bilinear")
_RESIZES = kinds.choice("shortest", "squash", "longest")
_PREPROCESSING = (
  Field(f"{_PRE}.mean", "image_mean", kinds.MEANS),
  Field(f"{_PRE}.std", "image_std", kinds.DEVIATIONS),
  Field(f"{_PRE}.interpolation", "interpolation", _FILTERS),
  Field(f"{_PRE}.resize_mode", "resize", _RESIZES),
  Field(f"{_PRE}.fill_color", "fill", _LEVEL),
  only(f"{_PRE}.mode", "RGB"),
  Other(f"{_PRE}.size"),  # The image tower's size counts.
  *(Fixed(ours, value, free=True) for ours, value in ALWAYS.items()),
  Fixed("crop_fraction", 1.0),
)
_WHOLE = (
  Field(f"{MODEL}.embed_dim", "embed_dim", kinds.WIDTH, in_weights=True),
  Other(rows_lib.QUICK_GELU, kinds.FLAG),
  Field(
    f"{MODEL}.init_logit_scale",
    "init_logit_scale",
    dataclasses.replace(kinds.LOG_SCALE, write=_log),
    free=True,
  ),
  Field(f"{MODEL}.init_logit_bias", "init_logit_bias", _BIAS),
  # The first shows in the weights' shapes, the second is about Python.
  Other(f"{MODEL}.nonscalar_logit_scale"),
  Other(f"{MODEL}.output_dict"),
  # Differences below what float32 can show.
  Fixed("embed_norm", "l2", also=("l2_plus_1e-8",)),
  *_PREPROCESSING,
  rows_lib.Ends(),
)
# Of both kinds of towers of OpenCLIP's own.
_BLOCKS = {
  **{"layers": 12, "mlp_ratio": 4.0, "norm_kwargs": {"eps": 1e-5}},
  "act_kwargs": {"approximate": "none"},
}
DEFAULTS: dict[str, Any] = {
  MODEL: {
    **{"quick_gelu": False, "custom_text": False},
    **{"init_logit_scale": INIT_LOG_SCALE, "init_logit_bias": None},
    "vision_cfg": {
      **{"image_size": 224, "patch_size": 16, "width": 768, **_BLOCKS},
      **{"head_width": resnet.HEAD_DIM, "no_ln_pre": False, "pool_type": "tok"},
      **{"final_ln_after_pool": False, "pos_embed_type": "learnable"},
      **{"patch_dropout": 0.0, "timm_model_name": None, "timm_pool": "avg"},
      **{"timm_proj": "linear", "timm_proj_bias": False},
    },
    "text_cfg": {
      **{"context_length": 77, "vocab_size": 49408, "width": 512, **_BLOCKS},
      **{"heads": 8, "no_causal_mask": False, "pool_type": "argmax"},
      **{"eos_id": EOS_ID, "proj_type": "linear", "proj_bias": False},
      **{"hf_model_name": None, "hf_model_config": None},
      **{"hf_pooler_type": "mean_pooler", "hf_proj_type": "mlp"},
      "hf_tokenizer_name": None,
      "tokenizer_kwargs": {"strip_sep_token": False},
    },
  },
  _PRE: {
    "mean": list(variants.DEFAULTS["image_mean"]),
    "std": list(variants.DEFAULTS["image_std"]),
    **{"interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0},
  },
}
# What is written even if it has its default.
_ALWAYS = frozenset(
  f"{section}.{field}"
  for section, names in (
    (VISION, "image_size patch_size layers width timm_pool timm_proj"),
    (TEXT, "context_length vocab_size layers width heads"),
    (TEXT, "hf_pooler_type hf_proj_type"),
    (_PRE, "mean std interpolation resize_mode fill_color"),
  )
  for field in names.split()
)


def family(
  image: str,
  text: str,
  *,
  own_tokenizer: bool,
  bert_config: Callable[[str], Any] = open_clip_named.BERTS.get,
) -> rows_lib.SparseFamily:
  """Returns the rows of models with these towers.

  Args:
    image: one of `IMAGES`.
    text: one of `TEXTS`.
    own_tokenizer: whether the tokenizer is CLIP's own.
    bert_config: returns the config of a HuggingFace model by its name.
  """
  rows = (
    only(f"{MODEL}.multimodal_cfg", None),  # Says most about the model.
    *IMAGES[image],
    *TEXTS[text],
    *((open_clip_named.BertTower(bert_config),) if text == "bert" else ()),
    *TOKENIZERS[own_tokenizer],
    Other(_CUSTOM, kinds.FLAG),
    *((Written(_CUSTOM, True),) if image == "timm" or text == "bert" else ()),
    *_WHOLE,
  )
  clean = "lower" if own_tokenizer else "whitespace"
  defaults = copy.deepcopy(DEFAULTS)
  fields.put(defaults, f"{_KWARGS}.clean", clean)
  return rows_lib.SparseFamily(
    "open-clip", Names({"whole": ""}), rows, defaults, _ALWAYS
  )
