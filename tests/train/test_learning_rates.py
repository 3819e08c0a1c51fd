"""Towers and layers learn at rates of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import config as config_lib
from clip_jax.models import freezing, variants
from clip_jax.train import learning_rates, optim

PARAMS = {
  "image": {
    "patch_kernel": jnp.ones((2, 3)),
    "encoder": {"blocks": {"mlp": {"kernel": jnp.ones((3, 4, 2))}}},
    "ln_post": {"scale": jnp.ones(4)},
  },
  "text": {
    "token_embedding": {"embedding": jnp.ones((5, 4))},
    "encoder": {"blocks": {"ln_1": {"scale": jnp.ones((2, 4))}}},
  },
  "image_projection": {"kernel": jnp.ones((4, 4))},
  "log_scale": jnp.ones(()),
}


def _config(**changes):
  config = config_lib.default_config()
  config.optim.update({"warmup_steps": 0, "weight_decay": 0.0, **changes})
  return config


def test_layers_learn_slower_the_deeper_they_lie():
  found = learning_rates.factors(
    _config(layer_decay=0.5, text_lr_factor=3.0).optim, PARAMS
  )
  image, text = found["image"], found["text"]
  assert image["patch_kernel"] == 0.5**4
  np.testing.assert_array_equal(
    image["encoder"]["blocks"]["mlp"]["kernel"].ravel(), [0.125, 0.25, 0.5]
  )
  assert image["ln_post"]["scale"] == 1
  assert text["token_embedding"]["embedding"] == 3 * 0.5**3
  np.testing.assert_array_equal(
    text["encoder"]["blocks"]["ln_1"]["scale"].ravel(), [0.75, 1.5]
  )
  assert found["image_projection"]["kernel"] == found["log_scale"] == 1


@pytest.mark.parametrize("frozen", ["", "blocks/0/|patch"])
def test_updates_shrink_by_the_factors(frozen):
  """With Adam's first update, every entry moves by the learning rate."""
  changes = {"peak_lr": 0.1, "frozen": frozen, "clip_norm": 0.0}
  plain = optim.make_optimizer(
    _config(**changes).optim,
    precision="float32",
    total_steps=10**6,
    image_kind="vit",
  )
  slowed = optim.make_optimizer(
    _config(**changes, layer_decay=0.5, image_lr_factor=2.0).optim,
    precision="float32",
    total_steps=10**6,
    image_kind="vit",
  )
  gradients = plain_gradients = jax.tree.map(jnp.ones_like, PARAMS)
  if frozen:
    gradients = freezing.select(plain_gradients, frozen)
  want, _ = plain.update(gradients, plain.init(PARAMS), PARAMS)
  got, _ = slowed.update(gradients, slowed.init(PARAMS), PARAMS)
  ratio = jax.tree.map(lambda a, b: np.unique(a / b), got, want)
  layers = ratio["image"]["encoder"]["blocks"]["mlp"]["kernel"]
  wanted = [0.25, 0.5, 1.0][bool(frozen) :]
  np.testing.assert_allclose(layers, wanted, rtol=1e-6)
  np.testing.assert_allclose(ratio["image"]["ln_post"]["scale"], 2, rtol=1e-6)
  np.testing.assert_allclose(ratio["log_scale"], 1, rtol=1e-6)
  assert ("patch_kernel" in ratio["image"]) == (not frozen)


def test_every_tower_parameter_is_input_stack_or_top():
  """A name that no rule foresees would learn at the wrong rate."""
  model = variants.create_model("tiny-vit")
  params = variants.abstract_variables(model)["params"]
  found = learning_rates.factors(_config(layer_decay=0.5).optim, params)
  slowest = {}
  for path, factor in jax.tree_util.tree_leaves_with_path(found):
    names = [key.key for key in path]
    if names[0] in ("image", "text") and "encoder" not in names:
      slowest.setdefault(names[0], {})[names[1]] = float(np.min(factor))
  tops = [{p for p in tower if tower[p] == 1} for tower in slowest.values()]
  assert tops == [{"ln_post"}, {"ln_final"}]
  assert all(len(tower) > 1 for tower in slowest.values())
