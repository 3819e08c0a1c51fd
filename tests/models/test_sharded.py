"""The one rule by which arrays are split over devices."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax import sharding
from clip_jax.models import sharded


def _spec(path, shape, fsdp=4):
  return sharded.parameter_spec(path, shape, fsdp=fsdp, min_elements=2)


@pytest.mark.parametrize(
  ("path", "shape", "spec"),
  [
    ("image/patch/kernel", (12, 20, 8), P(None, "fsdp", None)),
    ("text/encoder/blocks/mlp/in/kernel", (16, 4, 12), P(None, None, "fsdp")),
    ("text/encoder/blocks/mlp/in/kernel", (16, 3, 5), P()),
    ("params/text/encoder/blocks/ln_1/scale", (4, 64), P()),
    ("log_scale", (), P()),
    ("text/embedding", (9, 7), P()),
    ("opt_state/1/mu/image/conv/kernel", (8, 8), P("fsdp", None)),
  ],
)
def test_the_largest_divisible_dimension_is_split(path, shape, spec):
  assert _spec(path, shape) == spec


def test_small_arrays_and_lone_axes_are_repeated():
  assert sharded.parameter_spec("a/kernel", (4, 4), fsdp=4) == P()
  assert _spec("a/kernel", (1024, 1024), fsdp=1) == P()


def test_optimizer_moments_lie_as_their_parameters_do():
  mesh = sharding.make_mesh(data=2, fsdp=4)
  params = {"text": {"kernel": jax.ShapeDtypeStruct((256, 128), np.float32)}}
  tree = {"params": params, "opt_state": ({"mu": params},)}
  places = sharded.tree_shardings(tree, mesh)
  assert places["params"]["text"]["kernel"].spec == P("fsdp", None)
  moments = places["opt_state"][0]["mu"]["text"]["kernel"]
  assert moments == places["params"]["text"]["kernel"]
