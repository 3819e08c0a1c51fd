"""The two towers of OpenCLIP's `model_cfg`, read.

The defaults are those of `CLIPVisionCfg` and `CLIPTextCfg` (open_clip 3.3.0).
"""

from collections.abc import Callable
from typing import Any

from clip_jax import errors
from clip_jax.convert import axes, config_file, timm_vit
from clip_jax.convert import report as report_lib
from clip_jax.convert.formats import bert

NORM_EPSILON = 1e-5  # torch.nn.LayerNorm's.

# Parts of their own attention blocks and heads: held where they are off.
_OFF = {
  "ls_init_value": (None,),
  "block_type": (None, "default"),
  "qk_norm": (False,),
  "scaled_cosine_attn": (False,),
  "scale_heads": (False,),
  "scale_attn_inner": (False,),
  "scale_attn": (False,),
  "scale_fc": (False,),
  "output_tokens": (False,),
}
# Fields that one kind of tower reads and the others pass over, with defaults.
_NATIVE_VISION = {
  "layers": 12,
  "width": 768,
  "head_width": 64,
  "mlp_ratio": 4.0,
  "patch_size": 16,
  "no_ln_pre": False,
  "pos_embed_type": "learnable",
  "final_ln_after_pool": False,
  "pool_type": "tok",
  "act_kwargs": None,
  "norm_kwargs": None,
  "attentional_pool": False,
}
_POOLER = ("attn_pooler_queries", "attn_pooler_heads")
_TIMM = {
  "timm_model_name": None,
  "timm_model_pretrained": False,
  "timm_pool": "avg",
  "timm_proj": "linear",
  "timm_proj_bias": False,
  "timm_drop": 0.0,
  "timm_drop_path": None,
}
_NATIVE_TEXT = {
  "width": 512,
  "heads": 8,
  "layers": 12,
  "mlp_ratio": 4.0,
  "vocab_size": 49408,
  "eos_id": 2,
  "no_causal_mask": False,
  "pool_type": "argmax",
  "proj_bias": False,
  "proj_type": "linear",
  "act_kwargs": None,
  "norm_kwargs": None,
  "embed_cls": False,
}
_HUGGINGFACE = {
  "hf_model_name": None,
  "hf_model_pretrained": True,
  "hf_proj_type": "mlp",
  "hf_pooler_type": "mean_pooler",
  "hf_model_config": None,
}
TEXT_POOLINGS = {"argmax": "argmax", "last": "last", "eos": "eos"}
_BERT_POOLINGS = {
  "mean_pooler": "mean",
  "cls_pooler": "pooler",
  "cls_last_hidden_state_pooler": "cls",
}
_BERT_PROJECTIONS = {"linear": "linear", "mlp": "mlp", None: "none"}
# Their `clean` to ours.
CLEANINGS = {
  "lower": "clip",
  "canonicalize": "canonicalize_ftfy",
  "whitespace": "whitespace_ftfy",
}

# Hears of fields that are set and have no effect.
Note = Callable[[str], None]


def image(
  vision: dict[str, Any], where: str, *, quick_gelu: bool, note: Note
) -> tuple[dict[str, Any], str, str | None]:
  """Returns the image tower, its projection and where timm keeps that."""
  fields = config_file.Fields(where, vision)
  size = config_file.square(
    fields.take("image_size", 224, kind=(int, list)), f"{where}.image_size"
  )
  dropout = fields.take("patch_dropout", 0.0, kind=float)
  fields.ignore(*_POOLER)
  if vision.get("timm_model_name"):
    tower, projection, head = _timm(fields, size, where)
    fields.skip({**_NATIVE_VISION, **_first(_OFF)}, note)
  else:
    fields.ignore(*_TIMM)
    head = None
    for field, values in _OFF.items():
      fields.neutral(field, *values)
    fields.neutral("attentional_pool", False)
    make = _resnet if isinstance(vision.get("layers"), list) else _vit
    tower, projection = make(fields, size, quick_gelu, where, note)
  fields.done()
  if tower["kind"] == "vit":
    tower["patch_dropout"] = dropout
    bert.check_heads(tower, where)
  return tower, projection, head


def _first(choices):
  return {field: values[0] for field, values in choices.items()}


def _timm(fields, size, where):
  name = fields.take("timm_model_name", kind=str)
  tower = timm_vit.describe(name)
  projections = {"linear": True, "none": False, "": None, None: None}
  linear = fields.choose("timm_proj", "linear", projections)
  bias = fields.take("timm_proj_bias", False, kind=bool)
  pool = fields.take("timm_pool", "avg", kind=str)
  fields.ignore("timm_model_pretrained", "timm_drop", "timm_drop_path")
  if pool or not linear:
    tower = timm_vit.pooled(tower, pool, made_so=not linear, name=name)
  if size != tower["image_size"]:
    raise errors.UserError(
      f"{where}: image_size={size}, but {name} is made for "
      f"{tower['image_size']}; give the timm_model_name of that size."
    )
  if linear:
    return tower, "linear_bias" if bias else "linear", "head.proj"
  if linear is None:  # The classifier's place serves as the projection.
    return tower, "linear_bias", "trunk.head"
  return tower, "none", ""


def _resnet(fields, size, quick_gelu, where, note):
  del quick_gelu  # ReLU.
  depths = fields.take("layers", kind=list)
  if len(depths) != 4 or any(
    type(n) is not int or not 1 <= n <= config_file.MAX_DEPTH for n in depths
  ):
    raise errors.UserError(
      f"{where}.layers={depths!r:.100} must be four numbers of blocks."
    )
  width = fields.positive("width", 768, most=config_file.MAX_WIDTH)
  fields.neutral("head_width", axes.HEAD_DIM)
  if size % 32 or (width * 32) % axes.HEAD_DIM:
    raise errors.UserError(
      f"{where}: image_size={size} must divide by 32, and 32 times "
      f"width={width} by 64."
    )
  unread = {k: v for k, v in _NATIVE_VISION.items() if k != "patch_size"}
  fields.ignore("patch_size")
  fields.skip(unread, note)
  tower = {
    "kind": "resnet",
    "image_size": size,
    "width": width,
    "depths": depths,
  }
  return tower, "none"


def _vit(fields, size, quick_gelu, where, note):
  del note
  width = fields.positive("width", 768, most=config_file.MAX_WIDTH)
  head_width = fields.positive("head_width", 64)
  patch_size = config_file.square(
    fields.take("patch_size", 16, kind=(int, list)), f"{where}.patch_size"
  )
  pooling = fields.choose("pool_type", "tok", {"tok": "class", "avg": "gap"})
  after = fields.take("final_ln_after_pool", False, kind=bool)
  # Fixed sines and cosines are stored as any positions are.
  fields.choose(
    "pos_embed_type", "learnable", {"learnable": 0, "sin_cos_2d": 0}
  )
  if size < patch_size or width < head_width:
    raise errors.UserError(
      f"{where}: image_size={size} must be at least patch_size={patch_size}, "
      f"and width={width} at least head_width={head_width}."
    )
  tower = {
    "kind": "vit",
    "image_size": size,
    "patch_size": patch_size,
    "width": width,
    "depth": fields.positive("layers", 12, most=config_file.MAX_DEPTH),
    "heads": width // head_width,
    "mlp_dim": _mlp_dim(fields, width, where),
    "activation": _activation(fields, quick_gelu, where),
    "norm_epsilon": _epsilon(fields, where),
    "pooling": pooling,
    # A norm of one token is the same before and after it is taken.
    "norm_after_pool": after and pooling == "gap",
    "class_token": True,
    "class_position": True,
    "registers": 0,
    "pre_norm": not fields.take("no_ln_pre", False, kind=bool),
    "patch_bias": False,
    "drop_edge": size % patch_size != 0,
  }
  return tower, "linear"


def _mlp_dim(fields, width, where) -> int:
  ratio = fields.take("mlp_ratio", 4.0, kind=float)
  if not 0 < ratio <= 64 or int(width * ratio) < 1:
    raise errors.UserError(f"{where}.mlp_ratio={ratio} makes no MLP.")
  return int(width * ratio)


def _activation(fields, quick_gelu, where) -> str:
  arguments = fields.take("act_kwargs", None, kind=dict)
  inner = config_file.Fields(f"{where}.act_kwargs", arguments or {})
  if quick_gelu:  # It takes no arguments.
    inner.done()
    return "quick_gelu"
  known = {"none": "gelu", "tanh": "gelu_tanh"}
  activation = inner.choose("approximate", "none", known)
  inner.done()
  return activation


def _epsilon(fields, where) -> float:
  arguments = fields.take("norm_kwargs", None, kind=dict)
  inner = config_file.Fields(f"{where}.norm_kwargs", arguments or {})
  epsilon = config_file.epsilon(inner, "eps", NORM_EPSILON)
  inner.done()
  return epsilon


def text(
  given: dict[str, Any],
  where: str,
  *,
  quick_gelu: bool,
  bert_config: Callable[[str], dict[str, Any]],
  report: report_lib.Report,
) -> tuple[dict[str, Any], str, dict[str, Any]]:
  """Returns the text tower, its projection and what cuts its texts."""
  fields = config_file.Fields(where, given)
  length = fields.positive("context_length", 77)
  tokens = _tokens(fields, where)
  # Only a mask of padding reads it, which no config turns on.
  fields.ignore("pad_id", "final_ln_after_pool")
  if given.get("hf_model_name"):
    if tokens["tokenizer_name"] is None:
      raise errors.UserError(
        f"{where} lacks hf_tokenizer_name: CLIP's tokenizer does not fit "
        f"hf_model_name={given['hf_model_name']!r:.100}."
      )
    tower, projection = _bert(fields, where, bert_config, report)
    fields.skip({**_NATIVE_TEXT, **_first(_OFF)}, report.warnings.append)
  else:
    fields.ignore(*_HUGGINGFACE)
    for field, values in _OFF.items():
      fields.neutral(field, *values)
    fields.neutral("embed_cls", False)
    tower, projection = _transformer(fields, quick_gelu, where)
  fields.done()
  if tower["kind"] == "bert" and length > tower["positions"]:
    raise errors.UserError(
      f"{where}: context_length={length} is more than the "
      f"{tower['positions']} positions of {given['hf_model_name']}."
    )
  tower["context_length"] = length
  return tower, projection, tokens


def _transformer(fields, quick_gelu, where):
  width = fields.positive("width", 512, most=config_file.MAX_WIDTH)
  pooling = fields.choose("pool_type", "argmax", TEXT_POOLINGS)
  eos_id = config_file.identity(fields, "eos_id", 2)
  bias = fields.take("proj_bias", False, kind=bool)
  projection = fields.choose(
    "proj_type",
    "linear",
    {"linear": "linear_bias" if bias else "linear", "none": "none"},
  )
  tower = {
    "kind": "transformer",
    "vocab_size": fields.positive("vocab_size", 49408),
    "width": width,
    "depth": fields.positive("layers", 12, most=config_file.MAX_DEPTH),
    "heads": fields.positive("heads", 8),
    "mlp_dim": _mlp_dim(fields, width, where),
    "activation": _activation(fields, quick_gelu, where),
    "norm_epsilon": _epsilon(fields, where),
    "causal": not fields.take("no_causal_mask", False, kind=bool),
    "pooling": pooling,
    "eos_id": eos_id if pooling == "eos" else None,
  }
  bert.check_heads(tower, where)
  return tower, projection


def _bert(fields, where, bert_config, report):
  name = fields.take("hf_model_name", kind=str)
  given = fields.take("hf_model_config", None, kind=dict)
  fields.ignore("hf_model_pretrained")
  pooling = fields.choose("hf_pooler_type", "mean_pooler", _BERT_POOLINGS)
  projection = fields.choose("hf_proj_type", "mlp", _BERT_PROJECTIONS)
  config = given if given is not None else bert_config(name)
  tower = bert.describe(config, report, f"{where}: the config of {name}")
  return {**tower, "pooling": pooling}, projection


def _tokens(fields, where) -> dict[str, Any]:
  name = fields.take("hf_tokenizer_name", None, kind=str) or None
  fields.neutral("tokenizer_mode", None, "")
  arguments = fields.take("tokenizer_kwargs", None, kind=dict)
  inner = config_file.Fields(f"{where}.tokenizer_kwargs", arguments or {})
  default = "whitespace" if name else "lower"
  cleaning = inner.choose("clean", default, CLEANINGS)
  strip = False
  if name:
    strip = inner.take("strip_sep_token", False, kind=bool)
    inner.neutral("language", None)
  else:
    inner.neutral("reduction_mask", "", None)
    inner.neutral("additional_special_tokens", None)
  inner.done()
  return {"tokenizer_name": name, "cleaning": cleaning, "strip_end": strip}
