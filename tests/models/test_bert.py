import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import torch_names
from clip_jax import errors
from clip_jax.models import bert

PAD = 0
# Sizes differ pairwise, so that no swapped axis goes unseen.
FIELDS = {
  "context_length": 9,
  "vocab_size": 41,
  "width": 24,
  "depth": 2,
  "heads": 3,
  "mlp_dim": 40,
  "positions": 11,
  "token_types": 2,
}
# Both sides compute in float64; only the order of sums differs.
TOLERANCE = 1e-12


def make_tokens():
  rng = np.random.default_rng(3)
  tokens = rng.integers(1, 41, (6, 9)).astype(np.int32)
  for row, length in enumerate((9, 1, 4, 6, 8, 2)):
    tokens[row, length:] = PAD
  tokens[4, 3:5] = PAD  # Padding inside a row.
  return tokens


def torch_tensors(params):
  """Names and lays out our parameters as transformers' BertModel does."""
  tensors = {
    f"embeddings.{theirs}_embeddings.weight": params[ours]
    for theirs, ours in (
      ("position", "position_embedding"),
      ("token_type", "token_type_embedding"),
    )
  }
  words = params["token_embedding"]["embedding"]
  tensors["embeddings.word_embeddings.weight"] = words
  tensors |= torch_names.norm("embeddings.LayerNorm", params["ln_embed"])
  tensors |= torch_names.dense("pooler.dense", params["pooler"])
  for i in range(FIELDS["depth"]):
    block = jax.tree.map(lambda x, i=i: x[i], params["encoder"]["blocks"])
    layer, attention = f"encoder.layer.{i}", block["attention"]
    for name in ("query", "key", "value"):
      tensors |= torch_names.dense(
        f"{layer}.attention.self.{name}", attention[name]
      )
    output = f"{layer}.attention.output"
    tensors |= torch_names.dense(f"{output}.dense", attention["out"])
    tensors |= torch_names.norm(f"{output}.LayerNorm", block["ln_1"])
    mlp = block["mlp"]
    tensors |= torch_names.dense(f"{layer}.intermediate.dense", mlp["fc_in"])
    tensors |= torch_names.dense(f"{layer}.output.dense", mlp["fc_out"])
    tensors |= torch_names.norm(f"{layer}.output.LayerNorm", block["ln_2"])
  return {k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}


def want_features(params, tokens):
  """Returns the three poolings of transformers' BertModel in float64."""
  config = transformers.BertConfig(
    vocab_size=41,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=11,
    type_vocab_size=2,
  )
  # Eager attention would run its softmax in float32.
  model = transformers.BertModel._from_config(
    config, attn_implementation="sdpa"
  )
  model = model.double().eval()
  model.load_state_dict(torch_tensors(params), strict=True)
  ids = torch.from_numpy(tokens).long()
  mask = (ids != PAD).long()
  with torch.no_grad():
    output = model(input_ids=ids, attention_mask=mask)
  hidden, seen = output.last_hidden_state, mask[..., None]
  mean = (hidden * seen).sum(1) / seen.sum(1).clamp(min=1e-9)
  return {
    "mean": mean.numpy(),
    "cls": hidden[:, 0].numpy(),
    "pooler": output.pooler_output.numpy(),
  }


def get_features(params, tokens, **fields):
  with jax.enable_x64(True):
    types = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    tower = bert.Bert(**(FIELDS | types | fields))
    return np.asarray(
      jax.jit(lambda p, t: tower.apply({"params": p}, t))(params, tokens)
    )


@pytest.fixture
def params(make_variables):
  """Parameters of all poolings at once, no norm or bias at its start."""
  tower = bert.Bert(**FIELDS, pooling="pooler")
  return make_variables(tower, make_tokens(), dtype=np.float64)["params"]


def test_every_pooling_matches_transformers_in_float64(params):
  tokens = make_tokens()
  for pooling, want in want_features(params, tokens).items():
    got = get_features(params, tokens, pooling=pooling)
    assert got.shape == (6, 24)
    assert torch_names.relative_error(got, want) < TOLERANCE


def swap(params, one, other):
  """Swaps two of the attention's dense layers."""
  blocks = params["encoder"]["blocks"]
  attention = blocks["attention"]
  swapped = {**attention, one: attention[other], other: attention[one]}
  blocks = {**blocks, "attention": swapped}
  return {**params, "encoder": {"blocks": blocks}}


@pytest.mark.parametrize(
  ("change", "fields"),
  [
    (lambda params: swap(params, "query", "key"), {}),
    (lambda params: swap(params, "key", "value"), {}),
    (
      lambda params: (
        params | {"token_type_embedding": params["token_type_embedding"][::-1]}
      ),
      {},
    ),
    (None, {"norm_epsilon": 1e-6}),
    (None, {"activation": "gelu_tanh"}),
    (None, {"pooling": "cls"}),
    (None, {"pad_id": 40}),
  ],
)
def test_the_tolerance_sees_a_mistake(params, change, fields):
  tokens = make_tokens()
  want = want_features(params, tokens)["mean"]
  if change is not None:
    params = change(params)
  got = get_features(params, tokens, **fields)
  assert torch_names.relative_error(got, want) > 1e4 * TOLERANCE


def test_padding_changes_nothing(params):
  tokens = make_tokens()[1:4]
  whole = get_features(params, tokens)
  shorter = get_features(params, tokens[:, :6])
  np.testing.assert_allclose(shorter, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fields", [{"scan": False}, {"remat": "full"}])
def test_how_layers_run_does_not_change_the_features(params, fields):
  tokens = make_tokens()
  want = get_features(params, tokens)
  got = get_features(params, tokens, **fields)
  assert torch_names.relative_error(got, want) < TOLERANCE


def test_low_precision_stays_close(make_variables, apply):
  tower = bert.Bert(**FIELDS, dtype=jnp.bfloat16)
  tokens = make_tokens()
  variables = make_variables(tower, tokens)
  got = apply(tower, variables, tokens)
  assert got.dtype == jnp.bfloat16
  want = apply(bert.Bert(**FIELDS), variables, tokens)
  # bfloat16 keeps eight bits, over two layers.
  assert torch_names.relative_error(np.float32(got), want) < 0.1


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"pooling": "max"}, "Known: cls, mean, pooler"),
    ({"context_length": 12}, "try context_length=11"),
    ({"context_length": 8}, "at most 8"),
    ({"heads": 5}, "width=24 must be divisible by heads=5"),
  ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
  tower = bert.Bert(**(FIELDS | fields))
  with pytest.raises(errors.UserError, match=message):
    jax.eval_shape(tower.init, jax.random.key(0), make_tokens())
