import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import errors
from clip_jax.models import vit


def make_tower(**fields):
  fields = {"depth": 2, "heads": 3, "mlp_dim": 10, "width": 24} | fields
  return vit.VisionTransformer(image_size=8, patch_size=2, **fields)


def make_images(batch=3):
  rng = np.random.default_rng(0)
  return rng.standard_normal((batch, 8, 8, 3)).astype(np.float32)


def test_patches_are_the_convolution_with_the_same_kernel():
  images = make_images()
  kernel = np.random.default_rng(1).standard_normal((4, 4, 3, 5))
  kernel = kernel.astype(np.float32)
  want = jax.lax.conv_general_dilated(
    images, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  ).reshape(3, 4, 5)
  got = vit.patchify(jnp.asarray(images), 4) @ kernel.reshape(48, 5)
  # float32 sums of 48 terms.
  np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize(
  ("fields", "tokens"),
  [
    ({"pooling": "class"}, 17),
    ({"pooling": "gap", "class_token": False}, 16),
    ({"pooling": "gap", "registers": 2}, 17),
    ({"pooling": "map", "pre_norm": False, "patch_bias": True}, 17),
  ],
)
def test_every_pooling_gives_one_vector_that_depends_on_all_patches(
  fields, tokens, make_variables, apply
):
  tower, images = make_tower(**fields), make_images()
  variables = make_variables(tower, images)
  params = variables["params"]
  assert params["position_embedding"].shape == (tokens, 24)
  assert ("ln_pre" in params) == fields.get("pre_norm", True)
  assert ("patch_bias" in params) == fields.get("patch_bias", False)
  features = apply(tower, variables, images)
  assert features.shape == (3, 24)
  grads = jax.jit(
    jax.grad(lambda images: (tower.apply(variables, images) ** 3).sum())
  )(images)
  assert (np.abs(grads).reshape(3, 4, 2, 4, 6).max(axis=(2, 4)) > 0).all()


def test_mean_pooling_leaves_out_class_token_and_registers(
  make_variables, apply
):
  images = make_images()
  tower = make_tower(pooling="gap", registers=2, depth=1)
  variables = make_variables(tower, images)
  _, state = apply(
    tower,
    variables,
    images,
    capture_intermediates=True,
    mutable=["intermediates"],
  )
  normed = state["intermediates"]["ln_post"]["__call__"][0]
  assert normed.shape == (3, 19, 24)
  np.testing.assert_allclose(
    apply(tower, variables, images),
    np.asarray(normed[:, 3:], np.float64).mean(axis=1),
    atol=1e-6,
  )


def test_the_norm_may_follow_the_mean(make_variables, apply):
  images = make_images()
  tower = make_tower(pooling="gap", norm_after_pool=True, depth=1)
  variables = make_variables(tower, images)
  got, state = apply(
    tower,
    variables,
    images,
    capture_intermediates=True,
    mutable=["intermediates"],
  )
  encoded = state["intermediates"]["encoder"]["__call__"][0]
  mean = np.asarray(encoded[:, 1:], np.float64).mean(axis=1)
  centred = mean - mean.mean(axis=-1, keepdims=True)
  norm = variables["params"]["ln_post"]
  want = centred / np.sqrt(mean.var(axis=-1, keepdims=True) + 1e-5)
  want = want * norm["scale"] + norm["bias"]
  # float32 against float64 on features of order one.
  np.testing.assert_allclose(got, want, atol=1e-5)
  before = apply(make_tower(pooling="gap", depth=1), variables, images)
  assert np.abs(got - before).max() > 1e-2


def test_a_class_token_without_a_position_is_one_at_position_zero(
  make_variables, apply
):
  images = make_images()
  plain, bare = make_tower(), make_tower(class_position=False)
  variables = make_variables(bare, images)
  positions = variables["params"]["position_embedding"]
  assert positions.shape == (16, 24)
  padded = np.concatenate([np.zeros((1, 24), np.float32), positions])
  with_row = {"params": variables["params"] | {"position_embedding": padded}}
  np.testing.assert_array_equal(
    apply(bare, variables, images), apply(plain, with_row, images)
  )


def test_pixels_beyond_the_last_whole_patch_are_ignored(make_variables, apply):
  images = make_images()
  larger = np.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=9)
  tower = make_tower()
  variables = make_variables(tower, images)
  np.testing.assert_array_equal(
    apply(tower.clone(image_size=9, drop_edge=True), variables, larger),
    apply(tower, variables, images),
  )


def test_patch_dropout_keeps_the_class_token_and_acts_in_training_only(
  make_variables, apply
):
  images = make_images()
  tower = make_tower(patch_dropout=0.75)
  variables = make_variables(tower, images)

  def run(seed, train=True):
    return apply(
      tower,
      variables,
      images,
      train=train,
      rngs={"dropout": jax.random.key(seed)},
      capture_intermediates=True,
      mutable=["intermediates"],
    )

  features, state = run(1)
  tokens = state["intermediates"]["ln_pre"]["__call__"][0]
  assert tokens.shape == (3, 1 + 4, 24)
  plain, state = run(1, train=False)
  all_tokens = state["intermediates"]["ln_pre"]["__call__"][0]
  assert all_tokens.shape == (3, 1 + 16, 24)
  np.testing.assert_array_equal(tokens[:, 0], all_tokens[:, 0])
  for row, kept in zip(all_tokens, tokens, strict=True):
    distances = jnp.abs(kept[:, None] - row[None]).max(axis=-1)
    assert (distances.min(axis=1) < 1e-6).all()
  np.testing.assert_array_equal(features, run(1)[0])
  assert np.abs(features - run(2)[0]).max() > 1e-3
  # The same sums in another program.
  np.testing.assert_allclose(
    plain, apply(make_tower(), variables, images, train=True), atol=1e-5
  )


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"pooling": "mean"}, "Known: class, gap, map"),
    ({"class_token": False}, "try pooling='gap'"),
    ({"image_size": 9}, "try 8, or drop_edge=True"),
    ({"image_size": 1, "drop_edge": True}, "at least patch_size=2; try 2, or"),
    ({"norm_after_pool": True}, "needs pooling='gap', got 'class'"),
    ({"image_size": 16}, r"\(batch, 16, 16, 3\)"),
  ],
)
def test_sizes_and_names_that_do_not_fit_are_refused(fields, message):
  tower = make_tower().clone(**fields)
  with pytest.raises(errors.UserError, match=message):
    tower.init(jax.random.key(0), make_images())
