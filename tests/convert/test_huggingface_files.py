"""HuggingFace's files: round trips, exports, configs, and what is refused."""

import importlib.util
import json
import math
import pathlib

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from clip_jax import convert, errors
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.convert import engine
from clip_jax.convert import report as report_lib
from clip_jax.convert.formats import huggingface, huggingface_images
from clip_jax.convert.formats import huggingface_weights as weights
from clip_jax.convert.source_reading import SourceReading
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants

_SPEC = importlib.util.spec_from_file_location(
  "huggingface_models",
  pathlib.Path(__file__).parent / "huggingface_models.py",
)
models = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(models)

CLIP, SIGLIP, NAFLEX = (
  "clip gelu, first end id",
  "siglip",
  "siglip2 naflex",
)
CLASSES = {CLIP: "CLIPModel", SIGLIP: "SiglipModel", NAFLEX: "Siglip2Model"}


@pytest.fixture
def save(perturb, tmp_path):
  def to(name, dtype=torch.float32, **options):
    model = models.make(name, perturb).to(dtype)
    model.save_pretrained(tmp_path / "source", **options)
    return model, tmp_path / "source"

  return to


def _tensors(directory):
  found = {}
  for path in sorted(directory.glob("*.safetensors")):
    found |= safetensors.torch.load_file(path)
  return found


def _assert_same(got, want):
  assert got.keys() == want.keys()
  for name, tensor in want.items():
    assert got[name].dtype == tensor.dtype, name
    assert got[name].shape == tensor.shape, name
    assert torch.equal(got[name], tensor), name


def _load(directory, name):
  kind = getattr(transformers, CLASSES[name])
  model, info = kind.from_pretrained(directory, output_loading_info=True)
  assert not any(info.values()), info
  return model


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
  "dtype", [torch.float32, torch.float16, torch.bfloat16]
)
def test_a_round_trip_gives_back_every_bit(save, tmp_path, name, dtype):
  model, source = save(name, dtype)
  convert.convert(source, tmp_path / "ours", to="clip-jax")
  convert.convert(tmp_path / "ours", tmp_path / "back", to="huggingface")
  _assert_same(_tensors(tmp_path / "back"), _tensors(source))
  loaded = _load(tmp_path / "back", name)
  assert loaded.dtype == dtype
  _assert_same(loaded.state_dict(), model.state_dict())
  was, now = (
    json.loads((d / "config.json").read_text())
    for d in (source, tmp_path / "back")
  )
  for part in ("text_config", "vision_config"):
    for field, value in now[part].items():
      if field not in ("projection_dim", "bos_token_id", "pad_token_id"):
        legacy = field == "eos_token_id" and "siglip" in name
        assert legacy or was[part][field] == value, field


def test_openais_format_and_back_loses_nothing(perturb, tmp_path):
  # One head for 64 of the width, and MLPs of four times it: OpenAI's rule.
  text = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_attention_heads": 3,
  }
  vision = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_attention_heads": 2,
  }
  perturb(models.clip(text, vision)).save_pretrained(tmp_path / "source")
  quick = convert.Options(activation="quick_gelu", heads=(2, 3))
  convert.convert(
    tmp_path / "source", tmp_path / "a.pt", to="openai", options=quick
  )
  convert.convert(
    tmp_path / "a.pt", tmp_path / "back", to="huggingface", options=quick
  )
  _assert_same(_tensors(tmp_path / "back"), _tensors(tmp_path / "source"))
  # An end id that is not the largest is none that OpenAI's model finds.
  models.edit(tmp_path / "source", text_config={"eos_token_id": 40})
  with pytest.raises(errors.UserError, match=r"text\.pooling='eos'"):
    convert.convert(tmp_path / "source", tmp_path / "b.pt", to="openai")


@pytest.mark.parametrize(
  ("dtype", "widest"),
  [(torch.float16, "float32"), (torch.float64, "float64")],
)
def test_mixed_dtypes_and_position_ids_come_back(save, tmp_path, dtype, widest):
  _, source = save(CLIP)
  path = source / "model.safetensors"
  tensors = safetensors.torch.load_file(path)
  for name in tensors:
    if "layer_norm" not in name and "embedding" not in name:
      tensors[name] = tensors[name].to(dtype)
  key = "text_model.embeddings.position_ids"
  tensors[key] = torch.arange(11)[None]
  safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
  convert.convert(source, tmp_path / "ours", to="clip-jax")
  report = convert.convert(
    tmp_path / "ours", tmp_path / "back", to="huggingface"
  )
  _assert_same(_tensors(tmp_path / "back"), tensors)
  assert report.ignored == [] and report.exact
  read = convert.open_model(source)
  assert read.report.ignored == [key]
  config = json.loads((tmp_path / "back" / "config.json").read_text())
  assert config["dtype"] == widest  # Which holds the others, too.


def test_shards_are_read_and_written(save, tmp_path, monkeypatch):
  model, source = save(CLIP, max_shard_size="200kB")
  assert len(list(source.glob("*.safetensors"))) > 1
  convert.convert(source, tmp_path / "whole", to="huggingface")
  assert [p.name for p in (tmp_path / "whole").glob("*.safetensors")] == [
    "model.safetensors"
  ]
  monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 150_000)
  convert.convert(tmp_path / "whole", tmp_path / "shards", to="huggingface")
  files = sorted((tmp_path / "shards").glob("*.safetensors"))
  assert len(files) > 1 and files[0].name.startswith("model-00001-of-0000")
  assert max(file.stat().st_size for file in files) < 160_000
  _assert_same(_tensors(tmp_path / "shards"), _tensors(source))
  _assert_same(
    _load(tmp_path / "shards", CLIP).state_dict(), model.state_dict()
  )


@pytest.mark.parametrize("sharded", [False, True])
def test_pytorch_files_become_safetensors(save, tmp_path, sharded):
  model, source = save(CLIP)
  state = model.state_dict()
  (source / "model.safetensors").unlink()
  if sharded:
    parts = [dict(list(state.items())[i::2]) for i in (0, 1)]
    weight_map = {}
    for i, part in enumerate(parts):
      torch.save(part, source / f"part-{i}.bin")
      weight_map |= dict.fromkeys(part, f"part-{i}.bin")
    index = source / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
  else:
    torch.save(state, source / "pytorch_model.bin")
  report = convert.convert(source, tmp_path / "out", to="huggingface")
  assert any("becomes model.safetensors" in x for x in report.warnings)
  _assert_same(_tensors(tmp_path / "out"), state)


def test_a_written_file_says_that_it_is_pytorchs(save, tmp_path):
  _, source = save(CLIP)
  convert.convert(source, tmp_path / "out", to="huggingface")
  path = tmp_path / "out" / "model.safetensors"
  with safetensors.safe_open(path, "pt") as file:
    assert file.metadata() == {"format": "pt"}


def test_a_trained_model_goes_to_transformers(tmp_path, perturb):
  # Any of our own descriptions, with OpenAI's way of preparing inputs.
  spec = variants.spec(
    {
      "embed_dim": 24,
      "image": {
        "kind": "vit",
        "image_size": 20,
        "patch_size": 5,
        "width": 64,
        "depth": 1,
        "heads": 4,
      },
      "text": {
        "kind": "transformer",
        "context_length": 9,
        "vocab_size": 49408,
        "width": 32,
        "depth": 1,
        "heads": 2,
      },
    }
  )
  rng = np.random.default_rng(0)
  leaves = {
    path: Tensor.from_array(rng.normal(size=shape).astype(np.float32))
    for path, shape in engine.leaf_shapes(spec).items()
  }
  report = report_lib.Report("test")
  model = convert.Portable(spec=spec, leaves=leaves, report=report)
  huggingface.write(model, tmp_path / "out")
  loaded = _load(tmp_path / "out", CLIP)
  assert loaded.config.text_config.eos_token_id == 49407
  processor = transformers.AutoProcessor.from_pretrained(tmp_path / "out")
  assert type(processor).__name__ == "CLIPProcessor"
  assert processor.image_processor.crop_size["height"] == 20
  assert processor.tokenizer("a cat").input_ids == [49406, 320, 2368, 49407]
  for field in ("crop_rounding", "convert_rgb", "tokenizer.cleaning"):
    assert any(field in warning for warning in report.warnings), field


REFUSALS = {
  "image.kind": {"image": {"kind": "resnet", "width": 64, "depths": [1]}},
  "image.pooling": {"image": {"pooling": "gap"}},
  "image.registers": {"image": {"registers": 4}},
  "image.pre_norm": {"image": {"pre_norm": False}},
  "image.patch_bias": {"image": {"patch_bias": True}},
  "image.class_position": {"image": {"class_position": False}},
  "text.kind": {"text": {"kind": "cbow"}},
  "text.causal": {"text": {"causal": False}},
  "text.pooling": {"text": {"pooling": "last"}},
  "image_projection": {"image_projection": "mlp"},
  "text_projection": {"text_projection": "linear_bias"},
  "embed_norm": {"embed_norm": "l2_rsqrt_1e-6"},
  "init_logit_bias": {"init_logit_bias": -10.0},
  "resize": {"resize": "longest"},
}


@pytest.mark.parametrize("field", REFUSALS)
def test_what_no_model_there_holds_is_named(field):
  assert huggingface.refusals(variants.spec("ViT-B-32")) == []
  spec = variants.spec("ViT-B-32", REFUSALS[field])
  problems = huggingface.refusals(spec)
  assert problems[0].startswith(f"{field}=")
  # A ResNet also ends in the shared space by itself.
  assert len(problems) == (2 if field == "image.kind" else 1)


def test_sparse_configs_mean_the_defaults_of_their_classes(tmp_path):
  for family in ("clip", "siglip", "siglip2", "metaclip_2"):
    models.edit(tmp_path, model_type=family, text_config={}, vision_config=None)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    spec = _describe(tmp_path)
    text, image = config.text_config, config.vision_config
    for tower, theirs in (("text", text), ("image", image)):
      ours = spec[tower]
      assert ours["width"] == theirs.hidden_size
      assert ours["mlp_dim"] == theirs.intermediate_size
      assert ours["depth"] == theirs.num_hidden_layers
      assert ours["heads"] == theirs.num_attention_heads
      assert ours["norm_epsilon"] == theirs.layer_norm_eps
    assert spec["text"]["vocab_size"] == text.vocab_size
    assert spec["text"]["context_length"] == text.max_position_embeddings
    assert spec["image"]["patch_size"] == image.patch_size
    if family != "siglip2":
      assert spec["image"]["image_size"] == image.image_size
    else:
      assert spec["image"]["image_size"] == 16 * math.isqrt(image.num_patches)
    (tmp_path / "config.json").unlink()


def test_the_report_tells_what_a_file_says_from_its_classes_defaults(tmp_path):
  models.edit(tmp_path, model_type="clip", text_config={}, vision_config={})
  models.edit(
    tmp_path, "preprocessor_config.json", resample=2, image_std=None, size=224
  )
  reading = SourceReading("x", "huggingface")
  config = huggingface.read_config(tmp_path, reading)
  huggingface.describe(tmp_path, config)
  inferred = reading.report.inferred
  said = {field: entry["source"] for field, entry in inferred.items()}
  for field in ("interpolation", "resize", "crop_fraction"):
    assert said[field] == "config", field
  for field in ("image_mean", "image_std", "crop_rounding", "antialias"):
    assert said[field] == "format", field


def _describe(directory):
  config = huggingface.read_config(directory, SourceReading("x", "huggingface"))
  return huggingface.describe(directory, config)


def test_a_legacy_part_replaces_the_newer_one(tmp_path):
  models.edit(
    tmp_path,
    model_type="clip",
    text_config={"hidden_size": 64, "num_hidden_layers": 5},
    text_config_dict={"hidden_size": 128, "eos_token_id": 2},
    vision_config_dict=None,
  )
  theirs = transformers.CLIPConfig.from_pretrained(tmp_path).text_config
  ours = _describe(tmp_path)["text"]
  assert ours["width"] == theirs.hidden_size == 128
  assert ours["depth"] == theirs.num_hidden_layers == 12
  assert (ours["pooling"], ours["eos_id"]) == ("argmax", None)


@pytest.mark.parametrize("more", ['"x": Infinity', '"model_type": "clip"'])
def test_a_config_that_json_does_not_settle_is_refused(tmp_path, more):
  text = f'{{"model_type": "clip", {more}}}'
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(errors.UserError, match=r"Infinity|occurs twice"):
    convert.open_model(tmp_path)


# What is changed -> what the error says.
MALFORMED = {
  "model_type": ({"model_type": 5}, "known format"),
  "a part": ({"text_config": [1]}, "text_config must be a JSON object"),
  "a float": ({"text_config": {"hidden_size": 48.0}}, "hidden_size must be"),
  "a bool": ({"text_config": {"hidden_size": True}}, "hidden_size must be"),
  "null": ({"vision_config": {"layer_norm_eps": None}}, "layer_norm_eps"),
  "negative": ({"vision_config": {"patch_size": -5}}, "patch_size must be"),
  "not square": ({"vision_config": {"image_size": [20, 25]}}, "square"),
  "heads": ({"text_config": {"num_attention_heads": 5}}, "must divide"),
  "activation": ({"text_config": {"hidden_act": "gelu_10"}}, "gelu_10"),
  "no activation": ({"text_config": {"hidden_act": {}}}, "hidden_act"),
  "end ids": ({"text_config": {"eos_token_id": [1, 2]}}, "eos_token_id"),
  "channels": ({"vision_config": {"num_channels": 4}}, "num_channels"),
  "layers": (
    {"text_config": {"num_hidden_layers": 10**6}},
    "layers=1000000 for",
  ),
  "a layer more": ({"text_config": {"num_hidden_layers": 4}}, "missing"),
  "vocabulary": ({"text_config": {"vocab_size": 51}}, "another shape"),
  "projection": ({"projection_dim": 25}, "another shape"),
  "image size": ({"vision_config": {"image_size": 25}}, "another shape"),
  "huge image": (
    {"vision_config": {"image_size": 10**9}},
    "image_size must be a number of pixels",
  ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_config_is_a_clear_error(save, name):
  changes, message = MALFORMED[name]
  _, source = save(CLIP)
  models.edit(source, **changes)
  with pytest.raises(errors.UserError, match=message):
    convert.open_model(source)


MALFORMED_SIGLIP = {
  "no head": ({"vision_config": {"vision_use_head": False}}, "vision_use_head"),
  "projection": ({"text_config": {"projection_size": 63}}, "projection_size"),
}


@pytest.mark.parametrize("name", MALFORMED_SIGLIP)
def test_a_malformed_config_of_siglip_is_a_clear_error(save, name):
  changes, message = MALFORMED_SIGLIP[name]
  _, source = save(SIGLIP)
  models.edit(source, **changes)
  with pytest.raises(errors.UserError, match=message):
    convert.open_model(source)


def test_naflex_without_a_square_grid_is_refused(save):
  _, source = save(NAFLEX)
  models.edit(source, vision_config={"num_patches": 15})
  with pytest.raises(errors.UserError, match="num_patches must be a square"):
    convert.open_model(source)


SQUARE = {"height": 20, "width": 20}
MALFORMED_IMAGES = {
  "class": ({"image_processor_type": "BlipImageProcessor"}, "Blip"),
  "resample": ({"resample": 0}, "resample"),
  "size": ({"size": {"shortest_edge": 20, "longest_edge": 30}}, "size"),
  "no crop": ({"do_center_crop": False}, "do_center_crop"),
  "crop": ({"crop_size": {"height": 20, "width": 10}}, "crop_size"),
  "small": ({"size": {"shortest_edge": 19}}, "crop_size"),
  "other size": ({"crop_size": 19, "size": 19}, "image_size=20"),
  "std": ({"image_std": [0.5, 0.5, 0]}, "image_std"),
  "mean": ({"image_mean": "grey"}, "image_mean"),
  "rescale": ({"rescale_factor": 1.0}, "rescale_factor"),
  "no resize": ({"do_resize": False}, "do_resize"),
  "padding": ({"do_pad": True}, "do_pad"),
}


@pytest.mark.parametrize("name", MALFORMED_IMAGES)
def test_unknown_preprocessing_is_refused_by_name(save, name):
  changes, message = MALFORMED_IMAGES[name]
  _, source = save(CLIP)
  fields = {"crop_size": SQUARE, "size": {"shortest_edge": 20}, **changes}
  models.edit(source, "preprocessor_config.json", **fields)
  with pytest.raises(errors.UserError, match=message):
    convert.open_model(source)


def test_crop_fractions_give_back_their_sizes():
  for side in range(30, 400, 7):
    for resized in range(side, 2 * side, 11):
      fraction = huggingface_images.crop_fraction(side, resized)
      assert math.floor(side / fraction) == resized


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "a\0b"])
def test_an_index_stays_in_its_directory(save, name):
  _, source = save(CLIP)
  outside = source.parent / "a.safetensors"
  (source / "model.safetensors").rename(outside)
  tensors = safetensors.torch.load_file(outside)
  index = {"weight_map": dict.fromkeys(tensors, name)}
  (source / "model.safetensors.index.json").write_text(json.dumps(index))
  with pytest.raises(errors.UserError, match="no plain file name"):
    convert.open_model(source)


def test_a_file_that_does_not_fit_its_config_is_named(save, tmp_path):
  _, source = save(CLIP)
  file = tmp_path / "other.safetensors"
  (source / "model.safetensors").rename(file)
  models.edit(source, projection_dim=25)
  told = convert.Options(config=str(source / "config.json"))
  with pytest.raises(errors.UserError) as caught:
    convert.open_model(file, options=told)
  assert str(caught.value).startswith(f"{file} is not the huggingface model")


@pytest.mark.parametrize(
  "name", ["vision.json", "nothing.json", "ViT-B-32", "x" * 300]
)
def test_no_config_is_read_in_place_of_the_one_given(save, tmp_path, name):
  _, source = save(CLIP)
  (source / "vision.json").write_text("{}")
  told = convert.Options(config=str(source / name))
  with pytest.raises(
    errors.UserError, match=rf"{name}: .* take a config\.json"
  ):
    convert.open_model(source / "model.safetensors", options=told)


def test_missing_weights_are_named(tmp_path):
  models.edit(tmp_path, model_type="clip")
  with pytest.raises(errors.UserError, match=r"none of model\.safetensors"):
    convert.open_model(tmp_path)


def _train_sentencepiece(directory):
  sentencepiece = pytest.importorskip("sentencepiece")
  corpus = directory / "corpus.txt"
  words = ("a photo of the cat", "two dogs run", "snow leopard in grass")
  corpus.write_text("\n".join(words * 20))
  sentencepiece.SentencePieceTrainer.train(
    input=str(corpus),
    model_prefix=str(directory / "spiece"),
    vocab_size=49,
    unk_id=2,
    eos_id=1,
    pad_id=0,
    bos_id=-1,
    hard_vocab_limit=False,
    minloglevel=9,
  )
  corpus.unlink()


def test_siglips_tokenizer_travels(save, tmp_path):
  _, source = save(SIGLIP)
  _train_sentencepiece(source)
  (source / "spiece.vocab").unlink()
  config = {
    "tokenizer_class": "SiglipTokenizer",
    "pad_token": "</s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "model_max_length": 11,
  }
  models.edit(source, "tokenizer_config.json", **config)
  convert.convert(source, tmp_path / "ours", to="clip-jax")
  convert.convert(tmp_path / "ours", tmp_path / "back", to="huggingface")
  for name in ("spiece.model", "tokenizer_config.json"):
    assert (tmp_path / "back" / name).read_bytes() == (
      source / name
    ).read_bytes()
  fields = convert.open_model(tmp_path / "back").spec["tokenizer"]
  assert fields == {
    "kind": "sentencepiece",
    "cleaning": "hf_siglip",
    "pad_id": 1,
    "start_id": None,
    "end_id": 1,
    "file": "spiece.model",
  }
  ours = tokenizer_lib.make_tokenizer(
    **fields, context_length=11, directory=tmp_path / "ours"
  )
  theirs = transformers.SiglipTokenizer.from_pretrained(tmp_path / "back")
  texts = ["A photo of the Cat!", "snow_leopard", "", "two dogs " * 9]
  want = theirs(
    texts,
    padding="max_length",
    truncation=True,
    max_length=11,
    return_tensors="np",
  )["input_ids"]
  np.testing.assert_array_equal(ours(texts), want)


@pytest.mark.parametrize(
  ("field", "value"),
  [("cleaning", "lower_ascii"), ("pad_id", 0), ("end_id", None)],
)
def test_a_tokenizer_that_cuts_otherwise_there_is_told(
  save, tmp_path, field, value
):
  _, source = save(SIGLIP)
  _train_sentencepiece(source)
  convert.convert(source, tmp_path / "ours", to="clip-jax")
  path = tmp_path / "ours" / "clip_jax.json"
  described = json.loads(path.read_text())
  before = described["spec"]["tokenizer"][field]
  described["spec"]["tokenizer"][field] = value
  path.write_text(json.dumps(described))
  report = convert.convert(
    tmp_path / "ours", tmp_path / "back", to="huggingface"
  )
  told = [x for x in report.warnings if x.startswith("tokenizer.")]
  assert len(told) == 1
  assert f"tokenizer.{field}={value!r} here, {before!r} as" in told[0]


def test_another_vocabulary_of_clips_is_read_from_its_file(save):
  import tokenizers

  _, source = save(CLIP)
  engine_ = tokenizers.Tokenizer(
    tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")])
  )
  engine_.add_special_tokens(["<s>", "</s>"])
  engine_.post_processor = tokenizers.processors.TemplateProcessing(
    single="<s> $A </s>", special_tokens=[("<s>", 3), ("</s>", 4)]
  )
  engine_.save(str(source / "tokenizer.json"))
  models.edit(source, "tokenizer_config.json", pad_token="</s>")
  assert convert.open_model(source).spec["tokenizer"] == {
    "kind": "hf_json",
    "cleaning": "none",
    "pad_id": 4,
    "start_id": 3,
    "end_id": 4,
    "file": "tokenizer.json",
  }


def test_a_dry_run_reads_no_data(save, tmp_path):
  _, source = save(CLIP)
  path = source / "model.safetensors"
  size = int.from_bytes(path.read_bytes()[:8], "little") + 8
  whole = path.stat().st_size
  with path.open("r+b") as file:  # A hole in the place of the data.
    file.truncate(size)
    file.truncate(whole)
  report = convert.convert(
    source,
    tmp_path / "out",
    to="huggingface",
    options=convert.Options(headers_only=True),
  )
  assert report.exact and report.mapped == report.tensors
  assert not (tmp_path / "out").exists()
  options = convert.Options(headers_only=True)
  model = convert.open_model(source, options=options)
  # A digest would have read all of the weights.
  assert set(model.source["files"]) == {"config.json"}


FULL_SIZE = {
  "openai/clip-vit-large-patch14": (
    transformers.CLIPModel,
    transformers.CLIPConfig(
      projection_dim=768,
      text_config={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
      },
      vision_config={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
      },
    ),
  ),
  "google/siglip-so400m-patch14-384": (
    transformers.SiglipModel,
    {
      "text_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
      },
      "vision_config": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "image_size": 384,
        "patch_size": 14,
      },
    },
  ),
  "google/siglip2-giant-opt-patch16-256": (
    transformers.SiglipModel,
    {
      "text_config": {
        "vocab_size": 256000,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "projection_size": 1536,
      },
      "vision_config": {
        "hidden_size": 1536,
        "intermediate_size": 6144,
        "num_attention_heads": 16,
        "num_hidden_layers": 40,
        "image_size": 256,
        "patch_size": 16,
      },
    },
  ),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_names_and_shapes_match_without_data(tmp_path, name):
  kind, config = FULL_SIZE[name]
  if isinstance(config, dict):
    config = transformers.SiglipConfig(**config)
  with torch.device("meta"):
    state = kind(config).state_dict()
  config.save_pretrained(tmp_path)
  header, end = {}, 0
  for key, tensor in state.items():
    offsets = [end, end + 4 * tensor.numel()]
    shape = list(tensor.shape)
    header[key] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    end = offsets[1]
  text = json.dumps(header).encode()
  with (tmp_path / "model.safetensors").open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    file.truncate(8 + len(text) + end)  # Sparse: it takes no room on the disk.
  options = convert.Options(headers_only=True)
  model = convert.open_model(tmp_path, options=options)
  assert model.report.mapped == len(state)
  family = huggingface.FAMILIES[config.model_type]
  back = engine.to_theirs(family.entries(model.spec), model.leaves)
  assert {k: t.shape for k, t in back.items()} == {
    k: tuple(t.shape) for k, t in state.items()
  }


@pytest.mark.slow
def test_a_model_of_full_width_comes_back(tmp_path):
  config = transformers.CLIPConfig()  # ViT-B/32, of one layer.
  config.text_config.num_hidden_layers = 1
  config.vision_config.num_hidden_layers = 1
  model = transformers.CLIPModel(config)
  model.save_pretrained(tmp_path / "source")
  convert.convert(tmp_path / "source", tmp_path / "ours", to="clip-jax")
  convert.convert(tmp_path / "ours", tmp_path / "back", to="huggingface")
  _assert_same(_tensors(tmp_path / "back"), _tensors(tmp_path / "source"))
