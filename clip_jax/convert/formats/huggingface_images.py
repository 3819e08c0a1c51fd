"""HuggingFace's image processors as our preprocessing, both ways."""

import math
import pathlib
from typing import Any

from clip_jax import errors
from clip_jax.convert import config_file, engine
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import family

FILE = "preprocessor_config.json"
# transformers 5 writes the parts of a processor into one file.
_WHOLE_FILE = "processor_config.json"

_OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]
_OPENAI_STD = [0.26862954, 0.26130258, 0.27577711]
_HALF = [0.5, 0.5, 0.5]
# Pillow's numbers.
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
_LEAST_CROP = 0.1  # Of the resized side; `preprocess` takes no less.

# Defaults of the image processors' classes (transformers 5).
CLIP, SIGLIP, SIGLIP2 = (
  f"{name}ImageProcessor" for name in ("CLIP", "Siglip", "Siglip2")
)
_COMMON = {
  "do_resize": True,
  "do_rescale": True,
  "rescale_factor": 1 / 255,
  "do_normalize": True,
  "do_pad": False,
}
_DEFAULTS = {
  CLIP: {
    **_COMMON,
    "resample": 3,
    "image_mean": _OPENAI_MEAN,
    "image_std": _OPENAI_STD,
    "size": {"shortest_edge": 224},
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
  },
  SIGLIP: {
    **_COMMON,
    "resample": 3,
    "image_mean": _HALF,
    "image_std": _HALF,
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "crop_size": None,
  },
  SIGLIP2: {
    **_COMMON,
    "resample": 2,
    "image_mean": _HALF,
    "image_std": _HALF,
    "patch_size": 16,
    "max_num_patches": 256,
  },
}


# Classes that differ from another one in nothing but their name.
_SAME = {"ChineseCLIPImageProcessor": CLIP}


def describe(
  directory: pathlib.Path,
  name: str,
  image: dict[str, Any],
  report: report_lib.Report,
) -> dict[str, Any]:
  """Returns the preprocessing of a model, every one of its fields.

  Args:
    directory: of the checkpoint.
    name: class of the family's image processor, for what its file leaves out.
    image: the description of the image tower.
    report: takes the fields and where they come from.

  Raises:
    UserError: the processor does what preprocessing here cannot.
  """
  values, path = _read(directory)
  source = "config"
  if values is None:
    source = "format"
    report.warnings.append(
      f"{path.parent} has no {FILE}: images are prepared as a {name} does by "
      f"default, for image_size={image['image_size']}."
    )
    values = _at_size(name, image)
  else:
    name = _class_name(values, name, path)
  # A null means the class's default, too.
  given = {k: v for k, v in values.items() if v is not None}
  settings = {**_DEFAULTS[name], **given}
  _check_fixed(settings, path)
  mean, std = (
    _channels(settings, field, path) for field in ("image_mean", "image_std")
  )
  if not settings["do_normalize"]:
    mean, std = [0.0] * 3, [1.0] * 3
  resample = settings["resample"]
  if type(resample) is not int or resample not in _RESAMPLE:
    raise _wrong(path, settings, "resample", "2 (bilinear) or 3 (bicubic)")
  sizes = _naflex_sizes if name == SIGLIP2 else _sizes
  found = {
    "image_mean": mean,
    "image_std": std,
    "interpolation": _RESAMPLE[resample],
    "antialias": True,
    **sizes(settings, image, path),
    "fill": 0,
    "crop_rounding": "floor",
    "convert_rgb": "before",
  }
  assert found.keys() == set(engine.IMAGE_FIELDS)
  for field, value in found.items():
    report.infer(field, value, source)
  return found


def _read(directory) -> tuple[dict[str, Any] | None, pathlib.Path]:
  path = directory / FILE
  if path.is_file():
    return config_file.read(path, strict=True), path
  whole = directory / _WHOLE_FILE
  if whole.is_file():
    part = config_file.read(whole, strict=True).get("image_processor")
    if isinstance(part, dict):
      return part, whole
  return None, path


def _at_size(name: str, image: dict[str, Any]) -> dict[str, Any]:
  """Returns what a processor of a class says for images of a size."""
  side = image["image_size"]
  square = {"height": side, "width": side}
  return {
    CLIP: {"size": {"shortest_edge": side}, "crop_size": square},
    SIGLIP: {"size": square},
    SIGLIP2: {
      "patch_size": image["patch_size"],
      "max_num_patches": (side // image["patch_size"]) ** 2,
    },
  }[name]


def _class_name(values, default, path) -> str:
  """Returns the processor's class without the suffix of its backend."""
  field = "image_processor_type"
  if field not in values:
    field = "feature_extractor_type"
  found = values.get(field, default)
  name = found if isinstance(found, str) else ""
  name = name.removesuffix("Fast").removesuffix("Pil")
  name = name.replace("FeatureExtractor", "ImageProcessor")
  if name not in (known := _DEFAULTS.keys() | _SAME.keys()):
    raise errors.UserError(
      f"{path}: {field}={found!r:.100} is not known; known are "
      f"{', '.join(sorted(known))}."
    )
  return _SAME.get(name, name)


def _check_fixed(settings, path) -> None:
  for field, want in (
    ("do_resize", True),
    ("do_rescale", True),
    ("do_pad", False),
  ):
    if settings[field] is not want:
      raise _wrong(path, settings, field, str(want).lower())
  for field in ("do_normalize", "do_center_crop"):
    if type(settings.get(field, False)) is not bool:
      raise _wrong(path, settings, field, "true or false")
  factor = settings["rescale_factor"]
  if type(factor) is not float or not math.isclose(factor, 1 / 255):
    raise _wrong(path, settings, "rescale_factor", "1/255")


def _channels(settings, field, path) -> list[float]:
  value = settings[field]
  numbers = value if isinstance(value, list) else [value] * 3
  good = len(numbers) == 3 and all(
    type(x) in (int, float) and abs(x) <= config_file.MAX_CHANNEL
    for x in numbers
  )
  if not good or (
    field == "image_std" and min(numbers) < config_file.LEAST_DEVIATION
  ):
    raise _wrong(path, settings, field, "three numbers, red, green and blue")
  return [float(x) for x in numbers]


def _sizes(settings, image, path) -> dict[str, Any]:
  """Returns how an image of any shape becomes a square one."""
  resize, resized = _edge(settings, "size", path)
  side = resized
  if settings["do_center_crop"]:
    _, side = _edge(settings, "crop_size", path, square=True)
  elif resize == "shortest":
    raise _wrong(
      path, settings, "do_center_crop", "true where size has a shortest_edge"
    )
  if side > resized or side < _LEAST_CROP * resized:
    raise _wrong(
      path, settings, "crop_size", f"at most the size, {resized}, and no tenth"
    )
  if side != image["image_size"]:
    raise errors.UserError(
      f"{path} makes images of {side} pixels, but the model is for "
      f"image_size={image['image_size']}. Correct the file (or take it away: "
      "then the defaults of its class hold at the model's size)."
    )
  return {"resize": resize, "crop_fraction": crop_fraction(side, resized)}


def crop_fraction(side: int, resized: int) -> float:
  """Returns the fraction whose quotient with `side` is `resized`, exactly."""
  fraction = side / resized
  while math.floor(side / fraction) < resized:
    fraction = math.nextafter(fraction, 0)
  return fraction


def _edge(settings, field, path, *, square=False) -> tuple[str, int]:
  """Returns ("shortest" or "squash", pixels) of one of the sizes."""
  value = settings[field]
  if type(value) is int:  # Of older files.
    value = {"shortest_edge": value}
  sides = {}
  if isinstance(value, dict):
    sides = {key: side for key, side in value.items() if side is not None}
  good = all(type(x) is int and 1 <= x < 1 << 16 for x in sides.values())
  if good and sides.keys() == {"height", "width"}:
    if sides["height"] == sides["width"]:
      return "squash", sides["height"]
  elif good and sides.keys() == {"shortest_edge"}:
    return "shortest", sides["shortest_edge"]
  raise _wrong(
    path,
    settings,
    field,
    "an equal height and width" + ("" if square else ", or a shortest_edge"),
  )


def _naflex_sizes(settings, image, path) -> dict[str, Any]:
  for field, want in _at_size(SIGLIP2, image).items():
    if settings[field] != want:
      raise _wrong(path, settings, field, f"{want}, as in the model")
  return {"resize": "squash", "crop_fraction": 1.0}


def _wrong(path, settings, field, allowed) -> errors.UserError:
  return errors.UserError(
    f"{path}: {field} must be {allowed}; got {settings.get(field)!r:.100}."
  )


def refusals(spec: dict[str, Any]) -> list[str]:
  """Returns the preprocessing that no image processor here does."""
  if spec["resize"] == "longest":
    return [family.refusal("resize", "longest", ("shortest", "squash"))]
  return []


def settings(spec: dict[str, Any], name: str) -> dict[str, Any]:
  """Returns a preprocessor_config.json, of the class `name` if it can be."""
  image = spec["image"]
  side = image["image_size"]
  resized = math.floor(side / spec["crop_fraction"])
  square = {"height": side, "width": side}
  plain = spec["resize"] == "squash" and resized == side
  if not plain:
    name = CLIP
  found = {
    "image_processor_type": name,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(spec["image_mean"]),
    "image_std": list(spec["image_std"]),
    "resample": {v: k for k, v in _RESAMPLE.items()}[spec["interpolation"]],
  }
  if name == SIGLIP2:
    return found | _at_size(SIGLIP2, image)
  found |= {"do_convert_rgb": True, "size": square}
  if name == CLIP:
    found |= {"do_center_crop": not plain, "crop_size": square}
    if spec["resize"] == "shortest":
      found["size"] = {"shortest_edge": resized}
    elif not plain:
      found["size"] = {"height": resized, "width": resized}
  return found


def deviations(spec: dict[str, Any]) -> list[str]:
  """Returns what HuggingFace's processors do otherwise, by our fields.

  They cannot be told. The differences are of a pixel's shift, of palettes'
  colours, of a filter; the weights are the same.
  """
  theirs = {
    "crop_rounding": "floor",
    "convert_rgb": "before",
    "antialias": True,
  }
  return [
    f"{field}={spec[field]!r} here, {want!r} in HuggingFace's image processor"
    for field, want in theirs.items()
    if spec[field] != want
    and not (field == "crop_rounding" and spec["resize"] == "squash")
  ]
