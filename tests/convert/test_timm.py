"""timm's towers against timm itself, and its names against our table.

tools/golden/timm_models.py made the golden files.
"""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest

from clip_jax import cli, convert, errors
from clip_jax.convert import engine
from clip_jax.convert.files import safetensors_file
from clip_jax.convert.formats import timm, timm_vit
from clip_jax.convert.portable import Options
from clip_jax.convert.tensor import Tensor
from clip_jax.convert.verify import verification
from clip_jax.models import variants

ROOT = pathlib.Path(__file__).parents[2]
BAR = 1e-12  # Float64 against float64: a wrong epsilon gives 1e-5.


def _load(name):
  path = ROOT / "tools" / "golden" / f"{name}.py"
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


GOLDEN = _load("timm_models")
SHARED = GOLDEN.open_clip_models()
pytestmark = pytest.mark.usefixtures("nano_towers")


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN.FEATURES) as data:
    return dict(data)


@pytest.fixture(scope="module")
def library():
  """timm, with the small towers registered."""
  try:
    _, library = SHARED.import_libraries()
  except ImportError:
    pytest.skip("needs pip install --no-deps -r tests/oracles.txt")
  return library


@pytest.fixture
def make(golden, tmp_path):
  def build(name, **config):
    directory = tmp_path / name
    directory.mkdir()
    shapes = json.loads(str(golden[f"{name}/shapes"]))
    safetensors_file.write(
      directory / "model.safetensors",
      {
        key: Tensor.from_array(SHARED.fill(key, tuple(shape)))
        for key, shape in shapes.items()
      },
    )
    config = {"architecture": name, "num_classes": 6, **config}
    (directory / "config.json").write_text(json.dumps(config))
    return directory

  return build


def _features(model):
  """Returns the image tower's features in float64."""
  with jax.enable_x64(True):
    tower = variants._make_tower(
      "image", model.spec["image"], dtype=np.float64, param_dtype=np.float64
    )
    params = {"params": model.variables(np.float64)["params"]["image"]}
    images = GOLDEN.images(model.spec["image"]["image_size"])
    return np.asarray(jax.jit(tower.apply)(params, images))


@pytest.mark.parametrize("name", SHARED.TIMM)
def test_a_tower_computes_what_timm_computes(make, golden, difference, name):
  model = convert.open_model(make(name))
  assert model.source["format"] == "timm"
  assert model.report.ignored == ["head.bias", "head.weight"]
  assert difference(_features(model), golden[f"{name}/features"]) < BAR


@pytest.mark.parametrize(
  ("name", "change"),
  [
    ("vit_nano_patch5_20", {"norm_epsilon": 1e-5}),
    ("vit_nano_patch5_20", {"activation": "gelu_tanh"}),
    ("vit_nano_patch5_reg4_gap_20", {"norm_after_pool": False}),
    ("vit_nano_patch5_siglip_20", {"activation": "gelu_tanh"}),
  ],
)
def test_a_mutation_is_far_above_the_bar(
  make, golden, difference, name, change
):
  model = convert.open_model(make(name))
  model.spec["image"].update(change)
  got = _features(model)
  assert difference(got, golden[f"{name}/features"]) > 1e4 * BAR


def test_our_table_is_timms_name_by_name():
  known = json.loads(GOLDEN.NAMES.read_text())
  for name, tower in timm_vit.MODELS.items():
    if name not in SHARED.TIMM:
      assert known[name] == tower, name
  # The rest is held by nobody's name here; it is refused by it.
  for name in known.keys() - timm_vit.MODELS.keys():
    with pytest.raises(errors.UserError, match=name):
      timm_vit.describe(name)


def test_a_tower_becomes_a_model_directory_and_keeps_its_head(make, tmp_path):
  source = make("vit_nano_patch5_20")
  convert.convert(source, tmp_path / "ours", to="clip-jax")
  model = convert.open_model(tmp_path / "ours")
  assert sorted(model.extras) == ["head.bias", "head.weight"]
  theirs = safetensors_file.read(source / "model.safetensors").tensors
  entries = timm_vit.NAMES.entries({"image": model.spec["image"]})
  for key, tensor in engine.to_theirs(entries, model.leaves).items():
    assert np.array_equal(tensor.read(), theirs[key].read()), key
  with pytest.raises(errors.UserError, match="image tower alone"):
    convert.convert(source, tmp_path / "out", to="open-clip")


def test_the_augreg_models_preprocessing_is_read(make):
  data = {
    "input_size": [3, 20, 20],
    "fixed_input_size": True,
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
  }
  spec = convert.open_model(make("flexivit_nano", pretrained_cfg=data)).spec
  assert spec["image_mean"] == spec["image_std"] == [0.5, 0.5, 0.5]
  assert (spec["crop_fraction"], spec["resize"]) == (0.9, "shortest")
  assert (spec["convert_rgb"], spec["crop_rounding"]) == ("before", "round")


def test_augreg2_in21k_ft_in1k_is_what_it_was_trained_as():
  tower = timm_vit.describe("vit_base_patch16_224")
  assert (tower["activation"], tower["norm_epsilon"]) == ("gelu", 1e-6)
  assert (tower["width"], tower["depth"], tower["heads"]) == (768, 12, 12)
  assert tower["pooling"] == "class" and not tower["pre_norm"]


@pytest.mark.parametrize(
  ("config", "word"),
  [
    ({"architecture": "vit_base_patch14_dinov2"}, "LayerScale"),
    ({"architecture": 3}, "architecture"),
    ({"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode"),
    ({"pretrained_cfg": {"interpolation": "lanczos"}}, "interpolation"),
    ({"pretrained_cfg": {"mean": [1]}}, "mean"),
    ({"pretrained_cfg": {"input_size": [3, 20, 25]}}, "img_size"),
    ({"pretrained_cfg": {"input_size": [3, 25, 25]}}, "pos_embed"),
    ({"pretrained_cfg": 3}, "pretrained_cfg"),
    ({"model_args": {"init_values": 1e-5}}, "init_values"),
    ({"model_args": {"global_pool": "max"}}, "max"),
    ({"model_args": {"global_pool": "avg"}}, r"fc_norm\.weight"),
  ],
)
def test_what_is_not_held_is_refused_by_name(make, config, word):
  directory = make("vit_nano_patch5_20", **config)
  with pytest.raises(errors.UserError, match=word):
    convert.open_model(directory)


def _bare(path, **more):
  tower = {**timm_vit.describe("vit_tiny_patch16_224"), "image_size": 32}
  shapes = engine.leaf_shapes(engine.resolve({"image": tower}))
  tensors = {
    entry.name: np.zeros(engine.their_shape(entry, shapes), np.float32)
    for entry in timm_vit.NAMES.entries({"image": tower})
  }
  tensors = {**tensors, **more}
  arrays = {key: Tensor.from_array(value) for key, value in tensors.items()}
  safetensors_file.write(path, arrays)
  return path


TOLD = Options(activation="gelu", preprocess=("inception", 0.9))


@pytest.mark.parametrize("field", ["activation", "preprocess"])
def test_a_bare_file_must_be_told_what_it_does_not_say(tmp_path, field):
  path = _bare(tmp_path / "tower.safetensors")
  options = dataclasses.replace(TOLD, **{field: None})
  with pytest.raises(errors.AmbiguousError, match=f"--{field}") as caught:
    convert.open_model(path, source_format="timm", options=options)
  (other,) = {"activation", "preprocess"} - {field}
  assert f"--{other}" not in str(caught.value)


@pytest.mark.parametrize(
  ("preprocess", "want"),
  [
    (("inception", 0.9), (0.5, 0.5, 0.9, "shortest")),
    (("imagenet", 0.875), (0.485, 0.229, 0.875, "shortest")),
    (("openai", None), (0.48145466, 0.26862954, 1.0, "squash")),
  ],
)
def test_a_bare_file_is_prepared_as_its_user_says(tmp_path, preprocess, want):
  path = _bare(tmp_path / "tower.safetensors")
  options = dataclasses.replace(TOLD, preprocess=preprocess)
  model = convert.open_model(path, source_format="timm", options=options)
  spec = model.spec
  got = (spec["image_mean"][0], spec["image_std"][0], spec["crop_fraction"])
  assert (*got, spec["resize"]) == want
  assert model.report.inferred["crop_fraction"]["source"] == "flag"
  assert (spec["image"]["heads"], spec["image"]["image_size"]) == (3, 32)
  assert model.report.warnings == []


@pytest.mark.parametrize(
  ("preprocess", "word"),
  [(("incepton", 0.9), "inception"), (("inception", 1.5), r"1\.5")],
)
def test_preparation_that_is_none_is_refused(tmp_path, preprocess, word):
  path = _bare(tmp_path / "tower.safetensors")
  options = dataclasses.replace(TOLD, preprocess=preprocess)
  with pytest.raises(errors.UserError, match=word):
    convert.open_model(path, source_format="timm", options=options)


def test_the_commands_flags_settle_a_bare_file(tmp_path, capsys):
  path, out = _bare(tmp_path / "tower.safetensors"), tmp_path / "out"
  command = ["convert", str(path), str(out), "--to=clip-jax", "--from=timm"]
  assert cli.run(command) == 2
  assert "--activation" in (said := capsys.readouterr().err)
  assert "--preprocess" in said and not out.exists()
  flags = ["--activation=gelu", "--preprocess=inception:squash"]
  assert cli.run([*command, *flags]) == 0
  spec = convert.open_model(out).spec
  assert (spec["resize"], spec["crop_fraction"]) == ("squash", 1.0)


def test_a_position_of_the_class_token_alone_is_refused(tmp_path):
  one = {"pos_embed": np.zeros((1, 1, 192), np.float32)}
  path = _bare(tmp_path / "tower.safetensors", **one)
  with pytest.raises(errors.UserError, match="pos_embed has 0 positions"):
    convert.open_model(path, source_format="timm", options=TOLD)


def test_a_bare_file_of_another_tower_is_refused(tmp_path):
  wide = {"blocks.0.mlp.fc1.weight": np.zeros((700, 192), np.float32)}
  with pytest.raises(errors.UserError, match="heads"):
    convert.open_model(
      _bare(tmp_path / "odd.safetensors", **wide), source_format="timm"
    )
  scaled = {"blocks.0.ls1.gamma": np.ones(192, np.float32)}
  with pytest.raises(errors.UserError, match="LayerScale"):
    convert.open_model(
      _bare(tmp_path / "scaled.safetensors", **scaled),
      source_format="timm",
      options=TOLD,
    )


def test_the_golden_features_are_timms(golden, difference, library):
  import torch

  name = "vit_nano_patch5_reg4_gap_20"
  model = library.create_model(name, num_classes=0)
  state = {
    key: torch.from_numpy(SHARED.fill(key, tuple(value.shape)))
    for key, value in model.state_dict().items()
  }
  model.load_state_dict(state)
  images = torch.from_numpy(GOLDEN.images(20).transpose(0, 3, 1, 2).copy())
  got = model.double().eval()(images).detach().numpy()
  assert difference(got, golden[f"{name}/features"]) < BAR


@pytest.mark.usefixtures("library")
def test_a_tower_is_verified_against_timm(make, tmp_path):
  source = make("vit_nano_patch5_reg4_gap_20")
  convert.convert(source, tmp_path / "ours", to="clip-jax")
  found = verification.verify(source, tmp_path / "ours", double=True)
  stages = {row.stage: row for row in found.rows}
  assert found.passed
  assert max(row.difference for row in stages.values()) < BAR
  assert len(stages) > 2


def test_heads_follow_from_sizes_without_a_doubt():
  sizes = [
    (size["width"], size["depth"], size["mlp_dim"])
    for size in timm_vit.SIZES.values()
  ]
  assert len(set(sizes)) == len(sizes)
  assert timm.NAME == "timm"
