"""HuggingFace's image processors and our preprocessing, both ways."""

import dataclasses
import math
import pathlib
from typing import Any

from clip_jax import errors
from clip_jax.convert import config_file
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import family, fields, kinds
from clip_jax.convert.engine.fields import Field, Fixed, Written
from clip_jax.models import variants

FILE = "preprocessor_config.json"
# transformers 5 writes the parts of a processor into one file.
_WHOLE_FILE = "processor_config.json"
# The smallest fraction of the resized side that `preprocess` can keep.
_LEAST_CROP = 0.1
CLIP, SIGLIP, SIGLIP2 = (
  f"{name}ImageProcessor" for name in ("CLIP", "Siglip", "Siglip2")
)
# Classes that differ from another one only in their name.
_SAME = {"ChineseCLIPImageProcessor": CLIP}


def _spread(kind: fields.Kind) -> fields.Kind:
  """Returns a kind of channels for which one number may stand for all."""

  def read(value):
    return kind.read(value if isinstance(value, list) else [value] * 3)

  return dataclasses.replace(kind, read=read)


_TO_ONE = kinds.checked(
  "1/255", lambda x: type(x) is float and math.isclose(x, 1 / 255)
)
_RESAMPLE = dataclasses.replace(
  kinds.one_of({2: "bilinear", 3: "bicubic"}),  # Pillow's numbers.
  allowed="2 (bilinear) or 3 (bicubic)",
)
FIELDS = (
  Written("do_resize", True, kinds.exactly(True)),
  Written("do_rescale", True, kinds.exactly(True)),
  Written("rescale_factor", 1 / 255, _TO_ONE),
  Written("do_normalize", True, kinds.FLAG),
  Field("image_mean", "image_mean", _spread(kinds.MEANS)),
  Field("image_std", "image_std", _spread(kinds.DEVIATIONS)),
  Field("resample", "interpolation", _RESAMPLE),
  Fixed("crop_rounding", "floor"),
  Fixed("convert_rgb", "before"),
  Fixed("antialias", True),
  Fixed("fill", 0, free=True),  # No padding has it.
)


def _square(side: int) -> dict[str, int]:
  return {"height": side, "width": side}


def _at_size(name: str, side: int, patch_size: int) -> dict[str, Any]:
  """Returns the size fields of a processor's class for images of a size."""
  return {
    CLIP: {"size": {"shortest_edge": side}, "crop_size": _square(side)},
    SIGLIP: {"size": _square(side)},
    SIGLIP2: {
      "patch_size": patch_size,
      "max_num_patches": (side // patch_size) ** 2,
    },
  }[name]


# The defaults of the classes (transformers 5).
_EVERY = {
  **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True),
  **{"do_pad": False, "do_center_crop": False, "crop_size": None},
  **{"rescale_factor": 1 / 255, "resample": 3},
  **{"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
}
_OPENAI = {x: list(variants.DEFAULTS[x]) for x in ("image_mean", "image_std")}
_DEFAULTS: dict[str, dict[str, Any]] = {
  CLIP: {
    **_EVERY,
    **_OPENAI,
    **_at_size(CLIP, 224, 16),
    "do_center_crop": True,
  },
  SIGLIP: {**_EVERY, **_at_size(SIGLIP, 224, 16)},
  SIGLIP2: {**_EVERY, **_at_size(SIGLIP2, 256, 16), "resample": 2},
}


def describe(
  directory: pathlib.Path,
  name: str,
  image: dict[str, Any],
  report: report_lib.Report,
) -> dict[str, Any]:
  """Returns all fields of a model's preprocessing.

  Args:
    directory: the checkpoint's directory.
    name: class of the family's image processor, for fields without a value.
    image: the description of the image tower.
    report: the report to write to.

  Raises:
    UserError: the processor does something that is not supported.
  """
  values, path = _read(directory)
  at_size: dict[str, Any] = {}
  if values is None:
    report.warnings.append(
      f"{path.parent} has no {FILE}: images are preprocessed as by a {name} "
      f"with its defaults, for image_size={image['image_size']}."
    )
    at_size = _at_size(name, image["image_size"], image["patch_size"])
  else:
    name = _class_name(values, name, path)
  source = fields.ConfigReader(
    # A null means the class's default, too.
    {k: v for k, v in (values or {}).items() if v is not None},
    {**_DEFAULTS[name], **at_size},
    where={"": str(path)},
    report=report,
  )
  found: dict[str, Any] = {}
  for row in FIELDS:
    row.read(source, found)
  source.read("do_pad", kinds.exactly(False))
  if not source.get("do_normalize"):
    found |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    for field in ("image_mean", "image_std"):
      source.note(field, found[field], "do_normalize")
  sizes = (_naflex_sizes if name == SIGLIP2 else _sizes)(source, image)
  for field, value in sizes.items():
    source.note(field, value, "patch_size" if name == SIGLIP2 else "size")
  return found | sizes


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


def _sizes(source, image) -> dict[str, Any]:
  """Returns the fields about how an image is made square."""
  resize, resized = source.read("size", _SIZE)
  side = resized
  if source.read("do_center_crop", kinds.FLAG):
    _, side = source.read("crop_size", _CROP)
  elif resize == "shortest":
    raise source.wrong("do_center_crop", "true where size has a shortest_edge")
  if not _LEAST_CROP * resized <= side <= resized:
    raise source.wrong(
      "crop_size", f"at most the size, {resized}, and no tenth"
    )
  if side != image["image_size"]:
    raise errors.UserError(
      f"{source.where('size')} makes images of {side} pixels, but the model is "
      f"for image_size={image['image_size']}. Correct the file, or remove it "
      "to use the defaults of its class at the model's size."
    )
  return {"resize": resize, "crop_fraction": crop_fraction(side, resized)}


def crop_fraction(side: int, resized: int) -> float:
  """Returns a fraction such that `side` divided by it is exactly `resized`."""
  fraction = side / resized
  while math.floor(side / fraction) < resized:
    fraction = math.nextafter(fraction, 0)
  return fraction


def _edge(value: Any) -> tuple[str, int]:
  """Returns ("shortest" or "squash", pixels) of one of the sizes."""
  if type(value) is int:  # Of older files.
    value = {"shortest_edge": value}
  sides = {k: side for k, side in dict(value).items() if side is not None}
  resize = {
    ("height", "width"): "squash",
    ("shortest_edge",): "shortest",
  }.get(tuple(sorted(sides)))
  edges = list(map(kinds.up_to((1 << 16) - 1).read, sides.values()))
  if resize is None or edges[0] != edges[-1]:
    raise ValueError
  return resize, edges[0]


_CROP = fields.Kind("an equal height and width", _edge)
_SIZE = fields.Kind(f"{_CROP.allowed}, or a shortest_edge", _edge)


def _naflex_sizes(source, image) -> dict[str, Any]:
  wanted = _at_size(SIGLIP2, image["image_size"], image["patch_size"])
  for field, want in wanted.items():
    if source.get(field) != want:
      raise source.wrong(field, f"{want}, as in the model")
  return {"resize": "squash", "crop_fraction": 1.0}


def refusals(spec: dict[str, Any]) -> list[str]:
  """Returns messages about preprocessing that no image processor does."""
  if spec["resize"] == "longest":
    return [family.refusal("resize", "longest", ("shortest", "squash"))]
  return []


def settings(spec: dict[str, Any], name: str) -> dict[str, Any]:
  """Returns a preprocessor_config.json, of the class `name` if possible."""
  side, patch_size = spec["image"]["image_size"], spec["image"]["patch_size"]
  resized = math.floor(side / spec["crop_fraction"])
  plain = spec["resize"] == "squash" and resized == side
  if not plain:
    name = CLIP
  found: dict[str, Any] = {"image_processor_type": name}
  for row in FIELDS:
    row.write(spec, found)
  if name == SIGLIP2:
    return found | _at_size(SIGLIP2, side, patch_size)
  found |= {"do_convert_rgb": True, "size": _square(resized)}
  if name == CLIP:
    found |= {"do_center_crop": not plain, "crop_size": _square(side)}
  if spec["resize"] == "shortest":
    found["size"] = {"shortest_edge": resized}
  return found


def deviations(spec: dict[str, Any]) -> list[str]:
  """Returns small differences from HuggingFace's processors, by our fields.

  Their settings cannot express these. The differences are shifts by a pixel,
  colours of palettes, or a filter; the weights are the same.
  """
  return [
    f"{row.ours}={spec[row.ours]!r} here, {row.value!r} in HuggingFace's image "
    "processor"
    for row in FIELDS
    if isinstance(row, Fixed)
    and not row.means_same(spec[row.ours], row.value)
    and not (row.ours == "crop_rounding" and spec["resize"] == "squash")
  ]
