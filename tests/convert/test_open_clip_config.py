import json
import pathlib
import random

import numpy as np
import pytest

from clip_jax import convert, errors, tokenizer
from clip_jax.convert import engine
from clip_jax.convert import report as report_lib
from clip_jax.convert.files import safetensors_file, torch_zip
from clip_jax.convert.formats import (
  bert,
  open_clip,
  open_clip_config,
  open_clip_fields,
  open_clip_rows,
  timm_vit,
)
from clip_jax.convert.portable import Options
from clip_jax.convert.source_reading import SourceReading
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants

ROOT = pathlib.Path(__file__).parents[2]
TEXT = {"context_length": 9, "vocab_size": 50, "width": 36, "heads": 3}
TEXT |= {"layers": 1}
VISION = {"image_size": 20, "patch_size": 5, "width": 48, "layers": 1}
VISION |= {"head_width": 12}
MODEL = {"embed_dim": 22, "vision_cfg": VISION, "text_cfg": TEXT}


def _describe(changes=(), *, whole=None):
  model = json.loads(json.dumps(MODEL))
  for path, value in dict(changes).items():
    *parents, field = path.split(".")
    node = model
    for parent in parents:
      node = node[parent]
    node[field] = value
  reading = SourceReading("x", "open-clip")
  config = {"model_cfg": model, **(whole or {})}
  described = open_clip_config.describe(
    config, reading, bert_config=lambda name: {}, name="config"
  )
  return described, reading.report


REFUSED = {
  "new_field": 1,
  "multimodal_cfg": {"width": 8},
  "vision_cfg.new_field": 1,
  "vision_cfg.ls_init_value": 1e-4,
  "vision_cfg.attentional_pool": True,
  "vision_cfg.block_type": "custom",
  "vision_cfg.qk_norm": True,
  "vision_cfg.scaled_cosine_attn": True,
  "vision_cfg.scale_heads": True,
  "vision_cfg.scale_attn_inner": True,
  "vision_cfg.scale_attn": True,
  "vision_cfg.scale_fc": True,
  "vision_cfg.output_tokens": True,
  "vision_cfg.pool_type": "none",
  "vision_cfg.pos_embed_type": "rotary",
  "vision_cfg.image_size": [20, 25],
  "vision_cfg.patch_size": None,
  "vision_cfg.width": "48",
  "vision_cfg.layers": True,
  "vision_cfg.mlp_ratio": -1,
  "vision_cfg.act_kwargs": {"slope": 1},
  "vision_cfg.norm_kwargs": {"elementwise_affine": False},
  "vision_cfg.timm_model_name": "convnext_base",
  "text_cfg.new_field": 1,
  "text_cfg.embed_cls": True,
  "text_cfg.ls_init_value": 1e-4,
  "text_cfg.qk_norm": True,
  "text_cfg.output_tokens": True,
  "text_cfg.pool_type": "first",
  "text_cfg.proj_type": "mlp",
  "text_cfg.tokenizer_mode": "clips",
  "text_cfg.heads": 5,
  "text_cfg.norm_kwargs": 5,
  "text_cfg.act_kwargs": {"approximate": "sigmoid"},
  "text_cfg.tokenizer_kwargs": {"reduction_mask": "syntax"},
  "text_cfg.hf_model_name": "bert-base-uncased",
  "embed_dim": 0,
  "init_logit_bias": "-10",
}


@pytest.mark.parametrize("path", REFUSED)
def test_a_field_that_is_not_held_is_refused_by_its_name(path):
  field = path.split(".")[-1]
  inner = REFUSED[path]
  expected = {
    "text_cfg.hf_model_name": "hf_tokenizer_name",
    "text_cfg.heads": "heads",
    "vision_cfg.timm_model_name": "convnext_base",
  }.get(path, next(iter(inner)) if isinstance(inner, dict) else field)
  if path == "multimodal_cfg":
    expected = path
  with pytest.raises(errors.UserError, match=expected):
    _describe({path: inner})


def test_every_field_of_the_preprocessing_counts():
  preprocess = {
    "size": [20, 20],
    "mode": "RGB",
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
    "interpolation": "bilinear",
    "resize_mode": "longest",
    "fill_color": 7,
  }
  spec = _describe(whole={"preprocess_cfg": preprocess})[0].spec
  assert spec["image_mean"] == [0.5, 0.4, 0.3]
  assert (spec["resize"], spec["fill"]) == ("longest", 7)
  assert spec["interpolation"] == "bilinear"
  for field, value in (
    ("interpolation", "random"),
    ("resize_mode", "crop"),
    ("mean", [0.5, 0.5]),
    ("std", ["a", 1, 2]),
    ("std", [0.2, 0, 0.3]),
    ("fill_color", 256),
    ("fill_color", -1),
    ("mode", "L"),
    ("crop", 1),
  ):
    with pytest.raises(errors.UserError, match=field):
      _describe(whole={"preprocess_cfg": {**preprocess, field: value}})


def test_a_number_that_float32_cannot_hold_is_refused():
  with pytest.raises(
    errors.UserError, match="init_logit_bias must be a finite"
  ):
    _describe({"init_logit_bias": -1e39})


def test_what_a_config_leaves_out_is_reported():
  _, report = _describe()
  assert report.inferred["image_mean"]["source"] == "format"
  _, report = _describe(whole={"preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}})
  assert report.inferred["image_mean"]["source"] == "config"


def test_a_timm_tower_ignores_quick_gelu_as_open_clip_does():
  vision = {
    "image_size": 224,
    "timm_model_name": "vit_base_patch16_siglip_224",
    "timm_pool": "map",
    "timm_proj": "none",
    "width": 100,
  }
  described, report = _describe(
    {"vision_cfg": vision, "embed_dim": 768, "quick_gelu": True}
  )
  assert described.spec["image"]["activation"] == "gelu"
  assert described.spec["text"]["activation"] == "quick_gelu"
  assert any("width" in warning for warning in report.warnings)


@pytest.mark.parametrize(
  ("name", "image", "text"),
  [
    ("ViT-B-16-SigLIP", "gelu", "gelu"),
    ("ViT-SO400M-16-SigLIP-i18n-256", "gelu_tanh", "gelu"),
    ("ViT-B-16-SigLIP2", "gelu", "gelu_tanh"),
    ("ViT-L-16-SigLIP2-384", "gelu", "gelu_tanh"),
    ("ViT-B-32-SigLIP2-256", "gelu_tanh", "gelu_tanh"),
    ("ViT-L-16-SigLIP2-512", "gelu_tanh", "gelu_tanh"),
    ("ViT-SO400M-14-SigLIP2", "gelu", "gelu_tanh"),
    ("ViT-SO400M-16-SigLIP2-512", "gelu_tanh", "gelu_tanh"),
    ("ViT-gopt-16-SigLIP2-256", "gelu_tanh", "gelu_tanh"),
  ],
)
def test_siglips_have_the_activations_that_open_clip_gives_them(
  name, image, text
):
  path = ROOT / "tests" / "golden" / "open_clip_shipped.json"
  model = json.loads(path.read_text())[name]["model_cfg"]
  spec = _describe(model)[0].spec
  assert spec["image"]["activation"] == image
  assert spec["text"]["activation"] == text


def test_an_mlp_ratio_gives_back_every_width():
  rng = random.Random(3)
  pairs = [(1152, 4304), (1408, 6144), (1664, 8192), (49, 186)]
  pairs += [(rng.randint(8, 2048), rng.randint(8, 9000)) for _ in range(20000)]
  for width, mlp_dim in pairs:
    ratio = open_clip_rows.mlp_ratio(width, mlp_dim)
    assert int(width * json.loads(json.dumps(ratio))) == mlp_dim


NATIVE = {
  "embed_dim": 22,
  "image": {
    "kind": "vit",
    "image_size": 20,
    "patch_size": 5,
    "width": 48,
    "depth": 1,
    "heads": 4,
  },
  "text": {
    "kind": "transformer",
    "context_length": 9,
    "vocab_size": 50,
    "width": 36,
    "heads": 3,
    "depth": 1,
  },
}


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("image.pooling", "map"),
    ("image.patch_bias", True),
    ("image.registers", 2),
    ("image.class_position", False),
    ("image.activation", "gelu"),
    ("text.pooling", "map"),
    ("image_projection", "mlp"),
    ("text_projection", "mlp"),
    ("embed_norm", "l2_rsqrt_1e-6"),
    ("crop_fraction", 0.9),
  ],
)
def test_what_open_clip_cannot_hold_is_refused_by_name(field, value):
  *part, name = field.split(".")
  change = {part[0]: {name: value}} if part else {name: value}
  spec = variants.spec(NATIVE, change)
  problems = "; ".join(open_clip_config.refusals(spec))
  assert field in problems


def test_towers_trained_here_with_two_stages_or_bags_of_words_are_refused():
  problems = open_clip_config.refusals(variants.spec("tiny-cbow"))
  assert any("image.depths=[1, 1]" in problem for problem in problems)
  assert any("text.kind='cbow'" in problem for problem in problems)
  assert not open_clip_config.refusals(variants.spec("tiny-vit"))


def test_a_size_that_open_clip_refuses_is_no_fault_of_a_file():
  spec = variants.spec("RN50", {"image": {"image_size": 24}})
  (problem,) = open_clip_config.refusals(spec)
  assert problem.endswith("must be a multiple of 32 for a ResNet; got 24")


def test_a_siglip_with_tanh_throughout_is_refused_by_its_activation():
  siglip = timm_vit.describe("vit_base_patch16_siglip_224")
  text = {**NATIVE["text"], "activation": "gelu_tanh"}
  base = {"embed_dim": 768, "image": siglip, "text": text}
  base["image_projection"] = "none"
  assert not open_clip_config.refusals(variants.spec(base))
  change = {"image": {"activation": "gelu_tanh"}}
  problems = open_clip_config.refusals(variants.spec(base, change))
  wanted = (
    "image.activation='gelu_tanh' (timm's vit_base_patch16_siglip_224 has "
    "'gelu')"
  )
  assert wanted in problems


def _write(directory, model, name=open_clip.WEIGHTS, **more):
  directory.mkdir()
  config = {"model_cfg": model, "preprocess_cfg": {}}
  (directory / open_clip.CONFIG).write_text(json.dumps(config))
  described = open_clip_config.describe(
    config, SourceReading("x"), bert_config=lambda name: {}, name="x"
  )
  spec = variants.spec({**described.spec, "tokenizer": {"kind": "clip_bpe"}})
  layout = open_clip._layout(described, {})
  shapes = engine.leaf_shapes(spec)
  rng = np.random.default_rng(0)
  tensors = {
    entry.name: rng.normal(size=engine.their_shape(entry, shapes)).astype(
      np.float32
    )
    for entry in open_clip.entries(spec, layout)
  }
  tensors |= more
  arrays = {k: Tensor.from_array(v) for k, v in tensors.items()}
  write = safetensors_file.write if "safe" in name else torch_zip.write
  write(directory / name, arrays)
  return directory


def test_the_file_is_the_one_that_open_clip_prefers(tmp_path):
  directory = _write(tmp_path / "a", MODEL, "open_clip_pytorch_model.bin")
  assert convert.open_model(directory).report.tensors > 0
  (directory / "model.safetensors").write_bytes(b"not read")
  report = convert.open_model(directory).report
  assert any("model.safetensors" in warning for warning in report.warnings)
  (directory / "open_clip_pytorch_model.bin").unlink()
  with pytest.raises(errors.UserError, match=r"model\.safetensors"):
    convert.open_model(directory)
  (directory / "model.safetensors").unlink()
  with pytest.raises(errors.UserError, match="has no weights"):
    convert.open_model(directory)


def test_tensors_and_config_must_belong_together(tmp_path):
  extra = {"logit_bias": np.zeros(1, np.float32)}
  with pytest.raises(errors.UserError, match="unexpected: logit_bias"):
    convert.open_model(_write(tmp_path / "a", MODEL, **extra))
  scaled = {
    "visual.transformer.resblocks.0.ls_1.gamma": np.ones(48, np.float32)
  }
  with pytest.raises(errors.UserError, match=r"ls_1\.gamma"):
    convert.open_model(_write(tmp_path / "b", MODEL, **scaled))
  wrong = {"visual.proj": np.zeros((22, 48), np.float32)}
  with pytest.raises(errors.UserError, match=r"visual\.proj"):
    convert.open_model(_write(tmp_path / "c", MODEL, **wrong))


def test_a_scale_beyond_the_bound_of_training_is_kept(tmp_path):
  path = _write(tmp_path / "a", MODEL, logit_scale=np.float32(5))
  model = convert.open_model(path)
  assert model.leaves["params/log_scale"].read() == 5
  assert model.spec["max_logit_scale"] == 100


def test_a_user_may_override_the_activation(tmp_path):
  directory = _write(tmp_path / "a", MODEL)
  model = convert.open_model(directory, options=Options(activation="gelu_tanh"))
  assert model.spec["image"]["activation"] == "gelu_tanh"
  told = [x for x in model.report.warnings if "overrides" in x]
  assert len(told) == 2  # One for each tower.
  for warning in told:
    assert warning.startswith("--activation gelu_tanh overrides")
    assert warning.endswith("whose default is approximate='none'.")
  assert model.report.inferred["text.activation"]["source"] == "flag"
  directory = _write(tmp_path / "b", MODEL | {"quick_gelu": True})
  model = convert.open_model(directory, options=Options(activation="gelu_tanh"))
  told = [x for x in model.report.warnings if "overrides" in x]
  assert len(told) == 2
  assert all(x.endswith("which says quick_gelu=True.") for x in told)


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "circle", "##s")


def test_clipas_tokenizer_ends_in_zeros(tmp_path):
  text = {
    **TEXT,
    "hf_tokenizer_name": "bert-base-uncased",
    "tokenizer_kwargs": {"strip_sep_token": True},
    "pool_type": "last",
  }
  directory = _write(tmp_path / "a", {**MODEL, "text_cfg": text})
  with pytest.raises(errors.UserError, match=r"tokenizer\.json"):
    convert.open_model(directory)
  (directory / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  model = convert.open_model(directory)
  cut = tokenizer.make_tokenizer(
    **model.spec["tokenizer"], context_length=9, contents=model.files
  )
  assert cut("A red  circles").tolist() == [[2, 4, 5, 6, 7, 0, 0, 0, 0]]
  (directory / "tokenizer_config.json").write_text('{"padding_side": "left"}')
  with pytest.raises(errors.UserError, match="padding_side"):
    convert.open_model(directory)


@pytest.mark.parametrize("clean", ["canonicalize", "lower", "whitespace"])
def test_a_cleaning_goes_both_ways(tmp_path, clean):
  text = {**TEXT, "tokenizer_kwargs": {"clean": clean}}
  model = convert.open_model(
    _write(tmp_path / "a", {**MODEL, "text_cfg": text})
  )
  assert model.spec["tokenizer"]["cleaning"] in tokenizer.CLEANINGS
  config = open_clip_config.configure(model)["model_cfg"]["text_cfg"]
  default = {"clean": "lower"}
  assert config.get("tokenizer_kwargs", default) == {"clean": clean}


def test_a_damaged_config_is_a_clear_error(tmp_path):
  directory = _write(tmp_path / "a", MODEL)
  for text in ("", "[]", "{", '{"model_cfg": []}', "{}", '{"a": 1}'):
    (directory / open_clip.CONFIG).write_text(text)
    with pytest.raises(errors.UserError):
      convert.open_model(directory)


def test_no_single_change_of_a_config_crashes(tmp_path):
  """Every field, replaced by every kind of JSON value: held or refused."""
  values = (
    None,
    True,
    -1,
    0,
    3,
    10**30,
    1e300,
    "",
    "x",
    [],
    [1, 2],
    {},
    {"a": 1},
  )
  rows = [row for image in open_clip_fields.IMAGES.values() for row in image]
  rows += [row for text in open_clip_fields.TEXTS.values() for row in text]
  rows += open_clip_fields.TOKENIZERS[True]
  names = {getattr(row, "theirs", "..").split(".")[2] for row in rows}
  fields = sorted(names - {""})
  for part in ("vision_cfg", "text_cfg"):
    for field in fields:
      for value in values:
        try:
          _describe({f"{part}.{field}": value})
        except errors.UserError:
          continue
  for field in (
    "quick_gelu",
    "custom_text",
    "init_logit_scale",
    "init_logit_bias",
    *MODEL,
  ):
    for value in values:
      try:
        _describe({field: value})
      except errors.UserError:
        continue


def test_a_default_is_not_said_to_come_from_the_config():
  _, report = _describe({"quick_gelu": True, "text_cfg.pool_type": "last"})
  said = {k for k, v in report.inferred.items() if v["source"] == "config"}
  assert said == {
    *("image.image_size", "image.patch_size", "image.heads"),
    *("image.activation", "text.activation", "text.heads", "text.pooling"),
    *("text.context_length", "text.vocab_size"),
  }
  assert report.inferred["image.norm_epsilon"]["source"] == "format"


def test_a_bert_that_open_clip_cannot_name_is_refused_in_a_dry_run():
  base = variants.VARIANTS["ViT-B-32"]
  text = bert.describe({}, report_lib.Report("bert"), "")
  text |= {"pooling": "mean", "context_length": 77}
  tokenizer = {"kind": "wordpiece", "file": "vocab.txt"}
  spec = variants.spec({**base, "text": text, "tokenizer": tokenizer})
  assert not open_clip_config.refusals(spec)
  spec["text"]["depth"] = 3
  problem, near = open_clip_config.refusals(spec)
  assert problem.startswith("text.depth=3")
  assert "bert-base-uncased" in near
