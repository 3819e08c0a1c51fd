"""Older ViTs and LiT, as big_vision stores them."""

import numpy as np
import pytest
import torch
import transformers

from clip_jax import convert, errors
from clip_jax.convert.formats import big_vision
from clip_jax.convert.portable import Options

BAR = 1e-12  # Float64 against float64.
NO_OPTIONS = Options()
# No two sizes that could be swapped are the same.
WIDTH, HEADS, DEPTH, MLP, PATCH, GRID = 24, 3, 2, 40, 5, 4
EMBED = 26
BERT = {
  "vocab_size": 41,
  "hidden_size": 48,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "intermediate_size": 56,
  "max_position_embeddings": 9,
  "type_vocab_size": 2,
  "hidden_act": "gelu_new",
}


def _draw(rng, shape, *, kind="kernel"):
  x = rng.standard_normal(shape)
  if kind == "scale":
    return 1 + 0.1 * x
  return 0.1 * x if kind == "bias" else 3 * shape[0] ** -0.5 * x


def _block(rng, prefix, *, attention, mlp, norms):
  inner = (HEADS, WIDTH // HEADS)
  arrays = {
    f"{attention}/out/kernel": _draw(rng, (*inner, WIDTH)) / inner[1] ** 0.5,
    f"{attention}/out/bias": _draw(rng, (WIDTH,), kind="bias"),
    f"{mlp}/Dense_0/kernel": _draw(rng, (WIDTH, MLP)),
    f"{mlp}/Dense_0/bias": _draw(rng, (MLP,), kind="bias"),
    f"{mlp}/Dense_1/kernel": _draw(rng, (MLP, WIDTH)),
    f"{mlp}/Dense_1/bias": _draw(rng, (WIDTH,), kind="bias"),
  }
  for part in ("query", "key", "value"):
    arrays[f"{attention}/{part}/kernel"] = _draw(rng, (WIDTH, *inner))
    arrays[f"{attention}/{part}/bias"] = _draw(rng, inner, kind="bias")
  for norm in norms:
    for kind in ("scale", "bias"):
      arrays[f"{norm}/{kind}"] = _draw(rng, (WIDTH,), kind=kind)
  return {f"{prefix}{name}": x for name, x in arrays.items()}


def _vit(
  positions="pos_embedding", *, legacy_blocks=False, class_position=True
):
  """A ViT with a class token; the same numbers under each set of names."""
  rng = np.random.default_rng(1)
  names = (
    {
      "attention": "MultiHeadDotProductAttention_1",
      "mlp": "MlpBlock_3",
      "norms": ("LayerNorm_0", "LayerNorm_2"),
    }
    if legacy_blocks
    else {
      "attention": "MultiHeadDotProductAttention_0",
      "mlp": "MlpBlock_0",
      "norms": ("LayerNorm_0", "LayerNorm_1"),
    }
  )
  rows = _draw(rng, (1, GRID * GRID + 1, WIDTH))
  arrays = {
    "cls": _draw(rng, (1, 1, WIDTH)),
    "embedding/kernel": _draw(rng, (PATCH, PATCH, 3, WIDTH)),
    "embedding/bias": _draw(rng, (WIDTH,), kind="bias"),
    "Transformer/encoder_norm/scale": _draw(rng, (WIDTH,), kind="scale"),
    "Transformer/encoder_norm/bias": _draw(rng, (WIDTH,), kind="bias"),
    positions: rows,
  }
  if not class_position:  # As big_vision folds it on loading.
    arrays["cls"] = arrays["cls"] + rows[:, :1]
    arrays[positions] = rows[:, 1:]
  for layer in range(DEPTH):
    prefix = f"Transformer/encoderblock_{layer}/"
    arrays |= _block(rng, prefix, **names)
  return arrays


def _classifier():
  rng = np.random.default_rng(2)
  return {
    "head/kernel": _draw(rng, (WIDTH, 7)),
    "head/bias": _draw(rng, (7,), kind="bias"),
    "pre_logits/kernel": _draw(rng, (WIDTH, WIDTH)),
    "pre_logits/bias": _draw(rng, (WIDTH,), kind="bias"),
  }


def _bert(seed=3):
  """transformers' BERT, with norms, biases and weights that hide nothing."""
  config = transformers.BertConfig(**BERT, attn_implementation="sdpa")
  model = transformers.BertModel(config, add_pooling_layer=False)
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, x in model.named_parameters():
      noise = torch.randn(x.shape, generator=generator)
      if x.ndim == 1:
        x.add_(0.1 * noise)
      else:
        x.copy_(
          noise * (0.3 if "embedding" in name else 3 * x.shape[1] ** -0.5)
        )
  return model.double().eval()


def _bert_arrays(model, *, flat):
  """The model under flaxformer's names: a mapping of our own."""
  state = {name: x.numpy() for name, x in model.state_dict().items()}
  width, heads = BERT["hidden_size"], BERT["num_attention_heads"]
  inner = (heads, width // heads)

  def norm(theirs, mine):
    return {
      f"{theirs}/scale": state[f"{mine}.weight"],
      f"{theirs}/bias": state[f"{mine}.bias"],
    }

  def dense(theirs, mine, kernel=None, bias=None):
    x, y = state[f"{mine}.weight"].T, state[f"{mine}.bias"]
    if not flat:
      x = x.reshape(kernel or x.shape)
      y = y.reshape(bias or y.shape)
    return {f"{theirs}/kernel": x, f"{theirs}/bias": y}

  arrays = norm("layer_norm", "embeddings.LayerNorm")
  for theirs, mine in (
    ("token", "word"),
    ("position", "position"),
    ("segment", "token_type"),
  ):
    arrays[f"embedder/embedders_{theirs}_ids/embedding"] = state[
      f"embeddings.{mine}_embeddings.weight"
    ]
  for layer in range(BERT["num_hidden_layers"]):
    a = f"encoder_block/layer_sequence/layers_{layer}"
    b = f"encoder.layer.{layer}"
    for part in ("query", "key", "value"):
      arrays |= dense(
        f"{a}/attention_block/attention_layer/{part}",
        f"{b}.attention.self.{part}",
        (width, *inner),
        inner,
      )
    arrays |= dense(
      f"{a}/attention_block/dense_layer",
      f"{b}.attention.output.dense",
      (*inner, width),
    )
    arrays |= norm(
      f"{a}/attention_block/layer_norm", f"{b}.attention.output.LayerNorm"
    )
    arrays |= dense(f"{a}/mlp_block/mlp/dense_layer", f"{b}.intermediate.dense")
    arrays |= dense(f"{a}/mlp_block/dense_layer", f"{b}.output.dense")
    arrays |= norm(f"{a}/mlp_block/layer_norm", f"{b}.output.LayerNorm")
  return {f"BertEncoder_0/{name}": x for name, x in arrays.items()}


def _lit(bert, *, flat=False, image=None):
  rng = np.random.default_rng(4)
  width = BERT["hidden_size"]
  text = _bert_arrays(bert, flat=flat) | {
    "head/kernel": _draw(rng, (width, EMBED)),
    "head/bias": _draw(rng, (EMBED,), kind="bias"),
  }
  image = (image or _vit()) | {
    "head/kernel": _draw(rng, (WIDTH, EMBED)),
    "head/bias": _draw(rng, (EMBED,), kind="bias"),
  }
  return {
    **{f"img/{name}": x for name, x in image.items()},
    **{f"txt/{name}": x for name, x in text.items()},
    "t": np.full((1,), 2.3),
  }


def _save(path, arrays, *, root="params/", dtype=np.float64):
  np.savez(path, **{root + name: x.astype(dtype) for name, x in arrays.items()})
  return path


def _read(path, options=NO_OPTIONS):
  return convert.open_model(path, source_format="big-vision", options=options)


def _same_files(a, b):
  with np.load(a) as want, np.load(b) as got:
    assert sorted(got) == sorted(want)
    for name in want:
      assert got[name].dtype == want[name].dtype, name
      assert got[name].shape == want[name].shape, name
      assert got[name].tobytes() == want[name].tobytes(), name


def _inputs():
  rng = np.random.default_rng(5)
  images = rng.normal(size=(3, PATCH * GRID, PATCH * GRID, 3))
  length = BERT["max_position_embeddings"]
  tokens = rng.integers(1, BERT["vocab_size"], size=(3, length))
  tokens[0, 4:] = 0
  tokens[1, 1:] = 0
  return images, tokens


@pytest.mark.parametrize("flat", [False, True])
def test_lits_text_tower_is_a_bert_with_tanh_gelu(
  outputs, difference, tmp_path, flat, monkeypatch
):
  # Matrices do not show the heads; real ones have 64 numbers each.
  from clip_jax.convert.formats import big_vision_description

  monkeypatch.setattr(big_vision_description, "BERT_HEAD_DIM", 12)
  bert = _bert()
  arrays = _lit(bert, flat=flat)
  images, tokens = _inputs()
  ids = torch.from_numpy(tokens)
  with torch.no_grad():
    hidden = bert(ids, attention_mask=(ids != 0).long()).last_hidden_state
  want = hidden[:, 0].numpy() @ arrays["txt/head/kernel"]
  want = want + arrays["txt/head/bias"]
  want /= np.linalg.norm(want, axis=1, keepdims=True) + 1e-8
  ours = _read(_save(tmp_path / "a.npz", arrays))
  assert ours.spec["text"]["heads"] == 4
  assert difference(outputs(ours, images, tokens)[1], want) < BAR


NAMES = {
  "today's names": {},
  "positions in the encoder": {"positions": "Transformer/pos_embedding"},
  "as published with the paper": {
    "positions": "Transformer/posembed_input/pos_embedding",
    "legacy_blocks": True,
  },
  "class token's position folded": {"class_position": False},
}


def test_older_names_hold_the_same_model(outputs, tmp_path):
  bert = _bert()
  found = [
    outputs(
      _read(_save(tmp_path / "a.npz", _lit(bert, image=_vit(**names)))),
      *_inputs(),
    )[0]
    for names in NAMES.values()
  ]
  for got in found[1:]:
    np.testing.assert_allclose(got, found[0], rtol=0, atol=BAR)


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("root", ["params/", "opt/target/", ""])
def test_an_older_vit_comes_back_under_its_own_names(tmp_path, names, root):
  arrays = _vit(**NAMES[names]) | _classifier()
  source = _save(tmp_path / "a.npz", arrays, root=root, dtype=np.float32)
  model = _read(source)
  assert list(model.spec) and "text" not in model.spec
  assert model.spec["image"]["pooling"] == "class"
  assert model.spec["image"]["class_position"] == ("folded" not in names)
  assert model.report.ignored == sorted(f"{root}{x}" for x in _classifier())
  big_vision.write(model, tmp_path / "b.npz")
  _same_files(source, tmp_path / "b.npz")


@pytest.mark.parametrize("flat", [False, True])
def test_lit_survives_our_own_directory(tmp_path, flat, monkeypatch):
  from clip_jax.convert.formats import big_vision_description

  monkeypatch.setattr(big_vision_description, "BERT_HEAD_DIM", 12)
  image = _vit(**NAMES["as published with the paper"])
  arrays = _lit(_bert(), flat=flat, image=image)
  source = _save(tmp_path / "a.npz", arrays, dtype=np.float32)
  convert.convert(source, tmp_path / "ours", to="clip-jax")
  convert.convert(tmp_path / "ours", tmp_path / "b.npz", to="big-vision")
  _same_files(source, tmp_path / "b.npz")


def test_matrices_of_an_unknown_number_of_heads_are_refused(tmp_path):
  source = _save(tmp_path / "a.npz", _lit(_bert(), flat=True))
  with pytest.raises(errors.UserError, match=r"48 wide.*one head for 64"):
    _read(source)


def test_a_lit_is_described_as_such(tmp_path):
  model = _read(_save(tmp_path / "a.npz", _lit(_bert())))
  text = model.spec["text"]
  assert (text["kind"], text["pooling"]) == ("bert", "cls")
  assert (text["activation"], text["norm_epsilon"]) == ("gelu_tanh", 1e-12)
  assert text["context_length"] == text["positions"] == 9
  assert model.spec["tokenizer"]["kind"] == "wordpiece"
  assert model.spec["tokenizer"]["end_id"] is None
  assert model.spec["init_logit_bias"] is None
  assert model.spec["image_projection"] == "linear_bias"


def test_attention_pools_of_an_older_time_lie_in_the_tower_itself(tmp_path):
  rng = np.random.default_rng(7)
  arrays = _vit(class_position=False)
  del arrays["cls"]
  arrays["probe"] = _draw(rng, (1, 1, WIDTH))
  arrays |= _block(
    rng,
    "",
    attention="MultiHeadDotProductAttention_0",
    mlp="MlpBlock_0",
    norms=("LayerNorm_0",),
  )
  source = _save(tmp_path / "a.npz", arrays)
  model = _read(source)
  assert model.spec["image"]["pooling"] == "map"
  big_vision.write(model, tmp_path / "b.npz")
  _same_files(source, tmp_path / "b.npz")


def test_positions_that_were_trained_twice_are_added(tmp_path):
  rng = np.random.default_rng(8)
  image = {f"img/{k}": x for k, x in _vit(class_position=False).items()}
  first, second = (_draw(rng, (1, 7, WIDTH)) for _ in range(2))
  text = {
    "Embed_0/embedding": _draw(rng, (37, WIDTH)),
    "pos_embedding": first,
    "Encoder_0/pos_embedding": second,
    "Encoder_0/encoder_norm/scale": _draw(rng, (WIDTH,), kind="scale"),
    "Encoder_0/encoder_norm/bias": _draw(rng, (WIDTH,), kind="bias"),
    **_block(
      rng,
      "Encoder_0/encoderblock_0/",
      attention="MultiHeadDotProductAttention_0",
      mlp="MlpBlock_0",
      norms=("LayerNorm_0", "LayerNorm_1"),
    ),
  }
  arrays = image | {f"txt/{k}": x for k, x in text.items()}
  arrays["t"] = np.zeros(1)
  told = Options(pooling="last", tokenizer="c4_en")
  model = _read(_save(tmp_path / "a.npz", arrays), told)
  np.testing.assert_array_equal(
    model.leaves["params/text/position_embedding"].read(), (first + second)[0]
  )
  assert any("is added to" in warning for warning in model.report.warnings)
  with pytest.raises(errors.UserError, match="differ in shape"):
    arrays["txt/Encoder_0/pos_embedding"] = second[:, :6]
    _read(_save(tmp_path / "a.npz", arrays))


@pytest.mark.parametrize(
  ("fields", "named"),
  [
    ({"pooling": "mean"}, "text.pooling"),
    ({"activation": "gelu"}, "text.activation"),
    ({"norm_epsilon": 1e-6}, "text.norm_epsilon"),
    ({"pad_id": 1}, "text.pad_id"),
    ({"positions": 512}, "text.positions"),
  ],
)
def test_another_bert_is_refused_by_its_field(tmp_path, fields, named):
  model = _read(_save(tmp_path / "a.npz", _lit(_bert())))
  assert big_vision.FORMAT.refusals(model.spec) == []
  spec = {**model.spec, "text": {**model.spec["text"], **fields}}
  assert big_vision.FORMAT.refusals(spec)[0].startswith(f"{named}=")
