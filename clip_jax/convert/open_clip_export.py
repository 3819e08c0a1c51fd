"""OpenCLIP's `open_clip_config.json`, written.

A tower of OpenCLIP's own is taken where it can be; else timm's, if timm has a
name for exactly that image tower.
"""

import math
from typing import Any

from clip_jax.convert import (
  open_clip_berts,
  open_clip_config,
  open_clip_refusals,
  open_clip_towers,
  portable,
)
from clip_jax.models import variants

_BERT_POOLERS = {
  "mean": "mean_pooler",
  "pooler": "cls_pooler",
  "cls": "cls_last_hidden_state_pooler",
}
# What each of our cleanings is there; None where it is not the same.
_CLEANINGS = {v: k for k, v in open_clip_towers.CLEANINGS.items()}
_NEAREST = {
  "hf_clip": "lower",
  "hf_lower": "lower",
  "lower": "lower",
  "lower_ascii": "lower",
  "canonicalize": "canonicalize",
  "hf_siglip": "canonicalize",
  "none": "whitespace",
}


# What a description may say otherwise than a config: read elsewhere, or
# without effect on what is computed.
_ELSEWHERE = ("tokenizer", "init_logit_scale", "max_logit_scale", "embed_norm")
_ELSEWHERE += ("antialias", "crop_rounding", "convert_rgb", "crop_fraction")


def same(described: dict[str, Any], spec: dict[str, Any]) -> bool:
  """Whether a config's description is that of the model."""
  full = variants.spec({**described, "tokenizer": spec["tokenizer"]})
  return _comparable(full) == _comparable(spec)


def _comparable(spec) -> dict[str, Any]:
  image, text = ({**spec[part]} for part in ("image", "text"))
  for tower in (image, text):
    tower.pop("normalize", None)
    if "mlp_dim" in tower:
      tower["mlp_dim"] = tower["mlp_dim"] or 4 * tower["width"]
  if "class_token" in image:
    image["class_position"] = image["class_token"] and image["class_position"]
    image["drop_edge"] = image["image_size"] % image["patch_size"] != 0
  if "depths" in image:
    image["depths"] = list(image["depths"])
  rest = {
    field: list(value) if isinstance(value, tuple) else value
    for field, value in spec.items()
    if field not in (*_ELSEWHERE, "image", "text")
  }
  return {**rest, "image": image, "text": text}


def configure(model: portable.Portable) -> dict[str, Any]:
  """Returns the config of a model that has no `refusals`.

  What of the preprocessing and of the text's cleaning OpenCLIP does otherwise
  becomes a warning in the model's report.
  """
  spec = model.spec
  config: dict[str, Any] = {"embed_dim": spec["embed_dim"]}
  if spec["init_logit_bias"] is not None:
    config["init_logit_bias"] = spec["init_logit_bias"]
  log_scale = math.log(spec["init_logit_scale"])
  if not math.isclose(log_scale, open_clip_config.INIT_LOG_SCALE):
    config["init_logit_scale"] = log_scale
  image, text = spec["image"], spec["text"]
  native = not open_clip_refusals.image_problems(spec)
  towers = ([image] if native else []) + [text]
  quick = any(tower.get("activation") == "quick_gelu" for tower in towers)
  if quick:
    config["quick_gelu"] = True
  if not native or text["kind"] == "bert":
    config["custom_text"] = True
  config["vision_cfg"] = _vision(spec, native)
  if dropout := model.execution.get("image", {}).get("patch_dropout"):
    config["vision_cfg"]["patch_dropout"] = dropout
  config["text_cfg"] = _text(spec, model)
  warnings = model.report.warnings
  for field, value in (
    ("antialias", True),
    ("crop_rounding", "round"),
    ("convert_rgb", "after"),
    ("embed_norm", "l2"),
  ):
    if spec[field] != value:
      warnings.append(
        f"{field}={spec[field]!r} is {value!r} in open_clip, which differs "
        "slightly; the weights are the same."
      )
  return {
    "model_cfg": config,
    "preprocess_cfg": {
      "mean": list(spec["image_mean"]),
      "std": list(spec["image_std"]),
      "interpolation": spec["interpolation"],
      "resize_mode": spec["resize"],
      "fill_color": spec["fill"],
    },
  }


def mlp_ratio(width: int, mlp_dim: int) -> float:
  """Returns a ratio with `int(width * ratio) == mlp_dim`, as torch computes it.

  The quotient itself falls short by one for thousands of pairs.
  """
  ratio = mlp_dim / width
  while int(width * ratio) < mlp_dim:
    ratio = math.nextafter(ratio, math.inf)
  assert int(width * ratio) == mlp_dim, (width, mlp_dim)
  return ratio


def _shared(tower: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields that both of OpenCLIP's own Transformers have."""
  found = {"width": tower["width"], "layers": tower["depth"]}
  mlp_dim = tower["mlp_dim"] or 4 * tower["width"]
  if mlp_dim != 4 * tower["width"]:
    found["mlp_ratio"] = mlp_ratio(tower["width"], mlp_dim)
  if tower["activation"] == "gelu_tanh":
    found["act_kwargs"] = {"approximate": "tanh"}
  if tower["norm_epsilon"] != open_clip_towers.NORM_EPSILON:
    found["norm_kwargs"] = {"eps": tower["norm_epsilon"]}
  return found


def _vision(spec, native) -> dict[str, Any]:
  image = spec["image"]
  found: dict[str, Any] = {"image_size": image["image_size"]}
  if image["kind"] == "resnet":
    found |= {"layers": list(image["depths"]), "width": image["width"]}
    return found | {"patch_size": None}
  if not native:
    name, pool = open_clip_refusals.find_timm(spec)
    return found | {
      "timm_model_name": name,
      "timm_model_pretrained": False,
      "timm_pool": pool,
      **open_clip_refusals.TIMM_PROJECTIONS[spec["image_projection"]],
    }
  found |= {**_shared(image), "patch_size": image["patch_size"]}
  head_width = image["width"] // image["heads"]
  if head_width != 64:
    found["head_width"] = head_width
  if not image["pre_norm"]:
    found["no_ln_pre"] = True
  if image["pooling"] == "gap":
    found |= {
      "pool_type": "avg",
      "final_ln_after_pool": image["norm_after_pool"],
    }
  return found


def _text(spec, model) -> dict[str, Any]:
  text, projection = spec["text"], spec["text_projection"]
  found = {"context_length": text["context_length"]}
  found |= _tokenizer(spec, model)
  if text["kind"] == "bert":
    return found | {
      "hf_model_name": open_clip_berts.find(text),
      "hf_pooler_type": _BERT_POOLERS[text["pooling"]],
      "hf_proj_type": None if projection == "none" else projection,
    }
  found |= {
    "vocab_size": text["vocab_size"],
    "heads": text["heads"],
    **_shared(text),
  }
  if not text["causal"]:
    found["no_causal_mask"] = True
  if text["pooling"] != "argmax":
    found["pool_type"] = text["pooling"]
  if text["pooling"] == "eos":
    found["eos_id"] = text["eos_id"]
  if projection == "linear_bias":
    found["proj_bias"] = True
  if projection == "none":
    found["proj_type"] = "none"
  return found


def _tokenizer(spec, model) -> dict[str, Any]:
  cuts = spec["tokenizer"]
  kind = cuts["kind"]
  default = "lower" if kind == "clip_bpe" else "whitespace"
  cleaning = cuts.get("cleaning", "clip")
  clean = _CLEANINGS.get(cleaning)
  if clean is None:
    clean = _NEAREST[cleaning]
    model.report.warnings.append(
      f"tokenizer.cleaning={cleaning!r} becomes open_clip's {clean!r}, the "
      "nearest: some texts get other ids."
    )
  arguments: dict[str, Any] = {} if clean == default else {"clean": clean}
  if kind == "clip_bpe":
    return {"tokenizer_kwargs": arguments} if arguments else {}
  if "tokenizer_config.json" not in model.files:
    model.report.warnings.append(
      f"The tokenizer's file {cuts['file']} is written, but open_clip needs "
      "tokenizer_config.json beside it to load it."
    )
  if kind == "wordpiece" and cuts["end_id"] == 0 != cuts["start_id"]:
    arguments["strip_sep_token"] = True
  # With `local-dir:` open_clip takes the directory, whatever the name is.
  return {"hf_tokenizer_name": ".", "tokenizer_kwargs": arguments}
