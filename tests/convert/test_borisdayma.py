"""borisdayma/clip-jax, written by Orbax as its trainer writes it."""

import contextlib
import copy
import json
import random

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from clip_jax import convert, errors
from clip_jax.convert.formats import borisdayma
from clip_jax.convert.source_reading import SourceReading

BAR = 1e-12  # Float64 against float64.
SHARED = {
  "activations": ["gelu"],
  "ln_type": "preln",
  "use_rmsnorm": False,
  "use_bias": True,
  "force_scale": True,
  "normalize_qk": False,
  "position_embedding_type": "learnt",
  "unroll": 100,
  "gradient_checkpointing": True,
  "dtype": "float32",
}
# No two sizes that could be swapped are the same.
CONFIG = {
  "text_config": {
    **SHARED,
    "vocab_size": 37,
    "hidden_size": 16,
    "max_length": 7,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_dim": 28,
    "use_causal_mask": True,
    "is_decoder": False,
    "pool_type": "eos",
    "eos_token_id": 3,
    "bos_token_id": 1,
    "pad_token_id": 2,
  },
  "vision_config": {
    **SHARED,
    "hidden_size": 24,
    "image_size": 20,
    "patch_size": 5,
    "num_layers": 3,
    "num_heads": 3,
    "mlp_dim": 40,
    "use_causal_mask": False,
    "pool_type": "tok",
    "position_embedding_shape": [4, 4],
    "position_embedding_factorized": False,
    "registers": 2,
    "keep_registers": False,
  },
  "projection_dim": 26,
  "logit_scale_init_value": 2.3,
  "logit_bias_init_value": -10.0,
  "dtype": "float32",
}


def _config(*, text=(), vision=()):
  return {
    **CONFIG,
    "text_config": {**CONFIG["text_config"], **dict(text)},
    "vision_config": {**CONFIG["vision_config"], **dict(vision)},
  }


def _attention(width, heads):
  inner = (heads, width // heads)
  shapes = {"out": {"kernel": (*inner, width), "bias": (width,)}}
  for part in ("query", "key", "value"):
    shapes[part] = {"kernel": (width, *inner), "bias": inner}
  return shapes


def _mlp(width, mlp):
  return {
    "pre_mlp_norm": {"scale": (width,), "bias": (width,)},
    "wi": {"kernel": (width, mlp), "bias": (mlp,)},
    "wo": {"kernel": (mlp, width), "bias": (width,)},
  }


def _tower(config):
  width = config["hidden_size"]
  layers = {
    "attention": _attention(width, config["num_heads"]),
    "mlp": _mlp(width, config["mlp_dim"]),
    "pre_attention_norm": {"scale": (width,), "bias": (width,)},
  }
  stacked = jax.tree.map(
    lambda shape: (config["num_layers"], *shape),
    layers,
    is_leaf=lambda x: isinstance(x, tuple),
  )
  return {
    "encoder": {"layers": stacked},
    "final_norm": {"scale": (width,), "bias": (width,)},
  }


def _params(config, seed=0, dtype=np.float32):
  text, vision = config["text_config"], config["vision_config"]
  width, patch = vision["hidden_size"], vision["patch_size"]
  side = vision["image_size"] // patch
  embeddings = {
    "patch_embeds": {"kernel": (patch, patch, 3, width), "bias": (width,)},
    "position_embeds": (1, side * side, width),
  }
  if vision["pool_type"] == "tok":
    embeddings["cls_token"] = (1, 1, width)
  if vision["registers"]:
    embeddings["registers"] = (1, vision["registers"], width)
  shapes = {
    "text": _tower(text),
    "vision": {**_tower(vision), "embeddings": embeddings},
    "logit_scale": (1,),
    "logit_bias": (1,),
  }
  shapes["text"]["embeddings"] = {
    "embeddings": {"embedding": (text["vocab_size"], text["hidden_size"])},
    "position_embeds": (1, text["max_length"], text["hidden_size"]),
  }
  if vision["pool_type"] == "map":
    shapes["vision"]["MAPHead_0"] = {
      "probe": (1, 1, width),
      "attention": _attention(width, vision["num_heads"]),
      "mlp": _mlp(width, vision["mlp_dim"]),
    }
  if text["hidden_size"] != width:
    for name, size in (("text", text["hidden_size"]), ("vision", width)):
      shapes[f"{name}_projection"] = {"kernel": (size, 26)}
  rng = np.random.default_rng(seed)

  def draw(path, shape):
    x = rng.standard_normal(shape)
    name = path[-1].key
    if name == "scale":
      x = 1 + 0.1 * x
    elif name == "bias":
      x = 0.1 * x
    elif name == "kernel":
      x = x * 3 * shape["layers" in jax.tree_util.keystr(path)] ** -0.5
    return x.astype(dtype)

  return jax.tree_util.tree_map_with_path(
    draw, shapes, is_leaf=lambda x: isinstance(x, tuple)
  )


def _save(path, config, params, *, steps=(5,)):
  """As the trainer does: parameters in flax's boxes, beside the optimizer's."""

  def box(x):
    return nn.LogicallyPartitioned(x, (None,) * x.ndim)

  manager = ocp.CheckpointManager(path, ocp.PyTreeCheckpointer())
  for step in steps:
    state = {
      "params": jax.tree.map(box, params),
      "opt_state": {"0": {"mu": jax.tree.map(box, params)}},
      "step": np.int32(step),
    }
    manager.save(step, state)
  manager.wait_until_finished()
  manager.close()
  (path / "config.json").write_text(json.dumps(config))
  return path


def _run(config, params, images, tokens):
  """The codebase's forward pass, of flax's own modules."""
  text, vision = config["text_config"], config["vision_config"]

  def norm(p, x):
    return nn.LayerNorm(use_fast_variance=False).apply({"params": p}, x)

  def attend(p, heads, query, memory, mask=None):
    module = nn.MultiHeadDotProductAttention(heads)
    return module.apply({"params": p}, query, memory, mask=mask)

  def mlp(p, x):
    x = norm(p["pre_mlp_norm"], x)
    x = nn.gelu(x @ p["wi"]["kernel"] + p["wi"]["bias"])
    return x @ p["wo"]["kernel"] + p["wo"]["bias"]

  def encode(p, part, x, mask=None):
    for i in range(part["num_layers"]):
      layer = jax.tree.map(lambda a, i=i: a[i], p["encoder"]["layers"])
      y = norm(layer["pre_attention_norm"], x)
      x = x + attend(layer["attention"], part["num_heads"], y, y, mask)
      x = x + mlp(layer["mlp"], x)
    return x

  def unit(x):
    return x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-6)

  p, e = params["vision"], params["vision"]["embeddings"]
  patch = vision["patch_size"]
  x = nn.Conv(
    vision["hidden_size"], (patch, patch), (patch, patch), padding="VALID"
  ).apply({"params": e["patch_embeds"]}, images)
  x = x.reshape(len(x), -1, x.shape[-1]) + e["position_embeds"]
  b = len(x)
  if "cls_token" in e:
    x = jnp.concatenate([jnp.tile(e["cls_token"], (b, 1, 1)), x], axis=1)
  if "registers" in e:  # At the end, and gone again before the last norm.
    x = jnp.concatenate([x, jnp.tile(e["registers"], (b, 1, 1))], axis=1)
  x = encode(p, vision, x)
  x = norm(p["final_norm"], x[:, : x.shape[1] - vision["registers"]])
  if vision["pool_type"] == "tok":
    x = x[:, 0]
  elif vision["pool_type"] == "gap":
    x = x.mean(axis=1)
  else:
    head = p["MAPHead_0"]
    probe = jnp.tile(head["probe"], (b, 1, 1))
    y = attend(head["attention"], vision["num_heads"], probe, x)
    x = (y + mlp(head["mlp"], y))[:, 0]
  p = params["text"]
  y = p["embeddings"]["embeddings"]["embedding"][tokens]
  y = y + p["embeddings"]["position_embeds"]
  seen = np.cumsum(tokens == text["eos_token_id"], axis=1)
  seen = (seen == 0) | (tokens == text["eos_token_id"]) & (seen == 1)
  mask = nn.combine_masks(
    nn.make_attention_mask(seen, seen), nn.make_causal_mask(tokens)
  )
  y = norm(p["final_norm"], encode(p, text, y, mask))
  at = (tokens == text["eos_token_id"]).argmax(1)
  y = y[np.arange(len(y)), at]
  if "text_projection" in params:
    x = x @ params["vision_projection"]["kernel"]
    y = y @ params["text_projection"]["kernel"]
  return unit(x), unit(y)


def _inputs():
  rng = np.random.default_rng(1)
  images = rng.normal(size=(3, 20, 20, 3))
  tokens = rng.integers(4, 37, size=(3, 7))
  for row, end in enumerate((1, 4, 6)):  # An early, a late and the last end.
    tokens[row, end] = 3
    tokens[row, end + 1 :] = 2
  return images, tokens


VARIANTS = {
  "class token and registers": {},
  "mean": {"vision": {"pool_type": "gap"}},
  "attention pool": {"vision": {"pool_type": "map", "registers": 0}},
  "no projection": {"text": {"hidden_size": 24}},
}


@pytest.mark.parametrize(
  "variant",
  [
    "class token and registers",
    *(pytest.param(x, marks=pytest.mark.slow) for x in list(VARIANTS)[1:]),
  ],
)
def test_a_checkpoint_computes_what_flaxs_modules_do(
  outputs, difference, tmp_path, variant
):
  config = _config(**VARIANTS[variant])
  params = _params(config)
  model = convert.open_model(_save(tmp_path / "a", config, params))
  wide = jax.tree.map(lambda x: x.astype(np.float64), params)
  images, tokens = _inputs()
  with jax.enable_x64(True):
    want = jax.jit(lambda params: _run(config, params, images, tokens))(wide)
  got = outputs(model, images, tokens)
  for ours, theirs in zip(got, want, strict=False):
    assert difference(ours, theirs) < BAR


@pytest.mark.parametrize(
  ("variant", "dtype"),
  [*((name, "float32") for name in VARIANTS), ("mean", "bfloat16")],
)
def test_every_parameter_is_read_as_it_was_saved(tmp_path, variant, dtype):
  config = _config(**VARIANTS[variant])
  params = _params(config, dtype=np.dtype(dtype))
  path = _save(tmp_path / "a", config, params)
  convert.convert(path, tmp_path / "ours", to="clip-jax")
  model = convert.open_model(tmp_path / "ours")
  leaves = jax.tree.leaves(params)
  assert len(model.leaves) == len(leaves)
  assert {leaf.dtype for leaf in model.leaves.values()} == {np.dtype(dtype)}
  found = sorted(leaf.read().tobytes() for leaf in model.leaves.values())
  assert found == sorted(x.tobytes() for x in leaves)


def test_the_newest_step_is_read_without_its_optimizer(tmp_path):
  path = _save(tmp_path / "a", CONFIG, _params(CONFIG), steps=(5, 12))
  model = convert.open_model(path)
  assert model.source["step"] == 12
  assert model.report.source_format == "borisdayma"
  assert model.report.tensors == len(jax.tree.leaves(_params(CONFIG)))
  assert model.spec["embed_norm"] == "l2_rsqrt_1e-6"
  assert model.spec["text"]["eos_id"] == 3


def test_what_is_not_held_is_listed_by_its_fields(tmp_path):
  config = _config(
    text={
      "use_rmsnorm": True,
      "ln_type": "normformer",
      "position_embedding_type": "rotary",
      "pool_type": "bos",
      "use_causal_mask": False,
    },
    vision={
      "activations": ["gelu", "linear"],
      "use_bias": False,
      "position_embedding_factorized": True,
      "keep_registers": True,
      "decoder_block": "gemma",
    },
  )
  path = _save(tmp_path / "a", config, _params(config))
  with pytest.raises(errors.UserError) as raised:
    convert.open_model(path)
  for field in (
    "text_config: use_rmsnorm",
    "text_config: ln_type",
    "text_config: position_embedding_type",
    "text_config: pool_type",
    "text_config: use_causal_mask",
    "vision_config: activations",
    "vision_config: use_bias",
    "vision_config: position_embedding_factorized",
    "vision_config: keep_registers",
    "vision_config: decoder_block",
  ):
    assert field in str(raised.value)


def test_a_number_that_is_none_is_refused_with_its_file_and_field(tmp_path):
  path = _save(tmp_path / "a", _config(), _params(_config()))
  file = path / "config.json"
  file.write_text(json.dumps(_config(vision={"registers": -1})))
  words = "registers must be a whole number from 0 on, or null; got -1"
  with pytest.raises(errors.UserError, match=words):
    convert.open_model(path)
  file.write_text(json.dumps(_config(text={"pad_token_id": -1})))
  words = f"{file}, text_config: pad_token_id must be the id of one token"
  with pytest.raises(errors.UserError, match=words):
    convert.open_model(path)


def test_a_field_that_is_not_given_is_what_the_codebase_takes(tmp_path):
  config = _config()
  del config["vision_config"]["position_embedding_type"]  # sincos2d
  path = _save(tmp_path / "a", config, _params(config))
  with pytest.raises(errors.UserError, match="sincos2d"):
    convert.open_model(path)


def test_what_is_damaged_is_a_clear_error(tmp_path):
  params = _params(CONFIG)
  del params["text"]["final_norm"]["bias"]
  path = _save(tmp_path / "a", CONFIG, params)
  with pytest.raises(errors.UserError, match="missing: text/final_norm/bias"):
    convert.open_model(path)
  (path / "5/default/_METADATA").write_text("{")
  with pytest.raises(errors.UserError, match="Orbax"):
    convert.open_model(path)
  (path / "5/default/_METADATA").unlink()
  with pytest.raises(errors.UserError, match="no step"):
    convert.open_model(path)


@pytest.mark.parametrize(
  "params",
  [np.ones(3), [np.ones(3)], {"text": [np.ones(3)]}, {"text": "words"}],
  ids=["an array", "a list", "a list below", "a text"],
)
def test_what_is_no_tree_of_dicts_is_damaged(tmp_path, params):
  manager = ocp.CheckpointManager(tmp_path, ocp.PyTreeCheckpointer())
  manager.save(5, {"params": params, "step": np.int32(5)})
  manager.wait_until_finished()
  manager.close()
  (tmp_path / "config.json").write_text(json.dumps(CONFIG))
  with pytest.raises(errors.UserError, match="no Orbax checkpoint"):
    convert.open_model(tmp_path)


def test_an_array_whose_data_are_gone_is_a_clear_error(tmp_path):
  path = _save(tmp_path / "a", CONFIG, _params(CONFIG))
  model = convert.open_model(path)
  for data in path.rglob("d/*"):
    data.unlink()
  with pytest.raises(errors.UserError, match="cannot be read"):
    model.leaves["params/image/patch_kernel"].read()


def test_no_config_is_more_than_a_clear_error():
  rng = random.Random(0)
  tensors = dict.fromkeys(("vision_projection/kernel",))
  values = [None, True, -1, 0, 3.5, 1e400, "x", [], [4, 4], {}, ["gelu"]]
  read = 0
  for _ in range(1000):
    config = copy.deepcopy(CONFIG)
    for _ in range(rng.randint(1, 2)):
      part = rng.choice([config, *config.values()])
      if isinstance(part, dict) and part:
        field = rng.choice(list(part))
        part[field] = rng.choice(values)
        if rng.random() < 0.2:
          del part[field]
    with contextlib.suppress(errors.UserError):
      borisdayma.describe(config, tensors, {}, SourceReading("x"), where="x")
      read += 1
  assert 0 < read < 1000
