"""OpenCLIP's models whose parts have other names, or lie apart."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from clip_jax import convert, errors
from clip_jax.cli import run
from clip_jax.convert import engine
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import family
from clip_jax.convert.files import safetensors_file
from clip_jax.convert.formats import (
  open_clip,
  open_clip_config,
  open_clip_files,
)
from clip_jax.convert.portable import Options, Portable
from clip_jax.convert.source_reading import SourceReading
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants

TINY = {
  "embed_dim": 12,
  "image": {"width": 16, "image_size": 8, "depth": 1, "heads": 2},
  "text": {"width": 24, "depth": 1, "heads": 3, "vocab_size": 30},
}
MODEL_CFG = {
  "embed_dim": 12,
  "quick_gelu": True,
  "vision_cfg": {
    "image_size": 8,
    "layers": 1,
    "width": 16,
    "head_width": 8,
    "patch_size": 4,
  },
  "text_cfg": {
    "context_length": 16,
    "vocab_size": 30,
    "width": 24,
    "heads": 3,
    "layers": 1,
  },
}


@pytest.fixture(scope="module")
def model():
  """A model as `MODEL_CFG` says, with random weights."""
  described = open_clip_config.describe(
    {"model_cfg": MODEL_CFG},
    SourceReading("test"),
    bert_config=dict,
    name="test",
  )
  tokenizer = {"tokenizer": {"kind": "clip_bpe"}}
  spec = family.as_json(engine.resolve({**described.spec, **tokenizer}))
  rng = np.random.default_rng(0)
  leaves = {
    path: Tensor.from_array(rng.normal(size=shape).astype(np.float32))
    for path, shape in engine.leaf_shapes(spec).items()
  }
  return Portable(spec, leaves, report_lib.Report("test"))


def _tensors(model, *, custom):
  layout = {
    "image_head": None,
    "prefix": "text." if custom else "",
    "scalars": {},
    "legacy_norms": False,
  }
  return engine.to_theirs(open_clip.entries(model.spec, layout), model.leaves)


def _save(path, tensors):
  if path.suffix == ".safetensors":
    safetensors_file.write(path, tensors)
    return
  state = {
    f"module.{name}": torch.from_numpy(x.read()) for name, x in tensors.items()
  }
  torch.save({"epoch": 3, "state_dict": state, "optimizer": {}}, path)


def _check(got, want):
  assert got.source["format"] == "open-clip"
  for path, leaf in want.leaves.items():
    np.testing.assert_array_equal(got.leaves[path].read(), leaf.read())


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
  ("config", "weights"),
  [
    ("open_clip_config.json", "epoch_32.pt"),
    ("ViT-mine.json", "open_clip_model.safetensors"),
    ("config.json", "clip_weights.safetensors"),
  ],
)
def test_a_directory_may_use_other_names(
  model, tmp_path, config, weights, plain, custom
):
  data = {**MODEL_CFG, "custom_text": custom}
  data = data if plain else {"model_cfg": data}
  (tmp_path / config).write_text(json.dumps(data))
  _save(tmp_path / weights, _tensors(model, custom=custom))
  _check(convert.open_model(tmp_path), model)


@pytest.mark.parametrize("custom", [False, True])
def test_names_may_be_those_of_a_custom_model_or_not(model, tmp_path, custom):
  """open_clip's --force-custom-text makes a custom one of any config."""
  data = {**MODEL_CFG, "custom_text": not custom}
  (tmp_path / "open_clip_config.json").write_text(json.dumps(data))
  _save(tmp_path / "epoch_1.pt", _tensors(model, custom=custom))
  _check(convert.open_model(tmp_path), model)


def test_several_weights_of_other_names_are_refused(model, tmp_path):
  (tmp_path / "open_clip_config.json").write_text(json.dumps(MODEL_CFG))
  for name in ("epoch_1.pt", "epoch_2.pt"):
    _save(tmp_path / name, _tensors(model, custom=False))
  with pytest.raises(errors.UserError, match=r"epoch_1\.pt, epoch_2\.pt"):
    convert.open_model(tmp_path)


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize("name", ["epoch_9.pt", "a.safetensors"])
def test_a_bare_checkpoint_takes_its_config_from_a_file(
  model, tmp_path, name, custom, capsys
):
  source, config = tmp_path / name, tmp_path / "conf" / "mine.json"
  config.parent.mkdir()
  config.write_text(json.dumps({**MODEL_CFG, "custom_text": custom}))
  _save(source, _tensors(model, custom=custom))
  command = ["convert", str(source), str(tmp_path / "out"), "--to=clip-jax"]
  if custom:
    assert run(command) == 2
    error = capsys.readouterr().err
    assert "does not say which model" in error and "--config FILE" in error
  assert run([*command, f"--config={config}"]) == 0
  assert "config" in capsys.readouterr().out
  found = convert.open_model(tmp_path / "out")
  assert found.spec["image"]["heads"] == 2
  _check(found, model)


def test_a_bare_file_with_its_config_beside_it_names_the_directory(
  model, tmp_path
):
  _save(tmp_path / "epoch_1.pt", _tensors(model, custom=False))
  (tmp_path / "mine.json").write_text(json.dumps(MODEL_CFG))
  with pytest.raises(errors.AmbiguousError, match="has OpenCLIP's config"):
    convert.open_model(tmp_path / "epoch_1.pt")


def test_a_name_that_is_none_names_the_three_nearest(model, tmp_path):
  _save(tmp_path / "a.pt", _tensors(model, custom=True))
  with pytest.raises(errors.UserError, match="Nearest of") as raised:
    convert.open_model(tmp_path / "a.pt", options=Options(config="ViT-B-33"))
  message = str(raised.value)
  assert "ViT-B-32" in message and len(message) < 400
  with pytest.raises(errors.UserError, match="neither a file nor the name"):
    convert.open_model(tmp_path / "a.pt", options=Options(config="x" * 300))


# What open_clip's own configs say of models of these names.
NAMED = {
  "ViT-B-16-SigLIP": ("gelu", "gelu", True),
  "ViT-SO400M-16-SigLIP-i18n-256": ("gelu_tanh", "gelu", True),
  "ViT-B-16-SigLIP2-384": ("gelu", "gelu_tanh", True),
  "ViT-B-32-SigLIP2-256": ("gelu_tanh", "gelu_tanh", True),
  "ViT-H-14": ("gelu", "gelu", False),
  "ViT-B-16-quickgelu": ("quick_gelu", "quick_gelu", False),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_name_means_open_clips_model(name):
  image, text, custom = NAMED[name]
  spec = open_clip_files.named(name, Options())
  assert spec["image"]["activation"] in (image, None)
  assert spec["text"]["activation"] == text
  config = open_clip_config.configure(Portable(spec, {}, report_lib.Report("")))
  assert config["model_cfg"].get("custom_text", False) == custom


def test_a_name_with_two_meanings_is_ambiguous():
  with pytest.raises(errors.AmbiguousError, match="ViT-B-32-gelu"):
    open_clip_files.named("ViT-B-32", Options())
  told = Options(activation="gelu")
  assert open_clip_files.named("ViT-B-32", told)["embed_dim"] == 512


def test_every_name_has_a_config_or_says_why_not(tmp_path, model):
  _save(tmp_path / "a.pt", _tensors(model, custom=True))
  warnings = []
  for name in variants.VARIANTS:
    if re.match("tiny|RN", name):
      continue
    options = Options(config=name, activation="gelu")
    reading = SourceReading("a.pt", options=options)
    found = open_clip_files.find(tmp_path / "a.pt", reading)
    assert found.config["model_cfg"]["vision_cfg"]
    warnings += reading.report.warnings
  told = " ".join(warnings)
  assert "as for the published ViT-B-16-SigLIP" in told
  assert "the published ViT-H-14. " not in told


def test_a_checkpoint_of_a_named_model_must_be_of_its_size(model, tmp_path):
  _save(tmp_path / "a.pt", _tensors(model, custom=True))
  with pytest.raises(errors.UserError, match="missing: "):
    convert.open_model(
      tmp_path / "a.pt", options=Options(config="ViT-B-16-SigLIP")
    )


def test_the_share_of_dropped_patches_travels_with_a_model(model, tmp_path):
  run_so = {"image": {"patch_dropout": 0.5}}
  open_clip.write(
    dataclasses.replace(model, execution=run_so), tmp_path / "out"
  )
  read = convert.open_model(tmp_path / "out")
  assert read.execution == run_so
  assert read.report.inferred["image.patch_dropout"] == {
    "value": 0.5,
    "source": "config",
  }
  assert "patch_dropout" not in read.spec["image"]
