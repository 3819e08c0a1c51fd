import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import errors
from clip_jax.models import freezing

PARAMS = {
  "image": {
    "encoder": {"blocks": {"ln_1": {"scale": jnp.arange(12.0).reshape(4, 3)}}},
    "patch_kernel": jnp.ones((2, 5)),
  },
  "text": {"token_embedding": {"embedding": jnp.ones((7, 2))}},
  "log_scale": jnp.zeros(()),
}
LAST_TWO = r"^image/(?!encoder/blocks/[23]/)"


def _shapes(tree):
  return jax.tree.map(lambda x: x.shape, tree)


def test_a_locked_tower_is_left_out():
  assert _shapes(freezing.select(PARAMS, "^image/")) == {
    "text": {"token_embedding": {"embedding": (7, 2)}},
    "log_scale": (),
  }
  assert freezing.locked_towers(PARAMS, "^image/") == ("image",)
  assert freezing.locked_towers(PARAMS, LAST_TWO) == ()


@pytest.mark.parametrize(
  ("pattern", "layers"),
  [
    (LAST_TWO, [2, 3]),
    (r"encoder/blocks/[13]/", [0, 2]),
    (r"encoder/blocks/0/ln_1/scale$", [1, 2, 3]),
  ],
)
def test_layers_of_a_stack_are_frozen_one_by_one(pattern, layers):
  trained = freezing.select(PARAMS, pattern)
  stack = PARAMS["image"]["encoder"]["blocks"]["ln_1"]["scale"]
  part = trained["image"]["encoder"]["blocks"]["ln_1"]["scale"]
  np.testing.assert_array_equal(part, stack[np.array(layers)])
  moved = freezing.merge(
    PARAMS, jax.tree.map(lambda x: x + 100, trained), pattern
  )
  merged = moved["image"]["encoder"]["blocks"]["ln_1"]["scale"]
  want = np.array(stack)
  want[layers] += 100
  np.testing.assert_array_equal(merged, want)
  assert jax.tree.structure(moved) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize(
  ("pattern", "message"),
  [
    ("^imge/", "freezes no parameter"),
    (".", "freezes every parameter"),
    ("(", "not a valid regular expression"),
  ],
)
def test_a_useless_pattern_is_refused(pattern, message):
  with pytest.raises(errors.UserError, match=message):
    freezing.select(PARAMS, pattern)


def test_without_a_pattern_nothing_changes():
  assert freezing.select(PARAMS, "") is PARAMS
  assert freezing.locked_towers(PARAMS, "") == ()


@pytest.mark.parametrize(
  ("pattern", "locked"),
  [
    ("", ()),
    ("^image/", ("image/stem_1/norm", "image/stem_2/norm")),
    ("^image/stem_2/", ("image/stem_2/norm",)),
    ("^image/stem_1/norm/scale", ()),
    ("conv", ()),
  ],
)
def test_a_norm_is_locked_with_its_scale_and_bias(pattern, locked):
  norm = {"scale": jnp.ones(3), "bias": jnp.zeros(3)}
  stem = {"conv": {"kernel": jnp.ones((1, 1, 3, 3))}, "norm": norm}
  params = {"image": {"stem_1": stem, "stem_2": stem}, "text": {"w": norm}}
  mean = {"norm": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}
  stats = {"image": {"stem_1": mean, "stem_2": mean}}
  assert freezing.locked_norms(params, stats, pattern) == locked
  assert freezing.is_trained(params, "text/w/bias", pattern)
