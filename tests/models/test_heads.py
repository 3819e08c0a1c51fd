"""The heads' losses and scores equal slow loops of numpy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import errors
from clip_jax.models import captioner, heads, word_predictor

START, END, PAD = 10, 9, 0
LENGTH, FEATURES = 7, 5
# With a word twice, without any, with the padding's id as a word, cut.
CAPTIONS = np.array(
  [
    [START, 3, 4, 3, END, PAD, PAD],
    [START, END, PAD, PAD, PAD, PAD, PAD],
    [START, 0, 8, END, PAD, PAD, PAD],
    [START, 1, 2, 3, 5, 6, END],
  ],
  np.int32,
)
TOLERANCE = 1e-12  # Of float64, in sums of some dozen terms.


def _features(rows=4):
  return np.random.default_rng(2).normal(size=(rows, FEATURES))


def _own(caption, first=1):
  """Returns a caption's tokens from `first` on, with its end and without."""
  end = caption.tolist().index(END)
  return caption[first : end + 1].tolist(), caption[first:end].tolist()


def _log_softmax(x):
  x = x - x.max()
  return x - np.log(np.exp(x).sum())


@pytest.fixture(autouse=True)
def _x64():
  with jax.enable_x64(True):
    yield


@pytest.fixture
def words(make_variables):
  """A word predictor and its parameters."""
  module = word_predictor.WordPredictor(
    vocab_size=11, end_id=END, dtype=jnp.float64, param_dtype=jnp.float64
  )
  variables = make_variables(
    module, _features(), CAPTIONS, dtype=np.float64, scale=1.0
  )
  return module, variables


def _slow_word_losses(params, features, captions):
  """The cross-entropy against the uniform distribution, word by word."""
  found = []
  for x, caption in zip(features, captions, strict=True):
    log_p = _log_softmax(x @ params["kernel"] + params["bias"])
    own = sorted(set(_own(caption)[1])) or [END]
    found.append(-sum(log_p[word] / len(own) for word in own))
  return np.array(found)


def test_word_losses_equal_a_loop_over_words(words):
  module, variables = words
  got = module.apply(variables, _features(), CAPTIONS)
  assert got.dtype == jnp.float64
  want = _slow_word_losses(variables["params"], _features(), CAPTIONS)
  np.testing.assert_allclose(got, want, rtol=TOLERANCE)


def test_word_gradients_are_softmax_minus_target(words):
  module, variables = words
  features = _features()

  def loss(params):
    return module.apply({"params": params}, features, CAPTIONS).mean()

  got = jax.grad(loss)(variables["params"])
  kernel, bias = np.zeros((FEATURES, 11)), np.zeros(11)
  for x, caption in zip(features, CAPTIONS, strict=True):
    params = variables["params"]
    rest = np.exp(_log_softmax(x @ params["kernel"] + params["bias"]))
    own = sorted(set(_own(caption)[1])) or [END]
    for word in own:
      rest[word] -= 1 / len(own)
    kernel += np.outer(x, rest) / len(CAPTIONS)
    bias += rest / len(CAPTIONS)
  np.testing.assert_allclose(got["kernel"], kernel, atol=TOLERANCE)
  np.testing.assert_allclose(got["bias"], bias, atol=TOLERANCE)


def test_a_texts_score_is_the_mean_of_its_words(words):
  module, variables = words
  units, weights = module.units(CAPTIONS)
  assert units.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, END]
  features = _features(3)
  log_p = module.apply(variables, features, units, method="log_probabilities")
  got = np.zeros((3, len(CAPTIONS)))  # (images, texts)
  for unit, text, weight in zip(*weights, strict=True):
    got[:, text] += weight * np.asarray(log_p)[:, unit]
  for number, caption in enumerate(CAPTIONS):
    same = np.repeat(caption[None], 3, axis=0)
    want = -_slow_word_losses(variables["params"], features, same)
    np.testing.assert_allclose(got[:, number], want, rtol=TOLERANCE)


def _norm(x, params):
  x = x - x.mean()
  return x / np.sqrt((x**2).mean() + 1e-5) * params["scale"] + params["bias"]


def _layer(rows, params, heads):
  """A pre-norm block whose last row alone is wanted, then all rows below."""
  attention, found = params["attention"], []
  for at in range(len(rows)):
    seen = [_norm(row, params["ln_1"]) for row in rows[: at + 1]]
    total = rows[at] + attention["out"]["bias"]
    for head in range(heads):
      query, keys, values = (
        [
          x @ attention[name]["kernel"][:, head] + attention[name]["bias"][head]
          for x in of
        ]
        for name, of in (("query", seen[-1:]), ("key", seen), ("value", seen))
      )
      scores = [query[0] @ key / np.sqrt(len(key)) for key in keys]
      shares = np.exp(_log_softmax(np.array(scores)))
      mixed = sum(p * value for p, value in zip(shares, values, strict=True))
      total = total + mixed @ attention["out"]["kernel"][head]
    y = _norm(total, params["ln_2"]) @ params["mlp"]["fc_in"]["kernel"]
    y = y + params["mlp"]["fc_in"]["bias"]
    y = y / (1 + np.exp(-1.702 * y))
    y = y @ params["mlp"]["fc_out"]["kernel"] + params["mlp"]["fc_out"]["bias"]
    found.append(total + y)
  return found


def _slow_caption_losses(module, params, features, captions):
  """Sums of -log p over the tokens of captions, one caption at a time."""
  found = []
  for x, caption in zip(features, captions, strict=True):
    predicted, _ = _own(caption, module.first)
    prefix = x @ params["prefix"]["kernel"] + params["prefix"]["bias"]
    rows = list(prefix.reshape(captioner.PREFIX, module.width))
    for token in [*caption[: module.first].tolist(), *predicted[:-1]]:
      rows.append(params["token_embedding"][token])
    rows = [row + params["position_embedding"][i] for i, row in enumerate(rows)]
    for layer in range(module.depth):
      one = functools.partial(lambda x, layer: x[layer], layer=layer)
      blocks = jax.tree.map(one, params["encoder"]["blocks"])
      rows = _layer(rows, blocks, module.heads)
    total = 0.0
    for row, token in zip(rows[-len(predicted) :], predicted, strict=True):
      logits = _norm(row, params["ln_final"]) @ params["token_embedding"].T
      total -= _log_softmax(logits)[token]
    found.append(total)
  return np.array(found)


def _captioner(**fields):
  return captioner.Captioner(
    **{
      "vocab_size": 11,
      "context_length": LENGTH,
      "width": 6,
      "depth": 2,
      "heads": 2,
      "mlp_dim": 13,
      "end_id": END,
      "dtype": jnp.float64,
      "param_dtype": jnp.float64,
      **fields,
    }
  )


@pytest.mark.parametrize("first", [1, 0])
def test_caption_losses_equal_a_loop_over_tokens(make_variables, first):
  # Without a start token, the first one is predicted too.
  module = _captioner(first=first)
  variables = make_variables(
    module, _features(), CAPTIONS, dtype=np.float64, scale=0.5
  )
  got = module.apply(variables, _features(), CAPTIONS)
  params = variables["params"]
  want = _slow_caption_losses(module, params, _features(), CAPTIONS)
  counts = [len(_own(caption, first)[0]) for caption in CAPTIONS]
  np.testing.assert_allclose(got, want / counts, rtol=TOLERANCE)


@pytest.mark.slow
def test_caption_gradients_equal_finite_differences(make_variables):
  module = _captioner()
  variables = make_variables(
    module, _features(), CAPTIONS, dtype=np.float64, scale=0.5
  )
  params, rng, step = variables["params"], np.random.default_rng(4), 1e-5
  way = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
  counts = [len(_own(caption)[0]) for caption in CAPTIONS]

  def slow(sign):
    moved = jax.tree.map(lambda x, y: x + sign * step * y, params, way)
    sums = _slow_caption_losses(module, moved, _features(), CAPTIONS)
    return np.mean(sums / counts)

  def loss(params):
    return module.apply({"params": params}, _features(), CAPTIONS).mean()

  gradients = jax.grad(loss)(params)
  along = sum(
    float((g * y).sum())
    for g, y in zip(
      jax.tree.leaves(gradients), jax.tree.leaves(way), strict=True
    )
  )
  # Of a central difference the error is of the order of the step's square.
  np.testing.assert_allclose(
    along, (slow(1) - slow(-1)) / (2 * step), rtol=1e-7
  )


def test_a_captions_score_is_its_whole_log_probability(make_variables):
  module = _captioner()
  variables = make_variables(
    module, _features(), CAPTIONS, dtype=np.float64, scale=0.5
  )
  texts = CAPTIONS[:3]
  units, weights = module.units(texts)
  assert units.shape == (3, 5)  # Padding that all have is not computed.
  assert list(zip(*weights, strict=True)) == [(n, n, 1) for n in range(3)]
  features = _features(2)
  got = module.apply(variables, features, units, method="log_probabilities")
  for number, caption in enumerate(texts):
    same = np.repeat(caption[None], 2, axis=0)
    want = _slow_caption_losses(module, variables["params"], features, same)
    np.testing.assert_allclose(got[:, number], -want, rtol=TOLERANCE)


@pytest.mark.parametrize("keep", [False, True])
def test_logits_in_parts_give_the_same_losses_and_gradients(keep):
  rng = np.random.default_rng(5)
  x, table = rng.normal(size=(13, 4)), rng.normal(size=(11, 4))
  targets = rng.integers(0, 11, 13)
  weights = rng.normal(size=13)

  def total(x, table, **options):
    found = captioner.token_losses(x, table, targets, **options)
    return (found * weights).sum(), found

  def both(**options):
    return jax.grad(total, argnums=(0, 1), has_aux=True)(x, table, **options)

  want = [
    -_log_softmax(row @ table.T)[t] for row, t in zip(x, targets, strict=True)
  ]
  gradients, whole = both()
  parts_gradients, parts = both(most_logits=40, keep=keep)  # Three rows each.
  np.testing.assert_allclose(whole, want, rtol=TOLERANCE)
  np.testing.assert_allclose(parts, want, rtol=TOLERANCE)
  for got, wanted in zip(parts_gradients, gradients, strict=True):
    np.testing.assert_allclose(got, wanted, atol=TOLERANCE)


def test_logits_in_parts_sum_the_tables_gradient_in_float32():
  x = jnp.ones((512, 2), jnp.bfloat16)
  table = jnp.zeros((4, 2), jnp.bfloat16)
  targets = jnp.zeros(512, jnp.int32)

  def total(table):
    return captioner.token_losses(x, table, targets, most_logits=4).sum()

  # Every row adds 1/4 - 1 to its own class: 384, which 256 + 0.75 rounded to
  # bfloat16 never reaches.
  np.testing.assert_array_equal(
    jax.grad(total)(table).astype(np.float32)[0], [-384, -384]
  )


def test_a_captioner_is_made_like_the_text_tower():
  dtypes = {"dtype": jnp.float32, "param_dtype": jnp.float32}
  common = {"end_id": END, "first": 1, "dtypes": dtypes}
  cbow = {"kind": "cbow", "vocab_size": 11, "context_length": 7, "width": 128}
  made = heads.make("lm", cbow, depth=3, **common)
  assert (made.depth, made.heads, made.width) == (3, 2, 128)
  tower = {
    **cbow,
    "kind": "transformer",
    "depth": 5,
    "heads": 4,
    "remat": "full",
  }
  made = heads.make("lm", tower, **common)
  assert (made.depth, made.heads, made.remat) == (5, 4, "full")
  with pytest.raises(errors.UserError, match=r"objective\.depth=2"):
    heads.make("lm", cbow, **common)


@pytest.mark.parametrize("width, count", [(200, 2), (320, 5), (64, 1), (24, 1)])
def test_heads_divide_the_width(width, count):
  assert heads._heads(width) == count
