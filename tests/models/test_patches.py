"""Patches in the shared space, against one patch at a time by itself."""

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.models import clip, encoder, layers, resnet, vit

DTYPES = {"dtype": jnp.float32, "param_dtype": jnp.float32}
TOWER = {"depth": 2, "heads": 3, "mlp_dim": 10, "width": 24}


def make_images(batch=2, size=8):
  rng = np.random.default_rng(0)
  return rng.standard_normal((batch, size, size, 3)).astype(np.float32)


def tokens_and_params(tower, variables, images):
  """Returns what goes into the last block, its parameters and all others."""
  params = variables["params"]
  shallow = tower.clone(depth=tower.depth - 1, pooling="gap")
  blocks = params["encoder"]["blocks"]
  first = jax.tree.map(lambda x: x[:-1], blocks)
  # Without its norm, the mean over patches is that of the block's outputs.
  head = {k: v for k, v in params.items() if k not in ("encoder", "map_head")}
  _, seen = jax.jit(
    lambda params: shallow.apply(
      {"params": params},
      images,
      capture_intermediates=lambda module, _: module.name == "encoder",
      mutable=["intermediates"],
    )
  )({**head, "encoder": {"blocks": first}})
  x = seen["intermediates"]["encoder"]["__call__"][0]
  return x, jax.tree.map(lambda x: x[-1], blocks)


def test_patches_of_a_class_token_see_themselves_in_the_last_block(
  make_variables, apply
):
  tower = vit.VisionTransformer(
    image_size=8, patch_size=2, registers=2, scan=False, **TOWER
  )
  images = make_images()
  variables = make_variables(tower, images)
  got = apply(tower, variables, images, each_patch=True)
  assert got.shape == (2, 4, 4, 24)
  x, params = tokens_and_params(tower, variables, images)
  block = encoder.EncoderBlock(
    depth=2,
    heads=3,
    mlp_dim=10,
    activation="quick_gelu",
    causal=False,
    norm_epsilon=1e-5,
    post_norm=False,
    **DTYPES,
  )
  norm = layers.layer_norm(1e-5, name="norm", dtypes=DTYPES)
  # Behind the class token and the registers: each in a sequence of its own.
  want = apply(block, {"params": params}, x[:, 3:].reshape(-1, 1, 24))
  want = apply(norm, {"params": variables["params"]["ln_post"]}, want)
  # The same sums in another order.
  np.testing.assert_allclose(
    got, want.reshape(2, 4, 4, 24), rtol=1e-4, atol=1e-5
  )


def test_patches_are_the_same_where_the_blocks_are_watched(
  make_variables, apply
):
  for scan in (True, False):
    tower = vit.VisionTransformer(
      image_size=8, patch_size=4, registers=1, scan=scan, **TOWER
    )
    images = make_images()
    variables = make_variables(tower, images)
    want = apply(tower, variables, images, each_patch=True)
    got, seen = jax.jit(
      lambda variables, images, tower=tower: tower.apply(
        variables,
        images,
        each_patch=True,
        capture_intermediates=True,
        mutable=["intermediates"],
      )
    )(variables, images)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    (blocks,) = seen["intermediates"]["encoder"]["blocks"]["__call__"]
    assert jax.tree.leaves(blocks)[0].shape == (2, 2, 6, 24)
  again = jax.eval_shape(
    lambda images: tower.init(jax.random.key(0), images, each_patch=True),
    images,
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_equal(a.shape, b.shape),
    again,
    dict(variables),
  )


def test_the_mean_of_patches_is_what_mean_pooling_gives(make_variables, apply):
  tower = vit.VisionTransformer(
    image_size=9, patch_size=2, drop_edge=True, pooling="gap", **TOWER
  )
  images = make_images(size=9)
  variables = make_variables(tower, images)
  got = apply(tower, variables, images, each_patch=True)
  assert got.shape == (2, 4, 4, 24)
  want = apply(tower, variables, images)
  np.testing.assert_allclose(got.mean(axis=(1, 2)), want, rtol=1e-4, atol=1e-5)


def test_a_learned_query_sees_one_patch_at_a_time(make_variables, apply):
  head = layers.MapHead(heads=3, mlp_dim=10, **DTYPES)
  x = np.random.default_rng(1).standard_normal((2, 5, 24)).astype(np.float32)
  variables = make_variables(head, x)
  got = apply(head, variables, x, each=True)
  want = apply(head, variables, x.reshape(-1, 1, 24)).reshape(2, 5, 24)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_an_attention_pool_gives_its_projected_values(make_variables, apply):
  pool = resnet.AttentionPool(heads=2, out_dim=7, **DTYPES)
  x = np.random.default_rng(1).standard_normal((2, 2, 3, 8)).astype(np.float32)
  variables = make_variables(pool, x)
  got = apply(pool, variables, x, each=True)
  params = jax.tree.map(np.asarray, variables["params"])
  value, out = params["attention"]["value"], params["attention"]["out"]
  for row in range(2):
    for col in range(3):
      at = x[:, row, col] + params["position_embedding"][1 + 3 * row + col]
      values = np.einsum("bc,chd->bhd", at, value["kernel"]) + value["bias"]
      want = np.einsum("bhd,hdc->bc", values, out["kernel"]) + out["bias"]
      np.testing.assert_allclose(got[:, row, col], want, rtol=1e-4, atol=1e-5)


def test_patches_are_projected_as_images_are(make_variables, apply):
  image = vit.VisionTransformer(image_size=8, patch_size=2, **TOWER)
  module = clip.CLIP(
    image=image,
    text=image,
    embed_dim=6,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.2, 0.2, 0.2),
  )
  images = np.random.default_rng(2).integers(0, 256, (2, 8, 8, 3), np.uint8)
  variables = make_variables(module, images, method="encode_image")
  got = apply(module, variables, images, method="encode_patches")
  assert got.shape == (2, 4, 4, 6)
  np.testing.assert_allclose(np.linalg.norm(got, axis=-1), 1, rtol=1e-5)
  features = apply(
    image,
    {"params": variables["params"]["image"]},
    np.float32((images / 255 - 0.5) / 0.2),
    each_patch=True,
  )
  want = features @ variables["params"]["image_projection"]["kernel"]
  want = want / np.linalg.norm(want, axis=-1, keepdims=True)
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)
