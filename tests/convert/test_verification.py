import dataclasses
import json

import numpy as np
import pytest
import torch

from clip_jax import convert, errors
from clip_jax.cli import run
from clip_jax.convert import model_dir, verification
from clip_jax.convert.engine import Leaf
from clip_jax.convert.portable import Options
from clip_jax.convert.tensor import Tensor

SIZES = {
  "vit": (24, 20, 3, 128, 5, 11, 50, 192, 3, 2),
  "resnet": (24, 64, (1, 2, 1, 1), 16, None, 11, 50, 192, 3, 2),
}
QUICK = Options(activation="quick_gelu")


@pytest.fixture(scope="module")
def pairs(openai_model, perturb, tmp_path_factory):
  """A source in OpenAI's format and its conversion, by the image tower."""
  found = {}
  for kind, sizes in SIZES.items():
    directory = tmp_path_factory.mktemp(kind)
    source, ours = directory / "source.pt", directory / "ours"
    torch.save(perturb(openai_model.CLIP(*sizes)).state_dict(), source)
    convert.convert(source, ours, to="clip-jax", options=QUICK)
    found[kind] = (source, ours)
  return found


@pytest.mark.parametrize("kind", SIZES)
def test_a_conversion_passes_at_every_stage(pairs, kind):
  source, ours = pairs[kind]
  found = verification.verify(source, ours, options=QUICK, double=True)
  assert found.passed
  stages = [row.stage for row in found.rows]
  blocks = {
    "vit": ["image block 1", "image block 2", "image block 3"],
    "resnet": [f"image stage {i}" for i in range(1, 5)],
  }
  assert stages == [
    *blocks[kind],
    "image embedding",
    *("text block 1", "text block 2", "text embedding"),
    "logits",
  ]
  assert all(row.difference < 1e-12 for row in found.rows)


def test_the_first_bad_stage_is_the_mistaken_one(pairs, tmp_path):
  source, ours = pairs["vit"]
  model = convert.open_model(ours)
  path = "params/image/encoder/blocks/ln_2/scale"
  array = model.leaves[path].read().copy()
  array[1] *= 1 + 1e-4  # In the second block only.
  leaves = {**model.leaves, path: Leaf.from_tensor(Tensor.from_array(array))}
  wrong = dataclasses.replace(model, leaves=leaves)
  model_dir.write(wrong, tmp_path / "wrong", QUICK)
  for double in (False, True):
    found = verification.verify(
      source, tmp_path / "wrong", options=QUICK, double=double
    )
    bad = [row.stage for row in found.rows if not row.passed]
    assert bad[0] == "image block 2" and "logits" in bad
    assert not any(stage.startswith("text") for stage in bad)


def test_the_command_says_pass_or_fail(pairs, tmp_path, capsys):
  source, ours = map(str, pairs["vit"])
  arguments = ["--activation=quick_gelu"]
  assert run(["verify", source, ours, *arguments]) == 0
  assert "PASS against OpenAI's model.py" in capsys.readouterr().out
  model = convert.open_model(ours)
  spec = {**model.spec, "text": {**model.spec["text"], "activation": "gelu"}}
  wrong = dataclasses.replace(model, spec=spec)
  model_dir.write(wrong, tmp_path / "wrong", QUICK)
  command = ["verify", source, str(tmp_path / "wrong"), *arguments, "--json"]
  assert run(command) == 1
  found = json.loads(capsys.readouterr().out)
  assert not found["passed"]
  failed = [s["stage"] for s in found["stages"] if not s["passed"]]
  assert failed[0] == "text block 1"


def test_models_of_other_sizes_are_not_compared(pairs):
  with pytest.raises(errors.UserError, match="differ in size"):
    verification.verify(pairs["vit"][0], pairs["resnet"][1], options=QUICK)


def test_a_source_that_no_library_reads_is_refused(pairs):
  _, ours = pairs["vit"]
  with pytest.raises(errors.UserError, match="No other library"):
    verification.verify(ours, ours)


def test_no_difference_hides_behind_nan():
  row = verification.Row("stage", float("nan"), 1.0)
  assert not row.passed
  zeros = np.zeros((2, 3))
  assert verification.difference(zeros, np.zeros((3, 2))) == float("inf")
