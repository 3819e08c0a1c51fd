"""Configs with wrong types: a clear error or a model, and never a crash."""

import copy
import dataclasses
import importlib.util
import json
import pathlib
import random

import numpy as np
import pytest

from clip_jax import convert, errors
from clip_jax.convert import portable, report, tokenizer_files
from clip_jax.convert.files import safetensors_file
from clip_jax.convert.formats import (
  bert,
  huggingface,
  huggingface_tokenizer,
  timm_vit,
)
from clip_jax.convert.tensor import Tensor

_SPEC = importlib.util.spec_from_file_location(
  "huggingface_models",
  pathlib.Path(__file__).parent / "huggingface_models.py",
)
models = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(models)

WRONG = (
  *(None, True, "x", "", [], [1], {}, {"a": []}, [[], {}], 0, -1, 1),
  *(1.5, 1e308, 1e-320, 10**9, 10**30, 2**63, -(10**40)),
)
CHANGES = 60


def _places(value, path=()):
  """Yields the path of everything inside a JSON value."""
  items = ()
  if isinstance(value, dict):
    items = value.items()
  elif isinstance(value, list):
    items = enumerate(value)
  for key, inner in items:
    yield (*path, key)
    yield from _places(inner, (*path, key))


def _changed(data, path, value):
  """Returns `data` with another value at `path`; shares all that is equal."""
  if not path:
    return value
  data = copy.copy(data)
  data[path[0]] = _changed(data[path[0]], path[1:], value)
  return data


def _fuzz(directory, names, seed=0):
  """Opens `directory` with one wrong value in one of its JSON files at a time.

  Only `UserError` may come out.
  """
  rng = random.Random(seed)
  # A plain BERT is refused at once where nothing says its pooling.
  options = convert.Options(headers_only=True, pooling="mean")
  texts = {name: (directory / name).read_text() for name in names}
  found = [
    (name, path, value)
    for name, text in texts.items()
    for path in _places(json.loads(text))
    for value in WRONG
  ]
  for name, path, value in rng.sample(found, min(CHANGES, len(found))):
    data = _changed(json.loads(texts[name]), path, value)
    (directory / name).write_text(json.dumps(data))
    try:
      convert.open_model(directory, options=options)
    except errors.UserError:
      pass
    except Exception as error:
      pytest.fail(f"{name} {path}={value!r:.30}: {error!r}")
    (directory / name).write_text(texts[name])


TOKENS = {
  "added_tokens_decoder": {"3": {"content": "<pad>", "special": True}},
  "pad_token": "<pad>",
  "padding_side": "right",
  "do_lower_case": True,
}
PREPROCESSOR = {
  "image_processor_type": "CLIPImageProcessor",
  "do_resize": True,
  "do_center_crop": True,
  "do_normalize": True,
  "crop_size": {"height": 20, "width": 20},
  "size": {"shortest_edge": 20},
  "image_mean": [0.5, 0.5, 0.5],
  "image_std": [0.5, 0.5, 0.5],
  "resample": 3,
  "rescale_factor": 1 / 255,
}


@pytest.fixture
def clip(tmp_path):
  models.clip({"eos_token_id": 2}).save_pretrained(tmp_path)
  models.edit(tmp_path, "preprocessor_config.json", **PREPROCESSOR)
  models.edit(tmp_path, "tokenizer_config.json", **TOKENS)
  return tmp_path


def test_a_changed_config_of_clip_is_an_error_or_a_model(clip):
  convert.open_model(clip)
  names = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
  _fuzz(clip, names)


def test_a_changed_config_of_siglip_is_an_error_or_a_model(tmp_path):
  models.siglip().save_pretrained(tmp_path)
  models.edit(tmp_path, "tokenizer_config.json", **TOKENS)
  _fuzz(tmp_path, ("config.json", "tokenizer_config.json"))


@pytest.mark.parametrize(
  ("name", "changes"),
  [
    ("preprocessor_config.json", {"resample": []}),
    ("config.json", {"text_config": {"eos_token_id": 10**30}}),
  ],
)
def test_a_wrong_type_is_named(clip, name, changes):
  models.edit(clip, name, **changes)
  with pytest.raises(errors.UserError, match=r"resample|eos_token_id"):
    convert.open_model(clip)


@pytest.mark.parametrize(
  "decoder",
  [
    {"3": {"content": ["<pad>"]}},
    {"9" * 5000: {"content": "<pad>"}},
    {"3": ["<pad>"]},
  ],
)
def test_odd_tables_of_tokens_are_passed_over(clip, decoder):
  # Not by `edit`, which would add them to what is there.
  text = json.dumps({"added_tokens_decoder": decoder, "pad_token": "<pad>"})
  (clip / "tokenizer_config.json").write_text(text)
  assert convert.open_model(clip).spec["tokenizer"]["pad_id"] == 49407


def test_an_id_beyond_the_vocabulary_is_refused(clip):
  decoder = {"50": {"content": "<pad>"}}
  text = json.dumps({"added_tokens_decoder": decoder, "pad_token": "<pad>"})
  (clip / "tokenizer_config.json").write_text(text)
  with pytest.raises(errors.UserError, match="pad_id=50"):
    convert.open_model(clip)


BERT = {
  "model_type": "bert",
  "vocab_size": 12,
  "hidden_size": 8,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
  "intermediate_size": 16,
  "max_position_embeddings": 9,
  "type_vocab_size": 2,
  "hidden_act": "gelu",
  "layer_norm_eps": 1e-12,
  "pad_token_id": 0,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]


def _write(directory, entries, shapes, config):
  from clip_jax.convert import engine

  safetensors_file.write(
    directory / "model.safetensors",
    {
      entry.name: Tensor.from_array(
        np.ones(engine.their_shape(entry, shapes), np.float32)
      )
      for entry in entries
    },
  )
  (directory / "config.json").write_text(json.dumps(config))


@pytest.fixture
def plain_bert(tmp_path):
  from clip_jax.convert import engine

  text = bert.describe(BERT, report.Report("bert"), "")
  text |= {"pooling": "mean", "context_length": 9}
  spec = engine.resolve({"text": text, "tokenizer": {"kind": "clip_bpe"}})
  _write(
    tmp_path,
    bert.FAMILY.entries({"text": text}),
    engine.leaf_shapes(spec),
    BERT,
  )
  (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  models.edit(tmp_path, "tokenizer_config.json", do_lower_case=True)
  return tmp_path


def test_a_changed_config_of_bert_is_an_error_or_a_model(plain_bert):
  _fuzz(plain_bert, ("config.json", "tokenizer_config.json"))


def test_a_changed_sentence_transformer_is_an_error_or_a_model(plain_bert):
  directory = plain_bert
  (directory / "1_Pooling").mkdir()
  files = {
    "modules.json": [
      {"type": "sentence_transformers.models.Transformer", "path": ""},
      {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
    ],
    "1_Pooling/config.json": {"pooling_mode_cls_token": True},
    "sentence_bert_config.json": {"max_seq_length": 8, "do_lower_case": True},
  }
  for name, data in files.items():
    (directory / name).write_text(json.dumps(data))
  assert convert.open_model(directory).spec["text"]["pooling"] == "cls"
  _fuzz(directory, tuple(files))


def test_a_plain_bert_says_where_each_field_comes_from(plain_bert):
  read = convert.open_model(plain_bert, options=convert.Options(pooling="mean"))
  assert not read.report.warnings
  found = read.report.inferred
  assert found["text.pooling"] == {"value": "mean", "source": "flag"}
  assert found["text.activation"]["source"] == "config"
  assert found["tokenizer.lowercase"]["source"] == "config"
  assert found["tokenizer.cleaning"]["source"] == "format"


def test_an_activation_that_is_told_holds_for_bert(plain_bert):
  read = convert.open_model(
    plain_bert, options=convert.Options(activation="gelu_tanh", pooling="cls")
  )
  assert read.spec["text"]["activation"] == "gelu_tanh"
  assert read.report.inferred["text.activation"]["source"] == "flag"
  assert any("--activation" in warning for warning in read.report.warnings)


def test_a_bert_with_more_words_than_vectors_is_refused(plain_bert):
  words = [*WORDS[:2], *"abcdefgh", *"ijkl", *WORDS[2:4]]
  (plain_bert / "vocab.txt").write_text("\n".join(words) + "\n")
  with pytest.raises(errors.UserError, match="start_id=14"):
    convert.open_model(plain_bert, options=convert.Options(pooling="mean"))


TIMM = {
  "architecture": "vit_tiny_patch16_224",
  "model_args": {
    "img_size": 4,
    "embed_dim": 6,
    "depth": 1,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "patch_size": 2,
  },
  "pretrained_cfg": {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "input_size": [3, 4, 4],
    "crop_pct": 0.9,
    "crop_mode": "center",
    "interpolation": "bicubic",
  },
}


@pytest.fixture
def timm(tmp_path):
  from clip_jax.convert import engine

  tower = timm_vit.describe(TIMM["architecture"])
  tower |= {"width": 6, "depth": 1, "heads": 2, "mlp_dim": 12}
  tower |= {"image_size": 4, "patch_size": 2}
  spec = engine.resolve({"image": tower})
  _write(
    tmp_path,
    timm_vit.NAMES.entries({"image": tower}),
    engine.leaf_shapes(spec),
    TIMM,
  )
  return tmp_path


def test_a_changed_config_of_timm_is_an_error_or_a_model(timm):
  read = convert.open_model(timm)
  found = read.report.inferred
  assert found["crop_fraction"] == {"value": 0.9, "source": "config"}
  assert found["crop_rounding"]["source"] == "format"
  _fuzz(timm, ("config.json",))


@pytest.mark.parametrize(
  ("part", "field", "value"),
  [
    ("model_args", "depth", 1_000_000_000),
    ("model_args", "embed_dim", 0),
    ("model_args", "num_heads", 0),
    ("model_args", "num_heads", 4),
    ("model_args", "mlp_ratio", 1e300),
    ("model_args", "patch_size", 0),
    ("pretrained_cfg", "crop_mode", [1]),
    ("pretrained_cfg", "crop_pct", "x"),
    ("pretrained_cfg", "crop_pct", 0),
    ("pretrained_cfg", "interpolation", {}),
    ("pretrained_cfg", "std", [0, 1, 1]),
  ],
)
def test_timms_arguments_are_bounded(timm, part, field, value):
  models.edit(timm, **{part: {field: value}})
  with pytest.raises(errors.UserError, match=field):
    convert.open_model(timm)


@pytest.mark.parametrize("kind", ["clip", "plain_bert", "timm"])
def test_a_dry_run_digests_no_weights(kind, request, monkeypatch):
  directory = request.getfixturevalue(kind)
  seen = []
  monkeypatch.setattr(portable, "digests", lambda files: seen.extend(files))
  options = convert.Options(headers_only=True, pooling="mean")
  convert.open_model(directory, options=options)
  assert {path.suffix for path in seen} <= {".json"}


def test_positions_that_no_longer_fit_are_left_out(clip, tmp_path):
  path = clip / "model.safetensors"
  tensors = dict(safetensors_file.read(path).tensors)
  key = "vision_model.embeddings.position_ids"
  tensors[key] = Tensor.from_array(np.arange(17)[None])
  tensors = {k: Tensor.from_array(x.read()) for k, x in tensors.items()}
  safetensors_file.write(path, tensors)
  plain = convert.Options()
  for side in (20, 30):
    options = plain
    if side != 20:
      options = dataclasses.replace(
        plain, image_size=side, resize_method="bicubic"
      )
    out = tmp_path / f"out{side}"
    convert.convert(clip, out, to="huggingface", options=options)
    names = safetensors_file.read(out / "model.safetensors").tensors
    assert (key in names) == (side == 20)


@pytest.mark.slow
def test_only_clips_own_tokenizer_counts_as_clips():
  clip_bpe = huggingface_tokenizer
  files = clip_bpe.clips_files(77)
  assert clip_bpe.is_clips(files)
  assert clip_bpe.is_clips({}) is None
  slow = {name: files[name] for name in (clip_bpe.VOCAB, clip_bpe.MERGES)}
  assert clip_bpe.is_clips(slow)
  lines = slow[clip_bpe.MERGES].splitlines()
  lines[1:3] = lines[2:0:-1]
  assert not clip_bpe.is_clips({**slow, clip_bpe.MERGES: b"\n".join(lines)})
  data = json.loads(files[clip_bpe.FAST])
  assert clip_bpe.is_clips({clip_bpe.FAST: json.dumps(data).encode()})
  # As older versions of `tokenizers` spell merges.
  spelled = _changed(
    data,
    ("model", "merges"),
    [x if isinstance(x, str) else " ".join(x) for x in data["model"]["merges"]],
  )
  assert clip_bpe.is_clips({clip_bpe.FAST: json.dumps(spelled).encode()})
  for path, value in (
    (("normalizer",), None),
    (("normalizer", "normalizers", 0, "type"), "NFKC"),
    (("pre_tokenizer",), {"type": "Whitespace"}),
    (("model", "merges"), data["model"]["merges"][::-1]),
    (("model", "end_of_word_suffix"), None),
    (("model", "dropout"), 0.1),
    (("post_processor",), None),
  ):
    other = json.dumps(_changed(data, path, value)).encode()
    assert not clip_bpe.is_clips({clip_bpe.FAST: other}), path


def test_another_normalizer_makes_another_tokenizer(clip):
  files = huggingface_tokenizer.clips_files(77)
  fast = json.loads(files[tokenizer_files.FAST])
  other = json.dumps(_changed(fast, ("normalizer",), None)).encode()
  text = {"vocab_size": 49408}
  found = [
    huggingface_tokenizer.clip(changed, text, report.Report(""))
    for changed in (files, {**files, tokenizer_files.FAST: other})
  ]
  assert [one["kind"] for one in found] == ["clip_bpe", "hf_json"]
  assert found[1]["start_id"] == found[0]["start_id"] == 49406
  assert huggingface.model_type(clip) == "clip"
