"""The Pallas kernel makes of a tile what the lines beside it make."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from clip_jax import errors, losses, sharding
from clip_jax.losses import kernel, softmax, targets
from clip_jax.plan import topology


def make_tile(rows, columns, embed, dtype):
  rng = np.random.default_rng(0)
  sides = [rng.normal(size=(count, embed)) for count in (rows, columns)]
  sides = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in sides]
  own = [rng.uniform(-0.2, 0.5, size=count) for count in (rows, columns)]
  return [jnp.asarray(x, dtype) for x in sides], [
    jnp.asarray(x, jnp.float32) for x in own
  ]


@pytest.mark.parametrize(
  ("rows", "columns", "dtype"),
  [(512, 1024, jnp.bfloat16), (24, 40, jnp.float32), (5, 1536, jnp.float32)],
)
def test_the_kernel_equals_the_tile(rows, columns, dtype):
  sides, own = make_tile(rows, columns, 33, dtype)
  scale = jnp.float32(100)
  run = functools.partial(kernel.tile_statistics, interpret=True)
  got = jax.jit(run)(*sides, *own, scale)
  cosines = sides[0].astype(jnp.float32) @ sides[1].astype(jnp.float32).T
  nothing = targets.Relations(None, None)
  for axis, part in ((1, got[0]), (0, got[1])):
    above = scale * (cosines - jnp.expand_dims(own[1 - axis], axis))
    want = softmax._tile_totals(above, nothing, axis)
    np.testing.assert_allclose(part[0], want.largest, atol=2e-5)
    # Only together do they mean something: 1e-7 of a cosine at scale 100.
    np.testing.assert_allclose(
      part[0] + jnp.log(part[1]),
      want.largest + jnp.log(want.others),
      rtol=1e-6,
      atol=2e-5,
    )


def on_mesh(mesh, mode, *, method, check=True, tile=None):
  """Returns a function: loss, gradients of images and texts."""
  axes = sharding.BATCH_AXES

  def on_device(images, texts, scale):
    def loss(images, texts):
      return losses.local_loss("softmax")(
        images,
        texts,
        scale,
        axes=axes,
        method=method,
        kernel=mode,
        tile=tile or losses.Tile(),
      )

    return jax.value_and_grad(loss, argnums=(0, 1))(images, texts)

  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(P(axes), P(axes), P()),
    out_specs=(P(), (P(axes), P(axes))),
    check_vma=check,
  )


@pytest.mark.parametrize("method", ["ring", "two_level"])
def test_the_loss_by_the_kernel_is_the_loss(tools, method):
  mesh = sharding.make_mesh(data=2, fsdp=2, devices=jax.devices()[:4])
  arrays = *tools.make_pairs(0.5, dtype=np.float32), np.float32(14.3)
  run = on_mesh(
    mesh,
    "interpret",
    method=method,
    tile=losses.Tile(rows=3, columns=6),
    check=False,  # The interpreter cannot tell what varies over the mesh.
  )
  assert "pallas_call" in str(jax.make_jaxpr(run)(*arrays))
  loss, gradients = jax.jit(run)(*arrays)
  want, wanted = tools.dense("softmax", (*arrays, 0))
  assert tools.relative(loss, want) < 1e-6
  for got, gradient in zip(gradients, wanted[:2], strict=True):
    assert tools.relative(got, gradient) < 1e-5


def test_an_unknown_kernel_mode_names_the_known_ones(tools):
  arrays = tools.make_pairs(0.5)
  with pytest.raises(errors.UserError, match="Known: interpret, off, on"):
    losses.local_loss("softmax")(*arrays, 1.0, kernel="yes")


@pytest.mark.slow
def test_the_loss_by_the_kernel_compiles_for_a_tpu(tpu_compiler):
  devices = topology.make_topology("v5e:2x2").devices
  mesh = sharding.make_mesh(data=2, fsdp=2, devices=devices)
  split = sharding.batch_sharding(mesh)
  embeds = jax.ShapeDtypeStruct((4096, 768), jnp.bfloat16, sharding=split)
  scale = jax.ShapeDtypeStruct(
    (), jnp.float32, sharding=sharding.replicated(mesh)
  )
  run = jax.jit(on_mesh(mesh, "on", method="two_level"))
  text = run.lower(embeds, embeds, scale).compile().as_text()
  assert "tpu_custom_call" in text
