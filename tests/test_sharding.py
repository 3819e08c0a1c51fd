"""The mesh and the one table of parameter rules."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax import errors, sharding


def _spec(path, shape, fsdp=4):
  return sharding.parameter_spec(path, shape, fsdp=fsdp, min_elements=2)


@pytest.mark.parametrize(
  ("path", "shape", "spec"),
  [
    ("image/patch/kernel", (12, 20, 8), P(None, "fsdp", None)),
    ("text/blocks/mlp/in/kernel", (16, 4, 12), P(None, None, "fsdp")),
    ("text/blocks/mlp/in/kernel", (16, 3, 5), P()),
    ("params/text/blocks/ln_1/scale", (4, 64), P()),
    ("log_scale", (), P()),
    ("text/embedding", (9, 7), P()),
    ("opt_state/1/mu/image/conv/kernel", (8, 8), P("fsdp", None)),
  ],
)
def test_the_largest_divisible_dimension_is_split(path, shape, spec):
  assert _spec(path, shape) == spec


def test_small_arrays_and_lone_axes_are_repeated():
  assert sharding.parameter_spec("a/kernel", (4, 4), fsdp=4) == P()
  assert _spec("a/kernel", (1024, 1024), fsdp=1) == P()


def test_optimizer_moments_lie_as_their_parameters_do():
  mesh = sharding.make_mesh(data=2, fsdp=4)
  params = {"text": {"kernel": jax.ShapeDtypeStruct((256, 128), np.float32)}}
  tree = {"params": params, "opt_state": ({"mu": params},)}
  places = sharding.tree_shardings(tree, mesh)
  assert places["params"]["text"]["kernel"].spec == P("fsdp", None)
  moments = places["opt_state"][0]["mu"]["text"]["kernel"]
  assert moments == places["params"]["text"]["kernel"]


@pytest.mark.parametrize(
  ("sizes", "shape"),
  [((-1, 1), (8, 1)), ((2, -1), (2, 4)), ((1, 8), (1, 8)), ((-1, 4), (2, 4))],
)
def test_minus_one_takes_the_rest_of_the_devices(sizes, shape):
  mesh = sharding.make_mesh(data=sizes[0], fsdp=sizes[1])
  assert tuple(mesh.shape.values()) == shape


@pytest.mark.parametrize(
  "sizes", [(-1, -1), (3, 1), (-1, 3), (16, 1), (-1, 16)]
)
def test_sizes_that_do_not_fit_are_refused(sizes):
  with pytest.raises(errors.UserError, match=r"mesh\.data"):
    sharding.make_mesh(data=sizes[0], fsdp=sizes[1])


def test_an_uneven_batch_names_the_nearest_even_one():
  mesh = sharding.make_mesh(data=4, fsdp=2)
  sharding.check_batch_size(64, mesh)
  with pytest.raises(errors.UserError, match=r"batch_size=100.*8 devices.*96"):
    sharding.check_batch_size(100, mesh)
