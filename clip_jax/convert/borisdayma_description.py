"""What a config of borisdayma/clip-jax describes, and what is held of it."""

import json
import math
from collections.abc import Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import engine, tokenizer_files
from clip_jax.convert import report as report_lib
from clip_jax.convert.tensor import Tensor

# What a tower of the codebase has if its config does not say.
_DEFAULTS = {
  "activations": ["relu"],
  "normalize_qk": False,
  "use_bias": False,
  "force_scale": False,
  "pool_type": None,
  "num_queries": 1,
}
_TEXT_DEFAULTS = {**_DEFAULTS, "is_decoder": False, "eos_token_id": None}
_VISION_DEFAULTS = {
  **_DEFAULTS,
  "position_embedding_type": "sincos2d",
  "position_embedding_shape": None,
  "position_embedding_factorized": False,
  "registers": 0,
  "keep_registers": False,
}
# What it must have to be held here.
_HELD = {
  "use_rmsnorm": (False,),
  "ln_type": ("preln",),
  "use_bias": (True,),
  "force_scale": (True,),
  "normalize_qk": (False,),
  "activations": (["gelu"],),  # flax's, which is the tanh form.
  "position_embedding_type": ("learnt",),
  "num_queries": (1,),
}
_TEXT_HELD = {
  **_HELD,
  "use_causal_mask": (True,),  # Padding is masked out in the others.
  "is_decoder": (False,),
  "pool_type": ("eos",),
}
_VISION_HELD = {
  **_HELD,
  "use_causal_mask": (False,),
  "pool_type": ("tok", "gap", "map"),
  "position_embedding_factorized": (False,),
}
_SIZES = ("hidden_size", "num_layers", "num_heads", "mlp_dim")
# About training, or numbers that float32 has anyway.
_NO_MATTER = {
  "dtype",
  "float32_logits",
  "attention_dropout",
  "mlp_dropout_rate",
  "unroll",
  "gradient_checkpointing",
  "remat_policy",
  "mask_token_id",
  "pad_token_id",
  "bos_token_id",
  "masked_pred_prob",
}
_PREPROCESSING = {
  "image_mean": (0.5, 0.5, 0.5),
  "image_std": (0.5, 0.5, 0.5),
  "interpolation": "bilinear",
  "antialias": True,
  "resize": "shortest",
  "fill": 0,
  "crop_rounding": "floor",
  "crop_fraction": 1.0,
  "convert_rgb": "before",
}
_POOLINGS = {"tok": "class", "gap": "gap", "map": "map"}
_NUMERICS = {"activation": "gelu_tanh", "norm_epsilon": 1e-6}


def _tower(config: dict, part: str, defaults, held, others) -> list[str]:
  """Returns what of a tower's config is not held here, by field."""
  where = f"{part}_config"
  problems = []
  for field, values in held.items():
    value = config.get(field, defaults.get(field, "not given"))
    if value not in values:
      wanted = " or ".join(json.dumps(x) for x in values)
      problems.append(f"{where}.{field}={json.dumps(value)} (not {wanted})")
  known = {*held, *defaults, *_SIZES, *_NO_MATTER, *others}
  problems += [f"{where}.{field}" for field in config if field not in known]
  return problems


def _refuse(config: Mapping[str, Any], where: str) -> None:
  text, vision = config["text_config"], config["vision_config"]
  problems = _tower(
    text, "text", _TEXT_DEFAULTS, _TEXT_HELD, ("vocab_size", "max_length")
  )
  problems += _tower(
    vision,
    "vision",
    _VISION_DEFAULTS,
    _VISION_HELD,
    ("image_size", "patch_size"),
  )
  if vision.get("keep_registers") and vision.get("registers"):
    problems.append("vision_config.keep_registers=true (not false)")
  grid = vision.get("position_embedding_shape")
  side = _size(vision, "image_size") // _size(vision, "patch_size")
  if grid is not None and grid != [side, side]:
    problems.append(
      f"vision_config.position_embedding_shape={grid} (not {[side, side]})"
    )
  if problems:
    raise errors.UserError(
      f"{where} describes a model that is not held here: {'; '.join(problems)}."
    )


def _whole(config: Mapping[str, Any], field: str, default: Any) -> Any:
  """Returns a whole number from 0, or the default where there is none."""
  value = config.get(field)
  if value is None:
    return default
  if isinstance(value, bool) or not isinstance(value, int) or value < 0:
    raise errors.UserError(
      f"config.json: {field}={value!r:.50} must be a whole number from 0."
    )
  return value


def _size(config: Mapping[str, Any], field: str) -> int:
  value = config.get(field)
  if isinstance(value, bool) or not isinstance(value, int) or value < 1:
    raise errors.UserError(
      f"config.json: {field}={value!r:.50} must be a whole number above 0."
    )
  return value


def describe(
  config: Mapping[str, Any],
  tensors: Mapping[str, Tensor],
  files: Mapping[str, bytes],
  *,
  report: report_lib.Report,
  where: str,
) -> dict[str, Any]:
  """Returns the description of a model.

  Args:
    config: the codebase's.
    tensors: the parameters by name; the projections come and go.
    files: the tokenizer's, as `tokenizer_files.carry` returns them.
    report: takes what neither says.
    where: what messages call the config.

  Raises:
    UserError: the model is of another shape; its fields are listed.
  """
  for part in ("text_config", "vision_config"):
    if not isinstance(config.get(part), dict):
      raise errors.UserError(f"{where} has no {part}.")
  _refuse(config, where)
  text, vision = config["text_config"], config["vision_config"]
  report.infer("activation", "gelu_tanh", "config")
  report.infer("norm_epsilon", 1e-6, "format")
  report.infer("text.pooling", "eos", "config")
  report.infer("preprocessing", "mean and std 0.5, cropped square", "format")
  report.warnings.append(
    "Its images were cut to size before training; here they are scaled by the "
    "shortest side and cropped."
  )
  spec = {
    "image": _describe_image(vision),
    "text": _describe_text(text),
    **_PREPROCESSING,
    **_describe_head(config, tensors, report),
    "tokenizer": _tokenizer(text, files, report, where),
  }
  return engine.resolve(spec)


def _shared(tower: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields that both towers have."""
  names = ("width", "depth", "heads", "mlp_dim")
  sizes = {
    ours: _size(tower, theirs)
    for ours, theirs in zip(names, _SIZES, strict=True)
  }
  return {**sizes, **_NUMERICS}


def _describe_image(vision: Mapping[str, Any]) -> dict[str, Any]:
  pooling = _POOLINGS[vision["pool_type"]]
  patch, size = _size(vision, "patch_size"), _size(vision, "image_size")
  return {
    "kind": "vit",
    "image_size": size,
    "patch_size": patch,
    **_shared(vision),
    "pooling": pooling,
    "norm_after_pool": False,
    "class_token": pooling == "class",
    "class_position": False,
    "registers": _whole(vision, "registers", 0),
    "pre_norm": False,
    "patch_bias": True,
    "drop_edge": size % patch != 0,
  }


def _describe_text(text: Mapping[str, Any]) -> dict[str, Any]:
  return {
    "kind": "transformer",
    "context_length": _size(text, "max_length"),
    "vocab_size": _size(text, "vocab_size"),
    **_shared(text),
    "causal": True,
    "pooling": "eos",
    "eos_id": _size(text, "eos_token_id"),
  }


def _describe_head(config, tensors, report) -> dict[str, Any]:
  """Returns what the two towers share."""
  projects = "vision_projection/kernel" in tensors
  kind = report.infer("projections", "linear" if projects else "none", "shape")
  bias = _start(config, "logit_bias", 0.0)
  embed_dim = _size(config["text_config"], "hidden_size")
  if projects:
    embed_dim = _size(config, "projection_dim")
  return {
    "embed_dim": embed_dim,
    "image_projection": kind,
    "text_projection": kind,
    "embed_norm": report.infer("embed_norm", "l2_rsqrt_1e-6", "format"),
    "init_logit_scale": math.exp(_start(config, "logit_scale", 2.6592)),
    "init_logit_bias": bias,
    # A softmax never moves a bias, so that it was none for those who took one.
    "probabilities": report.infer(
      "probabilities", "sigmoid" if bias else "softmax", "config"
    ),
    "max_logit_scale": report.infer("max_logit_scale", None, "format"),
  }


def _start(config: Mapping[str, Any], what: str, default: float) -> float:
  value = config.get(f"{what}_init_value", default)
  if type(value) not in (int, float) or not abs(value) < 100:
    raise errors.UserError(
      f"config.json: {what}_init_value={value!r:.50} must be a number."
    )
  return float(value)


def _tokenizer(text, files, report, where) -> dict[str, Any]:
  report.infer("tokenizer", "AutoTokenizer's", "format")
  if files:
    return tokenizer_files.describe(files, cleaning="none", where=where)
  report.warnings.append(
    "The tokenizer has a place of its own: put its tokenizer.json beside "
    "config.json to encode texts."
  )
  return {
    "kind": "hf_json",
    "cleaning": "none",
    "pad_id": _whole(text, "pad_token_id", 0),
    "start_id": _whole(text, "bos_token_id", None),
    "end_id": text["eos_token_id"],
    "file": "tokenizer.json",
  }
