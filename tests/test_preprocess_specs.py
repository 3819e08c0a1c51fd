"""The fields of preprocessing: read from a model, and judged."""

import json
import math

import pytest

from clip_jax import errors
from clip_jax import preprocess as preprocess_lib

MEAN, STD = (0.5, 0.25, 0.125), (0.5, 0.25, 0.2)


def make_spec(image_size=24, **fields):
  return preprocess_lib.Preprocess(image_size, MEAN, STD, **fields)


OWN_FIELDS = {
  "interpolation": "bilinear",
  "antialias": False,
  "resize": "longest",
  "fill": 7,
  "crop_rounding": "floor",
  "crop_fraction": 0.9,
  "convert_rgb": "before",
}


def test_preprocessing_comes_from_a_models_spec_and_goes_through_data():
  model = {"image": {"image_size": 17}, "image_mean": list(MEAN)}
  model |= {"image_std": list(STD), **OWN_FIELDS}
  spec = preprocess_lib.Preprocess.from_spec(model)
  assert spec == make_spec(17, **OWN_FIELDS)
  data = json.loads(json.dumps(spec.to_dict()))
  assert preprocess_lib.Preprocess.from_dict(data) == spec


def test_a_model_directory_must_name_every_field():
  fields = make_spec().to_dict()
  for name in fields:
    some = {key: value for key, value in fields.items() if key != name}
    with pytest.raises(errors.UserError, match=f"lacks {name};"):
      preprocess_lib.Preprocess.from_dict(some)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"interpolation": "bicubik"}, "Did you mean 'bicubic'"),
    ({"resize": "longst"}, "Did you mean 'longest'"),
    ({"crop_rounding": "ceil"}, "Known: floor, round"),
    ({"convert_rgb": "never"}, "Known: after, before"),
    ({"antialias": 1}, "true or false"),
    ({"antialias": False}, "bilinear"),
    ({"fill": 256}, "0 to 255"),
    ({"fill": 0.5}, "0 to 255"),
    ({"fill": True}, "0 to 255"),
    ({"crop_fraction": True}, "0.1 to 1"),
    ({"image_size": True}, "at least 1"),
    ({"crop_fraction": 0}, "0.1 to 1"),
    ({"crop_fraction": math.nan}, "0.1 to 1"),
    ({"alpha": "black"}, "Known: drop, white"),
    ({"image_size": 0}, "at least 1"),
    ({"std": (1, 1, 0)}, "above 0"),
    ({"mean": (1, 1)}, "three numbers"),
    ({"mean": (1, 1, math.nan)}, "three numbers"),
    ({"meen": MEAN}, "Did you mean 'mean'"),
  ],
)
def test_mistakes_are_named(fields, message):
  with pytest.raises(errors.UserError, match=message):
    preprocess_lib.Preprocess.from_dict(make_spec().to_dict() | fields)
