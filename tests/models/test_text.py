import jax
import numpy as np
import pytest

from clip_jax import errors
from clip_jax.models import text

START, END = 49, 50
TOKENS = np.array(
  [
    [START, 3, 8, END, 0, 0, 0],
    [START, 0, 7, 7, 2, END, 0],  # Id 0 is also the word "!".
    [START, END, 0, 0, 0, 0, 0],
    [START, 9, END, 4, END, 0, 0],  # Nothing counts after the first end.
    [START, 1, 2, 3, 4, 5, END],
  ],
  np.int32,
)
WORDS = [[3, 8], [0, 7, 7, 2], [END], [9], [1, 2, 3, 4, 5]]


def make_transformer(**fields):
  return text.TextTransformer(
    context_length=7, vocab_size=51, width=12, depth=2, heads=3, **fields
  )


def test_bag_of_words_is_the_mean_embedding_of_the_captions_words(
  make_variables, apply
):
  tower = text.BagOfWords(context_length=7, vocab_size=51, width=6)
  variables = make_variables(tower, TOKENS, scale=0.02)
  table = np.asarray(variables["params"]["token_embedding"]["embedding"])
  want = [table[words].astype(np.float64).mean(axis=0) for words in WORDS]
  got = apply(tower, variables, TOKENS)
  # Means of at most five float32 numbers of order 0.02.
  np.testing.assert_allclose(got, want, atol=1e-8)


def test_bag_of_words_ignores_the_order_of_words(make_variables, apply):
  tower = text.BagOfWords(context_length=7, vocab_size=51, width=6)
  variables = make_variables(tower, TOKENS, scale=0.02)
  mixed = TOKENS[:, [0, 3, 1, 5, 2, 4, 6]][-1:]
  np.testing.assert_allclose(
    apply(tower, variables, mixed),
    apply(tower, variables, TOKENS[-1:]),
    atol=1e-8,
  )


def test_the_transformer_reads_the_first_end_of_text(make_variables, apply):
  tower = make_transformer()
  variables = make_variables(tower, TOKENS)
  _, state = apply(
    tower,
    variables,
    TOKENS,
    capture_intermediates=True,
    mutable=["intermediates"],
  )
  hidden = state["intermediates"]["encoder"]["__call__"][0]
  ends = [3, 5, 1, 2, 6]
  read = np.asarray(hidden[np.arange(5), ends], np.float64)
  norm = variables["params"]["ln_final"]
  centred = read - read.mean(axis=-1, keepdims=True)
  want = centred / np.sqrt(read.var(axis=-1, keepdims=True) + 1e-5)
  want = want * norm["scale"] + norm["bias"]
  # float32 against float64 on features of order one.
  np.testing.assert_allclose(apply(tower, variables, TOKENS), want, atol=1e-5)


def test_what_follows_the_end_of_text_does_not_matter(make_variables, apply):
  tower = make_transformer()
  variables = make_variables(tower, TOKENS)
  changed = TOKENS.copy()
  changed[0, 5], changed[2, 3:] = 17, 11
  want = apply(tower, variables, TOKENS)
  np.testing.assert_array_equal(apply(tower, variables, changed), want)
  # Shorter rows that hold the end are exact, but for the order of sums.
  np.testing.assert_allclose(
    apply(tower, variables, TOKENS[:4, :6]), want[:4], atol=1e-5
  )


@pytest.mark.parametrize(
  "tower",
  [
    make_transformer(),
    text.BagOfWords(context_length=7, vocab_size=51, width=6),
  ],
)
def test_rows_beyond_the_context_are_refused(tower):
  with pytest.raises(errors.UserError, match="at most 7"):
    tower.init(jax.random.key(0), np.zeros((2, 8), np.int32))
