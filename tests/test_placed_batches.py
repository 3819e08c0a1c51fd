"""Rows of hosts become global arrays, whatever the mesh."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import sharding as sharding_lib


def _sharding(shape, spec):
  mesh = jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  return NamedSharding(mesh, spec)


@pytest.mark.parametrize(
  ("shape", "spec"),
  [
    ((8, 1), P("data")),
    ((4, 2), P(("data", "fsdp"))),
    ((2, 4), P("data")),
    ((2, 4), P("fsdp")),
    ((2, 4), P()),
  ],
)
def test_a_placed_batch_is_the_batch(shape, spec):
  sharding = _sharding(shape, spec)
  rows = sharding_lib.local_rows(sharding, 16)
  np.testing.assert_array_equal(rows, np.arange(16))
  images = np.random.default_rng(0).integers(0, 256, (16, 3, 5, 3), np.uint8)
  batch = {"image": images, "index": np.arange(16), "problems": ["x"]}
  placed = sharding_lib.place(batch, sharding)
  assert set(placed) == {"image", "index"}
  assert placed["image"].sharding.is_equivalent_to(sharding, 4)
  assert placed["image"].dtype == np.uint8
  for name in placed:
    np.testing.assert_array_equal(placed[name], batch[name])


class _OneHost:
  """A sharding as one of several hosts sees it: only its own devices."""

  def __init__(self, sharding, devices):
    self._sharding = sharding
    self._devices = set(devices)

  def addressable_devices_indices_map(self, shape):
    indices = self._sharding.devices_indices_map(shape)
    return {d: index for d, index in indices.items() if d in self._devices}


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize(
  ("shape", "spec"),
  [((4, 2), P(("data", "fsdp"))), ((4, 2), P("data")), ((2, 4), P("fsdp"))],
)
def test_hosts_together_hold_every_row(shape, spec, hosts):
  sharding = _sharding(shape, spec)
  shares = np.split(np.array(jax.devices()), hosts)
  rows = [sharding_lib.local_rows(_OneHost(sharding, s), 24) for s in shares]
  assert sorted(set(np.concatenate(rows))) == list(range(24))
  for own in rows:
    assert np.all(np.diff(own) > 0)
  if spec == P(("data", "fsdp")):
    # Nothing is read twice.
    assert sum(map(len, rows)) == 24
