"""Every recipe's model, optimizer and update fit together; no FLOPs."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import pytest

from clip_jax import config as config_lib
from clip_jax import sharding
from clip_jax.checkpoints import run_model
from clip_jax.checkpoints import state as state_lib
from clip_jax.convert.formats import timm_vit
from clip_jax.models import variants
from clip_jax.train import optim
from clip_jax.train import origins as origins_lib
from clip_jax.train import step as step_lib

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
# Parameters of the paper's models: of OpenAI's published checkpoints.
PUBLISHED = {"vit_b32": 151_277_313, "rn50": 102_007_137}
# timm's tower without its classifier, BERT without its pooler, two projections
# and the temperature.
PUBLISHED["vit_bert"] = 85_798_656 + 108_891_648 + 2 * 768 * 512 + 1


# As the towers of configs/vit_bert.py say it themselves.
BERT_BASE = {
  "embed_dim": variants.DEFAULT_EMBED_DIM,
  "text": {
    "kind": "bert",
    "context_length": 128,
    "vocab_size": 30_522,
    "width": 768,
    "depth": 12,
    "heads": 12,
    "mlp_dim": 3072,
  },
}


def _described(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_update_of_every_config_can_be_traced(path):
  config = config_lib.load(path, ["data.train=builtin:digits/train"])
  if config.model == variants.FROM_INIT:
    image = timm_vit.describe("vit_base_patch16_224")
    config = dataclasses.replace(
      config, model_overrides={**BERT_BASE, "image": image}
    )
    config = origins_lib.settle(config, config, {})
  elif config.init.text:  # Its tower, of another width, is not here.
    config = dataclasses.replace(
      config,
      model_overrides={**config.model_overrides, "text_projection": "linear"},
    )
  mesh = sharding.make_mesh(data=4, fsdp=2)
  spec = variants.spec(config.model, config.model_overrides)
  model = run_model.make(config)
  tx = optim.make_optimizer(
    config.optim,
    precision=config.precision,
    total_steps=config.steps or 5000,
    image_kind=spec["image"]["kind"],
  )
  state = state_lib.abstract_state(
    model, tx, mesh, ema=config.optim.ema_decay > 0
  )
  batch, size = 8, spec["image"]["image_size"]
  inputs = {
    "image": ((batch, size, size, 3), jnp.uint8),
    "tokens": ((batch, spec["text"]["context_length"]), jnp.int32),
    "bad": ((batch,), jnp.int32),
    "image_ids": ((batch,), jnp.int32),
  }
  after, measured = jax.eval_shape(
    step_lib.make_train_step(
      model,
      tx,
      mesh,
      loss=config.loss,
      optim=config.optim,
      micro_batches=config.micro_batches,
      seed=config.seed,
    ),
    state,
    {name: jax.ShapeDtypeStruct(*like) for name, like in inputs.items()},
  )
  assert _described(after) == _described(state)
  assert (measured.loss.shape, measured.loss.dtype) == ((), jnp.float32)
  assert {x.dtype for x in jax.tree.leaves(state.params)} == {
    jnp.dtype("float32")
  }
  count = sum(x.size for x in jax.tree.leaves(state.params))
  assert count == PUBLISHED.get(path.stem, count)
