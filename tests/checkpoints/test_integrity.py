"""Digests see any change, and shapes are read back."""

import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.checkpoints import integrity


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_a_digest_sees_any_bit_and_any_swap(dtype):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.integers(0, 99, size=(5, 7)), dtype)
  plain = integrity.digests({"x": x})
  assert plain == integrity.digests({"x": x + 0})
  assert plain != integrity.digests({"x": x.at[3, 2].add(1)})
  swapped = x.at[0, 0].set(x[4, 6]).at[4, 6].set(x[0, 0])
  assert (x[0, 0] != x[4, 6]) and plain != integrity.digests({"x": swapped})


@pytest.mark.parametrize(
  "dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "int16"]
)
@pytest.mark.parametrize("shape", [(), (0, 3), (5, 7)])
def test_a_digest_on_the_host_is_that_of_the_devices(dtype, shape, monkeypatch):
  monkeypatch.setattr(integrity, "_WORDS_AT_ONCE", 16)
  x = np.random.default_rng(0).integers(0, 99, size=shape)
  x = np.asarray(jnp.asarray(x, dtype))
  want = np.asarray(integrity._digest_tree({"x": x})["x"]).tolist()
  assert integrity.digests({"x": x}) == {"x": want}


def test_shapes_are_read_back_from_their_words():
  tree = {"a": {"b": np.zeros((3, 5), np.int8), "c": np.float32(0)}}
  tree["d"] = np.zeros(4, jnp.bfloat16)
  back = integrity.abstract(integrity.shapes(tree))
  assert integrity.shapes(back) == integrity.shapes(tree)
  assert back["a"].keys() == {"b", "c"}
