"""A checkpoint comes back whole, on any mesh, or is not used at all."""

import functools
import gc
import logging
import pathlib
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import config as config_lib
from clip_jax import errors, hosts, sharding
from clip_jax.checkpoints import (
  integrity,
  items,
  run_model,
  saving,
  storage_errors,
)
from clip_jax.checkpoints import state as state_lib
from clip_jax.checkpoints import workdir as workdir_lib
from clip_jax.train import optim

# Where files are damaged, TensorStore's threads complain after the fact, in
# whichever test runs then.
pytestmark = [
  pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
  pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
  ),
]


@pytest.fixture(autouse=True)
def _complaints_stay_here():
  yield
  gc.collect()


def _config():
  config = config_lib.default_config()
  config.model = "tiny-cbow"
  config.model_overrides = {
    "embed_dim": 12,
    "image": {"width": 8},
    "text": {"width": 32, "vocab_size": 1024, "context_length": 5},
  }
  config.data.train = "builtin:digits/train"
  config.steps = 9
  config.precision = "float32"
  return config


@functools.cache
def _parts(mesh_shape=(1, 1)):
  config = _config()
  model = run_model.make(config)
  config.optim.warmup_steps = 0
  tx = optim.make_optimizer(
    config.optim, precision=config.precision, total_steps=9, image_kind="resnet"
  )
  devices = jax.devices()[: mesh_shape[0] * mesh_shape[1]]
  mesh = sharding.make_mesh(
    data=mesh_shape[0], fsdp=mesh_shape[1], devices=devices
  )
  return model, tx, mesh


def _abstract(mesh_shape=(1, 1)):
  return state_lib.abstract_state(*_parts(mesh_shape))


def _state(mesh_shape=(1, 1), seed=0):
  """Random numbers in the shape of a state: nothing is compiled."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jax.device_put(
      rng.normal(size=x.shape).astype(x.dtype), x.sharding
    ),
    _abstract(mesh_shape),
  )


def _save(workdir, steps, mesh_shape=(1, 1), keep=9):
  """Saves a state of its own for each of `steps`; returns them."""
  workdir.mkdir(exist_ok=True)
  (workdir / workdir_lib.CONFIG).write_text(config_lib.to_json(_config()))
  states = {}
  with saving.Checkpoints(workdir, keep=keep) as checkpoints:
    for step in steps:
      state = _state(mesh_shape, seed=step).replace(step=jnp.int32(step))
      checkpoints.save(
        state, step=step, config=_config(), counters={"bad_records": step}
      )
      states[step] = jax.tree.map(np.asarray, state)
    checkpoints.wait()
  return states


def _same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def _data_files(workdir, step, item=items.VARIABLES):
  """The files of an item that hold numbers, the largest first."""
  root = workdir / workdir_lib.DIRECTORY / str(step) / item
  files = [path for path in root.rglob("d/*") if path.is_file()]
  assert files
  return sorted(files, key=lambda path: -path.stat().st_size)


def _flip_bit(path: pathlib.Path, bit: int):
  content = bytearray(path.read_bytes())
  content[bit // 8] ^= 1 << bit % 8
  path.write_bytes(content)


@pytest.mark.parametrize(
  ("saved_on", "read_on"),
  [
    ((2, 4), (2, 1)),
    *(
      pytest.param(*pair, marks=pytest.mark.slow)
      for pair in (
        ((1, 1), (1, 1)),
        ((1, 1), (1, 8)),
        ((8, 1), (2, 2)),
      )
    ),
  ],
)
def test_a_state_comes_back_on_any_mesh(tmp_path, saved_on, read_on):
  states = _save(tmp_path / "run", [4], saved_on)
  with saving.Checkpoints(tmp_path / "run") as checkpoints:
    state, meta = checkpoints.restore_latest(_abstract(read_on))
  _same(state, states[4])
  assert meta["step"] == 4 and meta["counters"] == {"bad_records": 4}
  wanted = jax.tree.map(lambda x: x.sharding, _abstract(read_on))
  assert jax.tree.map(lambda x: x.sharding, state) == wanted


def test_the_newest_ones_are_kept(tmp_path):
  _save(tmp_path / "run", [1, 2, 3, 4], keep=2)
  kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
  assert kept == {"3", "4"}


def test_nothing_saved_restores_nothing(tmp_path):
  with saving.Checkpoints(tmp_path / "run") as checkpoints:
    assert checkpoints.restore_latest(_abstract()) is None


@pytest.mark.parametrize("item", [items.VARIABLES, items.PROGRESS])
@pytest.mark.parametrize(
  "seed", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in (1, 2))]
)
def test_one_damaged_bit_is_reported_and_the_step_before_is_used(
  tmp_path, caplog, seed, item
):
  workdir = tmp_path / "run"
  states = _save(workdir, [3, 6])
  path = _data_files(workdir, 6, item)[0]
  rng = np.random.default_rng(seed)
  _flip_bit(path, int(rng.integers(8 * path.stat().st_size)))
  with (
    caplog.at_level(logging.WARNING),
    saving.Checkpoints(workdir) as checkpoints,
  ):
    state, meta = checkpoints.restore_latest(_abstract())
    assert meta["step"] == 3 and "Checkpoint 6" in caplog.text
    _same(state, states[3])
    # The number is free again and the damaged files are kept for a look.
    assert [p.name for p in (workdir / "quarantine").iterdir()] == ["6-0"]
    checkpoints.save(
      state, step=6, config=_config(), counters={"bad_records": 0}
    )
    checkpoints.wait()
    assert checkpoints.latest_step() == 6
  saved = workdir_lib.load_model(workdir)
  config = saved.config
  variables = saved.variables
  step = saved.step
  assert step == 6 and config.model == "tiny-cbow"
  _same(variables["params"], states[3].params)


@pytest.mark.slow
def test_no_damaged_bit_anywhere_changes_what_is_restored(tmp_path):
  """Each file of a checkpoint: refused, or it did not matter (a copy)."""
  workdir = tmp_path / "run"
  states = _save(workdir, [6])
  rng = np.random.default_rng(0)
  root = workdir / workdir_lib.DIRECTORY / "6"
  refused = 0
  for path in sorted(path for path in root.rglob("*") if path.is_file()):
    content = path.read_bytes()
    for bit in rng.integers(8 * len(content), size=2 if content else 0):
      _flip_bit(path, int(bit))
      with saving.Checkpoints(workdir) as checkpoints:
        restored = checkpoints._try_restore(6, _abstract())
      path.write_bytes(content)
      if restored is None:
        refused += 1
      else:
        _same(restored[0], states[6])
  assert refused > 10  # Of some forty; Orbax's files differ from run to run.


@pytest.mark.parametrize("damage", ["truncate", "empty", "delete", "zero"])
def test_a_damaged_file_is_never_used(tmp_path, caplog, damage):
  workdir = tmp_path / "run"
  states = _save(workdir, [1, 2])
  path = _data_files(workdir, 2)[0]
  content = path.read_bytes()
  if damage == "delete":
    path.unlink()
  else:
    path.write_bytes(
      {
        "truncate": content[: len(content) // 2],
        "empty": b"",
        "zero": bytes(len(content)),
      }[damage]
    )
  saved = workdir_lib.load_model(workdir)
  variables = saved.variables
  step = saved.step
  assert step == 1 and "Using step 1 instead." in caplog.text
  with saving.Checkpoints(workdir) as checkpoints:
    state, meta = checkpoints.restore_latest(_abstract())
  assert meta["step"] == 1
  _same(state, states[1])
  _same(variables["params"], states[1].params)


def test_reading_silences_echoes_of_other_threads(
  tmp_path, monkeypatch, caplog
):
  _save(tmp_path, [1])
  heard = []
  monkeypatch.setattr(sys, "unraisablehook", heard.append)
  storage_errors.silence_echoes.cache_clear()
  workdir_lib.load_model(tmp_path)
  for said in ("Event loop is closed", "of the user's own"):
    sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(said)))
  assert [str(x.exc_value) for x in heard] == ["of the user's own"]
  for said in ("Error reading [tensorstore_spec='{}']", "of the user's own"):
    logging.getLogger("asyncio").error(said)
  assert "tensorstore" not in caplog.text and "user's own" in caplog.text
  storage_errors.silence_echoes.cache_clear()  # The hook is the old one again.


def test_inference_changes_nothing_in_a_workdir(tmp_path):
  workdir = tmp_path / "run"
  _save(workdir, [1, 2])
  _flip_bit(_data_files(workdir, 2)[0], 999)
  before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
  assert workdir_lib.load_model(workdir).step == 1
  after = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
  assert before == after


def test_no_good_checkpoint_is_a_clear_error(tmp_path):
  workdir = tmp_path / "run"
  _save(workdir, [1])
  for path in (workdir / workdir_lib.DIRECTORY / "1").rglob("d/*"):
    path.write_bytes(b"")
  with pytest.raises(errors.UserError, match="none of them good"):
    workdir_lib.load_model(workdir)
  with (
    saving.Checkpoints(workdir) as checkpoints,
    pytest.raises(errors.UserError, match="None of the 1 checkpoints"),
  ):
    checkpoints.restore_latest(_abstract())


def test_another_model_is_refused_and_its_checkpoint_kept(tmp_path):
  workdir = tmp_path / "run"
  _save(workdir, [1])
  config = _config()
  config.model = "tiny-vit"
  model = run_model.make(config)
  _, tx, mesh = _parts()
  with (
    saving.Checkpoints(workdir) as checkpoints,
    pytest.raises(errors.UserError, match="holds another model"),
  ):
    checkpoints.restore_latest(state_lib.abstract_state(model, tx, mesh))
  assert (workdir / "checkpoints" / "1").is_dir()


def test_another_optimizer_is_no_other_model(tmp_path):
  workdir = tmp_path / "run"
  _save(workdir, [1])
  model, tx, mesh = _parts()
  config = _config()
  config.optim.update({"warmup_steps": 0, "name": "lion"})
  lion = optim.make_optimizer(
    config.optim, precision=config.precision, total_steps=9, image_kind="resnet"
  )
  for wanted, message in (
    (state_lib.abstract_state(model, lion, mesh), "state of another optimizer"),
    (state_lib.abstract_state(model, tx, mesh, ema=True), "other averages"),
  ):
    with (
      saving.Checkpoints(workdir) as checkpoints,
      pytest.raises(errors.UserError, match=message),
    ):
      checkpoints.restore_latest(wanted)


@pytest.mark.parametrize(
  ("step", "message"), [(7, r"no checkpoint of step 7.*\[2, 1\]"), (1, None)]
)
def test_a_step_can_be_chosen(tmp_path, step, message):
  states = _save(tmp_path / "run", [1, 2])
  if message:
    with pytest.raises(errors.UserError, match=message):
      workdir_lib.load_model(tmp_path / "run", step=step)
  else:
    saved = workdir_lib.load_model(tmp_path / "run", step=step)
    variables = saved.variables
    got = saved.step
    assert got == step
    _same(variables["params"], states[step].params)


def test_a_digest_is_the_same_on_every_mesh():
  one, eight = (_state(shape, seed=5) for shape in [(1, 1), (2, 4)])
  assert integrity.digests(one) == integrity.digests(eight)


@pytest.mark.parametrize("field", [None, "version", "model"])
def test_shapes_are_traced_only_where_the_stored_ones_may_not_hold(
  tmp_path, monkeypatch, field
):
  workdir = tmp_path / "run"
  _save(workdir, [1])
  if field == "version":
    monkeypatch.setattr(workdir_lib.clip_jax, "__version__", "9.9")
  traced = []
  real = workdir_lib.variants.abstract_variables
  monkeypatch.setattr(
    workdir_lib.variants,
    "abstract_variables",
    lambda model: traced.append(model) or real(model),
  )
  if field == "model":
    config = _config()
    config.model = "tiny-vit"
    path = workdir / workdir_lib.CONFIG
    path.write_text(config_lib.to_json(config))
    with pytest.raises(errors.UserError, match="holds another model"):
      workdir_lib.load_model(workdir)
  else:
    workdir_lib.load_model(workdir)
  assert bool(traced) == (field is not None)


def test_counters_may_go_on_while_they_are_saved(tmp_path, monkeypatch):
  json_dumps = saving.json.dumps
  workdir = tmp_path / "run"
  counters = {"bad_records": 1}
  with saving.Checkpoints(workdir) as checkpoints:
    saved = {}
    monkeypatch.setattr(
      saving.ocp.args, "JsonSave", lambda item: saved.setdefault("m", item)
    )
    monkeypatch.setattr(checkpoints._manager, "save", lambda *_, **__: None)
    checkpoints.save(_state(), step=1, config=_config(), counters=counters)
    before = json_dumps(saved["m"])
    counters["bad_records"] = 2
    assert json_dumps(saved["m"]) == before


def test_another_shape_is_refused_and_its_checkpoint_kept(tmp_path):
  workdir = tmp_path / "run"
  _save(workdir, [1])
  wider = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((*x.shape, 2), x.dtype, sharding=x.sharding),
    _abstract(),
  )
  with (
    saving.Checkpoints(workdir) as checkpoints,
    pytest.raises(errors.UserError, match="of another shape"),
  ):
    checkpoints.restore_latest(wider)
  assert (workdir / "checkpoints" / "1").is_dir()


@pytest.mark.parametrize(
  "error",
  [
    MemoryError(),
    OSError(5, "Input/output error"),
    PermissionError(13, "Denied"),
  ],
)
def test_a_fault_of_the_machine_quarantines_nothing(
  tmp_path, monkeypatch, error
):
  workdir = tmp_path / "run"
  _save(workdir, [1, 2])

  def fail(*_):
    raise error

  monkeypatch.setattr(items, "restore", fail)
  with (
    saving.Checkpoints(workdir) as checkpoints,
    pytest.raises(type(error)),
  ):
    checkpoints.restore_latest(_abstract())
  assert not (workdir / "quarantine").exists()


@pytest.mark.parametrize(
  "content, message", [(b"", "no valid JSON"), (b'{"a": "\xff"}', "not UTF-8")]
)
def test_a_damaged_config_is_a_clear_error(tmp_path, content, message):
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(errors.UserError, match=f"{message}.*from a backup"):
    workdir_lib.load_config(tmp_path)


def test_a_name_that_is_taken_in_quarantine_is_not_taken_again(tmp_path):
  _save(tmp_path, steps=[1, 2])
  (tmp_path / "quarantine" / "2-1" / "of before").mkdir(parents=True)
  shutil.rmtree(tmp_path / "checkpoints" / "2" / "meta")
  with saving.Checkpoints(tmp_path) as checkpoints:
    _, meta = checkpoints.restore_latest(_abstract())
  assert meta["step"] == 1
  kept = sorted(x.name for x in (tmp_path / "quarantine").iterdir())
  assert kept == ["2-0", "2-1"]


def test_hosts_that_hold_different_steps_do_not_go_on(tmp_path, monkeypatch):
  """Each restores from its own directory, and would get another state."""
  _save(tmp_path, steps=[1, 2])
  monkeypatch.setattr(
    hosts, "exchanged", lambda text: [text, text.replace("[2, 1]", "[1]")]
  )
  with (
    pytest.raises(errors.UserError, match=r"saved steps: \[1\] on process 1"),
    saving.Checkpoints(tmp_path, is_shared=False) as checkpoints,
  ):
    checkpoints.restore_latest(_abstract())
