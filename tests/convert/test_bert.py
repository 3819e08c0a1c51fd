"""BERT and sentence-transformers against transformers' BertModel."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

from clip_jax import convert, errors, tokenizer
from clip_jax.convert import engine
from clip_jax.convert.files import safetensors_file
from clip_jax.convert.formats import bert, model_dir
from clip_jax.convert.portable import Options
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants

MEAN = Options(pooling="mean")
BAR = 1e-12  # Float64 against float64; BERT's wrong epsilons give 1e-6.
SIZES = {
  "vocab_size": 31,
  "hidden_size": 40,
  "num_hidden_layers": 3,
  "num_attention_heads": 5,
  "intermediate_size": 88,
  "max_position_embeddings": 13,
  "type_vocab_size": 3,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "circle", "##s"]
WORDS += [f"w{i}" for i in range(SIZES["vocab_size"] - len(WORDS))]


@pytest.fixture(scope="module")
def theirs(perturb):
  torch.manual_seed(0)
  config = transformers.BertConfig(**SIZES, attn_implementation="sdpa")
  return perturb(transformers.BertModel(config)).double().eval()


@pytest.fixture
def make(theirs, tmp_path):
  def build(dtype=np.float64, rename=lambda name: name, more=(), **config):
    directory = tmp_path / "bert"
    directory.mkdir()
    tensors = {
      rename(name): tensor.numpy().astype(dtype)
      for name, tensor in theirs.state_dict().items()
      if tensor.is_floating_point()
    }
    tensors |= dict(more)
    safetensors_file.write(
      directory / "model.safetensors",
      {key: Tensor.from_array(value) for key, value in tensors.items()},
    )
    config = {"model_type": "bert", **SIZES, **config}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return directory

  return build


def _tokens():
  rng = np.random.default_rng(1)
  tokens = rng.integers(1, SIZES["vocab_size"], size=(3, 9))
  tokens[0, 4:] = 0
  tokens[1, 7:] = 0
  tokens[1, 3] = 0  # Padding in the middle is masked, too.
  return tokens


def _their_features(model, pooling):
  tokens = torch.from_numpy(_tokens())
  mask = (tokens != 0).long()
  with torch.no_grad():
    out = model(input_ids=tokens, attention_mask=mask)
  if pooling == "pooler":
    return out.pooler_output.numpy()
  if pooling == "cls":
    return out.last_hidden_state[:, 0].numpy()
  weights = mask[..., None].double()
  total = (out.last_hidden_state * weights).sum(1)
  return (total / weights.sum(1).clamp(min=1e-9)).numpy()


def _features(model):
  with jax.enable_x64(True):
    tower = variants._make_tower(
      "text", model.spec["text"], dtype=np.float64, param_dtype=np.float64
    )
    params = {"params": model.variables(np.float64)["params"]["text"]}
    return np.asarray(jax.jit(tower.apply)(params, _tokens()))


def _legacy(name):
  name = f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma")
  return name.replace("LayerNorm.bias", "LayerNorm.beta")


# `bert-base-uncased` as published: old names, a head, the positions' ids.
PUBLISHED = {
  "cls.predictions.bias": np.zeros(31),
  "cls.predictions.transform.LayerNorm.gamma": np.zeros(40),
  "cls.seq_relationship.weight": np.zeros((2, 40)),
  "bert.embeddings.position_ids": np.arange(13)[None],
}


@pytest.mark.parametrize(
  ("rename", "more"), [(lambda name: name, {}), (_legacy, PUBLISHED)]
)
def test_a_bert_computes_what_transformers_computes(
  make, theirs, difference, rename, more
):
  model = convert.open_model(make(rename=rename, more=more), options=MEAN)
  assert model.source["format"] == "bert"
  assert any("pooler.dense" in name for name in model.report.ignored)
  assert model.report.inferred["text.pooling"]["value"] == "mean"
  assert difference(_features(model), _their_features(theirs, "mean")) < BAR


def _sentence(directory, pooling="mean_tokens", *, modules=None, **settings):
  """Puts sentence-transformers' files around a BERT."""
  kinds = ("Transformer", "Pooling") if modules is None else modules
  listed = [
    {
      "idx": i,
      "name": str(i),
      "path": "" if i == 0 else f"{i}_{kind}",
      "type": f"sentence_transformers.models.{kind}",
    }
    for i, kind in enumerate(kinds)
  ]
  (directory / "modules.json").write_text(json.dumps(listed))
  (directory / "1_Pooling").mkdir(exist_ok=True)
  modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
  config = {"word_embedding_dimension": SIZES["hidden_size"]}
  config |= {f"pooling_mode_{mode}": mode in pooling for mode in modes}
  (directory / "1_Pooling/config.json").write_text(json.dumps(config))
  path = directory / "sentence_bert_config.json"
  path.write_text(json.dumps({"max_seq_length": 9, **settings}))
  return directory


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_sentence_transformer_computes_what_its_parts_do(
  make, theirs, difference, pooling
):
  directory = {"mean": "mean_tokens", "cls": "cls_token"}[pooling]
  model = convert.open_model(_sentence(make(), [directory]))
  assert model.source["format"] == "sentence-transformers"
  assert model.spec["text"]["context_length"] == 9
  got = _features(model)
  assert difference(got, _their_features(theirs, pooling)) < BAR


def test_a_normalize_is_told_and_kept(make, theirs, difference, tmp_path):
  modules = ["Transformer", "Pooling", "Normalize"]
  source, ours = _sentence(make(), modules=modules), tmp_path / "ours"
  report = convert.convert(source, ours, to="clip-jax")
  noted = {"value": True, "source": "config"}
  assert report.inferred["text.normalize"] == noted
  assert "ends in Normalize" in " ".join(report.warnings)
  got = _features(convert.open_model(ours))
  want = _their_features(theirs, "mean")
  want /= np.linalg.norm(want, axis=1, keepdims=True)
  assert difference(got, want) < BAR


def test_a_model_from_before_normalize_was_a_field_is_read(make, tmp_path):
  ours = tmp_path / "ours"
  convert.convert(_sentence(make()), ours, to="clip-jax")
  file = ours / model_dir.DESCRIPTION
  described = json.loads(file.read_text())
  assert described["spec"]["text"].pop("normalize") is False
  file.write_text(json.dumps(described))
  assert convert.open_model(ours).spec["text"]["normalize"] is False


@pytest.mark.parametrize(
  "change",
  [
    {"norm_epsilon": 1e-6},
    {"activation": "gelu_tanh"},
    {"pad_id": 3},
    {"pooling": "cls"},
    {"normalize": True},
  ],
)
def test_a_mutation_is_far_above_the_bar(make, theirs, difference, change):
  model = convert.open_model(make(), options=MEAN)
  model.spec["text"].update(change)
  got = _features(model)
  assert difference(got, _their_features(theirs, "mean")) > 1e4 * BAR


def test_float32_is_as_near_as_float32_can_be(make, theirs, difference):
  model = convert.open_model(make(np.float32), options=MEAN)
  tower = variants._make_tower("text", model.spec["text"])
  params = {"params": model.variables()["params"]["text"]}
  got = jax.jit(tower.apply)(params, _tokens().astype(np.int32))
  assert difference(got, _their_features(theirs, "mean")) < 5e-6


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
  ("rename", "more"), [(lambda name: name, {}), (_legacy, PUBLISHED)]
)
def test_a_model_directory_keeps_every_bit(make, tmp_path, dtype, rename, more):
  source = make(dtype, rename, more)
  convert.convert(source, tmp_path / "ours", to="clip-jax", options=MEAN)
  model = convert.open_model(tmp_path / "ours")
  dialect = dict(model.source["dialect"])
  dialect.pop("config")
  entries = bert.FAMILY.entries(model.spec, dialect)
  back = {**engine.to_theirs(entries, model.leaves), **model.extras}
  want = safetensors_file.read(source / "model.safetensors").tensors
  assert back.keys() == want.keys()
  for key, tensor in want.items():
    assert back[key].dtype == tensor.dtype
    assert back[key].read().tobytes() == tensor.read().tobytes(), key


def test_the_tokenizer_comes_along_and_agrees_with_transformers(make, tmp_path):
  source = _sentence(make())
  convert.convert(source, tmp_path / "ours", to="clip-jax")
  model = convert.open_model(tmp_path / "ours")
  cut = tokenizer.make_tokenizer(
    **model.spec["tokenizer"], context_length=9, contents=model.files
  )
  theirs = transformers.BertTokenizer.from_pretrained(source)
  texts = ["A red  circle", "circles! w1 w2 w3 w4 w5 w6 w7", "", "rëd Circles"]
  wanted = theirs(
    texts, padding="max_length", truncation=True, max_length=9
  ).input_ids
  assert cut(texts).tolist() == wanted


def test_sentence_transformers_lower_case_is_its_own(make):
  source = _sentence(make(), do_lower_case=True)
  assert convert.open_model(source).spec["tokenizer"]["cleaning"] == "lower"


@pytest.mark.parametrize(
  ("config", "word"),
  [
    ({"hidden_act": "relu"}, "hidden_act"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ({"is_decoder": True}, "is_decoder"),
    ({"add_cross_attention": True}, "add_cross_attention"),
    ({"num_attention_heads": 7}, "heads"),
    ({"hidden_size": "40"}, "hidden_size"),
    ({"pad_token_id": 1}, "pad_token_id"),
    ({"num_hidden_layers": 2}, r"encoder\.layer\.2"),
    ({"vocab_size": 30}, "word_embeddings"),
  ],
)
def test_what_is_not_held_is_refused_by_name(make, config, word):
  directory = make(**config)
  with pytest.raises(errors.UserError, match=word):
    convert.open_model(directory, options=MEAN)


def test_other_modules_and_poolings_are_refused(make):
  directory = make()
  for modules in (
    ["Transformer", "Pooling", "Dense"],
    ["Transformer", "Normalize"],
    ["Normalize", "Transformer", "Pooling"],
    ["Transformer"],
    [],
  ):
    with pytest.raises(errors.UserError, match="modules"):
      convert.open_model(_sentence(directory, modules=modules))
  for pooling in (["max_tokens"], [], ["cls_token", "mean_tokens"]):
    with pytest.raises(errors.UserError, match="exactly one"):
      convert.open_model(_sentence(directory, pooling))
  _sentence(directory)
  for path in ("../elsewhere", "/etc", "a/b", "..", 3):
    listed = json.loads((directory / "modules.json").read_text())
    listed[1]["path"] = path
    (directory / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(errors.UserError, match="directory"):
      convert.open_model(directory)
  for text in ("", "{}", "[1]", "[{}]"):
    (directory / "modules.json").write_text(text)
    with pytest.raises(errors.UserError, match="modules"):
      convert.open_model(directory)


def test_a_directory_without_a_tokenizer_says_what_is_missing(make):
  directory = make()
  (directory / "vocab.txt").write_text("a\nb\n")
  with pytest.raises(errors.UserError, match=r"\[CLS\]"):
    convert.open_model(directory, options=MEAN)
  (directory / "vocab.txt").unlink()
  with pytest.raises(errors.UserError, match=r"tokenizer\.json"):
    convert.open_model(directory, options=MEAN)


def test_a_plain_berts_pooling_must_be_told(make):
  directory = make()
  with pytest.raises(errors.AmbiguousError, match="--pooling"):
    convert.open_model(directory)
  told = convert.open_model(directory, options=Options(pooling="cls"))
  assert told.spec["text"]["pooling"] == "cls"
  noted = {"value": "cls", "source": "flag"}
  assert told.report.inferred["text.pooling"] == noted


@pytest.mark.parametrize("name", ["bert-base-uncased", "bert-large-uncased"])
def test_published_berts_have_transformers_names_and_shapes(name):
  from clip_jax.convert import report as report_lib
  from clip_jax.convert.formats import open_clip_named

  config = open_clip_named.BERTS[name]
  text = bert.describe(config, report_lib.Report("bert"), name)
  text |= {"pooling": "pooler", "context_length": 512}
  spec = {"text": text, "tokenizer": {"kind": "clip_bpe"}}
  shapes = engine.leaf_shapes(engine.resolve(spec))
  got = {
    entry.name: engine.their_shape(entry, shapes)
    for entry in bert.FAMILY.entries({"text": text})
  }
  with torch.device("meta"):
    model = transformers.BertModel(transformers.BertConfig(**config))
  want = {k: tuple(v.shape) for k, v in model.state_dict().items()}
  assert got == want
