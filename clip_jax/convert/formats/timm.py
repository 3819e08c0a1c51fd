"""Reads timm's Vision Transformers as image towers.

A directory that timm saved (`config.json` and weights) describes the model. A
`.safetensors` file alone has only shapes: the user must give the activation and
the preprocessing.
"""

import functools
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import config_file, engine, portable, weights_file
from clip_jax.convert.engine import fields, kinds
from clip_jax.convert.engine.family import Family
from clip_jax.convert.engine.fields import Derived, Field, Heads, Written
from clip_jax.convert.engine.format import Format
from clip_jax.convert.engine.sizes import Sizes
from clip_jax.convert.formats import timm_vit
from clip_jax.convert.source_reading import SourceReading
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants

NAME = "timm"
CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
find_weights = functools.partial(weights_file.first, names=WEIGHTS)
# The classifier, and layers that are only used in training.
IGNORED = (r"^head\.", r"^head_dist\.")
# Mean and standard deviation by timm's names of the constants.
NORMALISATIONS = {
  "inception": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
  "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
  "openai": tuple(
    list(variants.DEFAULTS[field]) for field in ("image_mean", "image_std")
  ),
}
# The defaults of timm's `PretrainedCfg`.
_DEFAULTS = {
  "mean": NORMALISATIONS["imagenet"][0],
  "std": NORMALISATIONS["imagenet"][1],
  "interpolation": "bicubic",
  "crop_pct": 0.875,
  "crop_mode": "center",
}
_FIXED = {
  "antialias": True,
  "fill": 0,
  "crop_rounding": "round",
  "convert_rgb": "before",
}
SIZES = """
width       patch_embed.proj.weight  0 of 4
patch_size  patch_embed.proj.weight  3 of 4
depth       blocks.{i}.
mlp_dim     blocks.0.mlp.fc1.weight  0 of 2
positions   pos_embed                1 of 3
"""
# Fields that follow from the presence of a tensor.
_SHOWN = {
  "class_token": "cls_token",
  "norm_after_pool": "fc_norm.weight",
  "pre_norm": "norm_pre.weight",
  "patch_bias": "patch_embed.proj.bias",
}


# `preprocess` takes no less.
_CROP = kinds.checked(
  "from 0.1 to 1", lambda x: kinds.is_number(x) and 0.1 <= x <= 1, float
)
_FILTERS = kinds.choice("bicubic", "bilinear")
_RESIZES = kinds.one_of({"center": "shortest", "squash": "squash"})
_ROWS = (
  *fields.within(
    "model_args",
    "image",
    (
      Field("embed_dim", "width", kinds.WIDTH, in_weights=True),
      Field("depth", "depth", kinds.DEPTH, in_weights=True),
      Heads("num_heads", "heads", in_weights=True),
      Field("patch_size", "patch_size", kinds.PIXELS, in_weights=True),
      Field("img_size", "image_size", kinds.PIXELS, in_weights=True),
      Derived(
        *("mlp_ratio", "mlp_dim", kinds.RATIO),
        in_weights=True,
        decode=kinds.mlp_dim,
      ),
      fields.Edge("img_size"),
    ),
  ),
  Written("model_args.in_chans", 3, kinds.exactly(3)),
  Written("model_args.global_pool", None, kinds.or_null(kinds.TEXT)),
  Written("model_args.num_classes", None),
  Field("pretrained_cfg.mean", "image_mean", kinds.MEANS),
  Field("pretrained_cfg.std", "image_std", kinds.DEVIATIONS),
  Field("pretrained_cfg.interpolation", "interpolation", _FILTERS),
  Field("pretrained_cfg.crop_pct", "crop_fraction", _CROP),
  Field("pretrained_cfg.crop_mode", "resize", _RESIZES),
)
FAMILY = Family("timm", timm_vit.NAMES, _ROWS)


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` is a directory with timm's config."""
  config = config_file.peek(path / CONFIG)
  return "architecture" in config and find_weights(path) is not None


def recognise_names(names: Collection[str]) -> bool:
  """Whether these are names of a Vision Transformer of timm's."""
  return "patch_embed.proj.weight" in names and "pos_embed" in names


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Returns the model of an image tower; its classifier is an extra.

  Raises:
    UserError: it is not a plain Vision Transformer, or damaged.
    AmbiguousError: it is a file, and the options lack its activation or its
      preprocessing.
  """
  reading = SourceReading(str(path), NAME, options)
  config = config_file.read(path / CONFIG) if path.is_dir() else {}
  weights = weights_file.require(path, WEIGHTS) if path.is_dir() else path
  tensors = reading.tensors(weights)
  if config:
    spec = describe(config, path / CONFIG, reading)
  else:
    spec = infer(tensors, reading)
  timm_vit.refuse_other_blocks(tensors, str(path))
  return reading.model(
    timm_vit.NAMES.entries(spec),
    tensors,
    spec,
    configs=[path / CONFIG] if config else [],
    weights=[weights],
    ignored=IGNORED,
    hint=f"Check that {CONFIG} names the architecture of the weights.",
    dialect={"config": config},
  )


def _resolved(spec, report, source: str) -> dict[str, Any]:
  """Returns the complete description; reports new fields as of `source`."""
  for field, value in spec["image"].items():
    seen = field in ("kind", "width", "depth", "mlp_dim")
    if not seen and f"image.{field}" not in report.inferred:
      report.infer(f"image.{field}", value, source)
  for field, value in _FIXED.items():
    report.infer(field, value, "format")
  return engine.resolve({**spec, **_FIXED})


def describe(
  config: dict[str, Any], path: pathlib.Path, reading: SourceReading
) -> dict[str, Any]:
  """Returns the description of a config's model.

  Args:
    config: the content of timm's config.json.
    path: path of the config.
    reading: the checkpoint that is read; its options may have another
      activation.

  Raises:
    UserError: it does not describe a model, or one that is not supported.
  """
  # In older files, the fields of `pretrained_cfg` stood at the top.
  given = config.get("pretrained_cfg") or config
  arguments = config.get("model_args") or {}
  if not isinstance(given, dict) or not isinstance(arguments, dict):
    raise errors.DamagedError(
      f"{path}: pretrained_cfg and model_args must be objects; fetch or make "
      "it again."
    )
  # A field that is null counts as missing.
  given = {k: v for k, v in given.items() if v is not None}
  defaults: dict[str, Any] = {"pretrained_cfg": _DEFAULTS}
  values = {**config, "model_args": arguments, "pretrained_cfg": given}
  source = reading.config(values, defaults, {"": str(path)})
  name = source.read("architecture", kinds.TEXT)
  tower = timm_vit.describe(name)
  size = given.get("input_size")
  if not isinstance(size, list) or len(size) != 3:
    size = [3, tower["image_size"], tower["image_size"]]
  defaults["model_args"] = {
    "embed_dim": tower["width"],
    "depth": tower["depth"],
    "num_heads": tower["heads"],
    "mlp_ratio": tower["mlp_dim"] / tower["width"],
    "patch_size": tower["patch_size"],
    "img_size": size[1:],
    "in_chans": 3,
    "global_pool": None,
  }
  spec = FAMILY.describe(source)
  if unknown := fields.unknown(FAMILY.fields, arguments, "model_args"):
    raise errors.UserError(
      f"{path}: model_args has fields that are not known: "
      f"{', '.join(unknown)}. They cannot be ignored: update clip_jax, "
      "or remove them if they change nothing."
    )
  image = tower | spec["image"]
  if pool := source.get("model_args.global_pool"):
    image = timm_vit.pooled(image, pool, at_creation=True, name=name)
  image["activation"] = source.override(
    "image.activation", image["activation"], "architecture"
  )
  reading.report.infer("image.kind", name, "config")
  return _resolved({**spec, "image": image}, reading.report, "config")


def infer(
  tensors: Mapping[str, Tensor], reading: SourceReading
) -> dict[str, Any]:
  """Returns the description of a file, from its shapes and the options.

  Raises:
    UserError: the shapes are those of another kind of tower.
    AmbiguousError: more options are needed.
  """
  name, options, report = reading.name, reading.options, reading.report
  read = Sizes(tensors, name)
  sizes = read(SIZES)
  positions, patch_size = sizes.pop("positions"), sizes.pop("patch_size")
  named = timm_vit.SIZES.values()
  same = (size["heads"] for size in named if sizes.items() <= size.items())
  heads = next(same, None)
  if options.heads:
    heads = report.infer("image.heads", options.heads[0], "flag")
    if heads < 1 or sizes["width"] % heads:
      raise errors.UserError(
        f"{name}: {heads} heads do not divide the width, {sizes['width']}. "
        "Give others by --heads."
      )
  if heads is None:
    raise errors.AmbiguousError(
      f"{name}: no known model has width {sizes['width']}, depth "
      f"{sizes['depth']} and MLP {sizes['mlp_dim']}, so the number of heads is "
      "not known; timm's directory has a config.json, which says it.",
      flags="--heads N,N",
    )
  _check_given(options, name)
  shown = {field: key in tensors for field, key in _SHOWN.items()}
  class_token = shown["class_token"]
  is_mean = shown["norm_after_pool"] or not class_token
  pooling = "gap" if is_mean else "class"
  if "attn_pool.latent" in tensors:
    pooling = "map"
  # The class token may have a position or not: the patches' form a square.
  cells = positions - class_token
  position = class_token and round(cells**0.5) ** 2 == cells
  side = read.square(positions - position, "pos_embed")
  if "reg_token" in tensors:
    sizes |= read("registers  reg_token  1 of 3")
  tower = {
    "kind": "vit",
    "registers": 0,
    **sizes,
    **shown,
    "image_size": patch_size * side,
    "patch_size": patch_size,
    "heads": heads,
    "activation": options.activation,
    "norm_epsilon": 1e-5 if shown["pre_norm"] else 1e-6,
    "pooling": pooling,
    "class_position": position,
    "drop_edge": False,
  }
  report.infer("image.activation", options.activation, "flag")
  for field in ("image_size", "heads", "pooling", "class_position"):
    report.infer(f"image.{field}", tower[field], "shape")
  about = _preprocessing(options, report)
  return _resolved({"image": tower, **about}, report, "format")


def _check_given(options: portable.Options, name: str) -> None:
  """Raises AmbiguousError if options that a file needs are missing."""
  missing = {}
  if options.activation is None:
    missing["its activation"] = (
      "--activation (gelu in most of timm's towers, quick_gelu in those from "
      "OpenAI, gelu_tanh in some of SigLIP)"
    )
  if options.preprocess is None:
    missing["how images are prepared"] = (
      "--preprocess (such as inception:0.9 for augreg at 224 pixels, "
      "inception:1 at 384)"
    )
  if missing:
    raise errors.AmbiguousError(
      f"{name} does not say {' nor '.join(missing)}; timm's directory has a "
      "config.json, which does.",
      flags=" and ".join(missing.values()),
    )


def _preprocessing(options, report) -> dict[str, Any]:
  """Returns the fields of --preprocess; all of timm's ViTs use bicubic."""
  normalisation, crop = options.preprocess
  if normalisation not in NORMALISATIONS:
    raise errors.unknown("normalisation", normalisation, NORMALISATIONS)
  if crop is not None and not 0.1 <= crop <= 1:
    raise errors.UserError(
      f"--preprocess keeps {crop} of the image; it must be {_CROP.allowed}."
    )
  mean, std = NORMALISATIONS[normalisation]
  about = {
    "image_mean": mean,
    "image_std": std,
    "crop_fraction": 1.0 if crop is None else crop,
    "resize": "squash" if crop is None else "shortest",
  }
  for field, value in about.items():
    report.infer(field, value, "flag")
  return {
    **about,
    "interpolation": report.infer("interpolation", "bicubic", "format"),
  }


FORMAT = Format(
  NAME,
  read,
  recognise=recognise,
  recognise_names=recognise_names,
  tower="image",
)
