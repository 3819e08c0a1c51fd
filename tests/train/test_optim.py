"""The optimizer follows the paper's recipe, checked against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from clip_jax import config as config_lib
from clip_jax import errors, names
from clip_jax.models import freezing, variants
from clip_jax.train import optim


def _config(**overrides):
  config = config_lib.default_config()
  config.optim.update(overrides)
  return config


def test_the_schedule_warms_up_and_falls_to_zero():
  schedule = optim.make_schedule(
    _config(peak_lr=0.5, warmup_steps=4).optim,
    precision="float32",
    total_steps=12,
  )
  rates = [float(schedule(step)) for step in range(13)]
  np.testing.assert_allclose(rates[:4], [0.125, 0.25, 0.375, 0.5], rtol=1e-6)
  np.testing.assert_allclose(rates[8], 0.25, rtol=1e-6)  # Half of the cosine.
  np.testing.assert_allclose(rates[12], 0, atol=1e-8)
  assert rates[3:] == sorted(rates[3:], reverse=True)


# Of peak 1, 4 updates of warm-up, 20 in all, the last 5 a cooldown; updates 2,
# 3, 4, 8, 14, 15, 17 and 20.
SCHEDULES = {
  "constant": [0.75, 1, 1, 1, 1, 1, 0.6, 0],
  "linear": [0.75, 1, 1, 0.75, 0.375, 0.3125, 0.6 * 0.1875, 0],
  "cosine": [
    *(0.75, 1, 1),
    *((1 + np.cos(np.pi * done / 16)) / 2 for done in (4, 10, 11)),
    *(0.6 * (1 + np.cos(np.pi * 13 / 16)) / 2, 0),
  ],
  "rsqrt": [
    *(0.75, 1, 1),
    *((1 + done / 8) ** -0.5 for done in (4, 10, 11)),
    *(0.6 * (1 + 13 / 8) ** -0.5, 0),
  ],
}


@pytest.mark.parametrize("name", names.SCHEDULES)
def test_a_schedule_goes_on_as_it_says(name):
  changes = {"rsqrt_steps": 8} if name == "rsqrt" else {}
  schedule = optim.make_schedule(
    _config(
      **(changes | {"schedule": name, "peak_lr": 1.0, "warmup_steps": 4}),
      cooldown_steps=5,
    ).optim,
    precision="float32",
    total_steps=20,
  )
  got = [float(schedule(step)) for step in (2, 3, 4, 8, 14, 15, 17, 20)]
  np.testing.assert_allclose(got, SCHEDULES[name], rtol=2e-6, atol=1e-7)


def test_every_schedule_has_its_function():
  assert tuple(optim.SCHEDULES) == names.SCHEDULES


def test_a_cooldown_longer_than_the_rest_of_the_run_is_refused():
  changed = _config(warmup_steps=4, cooldown_steps=7)
  with pytest.raises(errors.UserError, match=r"cooldown_steps=7.*at most 6"):
    optim.make_schedule(changed.optim, precision="float32", total_steps=10)


def test_a_field_of_another_schedule_is_refused():
  changed = _config(schedule="linear", rsqrt_steps=100)
  changed.data.train, changed.steps = "builtin:digits/train", 9
  with pytest.raises(errors.UserError, match="rsqrt_steps=100 has no effect"):
    config_lib.check(changed)


@pytest.mark.parametrize(
  "field",
  ["steps", "min_steps", "optim.rsqrt_steps", "optim.warmup_steps"],
)
def test_more_steps_than_can_be_counted_are_refused(field):
  changed = config_lib.default_config()
  changed.data.train, changed.steps = "builtin:digits/train", 9
  changed.update_from_flattened_dict({field: 2**31})
  with pytest.raises(errors.UserError, match=f"{field}=.* and 2147483647"):
    config_lib.check(changed)


def test_a_warm_up_longer_than_the_run_is_refused():
  with pytest.raises(errors.UserError, match=r"warmup_steps=2000.*600 steps"):
    optim.make_schedule(
      _config(warmup_steps=2000).optim, precision="float32", total_steps=600
    )


@pytest.mark.parametrize(
  ("steps", "warmup"), [(100_000, 2000), (600, 60), (9, 0)]
)
def test_a_warm_up_that_is_left_open_is_the_papers_or_a_tenth(steps, warmup):
  left_open = optim.make_schedule(
    _config().optim, precision="float32", total_steps=steps
  )
  given = optim.make_schedule(
    _config(warmup_steps=warmup).optim, precision="float32", total_steps=steps
  )
  for step in (0, warmup // 2, warmup, steps // 2):
    assert float(left_open(step)) == float(given(step))


@pytest.mark.parametrize("name", ["tiny-rn", "tiny-vit", "tiny-cbow"])
def test_weight_decay_acts_on_matrices_only(name):
  model = variants.create_model(name)
  images = jnp.zeros((1, 32, 32, 3), jnp.uint8)
  tokens = jnp.zeros((1, 16), jnp.int32)
  params = jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, tokens)["params"]
  )
  leaves = jax.tree_util.tree_leaves_with_path(optim.decays(params))
  free = {str(path[-1].key) for path, decays in leaves if not decays}
  decayed = {str(path[-1].key) for path, decays in leaves if decays}
  assert {"bias", "scale", "log_scale"} <= free
  assert "kernel" in decayed and "embedding" in decayed
  assert not free & decayed
  for path, shape in jax.tree_util.tree_leaves_with_path(params):
    if len(shape.shape) < 2:
      assert str(path[-1].key) in free, path


def test_an_update_equals_adamw_by_hand():
  config = _config(
    peak_lr=0.1, warmup_steps=0, weight_decay=0.3, beta1=0.8, clip_norm=1.0
  )
  tx = optim.make_optimizer(
    config.optim, precision=config.precision, total_steps=5, image_kind="vit"
  )
  params = {"kernel": jnp.array([[1.0, -2.0]]), "bias": jnp.array([3.0])}
  gradients = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([12.0])}
  updates, _ = tx.update(gradients, tx.init(params), params)
  clipped = {k: np.asarray(g) / 13 for k, g in gradients.items()}  # 5-12-13.
  # After one step the bias corrections undo the betas: m = g, v = g * g.
  adam = {k: g / (np.abs(g) + 1e-6) for k, g in clipped.items()}
  kernel = -0.1 * (adam["kernel"] + 0.3 * np.array([[1.0, -2.0]]))
  np.testing.assert_allclose(updates["kernel"], kernel, rtol=1e-5)
  np.testing.assert_allclose(updates["bias"], -0.1 * adam["bias"], rtol=1e-5)


@pytest.mark.parametrize(("kind", "beta2"), [("vit", 0.98), ("resnet", 0.999)])
def test_beta2_follows_the_image_tower_unless_set(kind, beta2):
  params = {"kernel": jnp.ones((1, 1))}

  def second_moment(config):
    tx = optim.make_optimizer(
      config.optim, precision=config.precision, total_steps=5, image_kind=kind
    )
    _, state = tx.update(params, tx.init(params), params)
    return float(state[1].nu["kernel"][0, 0])

  loose = {"warmup_steps": 0, "clip_norm": 0.0}
  np.testing.assert_allclose(
    second_moment(_config(**loose)), 1 - beta2, rtol=1e-4
  )
  np.testing.assert_allclose(
    second_moment(_config(beta2=0.5, **loose)), 0.5, rtol=1e-6
  )


PARAMS = {
  "image": {
    "encoder": {
      "blocks": {
        "attention": {
          "query": {"kernel": jnp.zeros((2, 6, 3, 4))},
          "out": {"kernel": jnp.zeros((2, 3, 4, 6))},
        },
        "ln_1": {"scale": jnp.ones((2, 6))},
      }
    }
  },
  "log_scale": jnp.zeros(()),
}


def _gradients(seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), PARAMS
  )


def _first_update(name, **changes):
  config = _config(
    name=name, peak_lr=0.1, warmup_steps=0, weight_decay=0.0, **changes
  )
  tx = optim.make_optimizer(
    config.optim,
    precision=config.precision,
    total_steps=10**6,
    image_kind="vit",
  )
  gradients = _gradients()
  updates, state = tx.update(gradients, tx.init(PARAMS), PARAMS)
  return gradients, updates, state


def test_lion_moves_by_signs():
  gradients, updates, _ = _first_update("lion", clip_norm=0.0)
  for g, u in zip(
    jax.tree.leaves(gradients), jax.tree.leaves(updates), strict=True
  ):
    np.testing.assert_allclose(u, -0.1 * np.sign(g), rtol=1e-6)


def test_muon_makes_the_matrices_of_each_layer_orthogonal():
  gradients, updates, _ = _first_update("muon", clip_norm=0.0)
  block = updates["image"]["encoder"]["blocks"]
  for x, shape in (
    (block["attention"]["query"]["kernel"], (6, 12)),
    (block["attention"]["out"]["kernel"], (12, 6)),
  ):
    assert np.abs(x[0] - x[1]).max() > 1e-3  # Layers by themselves.
    for layer in x:
      values = np.linalg.svd(np.reshape(layer, shape), compute_uv=False)
      # Newton-Schulz in five steps brings them near 1, not onto it.
      scaled = values / (0.1 * 0.2 * 12**0.5)
      assert scaled.min() > 0.6 and scaled.max() < 1.3
  # All else is Adam's: the first update is the sign.
  scale = block["ln_1"]["scale"]
  sign = np.sign(gradients["image"]["encoder"]["blocks"]["ln_1"]["scale"])
  np.testing.assert_allclose(scale, -0.1 * sign, rtol=1e-4)


def test_adafactor_keeps_rows_and_columns_only():
  params = {"kernel": jnp.zeros((256, 384))}
  config = _config(name="adafactor", warmup_steps=0)
  tx = optim.make_optimizer(
    config.optim, precision=config.precision, total_steps=9, image_kind="vit"
  )
  state = tx.init(params)
  wide = [x for x in jax.tree.leaves(state) if x.size > 1000]
  # The momentum alone is as large as the weights, in half the bytes.
  assert [(x.shape, x.dtype) for x in wide] == [((256, 384), jnp.bfloat16)]
  gradients = {"kernel": jnp.ones((256, 384))}
  updates, _ = tx.update(gradients, state, params)
  assert (updates["kernel"] < 0).all()


def test_adafactor_factors_the_kernels_of_a_real_model():
  model = variants.create_model("ViT-B-32")
  params = variants.abstract_variables(model)["params"]
  config = _config(name="adafactor")
  tx = optim.make_optimizer(
    config.optim, precision=config.precision, total_steps=9000, image_kind="vit"
  )
  state = jax.tree.leaves(jax.eval_shape(tx.init, params))
  moments = sum(x.size for x in state if x.dtype == jnp.float32)
  # The patches' kernel, of 32 pixels a side, and the biases stay whole.
  assert moments < 0.03 * sum(x.size for x in jax.tree.leaves(params))


def test_adafactor_clips_each_layer_by_itself():
  updates = {
    "image": {"encoder": {"blocks": {"x": jnp.array([[3.0, 4], [0.3, 0.4]])}}},
    "text": {"x": jnp.array([[3.0, 4], [0.3, 0.4]])},
  }
  clipped = optim._clip_layers(updates, None)
  layers = clipped["image"]["encoder"]["blocks"]["x"]
  np.testing.assert_allclose(layers[0], [1.2 / 2**0.5, 1.6 / 2**0.5], rtol=1e-6)
  np.testing.assert_array_equal(layers[1], jnp.array([0.3, 0.4]))
  text = np.square(clipped["text"]["x"])
  np.testing.assert_allclose(text.mean(), 1, rtol=1e-6)


def test_layers_of_a_resnet_have_no_rates_of_their_own():
  with pytest.raises(errors.UserError, match="is a ResNet"):
    optim.make_optimizer(
      _config(layer_decay=0.5).optim,
      precision="float32",
      total_steps=5000,
      image_kind="resnet",
    )


def test_an_unknown_optimizer_lists_the_known_ones():
  with pytest.raises(errors.UserError, match="Did you mean 'muon'"):
    optim.make_optimizer(
      _config(name="muo").optim,
      precision="float32",
      total_steps=5000,
      image_kind="vit",
    )


def test_the_learning_rate_is_as_precise_as_the_run():
  """30 updates in float64 equal PyTorch's AdamW under the same schedule."""
  config = _config(
    peak_lr=0.01, warmup_steps=7, weight_decay=0.3, clip_norm=0.0
  )
  config.precision = "float64"
  rng = np.random.default_rng(0)
  start = rng.standard_normal((4, 3))
  gradients = rng.standard_normal((30, 4, 3))
  theirs = torch.nn.Parameter(torch.tensor(start))
  adamw = torch.optim.AdamW(
    [theirs], lr=1.0, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.3
  )

  def rate(step):
    warmup = (step + 1) / 7
    return 0.01 * min(warmup, (1 + np.cos(np.pi * max(step - 7, 0) / 93)) / 2)

  with jax.enable_x64(True):
    tx = optim.make_optimizer(
      config.optim,
      precision=config.precision,
      total_steps=100,
      image_kind="vit",
    )
    params = {"kernel": jnp.asarray(start)}
    state = tx.init(params)
    for step, gradient in enumerate(gradients):
      updates, state = tx.update({"kernel": gradient}, state, params)
      params = {"kernel": params["kernel"] + updates["kernel"]}
      adamw.param_groups[0]["lr"] = rate(step)
      theirs.grad = torch.tensor(gradient)
      adamw.step()
  want = theirs.detach().numpy()
  # A rate in float32 is off by up to 6e-8, and the result by 4e-9.
  error = np.abs(np.asarray(params["kernel"]) - want) / np.abs(want).max()
  assert error.max() < 2e-15


def test_what_is_frozen_costs_no_optimizer_memory():
  params = {
    "image": {
      "encoder": {"blocks": {"ln_1": {"scale": jnp.ones((4, 3))}}},
      "patch_kernel": jnp.ones((2, 5)),
    },
    "text": {"token_embedding": {"embedding": jnp.ones((7, 2))}},
    "log_scale": jnp.zeros(()),
  }
  last_two = r"^image/(?!encoder/blocks/[23]/)"
  tx = optim.freeze(optax.adam(0.1), last_two)
  moments = optax.tree.get(tx.init(params), "mu")
  assert jax.tree.map(jnp.shape, moments) == {
    "image": {"encoder": {"blocks": {"ln_1": {"scale": (2, 3)}}}},
    "text": {"token_embedding": {"embedding": (7, 2)}},
    "log_scale": (),
  }
  trained = freezing.trained_count(params, last_two)
  assert trained == sum(x.size for x in jax.tree.leaves(moments)) == 21
  plain = optax.sgd(0.1)
  assert optim.freeze(plain, "") is plain
