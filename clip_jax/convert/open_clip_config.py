"""OpenCLIP's `open_clip_config.json`, read.

Every field of `model_cfg` is either held or refused by its name: one that is
passed over would be a model that computes something else.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from clip_jax import errors
from clip_jax.convert import config_file, open_clip_towers
from clip_jax.convert import report as report_lib
from clip_jax.models import clip, variants

# Their default, log(1 / 0.07).
INIT_LOG_SCALE = math.log(clip.INIT_LOGIT_SCALE)
_MAX_LOG_SCALE = 80.0  # Just within float32.


@dataclasses.dataclass(frozen=True)
class Described:
  """What a config stands for.

  Attributes:
    spec: the description, the tokenizer but for its file's ids.
    image_head: where a timm tower keeps its projection, "" for none; None for
      a tower of OpenCLIP's own.
    prefix: of the text tower's names in a checkpoint made with this config.
    cleaning: what is done to a text first.
    tokenizer_name: of a HuggingFace tokenizer, None for CLIP's own.
    strip_end: whether zeros stand for the tokenizer's end token.
  """

  spec: dict[str, Any]
  image_head: str | None
  prefix: str
  cleaning: str
  tokenizer_name: str | None
  strip_end: bool


def describe(
  config: dict[str, Any],
  *,
  bert_config: Callable[[str], dict[str, Any]],
  report: report_lib.Report,
  name: str,
) -> Described:
  """Returns what `open_clip_config.json` stands for.

  Args:
    config: the whole file.
    bert_config: returns the config of a HuggingFace model by its name.
    report: takes where each field comes from.
    name: what messages call the file.

  Raises:
    UserError: a field is unknown, or of a value that is not held.
  """
  whole = config_file.Fields(name, config)
  model = config_file.Fields(
    f"{name}: model_cfg", whole.take("model_cfg", kind=dict)
  )
  preprocess = whole.take("preprocess_cfg", None, kind=dict)
  whole.done()
  model.neutral("multimodal_cfg", None)
  embed_dim = model.positive("embed_dim", most=config_file.MAX_WIDTH)
  quick_gelu = model.take("quick_gelu", False, kind=bool)
  vision = model.take("vision_cfg", kind=dict)
  text = model.take("text_cfg", kind=dict)
  # Named, be it by null, a HuggingFace tower makes the model a custom one.
  custom = model.take("custom_text", False, kind=bool)
  custom = custom or "hf_model_name" in text
  log_scale = model.take("init_logit_scale", INIT_LOG_SCALE, kind=float)
  if abs(log_scale) > _MAX_LOG_SCALE:
    raise errors.UserError(
      f"{name}: init_logit_scale={log_scale} is no logarithm of a scale."
    )
  bias = model.take("init_logit_bias", None, kind=float)
  # The first shows in the weights' shapes, the second is about Python.
  model.ignore("nonscalar_logit_scale", "output_dict")
  model.done()
  image, image_projection, head = open_clip_towers.image(
    vision,
    f"{name}: vision_cfg",
    quick_gelu=quick_gelu,
    note=report.warnings.append,
  )
  tower, text_projection, tokens = open_clip_towers.text(
    text,
    f"{name}: text_cfg",
    quick_gelu=quick_gelu,
    bert_config=bert_config,
    report=report,
  )
  spec = {
    "embed_dim": embed_dim,
    "image": image,
    "text": tower,
    "image_projection": image_projection,
    "text_projection": text_projection,
    "embed_norm": "l2",
    "init_logit_scale": math.exp(log_scale),
    "init_logit_bias": bias,
    **_preprocessing(preprocess, f"{name}: preprocess_cfg", report),
  }
  _check_ends(spec, name)
  return Described(spec, head, "text." if custom else "", **tokens)


def _check_ends(spec: dict[str, Any], name: str) -> None:
  """Raises UserError where a tower does not end in the shared space."""
  for what in ("image", "text"):
    tower, projection = spec[what], spec[f"{what}_projection"]
    ends = projection != "none" or tower["kind"] == "resnet"
    if not ends and tower["width"] != spec["embed_dim"]:
      raise errors.UserError(
        f"{name}: the {what} tower has no projection and ends in "
        f"{tower['width']}, not in embed_dim={spec['embed_dim']}."
      )


def _preprocessing(data, where, report) -> dict[str, Any]:
  # A field that is null counts as absent there.
  given = {k: v for k, v in (data or {}).items() if v is not None}
  fields = config_file.Fields(where, given)
  about = {}
  for field in ("mean", "std"):
    default = variants.DEFAULTS[f"image_{field}"]
    value = fields.take(field, list(default), kind=list)
    about[f"image_{field}"] = config_file.channels(value, f"{where}.{field}")
  known = {"bicubic": "bicubic", "bilinear": "bilinear"}
  about["interpolation"] = fields.choose("interpolation", "bicubic", known)
  resizes = {name: name for name in ("shortest", "squash", "longest")}
  about["resize"] = fields.choose("resize_mode", "shortest", resizes)
  about["fill"] = fields.take("fill_color", 0)
  fields.neutral("mode", "RGB")
  fields.ignore("size")  # The image tower's size counts.
  fields.done()
  sources = {
    "image_mean": "mean",
    "image_std": "std",
    "resize": "resize_mode",
    "fill": "fill_color",
    "interpolation": "interpolation",
  }
  for field, theirs in sources.items():
    report.infer(field, about[field], "config" if theirs in given else "format")
  fixed = {
    "antialias": True,
    "crop_rounding": "round",
    "crop_fraction": 1.0,
    "convert_rgb": "after",
  }
  for field, value in fixed.items():
    report.infer(field, value, "format")
  return {**about, **fixed}
