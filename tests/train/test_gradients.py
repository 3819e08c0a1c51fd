"""Micro-batches give the update of the whole batch, in less memory."""

import functools

import jax
import numpy as np
import optax
import pytest

from clip_jax import config as config_lib
from clip_jax import errors, sharding
from clip_jax.checkpoints import run_model
from clip_jax.checkpoints import state as state_lib
from clip_jax.train import optim, program
from clip_jax.train import step as step_lib

BATCH, LENGTH, PARTS = 32, 7, 8


def _config(precision, kind, parts, **changes):
  config = config_lib.default_config()
  config.model = "tiny-vit"
  config.model_overrides = {
    "embed_dim": 12,
    "init_logit_bias": -2.0,
    "image": {"width": 24, "depth": 2, "heads": 3, "patch_dropout": 0.5},
    # Large enough arrays that `fsdp` splits tables and layers.
    "text": {
      "width": 64,
      "depth": 2,
      "heads": 2,
      "vocab_size": 300,
      "context_length": LENGTH,
    },
  }
  config.precision = precision
  config.batch_size = BATCH
  config.micro_batches = parts
  config.loss.kind = kind
  config.optim.update(changes)
  return config


def _batch():
  rng = np.random.default_rng(1)
  return {
    "image": rng.integers(0, 256, (BATCH, 32, 32, 3)).astype(np.uint8),
    "tokens": rng.integers(1, 300, (BATCH, LENGTH), dtype=np.int32),
    "bad": np.zeros(BATCH, np.int32),
  }


@functools.cache
def _initial(model, tx, x64):
  """Returns a state on one device, compiled once for all meshes."""
  del x64  # Part of the key: it decides the types.
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  return jax.tree.map(np.asarray, state_lib.init_state(model, tx, mesh, seed=3))


# Plain descent: what changes is the gradient, and no sign of it.
_DESCENT = {
  frozen: optim.freeze(optax.sgd(1.0), frozen) for frozen in ("", "^image/")
}


@functools.cache
def _updated(mesh_shape, precision, kind, parts, frozen=""):
  """Returns loss, gradient norm and the change of every parameter."""
  config = _config(precision, kind, parts, frozen=frozen, clip_norm=0.0)
  devices = jax.devices()[: mesh_shape[0] * mesh_shape[1]]
  mesh = sharding.make_mesh(
    data=mesh_shape[0], fsdp=mesh_shape[1], devices=devices
  )
  model = run_model.make(config)
  tx = _DESCENT[frozen]
  initial = _initial(model, tx, jax.config.jax_enable_x64)
  before = initial.params
  state = jax.tree.map(
    lambda x, like: jax.device_put(x.copy(), like.sharding),
    initial,
    state_lib.abstract_state(model, tx, mesh),
  )
  step = program.Program(config, mesh, {}, model, tx, None).make_step()
  batch = sharding.place(_batch(), sharding.batch_sharding(mesh))
  state, measured = step(state, batch)
  change = jax.tree.map(
    lambda new, old: np.asarray(new) - old, state.params, before
  )
  return float(measured.loss), change


def _distance(got, wanted):
  """Returns the largest difference over the largest value, array by array."""
  pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True))
  # Keys' biases have no gradient, only rounding: softmax does not see them.
  floor = 1e-3 * max(np.abs(b).max() for _, b in pairs)
  return max(
    np.abs(a - b).max() / max(np.abs(b).max(), floor) for a, b in pairs
  )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_micro_batches_equal_one_big_batch_in_float64(kind):
  with jax.enable_x64(True):
    loss, change = _updated((1, 1), "float64", kind, 1)
    got_loss, got_change = _updated((2, 2), "float64", kind, PARTS)
  assert abs(got_loss - loss) < 1e-12 * abs(loss)
  assert _distance(got_change, change) < 1e-12


@pytest.mark.slow
def test_micro_batches_equal_one_big_batch_in_float32():
  loss, change = _updated((1, 2), "float32", "softmax", 1)
  got_loss, got_change = _updated((1, 2), "float32", "softmax", PARTS)
  assert abs(got_loss - loss) < 1e-5 * abs(loss)
  assert _distance(got_change, change) < 1e-5


def test_a_locked_tower_stays_as_it_is_in_micro_batches():
  with jax.enable_x64(True):
    _, change = _updated((1, 1), "float64", "softmax", 1, "^image/")
    _, got = _updated((1, 1), "float64", "softmax", PARTS, "^image/")
  assert not any(np.any(x) for x in jax.tree.leaves(got["image"]))
  assert _distance(got["text"], change["text"]) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 4])
def test_copies_in_a_batch_are_no_negatives_where_they_are_masked(parts):
  """A batch of pairs that come twice loses what the halves' copies cost."""
  config = _config("float32", "softmax", parts)
  config.loss.duplicates = "mask"
  mesh = sharding.make_mesh(data=2, devices=jax.devices()[:2])
  model = run_model.make(config)
  tx = optim.make_optimizer(
    config.optim, precision=config.precision, total_steps=2500, image_kind="vit"
  )
  step = program.Program(config, mesh, {}, model, tx, None).make_step()

  initial = jax.tree.map(
    np.asarray, state_lib.init_state(model, tx, mesh, seed=3)
  )
  shardings = jax.tree.map(
    lambda x: x.sharding, state_lib.abstract_state(model, tx, mesh)
  )

  def loss(batch, ids):
    state = jax.device_put(jax.tree.map(np.copy, initial), shardings)
    batch = {**batch, "image_ids": np.asarray(ids, np.int32)}
    placed = sharding.place(batch, sharding.batch_sharding(mesh))
    return float(step(state, placed)[1].loss)

  distinct = _batch()
  half = BATCH // 2
  twice = dict(distinct)
  twice["tokens"] = np.tile(distinct["tokens"][:half], (2, 1))
  numbers = np.arange(BATCH)
  plain = loss(distinct, numbers)
  # The images differ, but each caption comes twice: it is told by its tokens.
  by_text = loss(twice, numbers)
  by_both = loss(twice, numbers % half)
  assert by_text == pytest.approx(by_both, rel=1e-6)
  # Without its copy a row has one negative less: about log(31 / 30).
  assert by_text < plain - 0.01
  by_image = loss(distinct, numbers % half)
  assert by_image < plain - 0.01


def _activation_bytes(parts):
  config = _config("float32", "softmax", parts)
  config.batch_size = 256
  config.model_overrides.image.remat = "none"
  config.model_overrides.text.remat = "none"
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  model = run_model.make(config)
  tx = optim.make_optimizer(
    config.optim, precision=config.precision, total_steps=2500, image_kind="vit"
  )
  step = program.Program(config, mesh, {}, model, tx, None).make_step()
  batch = {
    name: jax.ShapeDtypeStruct((256, *x.shape[1:]), x.dtype)
    for name, x in _batch().items()
  }
  state = state_lib.abstract_state(model, tx, mesh)
  return step.lower(state, batch).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_micro_batches_take_less_memory():
  whole, eighths = map(_activation_bytes, (1, 8))
  # What does not shrink: gradients, and the loss's own.
  assert eighths < 0.35 * whole


def test_batch_norms_refuse_micro_batches_unless_locked():
  config = _config("float32", "softmax", 2)
  config.model = "tiny-rn"
  config.model_overrides = {}
  config.loss.kind = "softmax"
  model = run_model.make(config)
  options = {"name": "tiny-rn", "micro_batches": 2}
  with pytest.raises(errors.UserError, match="statistics are of the whole"):
    step_lib.check_micro_batches(model, **options, frozen="")
  step_lib.check_micro_batches(model, **options, frozen="^image/")


def test_a_batch_that_does_not_split_into_micro_batches_is_refused():
  mesh = sharding.make_mesh(devices=jax.devices()[:2])
  with pytest.raises(errors.UserError, match=r"micro_batches=3; try 30\."):
    sharding.check_batch_size(32, mesh, micro_batches=3)
