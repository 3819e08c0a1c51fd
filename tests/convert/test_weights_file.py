"""Checkpoints of trainings: what they wrap a state dict in is undone."""

import argparse
import json
import pathlib

import flax.serialization
import numpy as np
import pytest
import torch

import model_kinds
from clip_jax import convert, errors
from clip_jax.cli import run
from clip_jax.convert import engine, weights_file
from clip_jax.convert import report as report_lib
from clip_jax.convert.engine import family
from clip_jax.convert.files import safetensors_file
from clip_jax.convert.formats import openai
from clip_jax.convert.portable import Options, Portable
from clip_jax.convert.tensor import Tensor
from clip_jax.models import variants

TINY = {
  "embed_dim": 12,
  "image": {"width": 16, "image_size": 8, "depth": 1, "heads": 2},
  "text": {"width": 24, "depth": 1, "heads": 3, "vocab_size": 30},
}
TOLD = Options(activation="quick_gelu", heads=(2, 3))
FLAGS = ["--activation=quick_gelu", "--heads=2,3"]


def _model():
  spec = family.as_json(engine.resolve(variants.spec("tiny-vit", TINY)))
  rng = np.random.default_rng(0)
  leaves = {
    path: Tensor.from_array(rng.normal(size=shape).astype(np.float32))
    for path, shape in engine.leaf_shapes(spec).items()
  }
  return Portable(spec, leaves, report_lib.Report("test"))


MODEL = _model()
STATE = {k: x.read() for k, x in openai.state_dict(MODEL).items()}


def _flat(tree, separator):
  found = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      inner = _flat(value, separator)
      found |= {f"{key}{separator}{name}": x for name, x in inner.items()}
    elif isinstance(value, np.ndarray):
      found[key] = value
  return found


def _torch(path, tree):
  def convert_(value):
    if isinstance(value, dict):
      return {key: convert_(x) for key, x in value.items()}
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

  torch.save(convert_(tree), path)


def _safetensors(path, tree):
  tensors = _flat(tree, ".")
  safetensors_file.write(
    path, {key: Tensor.from_array(x) for key, x in tensors.items()}
  )


def _npz(path, tree):
  np.savez(path, **_flat(tree, "/"))


def _msgpack(path, tree):
  path.write_bytes(flax.serialization.msgpack_serialize(tree))


WRITERS = {
  "a.pt": _torch,
  "a.ckpt": _torch,
  "a.safetensors": _safetensors,
  "a.npz": _npz,
  "a.msgpack": _msgpack,
}


def _prefixed(prefix, state=None):
  return {f"{prefix}{name}": x for name, x in (state or STATE).items()}


def _inside(name, part):
  """Wraps the image tower alone, as compiling or sharding one does."""
  return name.replace("visual.", f"visual.{part}.")


ONES = {"weight": np.ones(3, np.float32)}
# What a training saves, and what of it is stripped, from the outside.
WRAPPED = {
  "bare": (STATE, []),
  "state_dict": ({"state_dict": STATE, "epoch": 3}, ["state_dict"]),
  "model_state_dict": (
    {"model_state_dict": _prefixed("module."), "optimizer": {"state": ONES}},
    ["model_state_dict", "module."],
  ),
  "an average alone": (
    {"model_ema": _prefixed("module.")},
    ["model_ema", "module."],
  ),
  "ema_model": (
    {"ema_model": {"model": _prefixed("_orig_mod.module.")}},
    ["ema_model", "model", "_orig_mod.", "module."],
  ),
  "module around compiled": (
    _prefixed("module._orig_mod.model."),
    ["module.", "_orig_mod.", "model."],
  ),
  "lightning": (
    {"state_dict": _prefixed("model.clip."), "global_step": 7},
    ["state_dict", "model.", "clip."],
  ),
  "merged adapters": (
    {"model": _prefixed("base_model.model.")},
    ["model", "base_model.", "model."],
  ),
  "one tower compiled": (
    {_inside(name, "_orig_mod"): x for name, x in STATE.items()},
    ["._orig_mod."],
  ),
  "one tower in parallel, all compiled": (
    {
      "model": {
        f"_orig_mod.{_inside(name, 'module')}": x for name, x in STATE.items()
      }
    },
    ["model", "_orig_mod.", ".module."],
  ),
}


@pytest.mark.parametrize("case", WRAPPED)
@pytest.mark.parametrize("name", WRITERS)
def test_wrappers_and_prefixes_are_undone_in_every_container(
  tmp_path, name, case
):
  tree, stripped = WRAPPED[case]
  WRITERS[name](tmp_path / name, tree)
  model = convert.open_model(tmp_path / name, options=TOLD)
  words = [x.strip(".") for x in model.report.stripped]
  # Without dicts, a key is a prefix like any other.
  assert words == [x.strip(".") for x in stripped]
  for path, leaf in MODEL.leaves.items():
    np.testing.assert_array_equal(model.leaves[path].read(), leaf.read())


SEVERAL = {"model": STATE, "model_ema": _prefixed("module."), "epoch": 1}


@pytest.mark.parametrize("name", WRITERS)
def test_several_models_in_a_file_are_ambiguous_until_one_is_told(
  tmp_path, name, capsys
):
  doubled = {k: np.add(x, x)[...] for k, x in SEVERAL["model_ema"].items()}
  WRITERS[name](tmp_path / name, {**SEVERAL, "model_ema": doubled})
  source, out = str(tmp_path / name), str(tmp_path / "out")
  command = ["convert", source, out, "--to=clip-jax", *FLAGS]
  assert run(command) == 2
  error = capsys.readouterr().err
  assert "model, model_ema" in error and "--weights model_ema" in error
  assert run([*command, "--weights=model_ema", "--json"]) == 0
  account = json.loads(capsys.readouterr().out)
  assert [x.strip(".") for x in account["stripped"]] == ["model_ema", "module"]
  assert "model" in account["left_out"]
  found = convert.open_model(out)
  path = "params/image/patch_kernel"
  want = MODEL.leaves[path].read()
  np.testing.assert_array_equal(found.leaves[path].read(), 2 * want)
  assert run([*command, "--weights=teacher", "--overwrite"]) == 1
  assert "no weights under 'teacher'" in capsys.readouterr().err


def test_the_account_says_what_was_stripped_and_left_out(tmp_path, capsys):
  tree = {"state_dict": _prefixed("module."), "optimizer": ONES, "epoch": 3}
  _torch(tmp_path / "a.pt", tree)
  source, out = str(tmp_path / "a.pt"), str(tmp_path / "out")
  assert run(["convert", source, out, "--to=clip-jax", *FLAGS]) == 0
  text = capsys.readouterr().out
  assert "stripped from the names: state_dict, module." in text
  assert "left out beside the model: optimizer, epoch" in text


def test_options_and_scores_beside_the_weights_are_passed_over(tmp_path):
  beside = {
    "args": argparse.Namespace(lr=1e-3, output=pathlib.Path("runs")),
    "best": np.float64(0.5),
    "metrics": {"loss": [np.float32(1)]},
  }
  _torch(tmp_path / "a.pt", {"model": STATE, **beside})
  model = convert.open_model(tmp_path / "a.pt", options=TOLD)
  assert model.report.left_out == list(beside)
  path = "params/image/patch_kernel"
  np.testing.assert_array_equal(
    model.leaves[path].read(), MODEL.leaves[path].read()
  )


@pytest.mark.parametrize(
  "more",
  [{"module.visual.proj": STATE["visual.proj"]}, {"swa_model": STATE}],
)
def test_a_name_that_comes_with_and_without_its_prefix_is_refused(
  tmp_path, more
):
  _torch(tmp_path / "a.pt", {**STATE, **more})
  with pytest.raises(errors.UserError, match=r"two tensors are called"):
    convert.open_model(tmp_path / "a.pt", options=TOLD)


def test_a_tensor_beside_a_prefix_is_asked_for_its_place(tmp_path):
  _torch(
    tmp_path / "a.pt", {**_prefixed("model."), "loss.weight": ONES["weight"]}
  )
  with pytest.raises(errors.UserError, match=r"unexpected: loss\.weight") as at:
    convert.open_model(tmp_path / "a.pt", options=TOLD)
  assert "stripped from the names: model." in str(at.value)


LORA = {
  "base_model.model.visual.proj.lora_A.weight": ONES["weight"],
  "base_model.model.visual.proj.lora_B.weight": ONES["weight"],
}


@pytest.mark.parametrize("name", WRITERS)
def test_adapters_get_the_hint_to_merge_first(tmp_path, name):
  WRITERS[name](tmp_path / name, LORA)
  with pytest.raises(errors.UserError, match="merge_and_unload"):
    convert.open_model(tmp_path / name)


def test_a_directory_of_adapters_gets_the_hint_to_merge_first(tmp_path):
  _safetensors(tmp_path / "adapter_model.safetensors", LORA)
  config = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
  (tmp_path / "adapter_config.json").write_text(json.dumps(config))
  with pytest.raises(errors.UserError, match=r"LoRA adapters of 'org/base'"):
    convert.open_model(tmp_path)


@pytest.mark.parametrize(
  "name",
  [
    "text_encoder.layers.0.k_proj.lora_linear_layer.down.weight",
    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight",
    "visual.transformer.resblocks.0.attn.q_proj.w_lora_A",
    "base_model.model.visual.proj.hada_w1_a",
    "base_model.model.visual.proj.lokr_w1",
    "base_model.model.visual.proj.ia3_l",
  ],
)
def test_adapters_of_other_kinds_get_the_hint_too(tmp_path, name):
  _safetensors(tmp_path / "a.safetensors", {name: ONES["weight"]})
  with pytest.raises(errors.UserError, match="merge_and_unload"):
    convert.open_model(tmp_path / "a.safetensors")


@pytest.mark.parametrize("place", ["", "default", "0_CLIPModel"])
@pytest.mark.parametrize(
  "file", ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"]
)
def test_adapters_without_a_config_or_in_a_module_get_the_hint_too(
  tmp_path, place, file
):
  (tmp_path / place).mkdir(exist_ok=True)
  _safetensors(tmp_path / place / file, LORA)
  if place == "0_CLIPModel":
    kind = "sentence_transformers.models.CLIPModel"
    module = {"idx": 0, "name": "0", "path": place, "type": kind}
    (tmp_path / "modules.json").write_text(json.dumps([module]))
  with pytest.raises(errors.UserError, match="merge_and_unload"):
    convert.open_model(tmp_path)


@pytest.mark.parametrize(
  "file", ["adapter_model.safetensors", "pytorch_lora_weights.safetensors"]
)
def test_adapters_beside_a_model_do_not_hide_it(tmp_path, file):
  model_kinds.clip_directory(tmp_path / "model")
  _safetensors(tmp_path / "model" / file, LORA)
  assert convert.open_model(tmp_path / "model").spec
  # Nor do those of a folder that has models, too.
  (tmp_path / "adapter").mkdir()
  _safetensors(tmp_path / "adapter" / file, LORA)
  with pytest.raises(errors.UserError, match="To read model, give its own"):
    convert.open_model(tmp_path)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
  "wrapper", ["checkpoint", "model_dict", "student_model", "params_ema"]
)
def test_wrappers_of_other_trainers_are_undone(tmp_path, name, wrapper):
  WRITERS[name](tmp_path / name, {wrapper: _prefixed("module.")})
  model = convert.open_model(tmp_path / name, options=TOLD)
  stripped = [layer.strip(".") for layer in model.report.stripped]
  assert stripped == [wrapper, "module"]


def test_a_file_is_judged_by_the_names_in_it(tmp_path):
  _safetensors(tmp_path / "a.safetensors", {"blob": ONES["weight"]})
  with pytest.raises(errors.UserError, match=r"names that are known.*blob"):
    convert.open_model(tmp_path / "a.safetensors")
  (tmp_path / "a.onnx").write_bytes(b"")
  with pytest.raises(errors.UserError, match=r"judged by its name.*\.npz"):
    convert.open_model(tmp_path / "a.onnx")


def test_a_name_that_is_no_text_is_refused(tmp_path):
  # It could be kept as an extra, and be written to no file.
  torch.save({"\ud800.attn_mask": torch.ones(1)}, tmp_path / "a.pt")
  with pytest.raises(errors.DamagedError, match=r"ud800.*half a character"):
    convert.open_model(tmp_path / "a.pt")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
  ("names", "said"),
  [
    (["x" * 1001], r"x'… is too long"),
    (["visual.proj", "module.visual.proj"], "two tensors are called"),
    (["ema." * 200 + "visual.proj"], "more than 16 times"),
  ],
)
def test_odd_names_are_refused_in_every_container(tmp_path, name, names, said):
  WRITERS[name](tmp_path / name, dict.fromkeys(names, ONES["weight"]))
  with pytest.raises(errors.UserError, match=said) as raised:
    convert.open_model(tmp_path / name, options=TOLD)
  assert str(tmp_path / name) in str(raised.value)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.npz"])
def test_a_file_of_another_name_is_read_by_its_content(tmp_path, name):
  WRITERS[name](tmp_path / name, STATE)
  path = (tmp_path / name).rename(tmp_path / "weights")
  found = weights_file.read(path, Options(), report_lib.Report(""))
  assert found.tensors.keys() == STATE.keys()
