"""The retired FlaxCLIPModel, made from transformers' model by its rules."""

import importlib.util
import pathlib

import flax.serialization
import numpy as np
import pytest

from clip_jax import convert, errors

_SPEC = importlib.util.spec_from_file_location(
  "huggingface_models",
  pathlib.Path(__file__).parent / "huggingface_models.py",
)
models = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(models)

NAME = "clip gelu, first end id"


def _tree(state):
  """Renames and turns tensors as transformers 4 did from PyTorch to Flax."""
  tree = {}
  for name, tensor in state.items():
    *parents, last = name.split(".")
    array = tensor.numpy()
    if last == "weight" and "embedding" in parents[-1]:
      last = "kernel" if array.ndim == 4 else "embedding"
      array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    elif last == "weight" and array.ndim == 2:
      last, array = "kernel", array.T
    elif last == "weight":
      last = "scale"
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = np.array(array)
  return tree


@pytest.fixture
def source(perturb, tmp_path):
  model = models.make(NAME, perturb)
  model.save_pretrained(tmp_path)
  (tmp_path / "model.safetensors").unlink()
  data = flax.serialization.msgpack_serialize(_tree(model.state_dict()))
  (tmp_path / "flax_model.msgpack").write_bytes(data)
  return model, tmp_path


def test_it_computes_what_transformers_computes(source, outputs, difference):
  theirs, directory = source
  ours = convert.open_model(directory)
  assert ours.report.source_format == "flax-clip"
  inputs = models.inputs(theirs)
  want = models.run(theirs, *inputs)
  for got, expected in zip(outputs(ours, *inputs), want, strict=True):
    assert difference(got, expected) < 1e-12


def test_it_becomes_pytorchs_tensors(source, tmp_path):
  import safetensors.torch

  theirs, directory = source
  convert.convert(directory, tmp_path / "out", to="huggingface")
  got = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
  want = theirs.state_dict()
  assert got.keys() == want.keys()
  for name, tensor in want.items():
    assert np.array_equal(got[name].numpy(), tensor.numpy()), name


def test_pytorchs_weights_go_first(source):
  theirs, directory = source
  theirs.save_pretrained(directory)
  assert convert.open_model(directory).report.source_format == "huggingface"


def test_other_models_are_refused_by_name(source):
  _, directory = source
  models.edit(directory, model_type="siglip")
  with pytest.raises(errors.UserError, match="model_type='clip' only"):
    convert.open_model(directory)


def test_a_tensor_too_few_is_named(source):
  model, directory = source
  state = model.state_dict()
  del state["text_projection.weight"]
  data = flax.serialization.msgpack_serialize(_tree(state))
  (directory / "flax_model.msgpack").write_bytes(data)
  with pytest.raises(convert.MismatchError, match="text_projection/kernel"):
    convert.open_model(directory)
