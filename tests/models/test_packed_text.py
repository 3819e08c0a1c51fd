"""Packed captions have the features and gradients of one caption a row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import errors
from clip_jax.models import bert, text, variants
from clip_jax.packing import packed_text, placement

CONTEXT, VOCABULARY, EOS = 11, 60, 7
SIZES = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 12}
LAYERS = {"depth": 2, "heads": 3}
LENGTHS = np.array([3, 11, 2, 6, 1, 4, 5, 3, 7])
# Longer than the context, and with padding at the end of some rows.
ROW = 17
FLOAT64 = {"dtype": np.float64, "param_dtype": np.float64}
POOLINGS = {
  "argmax": {"pooling": "argmax"},
  "eos": {"pooling": "eos", "eos_id": EOS},
}


def _tokens(end):
  tokens = np.random.default_rng(0).integers(8, 50, (len(LENGTHS), CONTEXT))
  for row, length in zip(tokens, LENGTHS, strict=True):
    row[length - 1] = end
    row[length:] = 0
  return tokens.astype(np.int32)


def _pack(tokens, *, spare=1):
  placed = placement.place(LENGTHS, groups=1, length=ROW)
  fields = placed.pack(tokens, rows=placed.rows + spare)
  return packed_text.PackedText(**fields)


@functools.cache
def _case(pooling):
  """Returns a tower, its variables, tokens, and weights of its features."""
  fields = POOLINGS[pooling]
  tower = text.TextTransformer(**SIZES, **LAYERS, **fields)
  tokens = _tokens(EOS if pooling == "eos" else VOCABULARY - 1)
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(tower.init, jax.random.key(0), tokens)
  variables = jax.tree.map(
    lambda x: rng.normal(size=x.shape, scale=0.4).astype(np.float64), shapes
  )
  weights = rng.normal(size=(len(LENGTHS), SIZES["width"]))
  return tower.clone(**FLOAT64), variables, tokens, weights


@functools.partial(jax.jit, static_argnums=0)
def _value_and_gradient(tower, variables, tokens, weights):
  def value(variables):
    features = tower.apply(variables, tokens)
    # Not linear, so that gradients depend on the features too.
    return (jnp.sin(features) * weights).sum(), features

  gradient, features = jax.grad(value, has_aux=True)(variables)
  return features, gradient["params"]


def _difference(got, want):
  """Returns the worst relative difference, leaf by leaf."""
  pairs = list(zip(*map(jax.tree.leaves, (got, want)), strict=True))
  largest = max(abs(b).max() for _, b in pairs)

  def relative(a, b):
    # A key's bias moves no weight of the softmax: its gradient is rounding.
    scale = abs(b).max()
    return abs(a - b).max() / (scale if scale > 1e-10 * largest else largest)

  return max(relative(a, b) for a, b in pairs)


def test_features_and_gradients_are_those_of_one_caption_a_row():
  with jax.enable_x64(True):
    tower, variables, tokens, weights = _case("argmax")
    packed = _pack(tokens)
    assert packed.tokens.shape[0] < len(LENGTHS)
    want = _value_and_gradient(tower, variables, tokens, weights)
    got = _value_and_gradient(tower, variables, packed, weights)
    assert got[0].shape == want[0].shape
    assert set(got[1]) >= {"token_embedding", "position_embedding"}
    assert _difference(got[0], want[0]) < 1e-12
    assert _difference(got[1], want[1]) < 1e-12


def test_captions_that_end_at_a_token_of_their_own_pack_too(apply):
  with jax.enable_x64(True):
    tower, variables, tokens, _ = _case("eos")
    want, got = (apply(tower, variables, x) for x in (tokens, _pack(tokens)))
    assert _difference(got, want) < 1e-12


def _without_segments(packed):
  return packed.replace(segments=jnp.ones_like(packed.segments))


def _not_restarted(packed):
  positions = np.broadcast_to(np.arange(ROW), packed.positions.shape)
  return packed.replace(positions=np.minimum(positions, CONTEXT - 1))


def _shifted(packed):
  return packed.replace(ends=np.maximum(packed.ends - 1, 0))


def _one_segment_too_wide(packed):
  return packed.replace(segments=np.maximum(packed.segments - 1, 1))


@pytest.mark.parametrize(
  "mutate", [_without_segments, _not_restarted, _shifted, _one_segment_too_wide]
)
def test_every_part_of_packed_text_counts(mutate):
  with jax.enable_x64(True):
    tower, variables, tokens, weights = _case("argmax")
    packed = mutate(_pack(tokens))
    want = _value_and_gradient(tower, variables, tokens, weights)
    got = _value_and_gradient(tower, variables, packed, weights)
    assert _difference(got[0], want[0]) > 1e-3
    assert _difference(got[1], want[1]) > 1e-3


def test_the_whole_model_takes_packed_text(make_variables, apply):
  spec = variants.spec(
    "tiny-vit",
    {
      "image": {"depth": 1},
      "text": {
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "depth": 1,
      },
    },
  )
  model = variants.create_model(spec)
  tokens = _tokens(VOCABULARY - 1)
  size = model.image.image_size
  images = np.zeros((len(LENGTHS), size, size, 3), np.uint8)
  variables = make_variables(model, images, tokens)
  want, got = (
    apply(model, variables, x, method=model.encode_text)
    for x in (tokens, _pack(tokens))
  )
  # Unit vectors in float32; sums are taken in another order.
  np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize(
  "tower",
  [
    text.TextTransformer(**SIZES, **LAYERS, causal=False),
    text.TextTransformer(**SIZES, **LAYERS, pooling="last"),
    text.TextTransformer(**SIZES, **LAYERS, pooling="map"),
    text.BagOfWords(**SIZES),
    bert.Bert(**SIZES, **LAYERS, positions=CONTEXT),
  ],
)
def test_towers_that_need_rows_of_their_own_refuse_packed_text(tower):
  packed = _pack(_tokens(VOCABULARY - 1))
  with pytest.raises(errors.UserError, match="packed text"):
    tower.init(jax.random.key(0), packed)


@pytest.mark.parametrize(
  ("field", "shape"),
  [("segments", (8, ROW)), ("positions", (4, 9)), ("ends", (3, 3))],
)
def test_arrays_that_do_not_belong_together_are_refused(field, shape):
  packed = _pack(_tokens(VOCABULARY - 1))
  wrong = packed.replace(**{field: np.zeros(shape, np.int32)})
  with pytest.raises(errors.UserError, match="needs tokens, segments"):
    text.TextTransformer(**SIZES, **LAYERS).init(jax.random.key(0), wrong)
