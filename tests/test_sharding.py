"""The mesh, and batches that it splits."""

import jax
import jax.numpy as jnp
import pytest

from clip_jax import errors, sharding


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


def test_one_device_that_is_not_the_first_computes():
  first, _, third, *_ = jax.devices()
  assert sharding.shared_mesh([first]) is None
  mesh = sharding.shared_mesh([third])
  placed = sharding.place_everywhere({"x": jnp.ones(3)}, mesh)
  assert placed["x"].devices() == {third}


@pytest.mark.parametrize("devices", [[], ["cpu"], 3, [[1]], "twice"])
def test_what_is_no_list_of_devices_is_refused(devices):
  if devices == "twice":
    devices = jax.devices()[:1] * 2
  with pytest.raises(errors.UserError, match=r"some of jax.devices\(\)"):
    sharding.shared_mesh(devices)
