import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from clip_jax import convert, errors
from clip_jax.cli import run
from clip_jax.convert.formats import huggingface, model_dir
from clip_jax.convert.portable import Options
from clip_jax.convert.tensor import Tensor
from clip_jax.convert.verify import huggingface as verify_huggingface
from clip_jax.convert.verify import verification

SIZES = {
  "vit": (24, 20, 3, 128, 5, 11, 50, 192, 3, 2),
  "resnet": (24, 64, (1, 2, 1, 1), 16, None, 11, 50, 192, 3, 2),
}
QUICK = {
  kind: Options(activation="quick_gelu", heads=heads)
  for kind, heads in {"vit": (2, 3), "resnet": (8, 3)}.items()
}


@pytest.fixture(scope="module")
def pairs(openai_model, perturb, tmp_path_factory):
  """A source in OpenAI's format and its conversion, by the image tower."""
  found = {}
  for kind, sizes in SIZES.items():
    directory = tmp_path_factory.mktemp(kind)
    source, ours = directory / "source.pt", directory / "ours"
    torch.save(perturb(openai_model.CLIP(*sizes)).state_dict(), source)
    convert.convert(source, ours, to="clip-jax", options=QUICK[kind])
    found[kind] = (source, ours)
  return found


@pytest.mark.parametrize("kind", SIZES)
def test_a_conversion_passes_at_every_stage(pairs, kind):
  source, ours = pairs[kind]
  found = verification.verify(source, ours, options=QUICK[kind], double=True)
  assert found.passed
  stages = [row.stage for row in found.rows]
  blocks = {
    "vit": ["image block 1", "image block 2", "image block 3"],
    "resnet": [f"image stage {i}" for i in range(1, 5)],
  }
  assert stages == [
    "weights",
    *blocks[kind],
    "image embedding",
    *("text block 1", "text block 2", "text embedding"),
    "logits",
  ]
  assert all(row.difference < 1e-12 for row in found.rows)


@pytest.mark.slow
def test_a_resnet_that_loops_over_its_blocks_passes(
  openai_model, perturb, tmp_path
):
  source, looped = tmp_path / "source.pt", tmp_path / "looped"
  sizes = list(SIZES["resnet"])
  sizes[2] = (1, 5, 1, 1)
  torch.save(perturb(openai_model.CLIP(*sizes)).state_dict(), source)
  convert.convert(source, looped, to="clip-jax", options=QUICK["resnet"])
  file = looped / model_dir.DESCRIPTION
  description = json.loads(file.read_text())
  assert description["execution"] == {}
  description["execution"] = {"image": {"scan": True}}
  file.write_text(json.dumps(description))
  found = verification.verify(
    source, looped, options=QUICK["resnet"], double=True
  )
  assert found.passed
  assert "image stage 2" in [row.stage for row in found.rows]


def test_a_wrapped_source_is_unwrapped_for_its_library_too(pairs, tmp_path):
  state = torch.load(pairs["vit"][0], weights_only=True)
  wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
  source, ours = tmp_path / "source.pt", pairs["vit"][1]
  torch.save({"model": state, "model_ema": wrapped}, source)
  options = dataclasses.replace(QUICK["vit"], weights="model_ema")
  assert verification.verify(source, ours, options=options, double=True).passed


def test_a_bare_file_of_huggingfaces_is_laid_beside_its_config(
  perturb, tmp_path
):
  perturb(_huggingface("CLIP")).save_pretrained(tmp_path / "source")
  bare = tmp_path / "bare.safetensors"
  (tmp_path / "source" / "model.safetensors").rename(bare)
  with pytest.raises(errors.AmbiguousError, match=r"--config config\.json"):
    convert.open_model(bare)
  options = Options(config=str(tmp_path / "source" / "config.json"))
  convert.convert(bare, tmp_path / "ours", to="clip-jax", options=options)
  found = verification.verify(
    bare, tmp_path / "ours", options=options, double=True
  )
  assert found.passed and found.library.startswith("transformers")


def test_the_first_bad_stage_is_the_mistaken_one(pairs, tmp_path):
  source, ours = pairs["vit"]
  model = convert.open_model(ours)
  path = "params/image/encoder/blocks/ln_2/scale"
  array = model.leaves[path].read().copy()
  array[1] *= 1 + 1e-4  # In the second block only.
  leaves = {**model.leaves, path: Tensor.from_array(array)}
  wrong = dataclasses.replace(model, leaves=leaves)
  model_dir.write(wrong, tmp_path / "wrong")
  for double in (False, True):
    found = verification.verify(
      source, tmp_path / "wrong", options=QUICK["vit"], double=double
    )
    bad = [row.stage for row in found.rows if not row.passed]
    assert bad[:2] == ["weights", "image block 2"] and "logits" in bad
    assert not any(stage.startswith("text") for stage in bad)


def test_a_number_that_no_random_text_meets_is_compared_too(pairs, tmp_path):
  source, ours = pairs["vit"]
  model = convert.open_model(ours)
  path = "params/text/token_embedding/embedding"
  array = model.leaves[path].read().copy()
  rng = np.random.default_rng(0)
  verification.random_images(model.spec["image"], rng, 4)
  met = verification.random_tokens(model.spec["text"], rng, 4)
  unmet = np.setdiff1d(np.arange(len(array)), met)
  array[unmet[0]] += 1e-3
  leaves = {**model.leaves, path: Tensor.from_array(array)}
  wrong = dataclasses.replace(model, leaves=leaves)
  model_dir.write(wrong, tmp_path / "wrong")
  found = verification.verify(source, tmp_path / "wrong", options=QUICK["vit"])
  assert [row.stage for row in found.rows if not row.passed] == ["weights"]


def test_the_command_says_pass_or_fail(pairs, tmp_path, capsys):
  source, ours = map(str, pairs["vit"])
  arguments = ["--activation=quick_gelu", "--heads=2,3"]
  assert run(["verify", source, ours, *arguments]) == 0
  assert "PASS against OpenAI's model.py" in capsys.readouterr().out
  model = convert.open_model(ours)
  spec = {**model.spec, "text": {**model.spec["text"], "activation": "gelu"}}
  wrong = dataclasses.replace(model, spec=spec)
  model_dir.write(wrong, tmp_path / "wrong")
  command = ["verify", source, str(tmp_path / "wrong"), *arguments, "--json"]
  assert run(command) == 1
  shown = capsys.readouterr()
  found = json.loads(shown.out)
  assert not found["passed"]
  failed = [s["stage"] for s in found["stages"] if not s["passed"]]
  assert failed[0] == "text block 1"
  told = f"{command[2]} does not compute what its source does: text block 1"
  assert f"Error: {told}, " in shown.err.splitlines()[-1]


def _huggingface(name):
  text = {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2}
  text |= {"num_attention_heads": 3, "vocab_size": 60}
  image = {"hidden_size": 64, "intermediate_size": 120, "num_hidden_layers": 3}
  image |= {"num_attention_heads": 4, "patch_size": 5}
  length = {"max_position_embeddings": 11}
  if name in ("CLIP", "MetaClip2"):
    ends = {"eos_token_id": 59, "bos_token_id": 58}
    config = getattr(transformers, f"{name}Config")(
      text_config=text | length | ends,
      vision_config=image | {"image_size": 20},
      projection_dim=24,
    )
    return getattr(transformers, f"{name}Model")(config)
  if name == "siglip":
    text["hidden_size"] = text["projection_size"] = 64
    text["num_attention_heads"] = 4
    config = transformers.SiglipConfig(
      text_config=text | length, vision_config=image | {"image_size": 20}
    )
    return transformers.SiglipModel(config)
  assert name == "bert"
  return transformers.BertModel(transformers.BertConfig(**text, **length))


@pytest.mark.parametrize("name", ["CLIP", "MetaClip2", "siglip", "bert"])
def test_huggingfaces_models_pass_in_both_precisions(name, perturb, tmp_path):
  perturb(_huggingface(name)).save_pretrained(tmp_path / "source")
  if name == "bert":
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"w{i}" for i in range(55)]
    (tmp_path / "source" / "vocab.txt").write_text("\n".join(words) + "\n")
  source, ours = tmp_path / "source", tmp_path / "ours"
  options = Options(pooling="mean") if name == "bert" else Options()
  convert.convert(source, ours, to="clip-jax", options=options)
  for double in (False, True):
    found = verification.verify(source, ours, options=options, double=double)
    assert found.passed, [row for row in found.rows if not row.passed]
    assert "text block 2" in [row.stage for row in found.rows]
    assert found.library.startswith("transformers")


def test_every_family_of_huggingfaces_is_compared_and_a_tower_alone_is_told(
  tmp_path,
):
  assert huggingface.FAMILIES.keys() <= verify_huggingface._CLASSES.keys()
  config = transformers.CLIPTextConfig(
    **{"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2},
    **{"num_attention_heads": 3, "vocab_size": 60},
    **{"max_position_embeddings": 11, "eos_token_id": 59, "bos_token_id": 58},
  )
  source, ours = tmp_path / "source", tmp_path / "ours"
  transformers.CLIPTextModel(config).save_pretrained(source)
  convert.convert(source, ours, to="clip-jax")
  with pytest.raises(errors.UserError, match=r"clip_text_model.*metaclip_2"):
    verification.verify(source, ours)


def test_models_of_other_sizes_are_not_compared(pairs):
  with pytest.raises(errors.UserError, match="differ in size"):
    verification.verify(
      pairs["vit"][0], pairs["resnet"][1], options=QUICK["vit"]
    )


def test_a_source_that_no_library_reads_is_refused(pairs):
  _, ours = pairs["vit"]
  with pytest.raises(errors.UserError, match="No other library"):
    verification.verify(ours, ours)


def test_no_difference_hides_behind_nan():
  row = verification.Comparison("stage", float("nan"), 1.0)
  assert not row.passed
  zeros = np.zeros((2, 3))
  assert verification.difference(zeros, np.zeros((3, 2))) == float("inf")


def test_a_weight_that_is_nan_fails_after_others(pairs):
  source, ours = (
    convert.open_model(x, options=QUICK["vit"]) for x in pairs["vit"]
  )
  path = list(ours.leaves)[-1]
  ours.leaves[path] = ours.leaves[path].map(lambda x: x * np.nan)
  row = verification._compare_weights(ours, source)
  assert np.isnan(row.difference) and not row.passed


def test_nothing_compared_is_no_proof():
  assert not verification.Verification("library", "float32", ()).passed


@pytest.fixture(scope="module")
def prepared(perturb, tmp_path_factory):
  """A HuggingFace directory with all of its files, and its conversion."""
  directory = tmp_path_factory.mktemp("prepared")
  bare, source, ours = (directory / x for x in ("bare", "source", "ours"))
  ends = {"eos_token_id": 49407, "bos_token_id": 49406}
  text = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1}
  text |= {"num_attention_heads": 2, "vocab_size": 49408}
  image = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1}
  image |= {"num_attention_heads": 2, "patch_size": 5, "image_size": 25}
  config = transformers.CLIPConfig(
    text_config=text | {"max_position_embeddings": 16} | ends,
    vision_config=image,
    projection_dim=10,
  )
  perturb(transformers.CLIPModel(config)).save_pretrained(bare)
  # CLIP's own tokenizer and image processor come with an export.
  convert.convert(bare, source, to="huggingface")
  convert.convert(source, ours, to="clip-jax")
  return source, ours


def test_pixels_and_tokens_are_compared_with_the_librarys_own(prepared):
  found = verification.verify(*prepared)
  assert found.passed, [row for row in found.rows if not row.passed]
  stages = [row.stage for row in found.rows][:3]
  assert stages == ["weights", "pixels", "tokens"]
  assert found.rows[2].difference == 0 and not found.not_compared
  assert "not compared" not in found.to_text()


@pytest.mark.parametrize(
  ("field", "value", "failed"),
  [
    ("crop_rounding", "round", "pixels"),
    ("interpolation", "bilinear", "pixels"),
    ("image_std", [0.26862954, 0.26130258, 0.276], "pixels"),
    ("tokenizer", {"cleaning": "clip"}, "tokens"),
  ],
)
def test_a_mistake_in_the_preparation_shows_in_its_row(
  prepared, tmp_path, monkeypatch, field, value, failed
):
  # The towers, which the other tests compare, are the same.
  monkeypatch.setattr(verification, "_compare", lambda *_: [])
  source, ours = prepared
  model = convert.open_model(ours)
  if isinstance(value, dict):
    value = {**model.spec[field], **value}
  wrong = dataclasses.replace(model, spec={**model.spec, field: value})
  model_dir.write(wrong, tmp_path / "wrong")
  found = verification.verify(source, tmp_path / "wrong")
  assert [row.stage for row in found.rows if not row.passed] == [failed]


def test_what_cannot_be_compared_neither_passes_nor_fails(prepared, tmp_path):
  source, ours = prepared
  bare = tmp_path / "bare"
  bare.mkdir()
  for name in ("config.json", "model.safetensors"):
    (bare / name).write_bytes((source / name).read_bytes())
  found = verification.verify(bare, ours)
  assert found.passed
  assert [row.stage for row in found.not_compared] == ["pixels", "tokens"]
  text = found.to_text()
  assert "pixels: not compared (the source has no preprocessor_conf" in text
  assert "pixels and tokens not compared" in text.splitlines()[-1]
  assert [row["stage"] for row in found.to_dict()["not_compared"]] == [
    "pixels",
    "tokens",
  ]


def test_options_do_not_mend_the_model_that_is_verified(prepared, tmp_path):
  """A mistaken activation in its config is what the comparison is for."""
  source, _ = prepared
  wrong = tmp_path / "wrong"
  shutil.copytree(source, wrong)
  config = json.loads((wrong / "config.json").read_text())
  config["vision_config"]["hidden_act"] = "gelu"
  (wrong / "config.json").write_text(json.dumps(config))
  found = verification.verify(
    source, wrong, options=Options(activation="quick_gelu")
  )
  failed = [row.stage for row in found.rows if not row.passed]
  assert failed[0] == "image block 1" and "text block 1" not in failed


def test_an_ambiguous_model_is_to_be_converted_first(pairs):
  source, _ = pairs["vit"]
  with pytest.raises(errors.AmbiguousError, match="as it stands: convert it"):
    verification.verify(source, source, options=QUICK["vit"])
