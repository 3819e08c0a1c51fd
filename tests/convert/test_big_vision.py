"""SigLIP and SigLIP 2 as big_vision stores them, against numpy and torch."""

import dataclasses
import re

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

from clip_jax import convert, errors
from clip_jax.convert.files import npz
from clip_jax.convert.formats import big_vision
from clip_jax.convert.portable import Options
from clip_jax.convert.source_reading import SourceReading
from clip_jax.convert.tensor import Tensor

BAR = 1e-12  # Float64 against float64: a wrong epsilon gives 1e-6.
# The vocabulary below is of no SigLIP.
TOLD = Options(pooling="last", tokenizer="c4_en")

# No two sizes that could be swapped are the same.
IMAGE = {"width": 24, "depth": 3, "heads": 3, "mlp": 40, "patch": 5, "grid": 4}
TEXT = {
  "width": 16,
  "depth": 2,
  "heads": 2,
  "mlp": 28,
  "vocab": 37,
  "length": 7,
}


# --- The format, written down once more: names and shapes.


def _nested(prefix, shapes):
  return {f"{prefix}/{name}": shape for name, shape in shapes.items()}


def _attention_shapes(width, heads):
  inner = (heads, width // heads)
  shapes = {"out/kernel": (*inner, width), "out/bias": (width,)}
  for part in ("query", "key", "value"):
    shapes |= {f"{part}/kernel": (width, *inner), f"{part}/bias": inner}
  return shapes


def _mlp_shapes(width, mlp):
  return {
    "Dense_0/kernel": (width, mlp),
    "Dense_0/bias": (mlp,),
    "Dense_1/kernel": (mlp, width),
    "Dense_1/bias": (width,),
  }


def _norm_shapes(width):
  return {"scale": (width,), "bias": (width,)}


def _encoder_shapes(prefix, size, scan):
  width = size["width"]
  block = {
    **_nested("LayerNorm_0", _norm_shapes(width)),
    **_nested(
      "MultiHeadDotProductAttention_0", _attention_shapes(width, size["heads"])
    ),
    **_nested("LayerNorm_1", _norm_shapes(width)),
    **_nested("MlpBlock_0", _mlp_shapes(width, size["mlp"])),
  }
  shapes = _nested(f"{prefix}/encoder_norm", _norm_shapes(width))
  if scan:
    stacked = {name: (size["depth"], *shape) for name, shape in block.items()}
    return shapes | _nested(f"{prefix}/encoderblock", stacked)
  for layer in range(size["depth"]):
    shapes |= _nested(f"{prefix}/encoderblock_{layer}", block)
  return shapes


def _map_shapes(prefix, size):
  width = size["width"]
  return _nested(
    f"{prefix}/MAPHead_0",
    {
      "probe": (1, 1, width),
      **_nested("LayerNorm_0", _norm_shapes(width)),
      **_nested("MlpBlock_0", _mlp_shapes(width, size["mlp"])),
      **_nested(
        "MultiHeadDotProductAttention_0",
        _attention_shapes(width, size["heads"]),
      ),
    },
  )


def _head_shapes(prefix, width, out):
  return (
    {}
    if out is None
    else _nested(f"{prefix}/head", {"kernel": (width, out), "bias": (out,)})
  )


def _shapes(
  image=IMAGE,
  text=TEXT,
  *,
  scan=(False, False),
  image_pool="map",
  text_pool="last",
  image_out=None,
  text_out=24,
  naflex=False,
  has_bias=True,
):
  width, patch, grid = image["width"], image["patch"], image["grid"]
  shapes = {
    "img/embedding/kernel": (patch, patch, 3, width),
    "img/embedding/bias": (width,),
    "img/pos_embedding": (1, grid * grid, width),
    **_encoder_shapes("img/Transformer", image, scan[0]),
    **_head_shapes("img", width, image_out),
    "txt/Embed_0/embedding": (text["vocab"], text["width"]),
    "txt/pos_embedding": (1, text["length"], text["width"]),
    **_encoder_shapes("txt/Encoder_0", text, scan[1]),
    **_head_shapes("txt", text["width"], text_out),
    "t": (1,),
  }
  if naflex:
    shapes["img/embedding/kernel"] = (patch * patch * 3, width)
    shapes["img/pos_embedding"] = (grid, grid, width)
  if image_pool == "map":
    shapes |= _map_shapes("img", image)
  elif image_pool == "tok":
    shapes["img/cls"] = (1, 1, width)
  if text_pool == "map":
    shapes |= _map_shapes("txt", text)
  return shapes | ({"b": (1,)} if has_bias else {})


def _draw(shapes, dtype=np.float32, seed=0):
  """Weights so large that activations are no straight lines, in `dtype`."""
  rng = np.random.default_rng(seed)

  def array(name, shape):
    x = rng.standard_normal(shape)
    if name.endswith("scale"):
      x = 1 + 0.1 * x
    elif name.endswith("bias") or name in ("t", "b"):
      x = 0.1 * x + {"t": 2.3, "b": -3.0}.get(name, 0.0)
    elif "kernel" in name:
      x *= 3 * shape[name.count("encoderblock/")] ** -0.5
    return x.astype(dtype)

  return {name: array(name, shape) for name, shape in shapes.items()}


def _stored(arrays, root="params/"):
  """As np.savez gets them: bfloat16 is two bytes without a meaning."""
  return {
    root + name: x.view("V2") if x.dtype == ml_dtypes.bfloat16 else x
    for name, x in arrays.items()
  }


def _save(path, arrays, root="params/"):
  np.savez(path, **_stored(arrays, root))
  return path


def _read(path, options=TOLD):
  return convert.open_model(path, source_format="big-vision", options=options)


# --- The towers, from the format's arrays and nothing else.


def _sub(params, prefix):
  return {
    name[len(prefix) :]: x
    for name, x in params.items()
    if name.startswith(prefix)
  }


def _norm(p, x, name):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
  return x * p[f"{name}/scale"] + p[f"{name}/bias"]


def _attend(p, query, memory):
  def project(part, x):
    kernel = np.einsum("bld,dhk->blhk", x, p[f"{part}/kernel"])
    return kernel + p[f"{part}/bias"]

  q, k, v = (
    project(part, x)
    for part, x in (("query", query), ("key", memory), ("value", memory))
  )
  scores = np.einsum("bqhk,bmhk->bhqm", q, k) / np.sqrt(q.shape[-1])
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  mixed = np.einsum("bhqm,bmhk->bqhk", weights, v)
  return np.einsum("bqhk,hkd->bqd", mixed, p["out/kernel"]) + p["out/bias"]


def _mlp(p, x):
  x = x @ p["Dense_0/kernel"] + p["Dense_0/bias"]
  x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  return x @ p["Dense_1/kernel"] + p["Dense_1/bias"]


def _encode(p, x, depth):
  for layer in range(depth):
    if scanned := _sub(p, "encoderblock/"):
      block = {name: stack[layer] for name, stack in scanned.items()}
    else:
      block = _sub(p, f"encoderblock_{layer}/")
    y = _norm(block, x, "LayerNorm_0")
    x = x + _attend(_sub(block, "MultiHeadDotProductAttention_0/"), y, y)
    y = _norm(block, x, "LayerNorm_1")
    x = x + _mlp(_sub(block, "MlpBlock_0/"), y)
  return _norm(p, x, "encoder_norm")


def _map(p, x):
  probe = np.tile(p["probe"], (len(x), 1, 1))
  x = _attend(_sub(p, "MultiHeadDotProductAttention_0/"), probe, x)
  return (x + _mlp(_sub(p, "MlpBlock_0/"), _norm(p, x, "LayerNorm_0")))[:, 0]


def _finish(p, x):
  if "head/kernel" in p:
    x = x @ p["head/kernel"] + p["head/bias"]
  return x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-8)


def _image_tower(p, images):
  g, s = IMAGE["grid"], IMAGE["patch"]
  kernel = p["embedding/kernel"].reshape(s, s, 3, -1)
  x = images.reshape(len(images), g, s, g, s, 3)
  x = np.einsum("bgphqc,pqcd->bghd", x, kernel) + p["embedding/bias"]
  x = x.reshape(len(x), g * g, -1)
  x = x + p["pos_embedding"].reshape(1, g * g, -1)
  if "cls" in p:
    x = np.concatenate([np.tile(p["cls"], (len(x), 1, 1)), x], axis=1)
  x = _encode(_sub(p, "Transformer/"), x, IMAGE["depth"])
  if "cls" in p:
    x = x[:, 0]
  elif head := _sub(p, "MAPHead_0/"):
    x = _map(head, x)
  else:
    x = x.mean(1)
  return _finish(p, x)


def _text_tower(p, tokens):
  x = p["Embed_0/embedding"][tokens] + p["pos_embedding"]
  x = _encode(_sub(p, "Encoder_0/"), x, TEXT["depth"])
  head = _sub(p, "MAPHead_0/")
  return _finish(p, _map(head, x) if head else x[:, -1])


def _run(arrays, images, tokens):
  arrays = {name: x.astype(np.float64) for name, x in arrays.items()}
  image = _image_tower(_sub(arrays, "img/"), images)
  text = _text_tower(_sub(arrays, "txt/"), tokens)
  logits = np.exp(arrays["t"]) * image @ text.T + arrays.get("b", 0.0)
  return image, text, logits


def _inputs():
  rng = np.random.default_rng(5)
  size = IMAGE["patch"] * IMAGE["grid"]
  images = rng.normal(size=(3, size, size, 3))
  tokens = rng.integers(2, TEXT["vocab"], size=(3, TEXT["length"]))
  tokens[0, 2:] = 1  # A short row and a full one.
  return images, tokens


VARIANTS = {
  "siglip": {},
  "scan": {"scan": (True, True)},
  "one tower scans": {"scan": (True, False)},
  "the other scans": {"scan": (False, True)},
  "no text head": {"text": {**TEXT, "width": 24, "heads": 4}, "text_out": None},
  "naflex": {"naflex": True},
  "gap": {"image_pool": "gap", "image_out": 26, "text_out": 26},
  "class token": {"image_pool": "tok", "image_out": 26, "text_out": 26},
  "text map head": {"text_pool": "map", "scan": (False, True)},
  "no bias": {"has_bias": False},
}


def _slow_but(cases, quick):
  """Most of them compile a model of their own for the same few lines."""
  return [
    pytest.param(name, marks=() if name in quick else pytest.mark.slow)
    for name in cases
  ]


@pytest.mark.parametrize(
  "variant", _slow_but(VARIANTS, ("siglip", "one tower scans", "class token"))
)
def test_a_checkpoint_computes_what_its_layout_says(
  outputs, difference, tmp_path, variant
):
  arrays = _draw(_shapes(**VARIANTS[variant]), np.float64)
  ours = _read(_save(tmp_path / "model.npz", arrays))
  for got, want in zip(
    outputs(ours, *_inputs()), _run(arrays, *_inputs()), strict=True
  ):
    assert difference(got, want) < BAR


def _swap(a, b):
  def mutate(model):
    leaves = dict(model.leaves)
    leaves[a], leaves[b] = leaves[b], leaves[a]
    return dataclasses.replace(model, leaves=leaves)

  return mutate


def _describe(tower, **fields):
  def mutate(model):
    part = {**model.spec[tower], **fields} if tower else None
    spec = {**model.spec, **({tower: part} if tower else fields)}
    return dataclasses.replace(model, spec=spec)

  return mutate


BLOCKS = "params/image/encoder/blocks"
MUTATIONS = {
  "query and key swapped": _swap(
    f"{BLOCKS}/attention/query/kernel", f"{BLOCKS}/attention/key/kernel"
  ),
  "norms swapped": _swap(f"{BLOCKS}/ln_1/scale", f"{BLOCKS}/ln_2/scale"),
  "pool's key and value swapped": _swap(
    "params/image/map_head/attention/key/kernel",
    "params/image/map_head/attention/value/kernel",
  ),
  "image epsilon": _describe("image", norm_epsilon=1e-5),
  "text epsilon": _describe("text", norm_epsilon=1e-5),
  "image activation": _describe("image", activation="gelu"),
  "text activation": _describe("text", activation="gelu"),
  "text mask": _describe("text", causal=True),
  "text pooling": _describe("text", pooling="eos", eos_id=1, causal=True),
  "embedding norm": _describe("", embed_norm="l2_rsqrt_1e-6"),
  "embedding norm without 1e-8": _describe("", embed_norm="l2"),
}


@pytest.mark.parametrize(
  "name", _slow_but(MUTATIONS, ("query and key swapped", "image epsilon"))
)
def test_a_mutation_is_far_above_the_bar(outputs, difference, tmp_path, name):
  arrays = _draw(_shapes(), np.float64)
  ours = MUTATIONS[name](_read(_save(tmp_path / "model.npz", arrays)))
  worst = max(
    difference(got, want)
    for got, want in zip(
      outputs(ours, *_inputs()), _run(arrays, *_inputs()), strict=True
    )
  )
  assert worst > 100 * BAR


# --- HuggingFace's SiglipModel of the same numbers.


def _to_huggingface(arrays):
  """The same model under transformers' names: a mapping of our own."""

  def linear(theirs, mine):
    kernel = arrays[f"{mine}/kernel"]
    bias = arrays[f"{mine}/bias"].reshape(-1)
    return {f"{theirs}.weight": kernel.reshape(-1, len(bias)).T} | {
      f"{theirs}.bias": bias
    }

  def norm(theirs, mine):
    return {
      f"{theirs}.weight": arrays[f"{mine}/scale"],
      f"{theirs}.bias": arrays[f"{mine}/bias"],
    }

  def fused(theirs, mine):
    parts = [linear("x", f"{mine}/{x}") for x in ("query", "key", "value")]
    return {
      f"{theirs}.in_proj_weight": np.concatenate(
        [part["x.weight"] for part in parts]
      ),
      f"{theirs}.in_proj_bias": np.concatenate(
        [part["x.bias"] for part in parts]
      ),
      **linear(f"{theirs}.out_proj", f"{mine}/out"),
    }

  def encoder(theirs, mine, depth):
    state = {}
    for layer in range(depth):
      a = f"{theirs}.encoder.layers.{layer}"
      b = f"{mine}/encoderblock_{layer}"
      state |= norm(f"{a}.layer_norm1", f"{b}/LayerNorm_0")
      state |= norm(f"{a}.layer_norm2", f"{b}/LayerNorm_1")
      state |= linear(f"{a}.mlp.fc1", f"{b}/MlpBlock_0/Dense_0")
      state |= linear(f"{a}.mlp.fc2", f"{b}/MlpBlock_0/Dense_1")
      for x, y in zip("qkv", ("query", "key", "value"), strict=True):
        state |= linear(
          f"{a}.self_attn.{x}_proj", f"{b}/MultiHeadDotProductAttention_0/{y}"
        )
      state |= linear(
        f"{a}.self_attn.out_proj", f"{b}/MultiHeadDotProductAttention_0/out"
      )
    return state

  head = "vision_model.head"
  return {
    "logit_scale": arrays["t"],
    "logit_bias": arrays["b"],
    "vision_model.embeddings.patch_embedding.weight": arrays[
      "img/embedding/kernel"
    ].transpose(3, 2, 0, 1),
    "vision_model.embeddings.patch_embedding.bias": arrays[
      "img/embedding/bias"
    ],
    "vision_model.embeddings.position_embedding.weight": arrays[
      "img/pos_embedding"
    ][0],
    **encoder("vision_model", "img/Transformer", IMAGE["depth"]),
    **norm("vision_model.post_layernorm", "img/Transformer/encoder_norm"),
    f"{head}.probe": arrays["img/MAPHead_0/probe"],
    **norm(f"{head}.layernorm", "img/MAPHead_0/LayerNorm_0"),
    **linear(f"{head}.mlp.fc1", "img/MAPHead_0/MlpBlock_0/Dense_0"),
    **linear(f"{head}.mlp.fc2", "img/MAPHead_0/MlpBlock_0/Dense_1"),
    **fused(
      f"{head}.attention", "img/MAPHead_0/MultiHeadDotProductAttention_0"
    ),
    "text_model.embeddings.token_embedding.weight": arrays[
      "txt/Embed_0/embedding"
    ],
    "text_model.embeddings.position_embedding.weight": arrays[
      "txt/pos_embedding"
    ][0],
    **encoder("text_model", "txt/Encoder_0", TEXT["depth"]),
    **norm("text_model.final_layer_norm", "txt/Encoder_0/encoder_norm"),
    **linear("text_model.head", "txt/head"),
  }


def _siglip_config(image=IMAGE, text=TEXT):
  def shared(size):
    return {
      "hidden_size": size["width"],
      "intermediate_size": size["mlp"],
      "num_hidden_layers": size["depth"],
      "num_attention_heads": size["heads"],
      "hidden_act": "gelu_pytorch_tanh",
    }

  return transformers.SiglipConfig(
    text_config={
      **shared(text),
      "vocab_size": text["vocab"],
      "max_position_embeddings": text["length"],
      "projection_size": image["width"],
    },
    vision_config={
      **shared(image),
      "image_size": image["patch"] * image["grid"],
      "patch_size": image["patch"],
    },
  )


def _siglip(arrays):
  config = _siglip_config()
  model = transformers.SiglipModel(config).double().eval()
  model.set_attn_implementation("sdpa")
  state = {
    name: torch.from_numpy(np.ascontiguousarray(x))
    for name, x in _to_huggingface(arrays).items()
  }
  model.load_state_dict(state, strict=True)
  return model


def test_a_checkpoint_computes_what_huggingfaces_siglip_does(
  outputs, difference, tmp_path
):
  arrays = _draw(_shapes(), np.float64)
  images, tokens = _inputs()
  model = _siglip(arrays)
  with torch.no_grad():
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    image = model.vision_model(pixels).pooler_output.numpy()
    text = model.text_model(torch.from_numpy(tokens)).pooler_output.numpy()
  ours = _read(_save(tmp_path / "model.npz", arrays))
  got = outputs(ours, images, tokens)
  for ours_unit, theirs in zip(got[:2], (image, text), strict=True):
    # big_vision adds to the length, transformers does not.
    length = np.linalg.norm(theirs, axis=1, keepdims=True) + 1e-8
    assert difference(ours_unit, theirs / length) < BAR
  # And the numpy reference of this file is no image of our own code.
  np.testing.assert_allclose(
    _run(arrays, images, tokens)[0],
    image / (np.linalg.norm(image, axis=1, keepdims=True) + 1e-8),
    rtol=0,
    atol=BAR,
  )


def test_huggingfaces_directory_and_an_npz_turn_into_each_other(tmp_path):
  arrays = _draw(_shapes())
  source = _save(tmp_path / "a.npz", arrays)
  convert.convert(source, tmp_path / "hf", to="huggingface", options=TOLD)
  theirs = transformers.SiglipModel.from_pretrained(tmp_path / "hf")
  state = theirs.state_dict()
  want = _to_huggingface(arrays)
  assert state.keys() == want.keys()
  for name, x in want.items():
    np.testing.assert_array_equal(state[name].numpy(), x)
  assert theirs.config.vision_config.hidden_act == "gelu_pytorch_tanh"
  report = convert.convert(tmp_path / "hf", tmp_path / "b.npz", to="big-vision")
  _same_files(source, tmp_path / "b.npz")
  # None has a place in the file.
  assert any("--pooling last" in warning for warning in report.warnings)
  assert any("37 ids" in warning for warning in report.warnings)
  assert any("preprocessing" in warning for warning in report.warnings)
  assert any("1e-8" in warning for warning in report.warnings)


# --- The way back.


def _same_files(a, b):
  with np.load(a) as want, np.load(b) as got:
    assert sorted(got) == sorted(want)
    for name in want:
      assert got[name].dtype == want[name].dtype, name
      assert got[name].shape == want[name].shape, name
      assert got[name].tobytes() == want[name].tobytes(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_comes_back_bit_by_bit(tmp_path, variant):
  arrays = _draw(_shapes(**VARIANTS[variant]))
  source = _save(tmp_path / "a.npz", arrays)
  big_vision.write(_read(source), tmp_path / "b.npz")
  _same_files(source, tmp_path / "b.npz")


@pytest.mark.parametrize(
  "dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=str
)
@pytest.mark.parametrize("root", ["params/", "opt/target/", ""])
def test_roots_and_dtypes_survive_our_own_directory(tmp_path, root, dtype):
  arrays = _draw(_shapes(scan=(False, True)), dtype)
  source = _save(tmp_path / "a.npz", arrays, root)
  convert.convert(source, tmp_path / "ours", to="clip-jax", options=TOLD)
  convert.convert(tmp_path / "ours", tmp_path / "b.npz", to="big-vision")
  _same_files(source, tmp_path / "b.npz")


def test_dtypes_may_differ_within_a_file(tmp_path):
  arrays = _draw(_shapes())
  for name in list(arrays):
    if "encoderblock_1" in name or "Embed" in name:
      arrays[name] = arrays[name].astype(ml_dtypes.bfloat16)
  source = _save(tmp_path / "a.npz", arrays)
  convert.convert(source, tmp_path / "ours", to="clip-jax", options=TOLD)
  convert.convert(tmp_path / "ours", tmp_path / "b.npz", to="big-vision")
  _same_files(source, tmp_path / "b.npz")


def test_a_model_from_elsewhere_gets_todays_names(tmp_path):
  arrays = _draw(_shapes())
  model = _read(_save(tmp_path / "a.npz", arrays, "opt/target/"))
  elsewhere = dataclasses.replace(model, source={"format": "other"})
  big_vision.write(elsewhere, tmp_path / "b.npz")
  _same_files(_save(tmp_path / "c.npz", arrays), tmp_path / "b.npz")


def test_an_optimizers_state_is_left_behind_and_said(tmp_path):
  arrays = _draw(_shapes())
  state = {"opt/0/mu/t": np.ones(1), "chrono/accum_train_time": np.ones(())}
  source = tmp_path / "a.npz"
  np.savez(source, **_stored(arrays), **state)
  model = _read(source)
  assert model.report.ignored == sorted(state)
  assert model.extras == {}


# --- What is said about a model, and what is refused.


def test_everything_that_weights_do_not_say_is_in_the_report(tmp_path):
  model = _read(_save(tmp_path / "a.npz", _draw(_shapes())))
  inferred = {k: v["value"] for k, v in model.report.inferred.items()}
  assert inferred["activation"] == "gelu_tanh"
  assert inferred["image.norm_epsilon"] == inferred["text.norm_epsilon"] == 1e-6
  assert inferred["text.pooling"] == "last"
  assert inferred["text.causal"] is False
  assert inferred["embed_norm"] == "l2_plus_1e-8"
  assert model.report.mapped == model.report.tensors == len(_shapes())
  assert model.spec["image"]["image_size"] == 20
  assert model.spec["resize"] == "squash"
  assert model.spec["antialias"] is False
  assert model.spec["init_logit_bias"] is not None
  sources = {k: v["source"] for k, v in model.report.inferred.items()}
  assert sources["text.pooling"] == sources["tokenizer"] == "flag"


SIGLIP = _shapes(text={**TEXT, "vocab": 32_000})
NO_BIAS = {name: shape for name, shape in SIGLIP.items() if name != "b"}


def _headers(shapes, options):
  tensors = {
    f"params/{key}": Tensor(shape, np.dtype(np.float32), lambda: None)
    for key, shape in shapes.items()
  }
  return big_vision.read_tensors(
    tensors, SourceReading("x", big_vision.NAME, options)
  )


# What is known of a text tower, what a user says, and the flags still wanted.
UNSAID = {
  "siglip": (SIGLIP, {}, ""),
  "no bias": (NO_BIAS, {}, "--pooling"),
  "no bias, told": (NO_BIAS, {"pooling": "last"}, ""),
  "other words": (_shapes(), {}, "--pooling --tokenizer"),
  "other words, pooling told": (_shapes(), {"pooling": "last"}, "--tokenizer"),
  "other words, theirs told": (_shapes(), {"tokenizer": "mc4"}, "--pooling"),
  "map head, other words": (_shapes(text_pool="map"), {}, "--tokenizer"),
}


@pytest.mark.parametrize("case", UNSAID)
def test_a_text_tower_that_is_not_siglips_must_be_told(case):
  shapes, options, flags = UNSAID[case]
  if not flags:
    assert (
      _headers(shapes, Options(**options)).spec["text"]["pooling"] == "last"
    )
    return
  with pytest.raises(errors.AmbiguousError) as caught:
    _headers(shapes, Options(**options))
  assert " ".join(re.findall(r"--\w+", str(caught.value))) == flags


def test_a_pooling_that_ours_has_not_is_refused_by_its_flag():
  with pytest.raises(errors.UserError, match=r"--pooling mean") as caught:
    _headers(NO_BIAS, Options(pooling="mean"))
  assert not isinstance(caught.value, errors.AmbiguousError)


def test_the_activation_may_be_another(tmp_path):
  source = _save(tmp_path / "a.npz", _draw(_shapes()))
  model = _read(source, dataclasses.replace(TOLD, activation="gelu"))
  assert {model.spec[x]["activation"] for x in ("image", "text")} == {"gelu"}
  assert model.report.inferred["activation"]["source"] == "flag"
  assert "image.activation='gelu'" in " ".join(
    big_vision.FORMAT.refusals(model.spec)
  )


@pytest.mark.parametrize(
  ("tower", "fields", "named"),
  [
    ("image", {"pre_norm": True}, "image.pre_norm"),
    ("image", {"norm_epsilon": 1e-5}, "image.norm_epsilon"),
    ("image", {"registers": 4}, "image.registers"),
    ("image", {"patch_bias": False}, "image.patch_bias"),
    ("image", {"class_token": True}, "image.class_token"),
    ("image", {"image_size": 23, "drop_edge": True}, "image.image_size"),
    ("text", {"causal": True}, "text.causal"),
    ("text", {"pooling": "argmax"}, "text.pooling"),
    ("text", {"kind": "cbow"}, "text.kind"),
    ("", {"text_projection": "linear"}, "text_projection"),
    ("", {"embed_norm": "l2_rsqrt_1e-6"}, "embed_norm"),
  ],
)
def test_what_big_vision_cannot_be_is_refused_by_its_field(
  tmp_path, tower, fields, named
):
  model = _read(_save(tmp_path / "a.npz", _draw(_shapes())))
  assert big_vision.FORMAT.refusals(model.spec) == []
  mutated = _describe(tower, **fields)(model)
  (problem,) = big_vision.FORMAT.refusals(mutated.spec)
  assert problem.startswith(f"{named}=")
  with pytest.raises(errors.UserError, match=named):
    big_vision.write(mutated, tmp_path / "b.npz")
  assert not (tmp_path / "b.npz").exists()


def _without(name):
  return lambda arrays: arrays.pop(name)


def _with(name, shape):
  return lambda arrays: arrays.update({name: np.ones(shape, np.float32)})


def _nameless(arrays):
  """Takes the towers' names away."""
  for name in list(arrays):
    arrays[name.removeprefix("img/").removeprefix("txt/")] = arrays.pop(name)


def _naflex_with_a_class_row(arrays):
  """Nine patches and a class token in a grid of two by five."""
  arrays["img/embedding/kernel"] = np.ones((75, 24), np.float32)
  arrays["img/cls"] = np.ones((1, 1, 24), np.float32)
  arrays["img/pos_embedding"] = np.ones((2, 5, 24), np.float32)


def _naflex_of_less_than_a_pixel(arrays):
  arrays["img/embedding/kernel"] = np.ones((2, 24), np.float32)
  arrays["img/pos_embedding"] = np.ones((4, 4, 24), np.float32)


BROKEN = {
  "towers without names of their own": (_nameless, "must be img/ and txt/"),
  "a class token in a grid": (_naflex_with_a_class_row, "10 positions"),
  "patches without a pixel": (
    _naflex_of_less_than_a_pixel,
    "img/embedding/kernel has 0 positions, which do not form a square",
  ),
  "a layer's array is missing": (
    _without("img/Transformer/encoderblock_1/LayerNorm_1/bias"),
    r"missing: params/img/Transformer/encoderblock_1/LayerNorm_1/bias",
  ),
  "a layer is missing": (
    lambda arrays: [
      arrays.pop(name) for name in list(arrays) if "encoderblock_1" in name
    ],
    "encoderblock_1",
  ),
  "an array too many": (
    _with("img/Transformer/extra/kernel", (2, 2)),
    "unexpected: params/img/Transformer/extra/kernel",
  ),
  "another shape": (
    _with("img/MAPHead_0/MlpBlock_0/Dense_1/bias", (25,)),
    r"got \[25\], want \[24\]",
  ),
  "an axis too few": (
    _with("txt/pos_embedding", (7, 16)),
    r"txt/pos_embedding must be an array with 3 axes, got \[7, 16\]",
  ),
  "no temperature": (_without("t"), "missing: params/t"),
  "no positions": (_without("img/pos_embedding"), "sincos2d"),
  "no square": (_with("img/pos_embedding", (1, 15, 24)), "--old-grid"),
  "other spaces": (_with("txt/head/kernel", (16, 25)), "24 .* and 25"),
  "a layer before the head": (
    _with("img/pre_logits/kernel", (24, 24)),
    "rep_size",
  ),
  "no tower": (
    lambda arrays: [
      arrays.pop(name) for name in list(arrays) if "embedding" in name
    ],
    "no model of big_vision's",
  ),
  "heads that do not divide": (
    _with(
      "txt/Encoder_0/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel",
      (16, 3, 5),
    ),
    "16",
  ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_model_is_a_clear_error(tmp_path, name):
  breaking, message = BROKEN[name]
  arrays = _draw(_shapes())
  breaking(arrays)
  with pytest.raises(errors.UserError, match=message):
    _read(_save(tmp_path / "a.npz", arrays))


def test_a_truncated_file_is_a_clear_error(tmp_path):
  path = _save(tmp_path / "a.npz", _draw(_shapes()))
  path.write_bytes(path.read_bytes()[:-1000])
  with pytest.raises(errors.UserError, match="damaged"):
    _read(path)


def test_a_grid_that_is_no_square_is_resized_where_its_sides_are_given(
  tmp_path,
):
  from clip_jax.convert import positions

  arrays = _draw(_shapes())
  grid = np.random.default_rng(0).standard_normal((1, 15, 24), np.float32)
  arrays["img/pos_embedding"] = grid
  options = dataclasses.replace(
    TOLD, old_grid=(3, 5), image_size=20, resize_method="bilinear"
  )
  model = _read(_save(tmp_path / "a.npz", arrays), options)
  want = positions.resize_grid(grid.reshape(3, 5, 24), (4, 4), "bilinear")
  np.testing.assert_array_equal(
    model.leaves["params/image/position_embedding"].read(),
    want.reshape(16, 24).astype(np.float32),
  )
  assert model.source["resized"]["old_grid"] == [3, 5]
  assert model.spec["image"]["image_size"] == 20


# --- Full size, without the data.

FULL = {
  "B/16": (
    {"width": 768, "depth": 12, "heads": 12, "mlp": 3072}
    | {"patch": 16, "grid": 14, "image_size": 224},
    {"width": 768, "depth": 12, "heads": 12, "mlp": 3072}
    | {"vocab": 32_000, "length": 64},
  ),
  # Patches leave out 6 pixels.
  "So400m/14 at 384": (
    {"width": 1152, "depth": 27, "heads": 16, "mlp": 4304}
    | {"patch": 14, "grid": 27, "image_size": 384},
    {"width": 1152, "depth": 27, "heads": 16, "mlp": 4304}
    | {"vocab": 32_000, "length": 64},
  ),
  "g-opt/16 at 384": (
    {"width": 1536, "depth": 40, "heads": 16, "mlp": 6144}
    | {"patch": 16, "grid": 24, "image_size": 384},
    {"width": 1152, "depth": 27, "heads": 16, "mlp": 4304}
    | {"vocab": 256_000, "length": 64},
  ),
}


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", FULL)
def test_a_full_size_model_is_accounted_for_by_its_headers(name, scan):
  image, text = FULL[name]
  shapes = _shapes(image, text, scan=(scan, scan), text_out=image["width"])

  def no_data():
    raise AssertionError("read")

  tensors = {
    f"params/{key}": Tensor(shape, np.dtype(np.float32), no_data)
    for key, shape in shapes.items()
  }
  model = big_vision.read_tensors(tensors, SourceReading(name, big_vision.NAME))
  assert model.report.mapped == len(tensors) == model.report.tensors
  assert model.spec["image"]["image_size"] == image["image_size"]
  assert model.spec["image"]["heads"] == image["heads"]
  total = sum(int(np.prod(leaf.shape)) for leaf in model.leaves.values())
  assert total == sum(int(np.prod(shape)) for shape in shapes.values())
  with torch.device("meta"):
    theirs = transformers.SiglipModel(_siglip_config(image, text))
  assert total == sum(x.numel() for x in theirs.parameters())
  back = big_vision.to_tensors(model)
  assert {k: x.shape for k, x in back.items()} == {
    k: x.shape for k, x in tensors.items()
  }


def test_a_known_vocabulary_names_its_tokenizer():
  for vocab, (tokenizer, pad_id) in {
    32_000: ("c4_en", 1),
    250_000: ("mc4", 1),
    256_000: ("gemma", 0),
  }.items():
    shapes = _shapes(text={**TEXT, "vocab": vocab})
    tensors = {
      key: Tensor(shape, np.dtype(np.float32), lambda: None)
      for key, shape in shapes.items()
    }
    model = big_vision.read_tensors(
      tensors, SourceReading("x", big_vision.NAME)
    )
    assert model.report.inferred["tokenizer"]["value"] == tokenizer
    assert model.spec["tokenizer"]["pad_id"] == pad_id
    assert model.report.warnings == []


def test_what_is_written_loads_without_pickle_in_numpy(tmp_path):
  arrays = _draw(_shapes(), ml_dtypes.bfloat16)
  big_vision.write(_read(_save(tmp_path / "a.npz", arrays)), tmp_path / "b.npz")
  with np.load(tmp_path / "b.npz", allow_pickle=False) as file:
    got = file["params/img/embedding/kernel"].view(ml_dtypes.bfloat16)
  np.testing.assert_array_equal(got, arrays["img/embedding/kernel"])
  assert npz.read(tmp_path / "b.npz").tensors.keys() == {
    f"params/{k}" for k in arrays
  }


def test_the_tokenizers_file_is_taken_from_beside_the_checkpoint(tmp_path):
  source = _save(tmp_path / "a.npz", _draw(_shapes()))
  bare = _read(source)
  assert bare.files == {}
  assert any("tokenizer.model beside" in x for x in bare.report.warnings)
  (tmp_path / "tokenizer.model").write_bytes(b"pieces")
  model = _read(source)
  assert model.files == {"tokenizer.model": b"pieces"}
  assert model.spec["tokenizer"]["file"] == "tokenizer.model"
