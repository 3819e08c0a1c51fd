import jax
import numpy as np
import pytest

from clip_jax.models import bert, padding, text

LENGTH = 77
SIZES = {"context_length": LENGTH, "vocab_size": 60, "width": 12}
LAYERS = {"depth": 2, "heads": 3}
EXACT = {
  "argmax": text.TextTransformer(**SIZES, **LAYERS),
  "eos": text.TextTransformer(**SIZES, **LAYERS, pooling="eos", eos_id=7),
  "bag of words": text.BagOfWords(**SIZES),
  "bert": bert.Bert(**SIZES, **LAYERS, positions=LENGTH),
  "bert, first token": bert.Bert(
    **SIZES, **LAYERS, positions=LENGTH, pooling="cls"
  ),
}


def _tokens(end, ends=(3, 9, 14)):
  tokens = np.random.default_rng(0).integers(8, 50, (len(ends), LENGTH))
  for row, at in zip(tokens, ends, strict=True):
    row[at] = end
    row[at + 1 :] = 0
  return tokens.astype(np.int32)


@pytest.mark.parametrize("name", EXACT)
def test_short_rows_have_the_features_of_long_ones(name, make_variables):
  tower = EXACT[name]
  tokens = _tokens(end=7 if name == "eos" else 59)
  short = padding.shortened(tower, tokens)
  assert short.shape == (3, 16)
  with jax.enable_x64(True):
    tower = tower.clone(dtype=np.float64, param_dtype=np.float64)
    variables = make_variables(tower, tokens, dtype=np.float64)
    run = jax.jit(tower.apply)
    got, want = (run(variables, x) for x in (short, tokens))
    np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-13)
    # Not for want of a difference: one column less loses the longest text.
    cut = run(variables, tokens[:, :14])
    assert np.abs(np.asarray(cut - want))[2].max() > 1e-3


@pytest.mark.parametrize(
  ("ends", "length"), [((0,), 16), ((15,), 16), ((16,), 32), ((64,), 77)]
)
def test_rows_are_cut_to_few_lengths(ends, length):
  tokens = _tokens(59, ends)
  assert padding.shortened(EXACT["argmax"], tokens).shape[1] == length


@pytest.mark.parametrize(
  "fields", [{"causal": False}, {"pooling": "last"}, {"pooling": "map"}]
)
def test_towers_that_see_padding_keep_it(fields):
  tower = text.TextTransformer(**SIZES, **LAYERS, **fields)
  assert padding.shortened(tower, _tokens(59)).shape == (3, LENGTH)


def test_a_row_without_an_end_loses_nothing():
  tokens = np.full((1, LENGTH), 9, np.int32)
  assert padding.needed_length(EXACT["bert"], tokens) == LENGTH
  assert padding.needed_length(EXACT["eos"], tokens) == 1  # Read at position 0.
  assert padding.needed_length(EXACT["bert"], 0 * tokens) == 1
