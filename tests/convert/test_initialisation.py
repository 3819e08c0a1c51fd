"""Both ways to draw new parameters, against OpenAI's published code."""

import jax
import numpy as np
import pytest

from clip_jax import convert, sharding
from clip_jax.checkpoints import state as state_lib
from clip_jax.models import variants

SHARED = {
  "embed_dim": 24,
  "context_length": 11,
  "vocab_size": 500,
  "transformer_width": 64,
  "transformer_heads": 1,
  "transformer_layers": 3,
}
TOWERS = {
  "vit": {
    "image_resolution": 20,
    "vision_layers": 2,
    "vision_width": 128,
    "vision_patch_size": 5,
  },
  "resnet": {
    "image_resolution": 64,
    "vision_layers": (1, 2, 1, 1),
    "vision_width": 16,
    "vision_patch_size": None,
  },
}
HEADS = {"vit": (2, 1), "resnet": (8, 1)}


def by_name(params):
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {sharding.path_name(path): np.asarray(x) for path, x in leaves}


@pytest.fixture(scope="module", params=TOWERS)
def published(request, openai_model, tmp_path_factory):
  """A new model of OpenAI's code: its description, and its parameters."""
  import torch

  kind = request.param
  torch.manual_seed(0)
  model = openai_model.CLIP(**SHARED, **TOWERS[kind])
  path = tmp_path_factory.mktemp("published") / "model.pt"
  torch.save(model.state_dict(), path)
  options = convert.Options(activation="quick_gelu", heads=HEADS[kind])
  read = convert.open_model(path, options=options)
  return read.spec, by_name(read.variables()["params"])


def draw(spec, scheme):
  model = variants.create_model(spec)
  variables = jax.jit(
    lambda: state_lib.init_variables(model, 0, scheme=scheme)
  )()
  return by_name(variables["params"])


def is_spread_alike(one, other):
  """Whether two arrays have about the same deviation, and the same shape."""
  deviations = one.std(), other.std()
  if min(deviations) == 0 or one.size == 1:
    return deviations[0] == deviations[1]
  # The standard error of a deviation is at most 1 / sqrt(2 n) of it.
  if abs(np.log(deviations[0] / deviations[1])) > 5 / np.sqrt(2 * one.size):
    return False
  # Of a thousand numbers, normal ones reach 3 deviations, uniform ones 1.73.
  reach = [np.abs(x).max() / x.std() > 2 for x in (one, other)]
  return one.size < 1000 or reach[0] == reach[1]


def test_openais_scheme_spreads_all_parameters_as_the_published_code(published):
  spec, want = published
  got = draw(spec, "openai")
  assert got.keys() == want.keys()
  wrong = [name for name in want if not is_spread_alike(got[name], want[name])]
  assert not wrong


def test_the_schemes_differ_only_where_the_published_code_does(published):
  spec, want = published
  scaled, redrawn = draw(spec, "scaled"), draw(spec, "openai")
  differs = {x for x in scaled if not np.array_equal(scaled[x], redrawn[x])}
  assert differs == {
    name for name in want if not is_spread_alike(scaled[name], want[name])
  }
  kinds = {name.split("/")[0] for name in differs}
  assert kinds == {"image", "text"}
