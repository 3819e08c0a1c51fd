"""Reference implementations, and small models that hide no mistake."""

import functools
import importlib.util
import json
import pathlib
import sys

import jax
import numpy as np
import pytest


def _load_by_path(name, path):
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)
  return module


# What timm calls towers as small as the tests', in our table's words: sizes,
# then each one's family and what else it differs in.
_NANO = {
  "kind": "vit",
  "image_size": 20,
  "patch_size": 5,
  "width": 48,
  "depth": 2,
  "heads": 4,
  "mlp_dim": 120,
  "drop_edge": False,
}
_NANO_FAMILIES = {
  "vit_nano_patch5_siglip_20": ("siglip", {}),
  "vit_nano_patch5_siglip_tanh_22": (
    "siglip",
    {"activation": "gelu_tanh", "image_size": 22, "drop_edge": True},
  ),
  "vit_nano_patch5_20": ("plain", {}),
  "vit_nano_patch5_clip_20": ("clip", {}),
  "vit_nano_patch5_reg4_gap_20": ("reg4_gap", {}),
  "flexivit_nano": ("plain", {"class_position": False}),
}


@pytest.fixture
def nano_towers(monkeypatch):
  """Adds the towers of tools/golden/open_clip_models.py to timm's table."""
  from clip_jax.convert.formats import timm_vit

  for name, (family, more) in _NANO_FAMILIES.items():
    tower = {**_NANO, **timm_vit.FAMILIES[family], **more}
    monkeypatch.setitem(timm_vit.MODELS, name, tower)


@pytest.fixture(scope="session")
def openai_model():
  """OpenAI's model.py, whose package itself needs torchvision."""
  package = importlib.util.find_spec("clip")
  if package is None:
    pytest.skip("needs pip install --no-deps -r tests/oracles.txt")
  path = pathlib.Path(package.submodule_search_locations[0]) / "model.py"
  return _load_by_path("openai_clip_model", path)


@pytest.fixture(scope="session")
def perturb():
  """Makes a torch model's tensors such that every mistake shows.

  Norms and biases leave their ones and zeros, matrices grow until activations
  leave their linear range, running variances span three decades.
  """
  import torch

  def apply(model, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, std):
      noise = torch.randn(tensor.shape, generator=generator)
      return (std * noise).to(tensor.dtype)

    with torch.no_grad():
      for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
          uniform = torch.rand(tensor.shape, generator=generator)
          tensor.copy_(1e-3 + 2 * uniform)
        elif name.endswith("running_mean"):
          tensor.copy_(normal(tensor, 0.1))
        elif not tensor.is_floating_point() or "logit_" in name:
          continue
        elif tensor.ndim == 1:
          tensor.add_(normal(tensor, 0.1))
        elif "embedding" in name:
          tensor.copy_(normal(tensor, 0.3))
        else:
          fan_in = tensor[0].numel()
          tensor.copy_(normal(tensor, 1.5 * fan_in**-0.5))
    return model

  return apply


@pytest.fixture(scope="session")
def difference():
  """The largest difference of two arrays over the largest number."""

  def compute(got, want):
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()

  return compute


@pytest.fixture(scope="session")
def outputs():
  """Both towers' unit embeddings and the logits of a `Portable` in float64."""
  from clip_jax.models import variants

  made = {}  # Many cases share a tower, and differ in its numbers.

  def embed(model, part, variables, inputs):
    other = "text" if part == "image" else "image"
    shown = {k: v for k, v in model.spec.items() if k != other}
    key = part, json.dumps(shown, sort_keys=True, default=list)
    if key not in made:
      module = variants.create_model(
        model.spec, dtype=np.float64, param_dtype=np.float64
      )
      made[key] = jax.jit(
        functools.partial(module.apply, method=f"encode_{part}")
      )
    return np.asarray(made[key](variables, inputs))

  def compute(model, images, tokens):
    with jax.enable_x64(True):
      variables = model.variables(np.float64)
      image = embed(model, "image", variables, images)
      text = embed(model, "text", variables, tokens)
    params = variables["params"]
    logits = np.exp(params["log_scale"]) * image @ text.T
    return image, text, logits + params.get("logit_bias", 0.0)

  return compute
