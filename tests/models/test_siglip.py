import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import torch_names
from clip_jax import errors
from clip_jax.models import clip, text, variants

# Sizes differ pairwise, so that no swapped axis goes unseen. Patches of 4 leave
# two of the 14 pixels over.
SPEC = {
  "embed_dim": 24,
  "image": {
    "kind": "vit",
    "image_size": 14,
    "patch_size": 4,
    "width": 24,
    "depth": 2,
    "heads": 3,
    "mlp_dim": 43,
    "activation": "gelu_tanh",
    "norm_epsilon": 1e-6,
    "pooling": "map",
    "class_token": False,
    "pre_norm": False,
    "patch_bias": True,
    "drop_edge": True,
  },
  "text": {
    "kind": "transformer",
    "context_length": 7,
    "vocab_size": 37,
    "width": 20,
    "depth": 3,
    "heads": 2,
    "mlp_dim": 28,
    "activation": "gelu_tanh",
    "norm_epsilon": 1e-6,
    "causal": False,
    "pooling": "last",
  },
  "image_projection": "none",
  "text_projection": "linear_bias",
  "init_logit_bias": -10.0,
}
# Both sides compute in float64; only the order of sums differs.
TOLERANCE = 1e-12


def head_tensors(prefix, head):
  attention = head["attention"]
  tensors = {f"{prefix}.probe": head["probe"]}
  parts = [
    torch_names.dense("", attention[name]) for name in ("query", "key", "value")
  ]
  for kind in ("weight", "bias"):
    tensors[f"{prefix}.attention.in_proj_{kind}"] = np.concatenate(
      [part[f".{kind}"] for part in parts]
    )
  tensors |= torch_names.dense(f"{prefix}.attention.out_proj", attention["out"])
  tensors |= torch_names.norm(f"{prefix}.layernorm", head["ln"])
  tensors |= torch_names.dense(f"{prefix}.mlp.fc1", head["mlp"]["fc_in"])
  return tensors | torch_names.dense(f"{prefix}.mlp.fc2", head["mlp"]["fc_out"])


def torch_tensors(params):
  """Names and lays out our parameters as transformers' SiglipModel does."""
  image, words = params["image"], params["text"]
  tensors = {
    "logit_scale": params["log_scale"].reshape(1),
    "logit_bias": params["logit_bias"].reshape(1),
    "vision_model.embeddings.patch_embedding.weight": image[
      "patch_kernel"
    ].transpose(3, 2, 0, 1),
    "vision_model.embeddings.patch_embedding.bias": image["patch_bias"],
    "vision_model.embeddings.position_embedding.weight": image[
      "position_embedding"
    ],
    "text_model.embeddings.token_embedding.weight": words["token_embedding"][
      "embedding"
    ],
    "text_model.embeddings.position_embedding.weight": words[
      "position_embedding"
    ],
  }
  tensors |= torch_names.encoder("vision_model", image["encoder"]["blocks"])
  tensors |= torch_names.encoder("text_model", words["encoder"]["blocks"])
  tensors |= torch_names.norm("vision_model.post_layernorm", image["ln_post"])
  tensors |= torch_names.norm("text_model.final_layer_norm", words["ln_final"])
  tensors |= head_tensors("vision_model.head", image["map_head"])
  tensors |= torch_names.dense("text_model.head", params["text_projection"])
  return {k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}


def torch_model(params):
  config = transformers.SiglipConfig(
    vision_config=torch_names.tower_config(
      SPEC["image"], image_size=14, patch_size=4
    ),
    text_config=torch_names.tower_config(
      SPEC["text"],
      vocab_size=37,
      max_position_embeddings=7,
      projection_size=24,
      # The defaults lie outside of this vocabulary.
      pad_token_id=1,
      bos_token_id=2,
      eos_token_id=3,
    ),
  )
  model = transformers.SiglipModel._from_config(
    config, attn_implementation="sdpa"
  )
  model = model.double().eval()
  model.load_state_dict(torch_tensors(params), strict=True)
  return model


def make_inputs():
  rng = np.random.default_rng(3)
  images = rng.standard_normal((4, 14, 14, 3))
  tokens = rng.integers(2, 37, (5, 7)).astype(np.int32)
  for row, length in enumerate((1, 6, 3, 7, 2)):
    tokens[row, length:] = 1
  return images, tokens


@pytest.fixture
def params(make_variables):
  images, tokens = make_inputs()
  params = make_variables(
    variants.create_model(SPEC), jnp.float32(images), tokens, dtype=np.float64
  )["params"]
  params["log_scale"] = np.array(4.76)  # 117, above CLIP's bound.
  params["logit_bias"] = np.array(-12.9)
  return params


def get_output(params, change=None) -> clip.ClipOutput:
  with jax.enable_x64(True):
    model = variants.create_model(
      SPEC, overrides=change, dtype=jnp.float64, param_dtype=jnp.float64
    )
    output = jax.jit(model.apply)({"params": params}, *make_inputs())
    return jax.tree.map(np.asarray, output)


def want_output(params):
  images, tokens = make_inputs()
  pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  with torch.no_grad():
    return torch_model(params)(
      pixel_values=pixels, input_ids=torch.from_numpy(tokens).long()
    )


def relative_error(got, want):
  return torch_names.relative_error(got, want.numpy())


def logits(output):
  cosines = output.image_embeds @ output.text_embeds.T
  return output.logit_scale * cosines + output.logit_bias


def test_the_model_matches_transformers_in_float64(params):
  got, want = get_output(params), want_output(params)
  assert got.image_embeds.dtype == np.float64
  assert relative_error(got.image_embeds, want.image_embeds) < TOLERANCE
  assert relative_error(got.text_embeds, want.text_embeds) < TOLERANCE
  assert relative_error(logits(got), want.logits_per_image) < TOLERANCE


def swap(params, tower, path, one, other):
  """Swaps two of an attention's dense layers."""
  params = jax.tree.map(lambda leaf: leaf, params)  # A copy of the dicts.
  node = params[tower]
  for name in path:
    node = node[name]
  node[one], node[other] = node[other], node[one]
  return params


BLOCKS = ("encoder", "blocks", "attention")


@pytest.mark.parametrize(
  "change",
  [
    lambda p: (swap(p, "image", BLOCKS, "query", "key"), {}),
    lambda p: (swap(p, "text", BLOCKS, "key", "value"), {}),
    lambda p: (
      swap(p, "image", ("map_head", "attention"), "query", "key"),
      {},
    ),
    lambda p: (p, {"image": {"norm_epsilon": 1e-5}}),
    lambda p: (p, {"text": {"norm_epsilon": 1e-5}}),
    lambda p: (p, {"image": {"activation": "gelu"}}),
    lambda p: (p, {"text": {"activation": "gelu"}}),
    lambda p: (p, {"image": {"pooling": "gap"}}),
    lambda p: (p, {"text": {"pooling": "argmax"}}),
    lambda p: (p, {"text": {"causal": True}}),
    lambda p: (p, {"embed_norm": "l2_rsqrt_1e-6"}),
    lambda p: ({**p, "logit_bias": -p["logit_bias"]}, {}),
  ],
)
def test_the_tolerance_sees_a_mistake(params, change):
  got = get_output(*change(params))
  want = want_output(params).logits_per_image
  assert relative_error(logits(got), want) > 1e3 * TOLERANCE


def make_tower(**fields):
  fields = {"causal": False, "pooling": "last"} | fields
  return text.TextTransformer(
    context_length=7, vocab_size=37, width=12, depth=1, heads=3, **fields
  )


def features(tower, variables, tokens):
  return np.asarray(jax.jit(tower.apply)(variables, tokens))


def test_a_text_pooled_by_a_learned_query_depends_on_all_of_it(make_variables):
  tokens = make_inputs()[1]
  tower = make_tower(pooling="map")
  variables = make_variables(tower, tokens)
  assert "map_head" in variables["params"]
  before = features(tower, variables, tokens)
  assert before.shape == (5, 12)
  for position in range(7):
    changed = tokens.copy()
    changed[:, position] = (changed[:, position] + 1) % 37
    after = features(tower, variables, changed)
    assert (np.abs(after - before).max(axis=1) > 1e-4).all()


def test_the_first_end_token_is_read_wherever_a_larger_id_stands(
  make_variables,
):
  tokens = np.array([[30, 5, 4, 9, 4, 1, 1], [36, 4, 1, 1, 1, 1, 1]], np.int32)
  tower = make_tower(causal=True, pooling="eos", eos_id=4)
  variables = make_variables(tower, tokens)
  got = features(tower, variables, tokens)
  # The same, told to look for the largest id, where that is the end token.
  largest = make_tower(causal=True, pooling="argmax")
  table = variables["params"]["token_embedding"]["embedding"]
  assert np.abs(features(largest, variables, tokens) - got).max() > 1e-3
  order = np.r_[0:4, 36, 5:36, 4]  # Ids 4 and 36 change places.
  variables["params"]["token_embedding"]["embedding"] = table[order]
  np.testing.assert_array_equal(
    features(largest, variables, order[tokens].astype(np.int32)), got
  )
  # A row without any is read at its start, as transformers reads it.
  without = np.array([[30, 5, 6, 9, 7, 1, 1]], np.int32)
  np.testing.assert_array_equal(text.first_positions(without, 4), [0])


@pytest.mark.parametrize(
  "fields", [{"pooling": "argmax"}, {"causal": True}, {"pooling": "map"}]
)
def test_towers_that_see_padding_refuse_shorter_rows(fields):
  tower = make_tower(**fields)
  with pytest.raises(errors.UserError, match="padded to the whole context"):
    jax.eval_shape(tower.init, jax.random.key(0), make_inputs()[1][:, :6])
