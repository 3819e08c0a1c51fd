"""Two towers of any two origins become one model that trains and resumes."""

import shutil

import beginnings
import jax
import numpy as np
import pytest

import model_kinds
from clip_jax import config as config_lib
from clip_jax import sharding
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.train import loop
from clip_jax.train import origins as origins_lib
from clip_jax.train import run as run_lib

# Each kind that holds such a tower, once.
PAIRS = (
  ("workdir", "sentence-transformers"),
  ("workdir, sigmoid", "open-clip, ResNet"),
  ("clip-jax", "clip-jax of a text tower"),
  ("clip-jax, SigLIP", "flax-clip"),
  ("clip-jax of an image tower", "open-clip"),
  ("huggingface, CLIP", "big-vision"),
  ("huggingface, SigLIP", "workdir, sigmoid"),
  ("open-clip", "clip-jax, SigLIP"),
  ("open-clip, with a bias", "huggingface, CLIP"),
  ("open-clip, ResNet", "huggingface, SigLIP"),
  ("big-vision", "clip-jax"),
  ("timm", "open-clip, with a bias"),
  ("flax-clip", "workdir"),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  return model_kinds.maker(tmp_path_factory)


def _config(image, text):
  config = config_lib.default_config()
  config.model, config.precision = "from_init", "float32"
  config.init.image, config.init.text = str(image), str(text)
  config.data.train, config.batch_size = "builtin:digits/train", 8
  config.steps, config.checkpoint.every_steps = 2, 1
  config.optim.warmup_steps = 1
  return config_lib.check(config)


@pytest.mark.parametrize(
  "image, text",
  [
    *PAIRS[:3],
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS[3:]),
  ],
)
def test_every_array_and_the_tokenizer_of_both_towers_have_their_place(
  models, tmp_path, image, text
):
  config = _config(models(image), models(text))
  config, opened = beginnings.begin(config, tmp_path / "run")
  files = origins_lib.tokenizer_files(tmp_path, opened)
  run = run_lib.make_run(config, tokenizer_files=files)
  state = run.program.abstract_state()
  flat, _ = jax.tree_util.tree_flatten_with_path(state.variables)
  shapes = {sharding.path_name(path): leaf.shape for path, leaf in flat}
  for part, source in opened.items():
    taken = {
      path: tuple(leaf.shape)
      for path, leaf in source.leaves.items()
      if path.split("/")[1] == part
    }
    assert taken and taken.items() <= shapes.items()
    assert run.program.spec[part].items() >= source.spec[part].items()
  tokens = run.tokenizer(["a photo of the cat"])
  tower = run.program.model.text
  assert tokens.shape == (1, tower.context_length)
  assert tokens.min() >= 0 and tokens.max() < tower.vocab_size
  assert config.loss.kind == "softmax"  # A new head has no bias.


@pytest.mark.slow
@pytest.mark.parametrize("image, text", PAIRS[3::6])
def test_a_pair_trains_and_resumes_bit_for_bit(models, tmp_path, image, text):
  config, run = _config(models(image), models(text)), tmp_path / "run"
  assert loop.train(config, run).steps_now == 2
  want = workdir_lib.load_model(run).variables
  shutil.rmtree(run / "checkpoints" / "2")
  assert loop.train(config, run).steps_now == 1
  got = workdir_lib.load_model(run).variables
  jax.tree.map(np.testing.assert_array_equal, got, want)
