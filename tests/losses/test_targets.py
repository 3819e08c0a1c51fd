"""Ids of texts: equal for equal tokens, and hardly ever for others."""

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax import losses
from clip_jax.packing import packed_text

LENGTH = 16


def test_equal_texts_have_equal_ids_and_others_have_not():
  rng = np.random.default_rng(0)
  # All pairs of two tokens at two places: as like as texts can be.
  tokens = np.zeros((2**14, LENGTH), np.int32)
  tokens[:, 3] = np.arange(2**14) % 128
  tokens[:, 7] = np.arange(2**14) // 128
  ids = np.asarray(losses.text_ids(tokens))
  assert ids.dtype == np.int32
  # 2**27 pairs of texts: 1/32 of a collision is to be expected.
  assert len(np.unique(ids)) == len(tokens)
  order = rng.permutation(len(tokens))
  assert (np.asarray(losses.text_ids(tokens[order])) == ids[order]).all()


def test_order_and_padding_count():
  tokens = np.array([[1, 2, 0, 0], [2, 1, 0, 0], [0, 0, 1, 2], [1, 2, 0, 1]])
  assert len(set(np.asarray(losses.text_ids(tokens)).tolist())) == 4


def test_each_bit_of_a_token_changes_half_of_the_ids_bits():
  rng = np.random.default_rng(1)
  tokens = rng.integers(0, 49_408, size=(2000, LENGTH), dtype=np.int32)
  ids = np.asarray(losses.text_ids(tokens)).view(np.uint32)
  for place in (0, LENGTH // 2, LENGTH - 1):
    for bit in (0, 7, 15):
      other = tokens.copy()
      other[:, place] ^= 1 << bit
      changed = ids ^ np.asarray(losses.text_ids(other)).view(np.uint32)
      share = np.unpackbits(changed[:, None].view(np.uint8), axis=1).mean(0)
      # 2,000 throws of a coin for each bit: 0.5 within 5 deviations of 0.011.
      assert (abs(share - 0.5) < 0.056).all()


def test_ids_are_made_on_the_device_inside_a_jitted_function():
  tokens = jnp.arange(12).reshape(3, 4)
  want = losses.text_ids(tokens)
  assert (jax.jit(losses.text_ids)(tokens) == want).all()


def test_packed_captions_have_ids_of_their_own():
  """Two rows: captions of 2, 3 and 2 tokens, then of 3 and 1."""
  tokens = [[5, 6, 7, 8, 9, 5, 6, 0], [7, 8, 9, 5, 0, 0, 0, 0]]
  positions = [[0, 1, 0, 1, 2, 0, 1, 0], [0, 1, 2, 0, 0, 0, 0, 0]]
  segments = [[1, 1, 2, 2, 2, 3, 3, 0], [1, 1, 1, 2, 0, 0, 0, 0]]
  packed = packed_text.PackedText(
    *(jnp.array(x, jnp.int32) for x in (tokens, segments, positions)),
    ends=jnp.array([1, 4, 6, 10, 11], jnp.int32),
  )
  ids = np.asarray(jax.jit(losses.text_ids)(packed)).tolist()
  assert ids[0] == ids[2] and ids[1] == ids[3]
  assert len(set(ids)) == 3
  # And those of captions that stand alone, without padding.
  assert ids[0] == losses.text_ids(jnp.array([[5, 6]]))[0]
