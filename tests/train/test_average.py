"""The moving average of the parameters is what evaluations and exports see."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax import config as config_lib
from clip_jax import sharding
from clip_jax.checkpoints import run_model, saving
from clip_jax.checkpoints import state as state_lib
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.train import optim, program
from clip_jax.train import step as step_lib

DECAY = 0.3
# Of updates 0, 1, …: the average follows fast at first.
DECAYS = [1 / 10, 2 / 11, 3 / 12, DECAY, DECAY]


def _config():
  config = config_lib.default_config()
  config.model = "tiny-vit"
  config.model_overrides = {
    "embed_dim": 12,
    "image": {"width": 24, "depth": 1, "heads": 3},
    "text": {
      "width": 32,
      "depth": 1,
      "heads": 2,
      "vocab_size": 1024,
      "context_length": 5,
    },
  }
  config.precision = "float32"
  config.steps = 50
  config.data.train = "builtin:digits/train"
  config.optim.update({"warmup_steps": 0, "peak_lr": 0.01, "ema_decay": DECAY})
  return config


def _parts():
  config = _config()
  mesh = sharding.make_mesh(data=1, fsdp=2, devices=jax.devices()[:2])
  model = run_model.make(config)
  return (
    model,
    optim.make_optimizer(
      config.optim, precision=config.precision, total_steps=50, image_kind="vit"
    ),
    mesh,
  )


def _batch(mesh, *, good=True):
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8),
    "tokens": rng.integers(1, 1000, (4, 5), dtype=np.int32),
    "bad": np.zeros(4, np.int32),
  }
  if not good:
    batch["image"] = np.full((4, 32, 32, 3), np.nan, np.float32)
  return sharding.place(batch, sharding.batch_sharding(mesh))


@pytest.mark.slow
def test_the_average_is_that_of_the_parameters_on_fsdp_and_is_kept(tmp_path):
  model, tx, mesh = _parts()
  state = state_lib.init_state(model, tx, mesh, seed=0, ema=True)
  config = _config()
  step = program.Program(config, mesh, {}, model, tx, None).make_step()
  want = jax.tree.map(np.asarray, state.params)
  for decay in DECAYS:
    state, measured = step(state, _batch(mesh))
    measured.loss.block_until_ready()
    params = jax.tree.map(np.asarray, state.params)
    want = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, want, params)
  got = state.variables["params"]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    got,
    want,
  )
  table = got["text"]["token_embedding"]["embedding"]
  assert not table.sharding.is_fully_replicated
  assert np.abs(table - params["text"]["token_embedding"]["embedding"]).max()

  # Where an update is skipped, the average stays too.
  before = jax.tree.map(np.asarray, state.ema)
  state, measured = step(state, _batch(mesh, good=False))
  assert int(measured.skipped) == 1
  jax.tree.map(np.testing.assert_array_equal, state.ema, before)

  # A checkpoint holds both; who uses the model finds the average.
  workdir = tmp_path / "run"
  workdir.mkdir()
  (workdir / workdir_lib.CONFIG).write_text(config_lib.to_json(_config()))
  with saving.Checkpoints(workdir, keep=1) as checkpoints:
    checkpoints.save(state, step=6, config=_config(), counters={})
    checkpoints.wait()
  saved = jax.tree.map(np.asarray, state)
  abstract = state_lib.abstract_state(model, tx, mesh, ema=True)
  with saving.Checkpoints(workdir, keep=1) as checkpoints:
    restored, _ = checkpoints.restore_latest(abstract)
  jax.tree.map(np.testing.assert_array_equal, restored, saved)
  variables = workdir_lib.load_model(workdir).variables
  jax.tree.map(np.testing.assert_array_equal, variables, saved.ema)


@pytest.mark.slow
def test_an_update_that_is_not_finite_changes_nothing():
  model, tx, _ = _parts()
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  bad = optax.stateless(
    lambda updates, _: jax.tree.map(lambda x: x * jnp.nan, updates)
  )
  tx = optax.chain(tx, bad)
  state = state_lib.init_state(model, tx, mesh, seed=0, ema=True)
  before = jax.tree.map(np.asarray, state)
  config = _config()
  step = program.Program(config, mesh, {}, model, tx, None).make_step()
  state, measured = step(state, _batch(mesh))
  assert np.isfinite(measured.loss) and np.isfinite(measured.gradient_norm)
  assert int(measured.skipped) == 1
  jax.tree.map(np.testing.assert_array_equal, state.params, before.params)
  jax.tree.map(np.testing.assert_array_equal, state.opt_state, before.opt_state)


def test_statistics_of_batch_norms_are_averaged_too():
  def state(params, stats, ema):
    one = {"x": jnp.float32(params)}, {"mean": jnp.float32(stats)}
    return state_lib.TrainState(
      step=jnp.int32(1),
      params=one[0],
      batch_stats=one[1],
      opt_state=(),
      skipped=jnp.int32(0),
      ema=ema,
    )

  ema = {
    "params": {"x": jnp.ones(())},
    "batch_stats": {"mean": 10 * jnp.ones(())},
  }
  old = state(0, 0, ema)
  averaged = step_lib._average(state(12, 21, old.ema), old, 0.999)
  kept = 2 / 11  # Of update 1.
  assert averaged.variables["params"]["x"] == pytest.approx(
    kept + 12 * (1 - kept)
  )
  assert averaged.variables["batch_stats"]["mean"] == pytest.approx(
    10 * kept + 21 * (1 - kept)
  )


def test_no_average_is_kept_unless_asked_for():
  model, tx, mesh = _parts()
  state = state_lib.abstract_state(model, tx, mesh)
  assert state.ema == {}
  assert state.variables["params"] is state.params
  with_average = state_lib.abstract_state(model, tx, mesh, ema=True)
  assert jax.tree.structure(with_average.ema["params"]) == jax.tree.structure(
    with_average.params
  )
  log_scale = with_average.ema["params"]["log_scale"]
  assert jnp.dtype(log_scale.dtype) == jnp.float32
