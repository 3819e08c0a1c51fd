"""timm's Vision Transformers, in, as image towers.

A directory as timm saves it (`config.json` and weights) says what the model
is. A bare `.safetensors` file has shapes alone: the activation and the
preprocessing must be told.
"""

import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from clip_jax import errors
from clip_jax.convert import axes, config_file, engine, portable, weights_file
from clip_jax.convert import report as report_lib
from clip_jax.convert.formats import timm_vit
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants

NAME = "timm"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# The classifier, and what trains it.
IGNORED = (r"^head\.", r"^head_dist\.")
# Mean and deviation by what timm calls their constants.
NORMALISATIONS = {
  "inception": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
  "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
  "openai": tuple(
    list(variants.DEFAULTS[field]) for field in ("image_mean", "image_std")
  ),
}
# What timm assumes where a config is silent (`PretrainedCfg`).
_DEFAULTS = {
  "mean": NORMALISATIONS["imagenet"][0],
  "std": NORMALISATIONS["imagenet"][1],
  "interpolation": "bicubic",
  "crop_pct": 0.875,
  "crop_mode": "center",
}
_THEIR_NAMES = {
  "image_mean": "mean",
  "image_std": "std",
  "interpolation": "interpolation",
  "crop_fraction": "crop_pct",
  "resize": "crop_mode",
}
_LEAST_CROP = 0.1  # `preprocess` takes no less.
_MAX_MLP_RATIO = 64
_RESIZES = {"center": "shortest", "squash": "squash"}
_FIXED = {
  "antialias": True,
  "fill": 0,
  "crop_rounding": "round",
  "convert_rgb": "before",
}


def recognise(path: pathlib.Path) -> bool:
  """Whether `path` is a directory with timm's config."""
  config = config_file.peek(path / "config.json")
  return "architecture" in config and any(
    (path / name).is_file() for name in WEIGHTS
  )


def knows(names: Collection[str]) -> bool:
  """Whether these are names of a Vision Transformer of timm's."""
  return "patch_embed.proj.weight" in names and "pos_embed" in names


def read(path: pathlib.Path, options: portable.Options) -> portable.Portable:
  """Reads an image tower; the classifier is kept aside.

  Raises:
    UserError: it is no plain Vision Transformer, or damaged.
    AmbiguousError: a bare file, and its activation or preprocessing was not
      told.
  """
  report = report_lib.Report(NAME)
  if path.is_dir():
    config = config_file.read(path / "config.json")
    weights = weights_in(path, WEIGHTS)
    tensors = weights_file.read(weights, options, report).tensors
    tower, about = _describe(config, report, path / "config.json")
    if options.activation not in (None, tower["activation"]):
      report.warnings.append(
        f"--activation {options.activation} is not what {path} says: "
        f"{tower['activation']}."
      )
      tower["activation"] = report.infer(
        "image.activation", options.activation, "flag"
      )
    files = [weights, path / "config.json"]
  else:
    config = {}
    tensors = weights_file.read(path, options, report).tensors
    tower, about = _infer(tensors, options, report, str(path))
    files = [path]
  timm_vit.refuse_other_blocks(tensors, str(path))
  spec = engine.resolve({"image": tower, **_FIXED, **about})
  for field, value in (*tower.items(), *_FIXED.items()):
    if field not in ("kind", "width", "depth", "mlp_dim"):
      name = f"image.{field}" if field in tower else field
      if name not in report.inferred:
        said = config and field not in _FIXED
        report.infer(name, value, "config" if said else "format")
  return portable.assemble(
    timm_vit.NAMES.entries({"image": tower}),
    tensors,
    spec,
    report=report,
    name=str(path),
    options=options,
    weights=files,
    ignored=IGNORED,
    hint="Check that config.json names the architecture of the weights.",
    dialect={"config": config},
  )


def weights_in(path: pathlib.Path, names: tuple[str, ...]) -> pathlib.Path:
  """Returns the first of `names` that is in the directory.

  Raises:
    UserError: there is none.
  """
  for name in names:
    if (path / name).is_file():
      return path / name
  raise errors.UserError(
    f"{path} has no weights; it must hold one of {', '.join(names)}."
  )


def _describe(config, report, path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the tower and the preprocessing that a config stands for."""
  fields = config_file.Fields(str(path), config)
  name = fields.take("architecture", kind=str)
  tower = timm_vit.describe(name)
  # In older files, the fields of `pretrained_cfg` stood at the top.
  given = config.get("pretrained_cfg") or config
  arguments = config.get("model_args") or {}
  if not isinstance(given, dict) or not isinstance(arguments, dict):
    raise errors.DamagedError(
      f"{path}: pretrained_cfg and model_args must be objects."
    )
  arguments = config_file.Fields(f"{path}: model_args", arguments)
  arguments.ignore("num_classes")
  arguments.neutral("in_chans", 3)
  size = given.get("input_size")
  if not isinstance(size, list) or len(size) != 3:
    size = [3, tower["image_size"], tower["image_size"]]
  size = arguments.take("img_size", size[1:], kind=(int, list))
  image_size = config_file.square(size, f"{path}: img_size")
  pool = arguments.take("global_pool", None, kind=str)
  tower |= _resized(tower, arguments, f"{path}: model_args")
  arguments.done()
  if pool:
    tower = timm_vit.pooled(tower, pool, made_so=True, name=name)
  if image_size < tower["patch_size"]:
    raise errors.UserError(
      f"{path}: img_size={image_size} is below "
      f"patch_size={tower['patch_size']}."
    )
  tower |= {
    "image_size": image_size,
    "drop_edge": image_size % tower["patch_size"] != 0,
  }
  report.infer("image.kind", name, "config")
  return tower, _preprocessing(given, report, path)


def _resized(
  tower: dict[str, Any], arguments: config_file.Fields, where: str
) -> dict[str, Any]:
  """Returns the sizes of an architecture after its arguments."""
  ratio = tower["mlp_dim"] / tower["width"]
  most = config_file.MAX_WIDTH
  width = arguments.positive("embed_dim", tower["width"], most=most)
  ratio = arguments.take("mlp_ratio", ratio, kind=float)
  if not 0 < ratio <= _MAX_MLP_RATIO or int(width * ratio) < 1:
    raise errors.UserError(f"{where}.mlp_ratio={ratio} makes no MLP.")
  patch_size = arguments.take(
    "patch_size", tower["patch_size"], kind=(int, list)
  )
  found = {
    "width": width,
    "mlp_dim": int(width * ratio),
    "depth": arguments.positive(
      "depth", tower["depth"], most=config_file.MAX_DEPTH
    ),
    "heads": arguments.positive("num_heads", tower["heads"]),
    "patch_size": config_file.square(patch_size, f"{where}.patch_size"),
  }
  if width % found["heads"]:
    raise errors.UserError(
      f"{where}: embed_dim={width} must divide by num_heads={found['heads']}."
    )
  return found


def _preprocessing(given, report, path) -> dict[str, Any]:
  # A field that is null is as good as none.
  given = {k: v for k, v in given.items() if v is not None}
  data = {**_DEFAULTS, **given}
  where = f"{path}: pretrained_cfg"
  fields = config_file.Fields(where, data)
  std = config_file.channels(data["std"], f"{where}.std")
  if min(std) < config_file.LEAST_DEVIATION:
    raise errors.UserError(f"{where}.std={std} must be above 0.")
  crop = fields.take("crop_pct", kind=float)
  if not _LEAST_CROP <= crop <= 1:
    raise errors.UserError(
      f"{where}.crop_pct={crop} must be from {_LEAST_CROP} to 1."
    )
  filters = {name: name for name in ("bicubic", "bilinear")}
  about = {
    "image_mean": config_file.channels(data["mean"], f"{where}.mean"),
    "image_std": std,
    "interpolation": fields.choose("interpolation", "bicubic", filters),
    "crop_fraction": crop,
    "resize": fields.choose("crop_mode", "center", _RESIZES),
  }
  for field, theirs in _THEIR_NAMES.items():
    source = "config" if theirs in given else "format"
    report.infer(field, about[field], source)
  return about


def _infer(
  tensors: Mapping[str, Tensor],
  options: portable.Options,
  report: report_lib.Report,
  name: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns what shapes say about a tower, and what the user must."""
  if "patch_embed.proj.weight" not in tensors:
    raise errors.UserError(
      f"{name} holds no Vision Transformer under timm's names: it lacks "
      "patch_embed.proj.weight."
    )
  shapes = {key: tensor.shape for key, tensor in tensors.items()}
  axis = axes.Axes(shapes, name)
  width = axis("patch_embed.proj.weight", 0, rank=4)
  patch_size = axis("patch_embed.proj.weight", 3, rank=4)
  depth = axis.count(r"^blocks\.(\d+)\.")
  mlp_dim = axis("blocks.0.mlp.fc1.weight", 0, rank=2)
  sizes = {(w, d, m): heads for w, d, heads, m in timm_vit.SIZES.values()}
  heads = sizes.get((width, depth, mlp_dim))
  if options.heads:
    heads = report.infer("image.heads", options.heads[0], "flag")
    if heads < 1 or width % heads:
      raise errors.UserError(
        f"{name}: {heads} heads do not divide the width, {width}."
      )
  if heads is None:
    raise errors.AmbiguousError(
      f"{name}: width {width}, depth {depth} and MLP {mlp_dim} are of no model "
      "whose number of heads is known; timm's directory has a config.json, "
      "which says it.",
      flags="--heads N,N",
    )
  _check_told(options, name)
  class_token = "cls_token" in tensors
  positions = axis("pos_embed", 1, rank=3)
  tower = {
    "kind": "vit",
    "patch_size": patch_size,
    "width": width,
    "depth": depth,
    "heads": heads,
    "mlp_dim": mlp_dim,
    "activation": options.activation,
    "norm_epsilon": 1e-5 if "norm_pre.weight" in tensors else 1e-6,
    "pooling": _pooling(tensors, class_token),
    "norm_after_pool": "fc_norm.weight" in tensors,
    "class_token": class_token,
    "registers": axis("reg_token", 1, rank=3) if "reg_token" in tensors else 0,
    "pre_norm": "norm_pre.weight" in tensors,
    "patch_bias": "patch_embed.proj.bias" in tensors,
    "drop_edge": False,
  }
  # The class token may have a position or none: a square tells.
  cells = positions - int(class_token)
  position = class_token and round(cells**0.5) ** 2 == cells
  side = axis.square(positions - int(position), "pos_embed")
  tower |= {"class_position": position, "image_size": patch_size * side}
  report.infer("image.activation", options.activation, "flag")
  for field in ("image_size", "heads", "pooling", "class_position"):
    report.infer(f"image.{field}", tower[field], "shape")
  return tower, _told_preprocessing(options, report)


def _check_told(options: portable.Options, name: str) -> None:
  """Raises AmbiguousError where a bare file's user has not said enough."""
  silent = {}
  if options.activation is None:
    silent["its activation"] = (
      "--activation (gelu in most of timm's towers, quick_gelu in those from "
      "OpenAI, gelu_tanh in some of SigLIP)"
    )
  if options.preprocess is None:
    silent["how images are prepared"] = (
      "--preprocess (such as inception:0.9 for augreg at 224 pixels, "
      "inception:1 at 384)"
    )
  if silent:
    raise errors.AmbiguousError(
      f"{name} does not say {' nor '.join(silent)}; timm's directory has a "
      "config.json, which does.",
      flags=" and ".join(silent.values()),
    )


def _told_preprocessing(options, report) -> dict[str, Any]:
  """Returns what --preprocess stands for; all of timm's ViTs are bicubic."""
  normalisation, crop = options.preprocess
  if normalisation not in NORMALISATIONS:
    raise errors.unknown("normalisation", normalisation, NORMALISATIONS)
  if crop is not None and not _LEAST_CROP <= crop <= 1:
    raise errors.UserError(
      f"--preprocess keeps {crop} of the image; it must be from {_LEAST_CROP} "
      "to 1."
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


def _pooling(tensors, class_token) -> str:
  if "attn_pool.latent" in tensors:
    return "map"
  return "class" if class_token and "fc_norm.weight" not in tensors else "gap"
