"""How the logits are walked over: the ring's order, tiles and the policy."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from clip_jax import losses
from clip_jax.losses import methods, sweep

AXES = ("data", "fsdp")


@pytest.mark.parametrize(
  "sizes", [(1,), (8,), (2, 2), (16, 16), (3, 4), (4, 3), (5, 1), (2, 3, 5)]
)
def test_the_rings_neighbours_are_the_meshs(sizes):
  order = sweep.ring_order(sizes)
  places = list(itertools.product(*map(range, sizes)))
  assert sorted(order) == list(range(len(places)))
  path = [places[i] for i in order]
  closed = [*path, path[0]] if len(path) > 1 else path
  for one, other in itertools.pairwise(closed):
    steps = [
      min((a - b) % size, (b - a) % size)
      for a, b, size in zip(one, other, sizes, strict=True)
    ]
    assert sum(steps) == 1, f"{one} to {other}"


def test_a_ring_of_odd_sizes_still_meets_every_device():
  order = sweep.ring_order((3, 5))
  assert sorted(order) == list(range(15))


def chosen(data, fsdp, pairs, *, method="auto", embed=768, tile=None):
  """Returns the layout on a mesh of devices that are not here."""
  mesh = AbstractMesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)
  found = []

  def on_device(images):
    found.append(
      methods.choose(method, images, axes=AXES, tile=tile or methods.Tile())
    )
    return images

  run = jax.shard_map(on_device, mesh=mesh, in_specs=P(AXES), out_specs=P(AXES))
  jax.eval_shape(run, jax.ShapeDtypeStruct((pairs, embed), jnp.bfloat16))
  return found[0]


@pytest.mark.parametrize(
  ("data", "fsdp", "pairs", "ring_axes", "gather_axes"),
  [
    (1, 1, 1024, (), ()),
    (8, 1, 2048, (), ("data",)),  # Small: gathered.
    (4, 2, 2048, (), ("data", "fsdp")),
    (256, 1, 32_768, (), ("data",)),  # 256 steps for 128 pairs each.
    (16, 16, 32_768, ("data",), ("fsdp",)),
    (256, 1, 131_072, ("data",), ()),
    (1, 256, 131_072, ("fsdp",), ()),
    (16, 16, 1_048_576, ("data",), ("fsdp",)),
  ],
)
def test_the_policy_goes_by_size_and_mesh(
  data, fsdp, pairs, ring_axes, gather_axes
):
  found = chosen(data, fsdp, pairs)
  assert (found.ring_axes, found.gather_axes) == (ring_axes, gather_axes)


def test_one_device_with_many_pairs_takes_tiles():
  found = chosen(1, 1, 65_536)
  assert (found.ring_axes, found.gather_axes) == ((), ())
  assert (found.row_tiles, found.chunks) == (64, 32)


@pytest.mark.parametrize(
  ("method", "data", "fsdp", "ring_axes", "gather_axes"),
  [
    ("gathered", 4, 2, (), ("data", "fsdp")),
    ("ring", 4, 2, ("data", "fsdp"), ()),
    ("two_level", 4, 2, ("data",), ("fsdp",)),
    ("two_level", 4, 1, (), ("data",)),
    ("two_level", 1, 2, (), ("fsdp",)),
  ],
)
def test_each_method_has_its_axes(method, data, fsdp, ring_axes, gather_axes):
  found = chosen(data, fsdp, 64, method=method)
  assert (found.ring_axes, found.gather_axes) == (ring_axes, gather_axes)


@pytest.mark.parametrize("pairs", [1, 5, 1024, 1500, 4096])
def test_a_tile_is_never_larger_than_told(pairs):
  tile = losses.Tile(rows=300, columns=512)
  found = chosen(2, 4, 8 * pairs, method="two_level", tile=tile)
  rows = -(-pairs // found.row_tiles)
  columns = 4 * -(-pairs // found.chunks)
  assert rows <= tile.rows and columns <= tile.columns
  # And not much smaller than it must be.
  assert found.row_tiles - 1 < pairs / tile.rows
  assert found.chunks - 1 < 4 * pairs / tile.columns
