"""The preprocessing of a family of checkpoints, as plain data."""

import dataclasses
import math
import numbers
from typing import Any, Self

from PIL import Image

from clip_jax import errors
from clip_jax.preprocess import decoding

INTERPOLATIONS = {
  "bicubic": Image.Resampling.BICUBIC,
  "bilinear": Image.Resampling.BILINEAR,
}
RESIZES = ("shortest", "squash", "longest")
# What lies behind transparent pixels: white as on a page, or nothing, which
# shows the black that OpenAI's path leaves there.
ALPHAS = ("white", "drop")
CROP_ROUNDINGS = ("round", "floor")
CONVERSIONS = ("after", "before")

# What a model's description calls as `Preprocess` does.
_SAME_IN_SPEC = (
  "interpolation",
  "antialias",
  "resize",
  "fill",
  "crop_rounding",
  "crop_fraction",
  "convert_rgb",
)


def _numbers(values: Any) -> tuple[float, ...]:
  """Returns the values as numbers; none at all where one is no number."""
  try:
    return tuple(float(value) for value in values)
  except (TypeError, ValueError):
    return ()


@dataclasses.dataclass(frozen=True)
class PreprocessSpec:
  """How an image becomes the array that a model was trained on.

  The defaults are OpenAI's path; `from_dict`, which reads them back from a
  model's directory, takes none of them.

  Attributes:
    image_size: the side of the square result in pixels.
    mean: of each channel, on the scale 0 to 1, taken off by `normalize`.
    std: of each channel, on the scale 0 to 1, divided by in `normalize`.
    interpolation: one of `INTERPOLATIONS`.
    antialias: True resamples as Pillow does, which widens the filter where it
      shrinks; False weighs two pixels along each axis, as `tf.image.resize`.
    resize: "shortest" scales the shortest side to the crop, "longest" the
      longest and pads the other, "squash" both.
    fill: the level from 0 to 255 that "longest" pads with.
    crop_rounding: where the centre crop of a margin of 3 starts: at 2 by
      "round", as OpenAI, OpenCLIP and timm do; at 1 by "floor", as HuggingFace.
    crop_fraction: the crop's share of the resized side, timm's `crop_pct`.
    convert_rgb: "after" the resize, as OpenAI, or "before" it, as HuggingFace:
      palettes and 1-bit images differ.
    alpha: one of `ALPHAS`; opaque images are the same under each.
    limits: what is refused before it is decoded. No part of the description:
      it belongs to the one who runs the model.
  """

  image_size: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  interpolation: str = "bicubic"
  antialias: bool = True
  resize: str = "shortest"
  fill: int = 0
  crop_rounding: str = "round"
  crop_fraction: float = 1.0
  convert_rgb: str = "after"
  alpha: str = "white"
  limits: decoding.Limits = decoding.DEFAULT_LIMITS

  def __post_init__(self) -> None:
    for name, known in (
      ("interpolation", INTERPOLATIONS),
      ("resize", RESIZES),
      ("crop_rounding", CROP_ROUNDINGS),
      ("convert_rgb", CONVERSIONS),
      ("alpha", ALPHAS),
    ):
      errors.check_known(name, getattr(self, name), known)
    self._check_numbers()
    for name in ("mean", "std"):
      channels = _numbers(getattr(self, name))
      if (
        len(channels) != 3
        or not all(map(math.isfinite, channels))
        or (name == "std" and min(channels) <= 0)
      ):
        raise errors.UserError(
          f"{name}={getattr(self, name)!r:.100} must be three numbers, red, "
          "green and blue"
          f"{', all above 0' if name == 'std' else ''}."
        )
      object.__setattr__(self, name, channels)  # A tuple, also from JSON.
    if not self.antialias and (
      self.interpolation != "bilinear" or self.convert_rgb != "before"
    ):
      raise errors.UserError(
        "antialias=False is defined for interpolation='bilinear' and "
        f"convert_rgb='before' only, got {self.interpolation!r} and "
        f"{self.convert_rgb!r}."
      )

  def _check_numbers(self):
    # A truth value is none of these numbers.
    if not (type(self.image_size) is int and self.image_size >= 1):
      raise errors.UserError(
        f"image_size={self.image_size!r:.100} must be a whole number of "
        "pixels, at least 1."
      )
    if not isinstance(self.antialias, bool):
      raise errors.UserError(
        f"antialias={self.antialias!r} must be true or false."
      )
    if not (type(self.fill) is int and 0 <= self.fill <= 255):
      raise errors.UserError(
        f"fill={self.fill!r} must be a whole level from 0 to 255."
      )
    fraction = self.crop_fraction
    if not (type(fraction) in (int, float) and 0.1 <= fraction <= 1):
      raise errors.UserError(
        f"crop_fraction={fraction!r:.100} must be a number from 0.1 to 1."
      )

  @property
  def resample(self) -> Image.Resampling:
    """Pillow's name of the interpolation."""
    return INTERPOLATIONS[self.interpolation]

  @property
  def resized_side(self) -> int:
    """The side, in pixels, that evaluation resizes to before it crops."""
    return math.floor(self.image_size / self.crop_fraction)

  @classmethod
  def from_spec(cls, spec: dict[str, Any]) -> Self:
    """Returns the preprocessing of a resolved model spec."""
    return cls(
      image_size=spec["image"]["image_size"],
      mean=spec["image_mean"],
      std=spec["image_std"],
      **{name: spec[name] for name in _SAME_IN_SPEC},
    )

  @classmethod
  def from_dict(cls, fields: dict[str, Any]) -> Self:
    """Returns the `Preprocess` that `to_dict` described.

    Raises:
      UserError: a field is unknown, missing or not valid. None has a default
        here: what a checkpoint was trained with is not guessed.
    """
    if not isinstance(fields, dict):
      raise errors.UserError(
        f"The preprocessing is a dict of fields, got {fields!r:.100}."
      )
    known = [field.name for field in dataclasses.fields(cls)]
    known.remove("limits")
    for name in fields:
      if name not in known:
        raise errors.unknown("preprocessing field", name, known)
    missing = [name for name in known if name not in fields]
    if missing:
      raise errors.UserError(
        f"The preprocessing lacks {', '.join(missing)}; it must name all of "
        f"{', '.join(known)}."
      )
    return cls(**fields)

  def to_dict(self) -> dict[str, Any]:
    """Returns the fields as plain data, for `from_dict`."""
    described = dataclasses.asdict(self)
    del described["limits"]
    return described

  def with_max_pixels(self, max_pixels: int | None) -> Self:
    """Returns the same with another `Limits.max_pixels`.

    Raises:
      UserError: it is neither None nor a number of at least 1.
    """
    is_number = isinstance(max_pixels, numbers.Real) and max_pixels is not True
    if max_pixels is not None and not (is_number and max_pixels >= 1):
      raise errors.UserError(
        f"max_pixels={max_pixels!r:.100} must be a number of at least 1, or "
        "None."
      )
    limits = dataclasses.replace(self.limits, max_pixels=max_pixels)
    return dataclasses.replace(self, limits=limits)
