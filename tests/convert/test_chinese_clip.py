"""ChineseCLIP, which is CLIP's image tower and a BERT, against transformers."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers
from PIL import Image

from clip_jax import cli, convert, errors, preprocess
from clip_jax import tokenizer as tokenizer_lib
from clip_jax.convert.formats import huggingface
from clip_jax.convert.source_reading import SourceReading

BAR = 1e-12  # Float64 against float64.
TEXT = {
  "vocab_size": 31,
  "hidden_size": 40,
  "num_hidden_layers": 3,
  "num_attention_heads": 5,
  "intermediate_size": 88,
  "max_position_embeddings": 13,
  "type_vocab_size": 3,
}
VISION = {
  "hidden_size": 64,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "intermediate_size": 132,
  "image_size": 20,
  "patch_size": 5,
}
SQUARE = {"height": 20, "width": 20}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "猫", "狗", "red", "cat", "##s"]
WORDS += [f"w{i}" for i in range(TEXT["vocab_size"] - len(WORDS))]
TEXTS = ["猫", "Red CATS, 狗狗", "", "猫 狗 " * 20]


@pytest.fixture(scope="module")
def theirs(perturb):
  torch.manual_seed(0)
  config = transformers.ChineseCLIPConfig(
    text_config=TEXT, vision_config=VISION, projection_dim=24
  )
  model = perturb(transformers.ChineseCLIPModel(config)).eval()
  with torch.no_grad():
    model.logit_scale.fill_(4.7)
  return model


@pytest.fixture(scope="module")
def source(theirs, tmp_path_factory):
  """Returns a directory in float32 that was saved as those published."""
  directory = tmp_path_factory.mktemp("chinese")
  theirs.save_pretrained(directory)
  (directory / "vocab.txt").write_text("\n".join(WORDS) + "\n", "utf-8")
  transformers.ChineseCLIPImageProcessorPil(
    do_center_crop=False, size=SQUARE, crop_size=SQUARE
  ).save_pretrained(directory)
  return directory


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
  """Returns a directory that was written here, from a checkpoint of ours."""
  root = tmp_path_factory.mktemp("written")
  convert.convert(source, root / "ours", to="clip-jax")
  convert.convert(root / "ours", root / "theirs", to="huggingface")
  return root / "theirs"


def _inputs():
  rng = np.random.default_rng(0)
  tokens = rng.integers(1, 31, size=(3, 13))
  tokens[0, 4:] = 0
  tokens[1, 9:] = 0
  return rng.normal(size=(3, 20, 20, 3)), tokens


def _run(directory):
  """Returns transformers' unit embeddings and logits in float64."""
  model = transformers.ChineseCLIPModel.from_pretrained(
    directory, dtype=torch.float64, attn_implementation="sdpa"
  )
  images, tokens = _inputs()
  ids = torch.from_numpy(tokens)
  with torch.no_grad():
    out = model.eval()(
      pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
      input_ids=ids,
      attention_mask=(ids != 0).long(),
    )
  found = out.image_embeds, out.text_embeds, out.logits_per_image
  return [x.numpy() for x in found]


def _worst(difference, got, want):
  return max(difference(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("name", ["source", "written"])
def test_a_directory_computes_what_transformers_computes(
  request, outputs, difference, name
):
  directory = request.getfixturevalue(name)
  model = convert.open_model(directory)
  worst = _worst(difference, outputs(model, *_inputs()), _run(directory))
  print(f"parity in float64, {name}: {worst:.1e}")
  assert worst < BAR


def test_a_query_that_is_read_as_a_key_is_far_above_the_bar(
  source, outputs, difference
):
  model = convert.open_model(source)
  blocks = "params/text/encoder/blocks/attention"
  query, key = (f"{blocks}/{name}/kernel" for name in ("query", "key"))
  swapped = {query: model.leaves[key], key: model.leaves[query]}
  wrong = dataclasses.replace(model, leaves={**model.leaves, **swapped})
  got = outputs(wrong, *_inputs())
  assert difference(got[1], _run(source)[1]) > 1e4 * BAR


def test_what_is_written_has_the_tensors_and_fields_of_the_source(
  source, written
):
  was, now = (
    safetensors.numpy.load_file(path / "model.safetensors")
    for path in (source, written)
  )
  assert was.keys() == now.keys()
  for name, tensor in was.items():
    np.testing.assert_array_equal(now[name], tensor, name)
  was, now = (
    transformers.AutoConfig.from_pretrained(path).to_dict()
    for path in (source, written)
  )
  for part in ("text_config", "vision_config"):
    for field, value in was[part].items():
      # Each tower's own, which the model does not read.
      assert field == "projection_dim" or now[part][field] == value, field
  assert now["projection_dim"] == was["projection_dim"] == 24
  assert now["architectures"] == was["architectures"]


@pytest.mark.parametrize("name", ["source", "written"])
def test_texts_and_images_are_prepared_as_transformers_does(request, name):
  directory = request.getfixturevalue(name)
  spec = convert.open_model(directory).spec
  tokenize = tokenizer_lib.make_tokenizer(
    **spec["tokenizer"],
    directory=directory,
    context_length=spec["text"]["context_length"],
  )
  want = transformers.AutoTokenizer.from_pretrained(directory)(
    TEXTS,
    padding="max_length",
    truncation=True,
    max_length=13,
    return_tensors="np",
  )["input_ids"]
  np.testing.assert_array_equal(tokenize(TEXTS), want)
  process = transformers.AutoImageProcessor.from_pretrained(
    directory, backend="pil"
  )
  ours = preprocess.Preprocess.from_spec(spec)
  rng = np.random.default_rng(1)
  for shape in ((31, 47), (20, 23)):
    picture = Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8))
    got = preprocess.normalize(preprocess.eval_image(picture, ours), ours)
    want = process(picture, return_tensors="np")["pixel_values"][0]
    # A level is 1 / 255 / std, at least 0.0142.
    assert np.abs(got - want.transpose(1, 2, 0)).max() < 1e-5


def test_a_sparse_config_means_the_defaults_and_a_legacy_part_wins(tmp_path):
  data = {
    "model_type": "chinese_clip",
    "text_config": {"num_hidden_layers": 5},
    "vision_config": {"hidden_size": 192, "patch_size": 8},
    "vision_config_dict": {"patch_size": 16},
  }
  (tmp_path / "config.json").write_text(json.dumps(data))
  config = huggingface.read_config(tmp_path, SourceReading("x", "huggingface"))
  ours = config.family.describe(config.source)
  want = transformers.AutoConfig.from_pretrained(tmp_path)
  assert want.vision_config.hidden_size == 768
  for tower, part in (
    ("text", want.text_config),
    ("image", want.vision_config),
  ):
    assert ours[tower]["width"] == part.hidden_size
    assert ours[tower]["mlp_dim"] == part.intermediate_size
    assert ours[tower]["depth"] == part.num_hidden_layers
    assert ours[tower]["heads"] == part.num_attention_heads
    assert ours[tower]["norm_epsilon"] == part.layer_norm_eps
    assert ours[tower]["activation"] == part.hidden_act
  text = want.text_config
  assert ours["image"]["patch_size"] == want.vision_config.patch_size == 16
  assert ours["text"]["vocab_size"] == text.vocab_size
  assert ours["text"]["context_length"] == text.max_position_embeddings
  assert ours["text"]["token_types"] == text.type_vocab_size
  assert ours["embed_dim"] == want.projection_dim


@pytest.mark.parametrize(
  ("field", "value"),
  [("pooling", "mean"), ("normalize", True), ("context_length", 7)],
)
def test_a_text_tower_that_the_class_does_not_have_is_refused(
  source, field, value
):
  spec = convert.open_model(source).spec
  assert huggingface.refusals(spec) == []
  other = {**spec, "text": {**spec["text"], field: value}}
  (problem,) = huggingface.refusals(other)
  assert problem.startswith(f"text.{field}={value!r} is not supported")


def test_the_pooler_of_a_text_tower_alone_is_kept_aside(source, tmp_path):
  config = transformers.ChineseCLIPTextConfig(**TEXT)
  transformers.ChineseCLIPTextModel(config).save_pretrained(tmp_path)
  (tmp_path / "vocab.txt").write_bytes((source / "vocab.txt").read_bytes())
  model = convert.open_model(tmp_path)
  assert sorted(model.extras) == ["pooler.dense.bias", "pooler.dense.weight"]
  assert "come after the text tower" in model.report.warnings[-1]


def test_a_directory_without_its_tokenizer_says_what_to_add(theirs, tmp_path):
  theirs.save_pretrained(tmp_path)
  with pytest.raises(errors.UserError, match="has no tokenizer"):
    convert.open_model(tmp_path)


def _cli(*words):
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    cli.main([*map(str, words), "--json"])
  return json.loads(out.getvalue())


@pytest.mark.slow
def test_the_commands_take_a_directory(source, tmp_path):
  answer = _cli("convert", source, tmp_path / "ours", "--to=clip-jax")
  assert answer["unexpected"] == answer["missing"] == []
  answer = _cli("verify", source, tmp_path / "ours", "--float64")
  assert all(stage["passed"] for stage in answer["stages"])
  picture = tmp_path / "picture.png"
  Image.new("RGB", (24, 20), "red").save(picture)
  (entry,) = _cli("classify", source, picture, "--labels", "猫,狗")
  assert sum(entry["probabilities"].values()) == pytest.approx(1)
