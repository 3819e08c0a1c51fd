"""One update: the same on every mesh, harmless where it is not finite."""

import copy
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import config as config_lib
from clip_jax import errors, sharding
from clip_jax.checkpoints import run_model
from clip_jax.checkpoints import state as state_lib
from clip_jax.models import freezing, sharded
from clip_jax.train import optim, program

BATCH, LENGTH = 16, 9
MODELS = ["tiny-rn", "tiny-vit"]
# Large enough a vocabulary that `fsdp` splits its table.
_TEXT = {"width": 16, "vocab_size": 2048, "context_length": LENGTH}
_WORDS = {"kind": "cbow", **_TEXT}  # Compiles in a fraction of the time.
SMALLER = {
  "tiny-rn": {"image": {"width": 8}, "text": _WORDS},
  "tiny-vit": {
    "image": {"width": 24, "depth": 2, "heads": 3},
    "text": {"depth": 2, "heads": 2, **_TEXT},
  },
}

# Its second stage's blocks are wide enough to be split, and are several.
_WIDE_RESNET = {"width": 32, "depths": (1, 5)}


def _config(model, precision):
  config = config_lib.default_config()
  config.model = model
  config.model_overrides = {"embed_dim": 12, **copy.deepcopy(SMALLER[model])}
  config.precision = precision
  config.batch_size = BATCH
  config.optim.warmup_steps = 5
  config.optim.peak_lr = 1e-3
  return config


def _batches(steps):
  """Images whose brightness tells the caption, so that there is a signal."""
  rng = np.random.default_rng(0)
  for _ in range(steps):
    words = rng.integers(1, 250, size=(BATCH, 1))
    noise = rng.integers(0, 6, size=(BATCH, 32, 32, 3))
    image = np.minimum(words[..., None, None] + noise, 255).astype(np.uint8)
    tokens = np.zeros((BATCH, LENGTH), np.int32)
    tokens[:, :1], tokens[:, 1:2], tokens[:, 2] = 2046, words, 2047
    yield {"image": image, "tokens": tokens, "bad": np.zeros(BATCH, np.int32)}


@functools.cache
def _initial_variables(model, x64):
  del x64  # Part of the key: it decides the types.
  return jax.tree.map(
    np.asarray, jax.jit(lambda: state_lib.init_variables(model, 3))()
  )


def _initial_state(model, tx, mesh):
  """Returns what `init_state` does, compiled once for all meshes."""
  variables = _initial_variables(model, jax.config.jax_enable_x64)
  abstract = state_lib.abstract_state(model, tx, mesh)
  zero = np.zeros((), np.int32)
  state = state_lib.TrainState(
    step=zero,
    params=variables["params"],
    batch_stats=variables.get("batch_stats", {}),
    opt_state=jax.tree.map(np.asarray, tx.init(variables["params"])),
    skipped=zero,
  )
  return jax.tree.map(
    lambda x, like: jax.device_put(x.copy(), like.sharding), state, abstract
  )


_PROGRAMS = {}


def _program(config, mesh_shape):
  """Returns model, optimizer, mesh and step; equal ones are traced once."""
  key = config_lib.to_json(config), mesh_shape, jax.config.jax_enable_x64
  if key not in _PROGRAMS:
    _PROGRAMS[key] = _make_program(config, mesh_shape)
  return _PROGRAMS[key]


def _make_program(config, mesh_shape):
  mesh = sharding.make_mesh(
    data=mesh_shape[0],
    fsdp=mesh_shape[1],
    devices=jax.devices()[: mesh_shape[0] * mesh_shape[1]],
  )
  model = run_model.make(config)
  tx = optim.make_optimizer(
    config.optim,
    precision=config.precision,
    total_steps=50,
    image_kind="vit",
  )
  step = program.Program(config, mesh, {}, model, tx, None).make_step()
  return model, tx, mesh, step


class _Trainer:
  """State, step and mesh of one run of a config."""

  def __init__(self, config, mesh_shape):
    model, tx, mesh, self.step = _program(config, mesh_shape)
    self.place = functools.partial(
      sharding.place, sharding=sharding.batch_sharding(mesh)
    )
    self.state = _initial_state(model, tx, mesh)

  def put(self, name, value):
    """Replaces a parameter; elsewhere it would be traced anew."""
    old = self.state.params[name]
    self.state.params[name] = jax.device_put(
      jnp.asarray(value, old.dtype), old.sharding
    )

  def run(self, batches):
    losses = []
    for batch in batches:
      self.state, measured = self.step(self.state, self.place(batch))
      # Simulated devices deadlock where steps are dispatched ahead.
      losses.append(float(measured.loss.block_until_ready()))
    return np.array(losses)


def _lower(config):
  """Returns the lowered step on eight devices, and the shapes of its state."""
  model, tx, mesh, step = _program(config, (2, 4))
  state = state_lib.abstract_state(model, tx, mesh)
  split = sharding.batch_sharding(mesh)
  batch = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split)
    for name, x in next(_batches(1)).items()
  }
  return step.lower(state, batch), state


def _relative(a, b):
  return np.max(np.abs(a - b)) / np.max(np.abs(b))


@functools.cache
def _reference(model, precision):
  trainer = _Trainer(_config(model, precision), (1, 1))
  losses = trainer.run(_batches(50))
  return losses, jax.tree.map(np.asarray, trainer.state.batch_stats)


def _compare(model, mesh_shape, precision, tolerance):
  wanted, statistics = _reference(model, precision)
  trainer = _Trainer(_config(model, precision), mesh_shape)
  losses = trainer.run(_batches(50))
  assert losses[-1] < losses[0] - 0.2, "The model learns nothing."
  np.testing.assert_allclose(losses, wanted, rtol=tolerance)
  for got, want in zip(
    jax.tree.leaves(trainer.state.batch_stats),
    jax.tree.leaves(statistics),
    strict=True,
  ):
    assert _relative(np.asarray(got), want) < 10 * tolerance


@pytest.mark.slow
@pytest.mark.parametrize(
  ("model", "mesh_shape"),
  [("tiny-rn", (2, 2)), ("tiny-vit", (1, 8))],
)
def test_fifty_steps_are_the_same_on_every_mesh_in_float64(model, mesh_shape):
  with jax.enable_x64(True):
    _compare(model, mesh_shape, "float64", 1e-9)


def test_three_steps_are_the_same_on_one_and_eight_devices():
  config = _config("tiny-rn", "float32")
  one, eight = (_Trainer(config, shape) for shape in [(1, 1), (2, 4)])
  np.testing.assert_allclose(
    one.run(_batches(3)), eight.run(_batches(3)), rtol=2e-6
  )


@pytest.fixture
def loops_written_out(monkeypatch):
  """Compiles loops as straight code, for steps whose loops communicate.

  Simulated devices may start what follows a loop before it has ended. Its
  collectives then meet those of the loop, and XLA waits for ever, or aborts.
  """
  written_out = functools.partial(jax.lax.scan, unroll=True)
  monkeypatch.setattr(jax.lax, "scan", written_out)


@pytest.mark.slow
def test_blocks_that_gather_themselves_train_the_same(loops_written_out):
  with jax.enable_x64(True):
    config = _config("tiny-rn", "float64")
    config.model_overrides.image = _WIDE_RESNET
    one = _Trainer(config, (1, 1))
    fields = {"scan": True, "remat": "nested"}
    config.model_overrides.image = {**_WIDE_RESNET, **fields}
    eight = _Trainer(config, (2, 4))
    kernel = eight.state.params["image"]["stage_2_block_3"]["conv_2"]["conv"][
      "kernel"
    ]
    assert not kernel.sharding.is_fully_replicated
    np.testing.assert_allclose(
      one.run(_batches(3)), eight.run(_batches(3)), rtol=1e-10
    )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
      one.state.batch_stats,
      eight.state.batch_stats,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lion", "adafactor", "muon"])
def test_every_optimizer_moves_split_parameters_as_whole_ones(
  loops_written_out, name
):
  with jax.enable_x64(True):
    config = _config("tiny-vit", "float64")
    config.model_overrides.text.width = 64  # Wide enough to be split.
    config.optim.name = name
    one, eight = (_Trainer(config, shape) for shape in [(1, 1), (2, 4)])
    losses = one.run(_batches(6))
    assert losses[-1] != losses[0]
    np.testing.assert_allclose(losses, eight.run(_batches(6)), rtol=1e-9)


def test_parameters_are_born_sharded():
  config = _config("tiny-vit", "float32")
  trainer = _Trainer(config, (2, 4))
  mesh = sharding.make_mesh(data=2, fsdp=4)
  tx = optim.make_optimizer(
    config.optim, precision=config.precision, total_steps=50, image_kind="vit"
  )
  model = run_model.make(config)
  wanted, trainer.state = (
    trainer.state,
    state_lib.init_state(model, tx, mesh, seed=3),
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
    trainer.state,
    wanted,
  )
  params = trainer.state.params
  table = params["text"]["token_embedding"]["embedding"]
  assert not table.sharding.is_fully_replicated
  assert table.addressable_shards[0].data.size == table.size // 4
  moments = trainer.state.opt_state[1].mu
  assert moments["text"]["token_embedding"]["embedding"].sharding == (
    table.sharding
  )
  trainer.run(_batches(1))
  after = trainer.state.params["text"]["token_embedding"]["embedding"]
  assert after.sharding.is_equivalent_to(table.sharding, 2)


def test_fsdp_gathers_layer_by_layer_and_no_activations():
  config = _config("tiny-vit", "float32")
  config.model_overrides.text.width = 64  # Wide enough to be split.
  lowered, state = _lower(config)
  compiled = lowered.compile()
  text = compiled.as_text()
  assert "all-to-all" not in text
  shapes = {leaf.shape for leaf in jax.tree.leaves(state.params)}
  stack = (2, 64, 256)  # (depth, width, mlp_dim)
  assert stack in shapes
  gathered = {
    tuple(size for size in map(int, found.split(",")) if size > 1)
    for found in re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)
  }
  assert stack not in gathered
  assert stack[1:] in gathered
  # The loss gathers the texts' embeddings and a few numbers of each text.
  large = {x for x in gathered if np.prod(x) > BATCH * 12}
  assert large <= shapes | {x[1:] for x in shapes}
  scattered = re.findall(r"= \(?f32\S* reduce-scatter\(", text)
  assert scattered, "Gradients of split parameters stay split."
  # The new state lies where the old one did.
  held = sum(
    np.prod(x.sharding.shard_shape(x.shape), dtype=int) * x.dtype.itemsize
    for x in jax.tree.leaves(state)
  )
  assert compiled.memory_analysis().alias_size_in_bytes >= 0.99 * held


@pytest.mark.parametrize(
  ("model", "image", "gathered"),
  [
    ("tiny-vit", {}, "64x256"),
    pytest.param("tiny-rn", _WIDE_RESNET, "3x3x64x64", marks=pytest.mark.slow),
    (
      "tiny-rn",
      {**_WIDE_RESNET, "remat": "none", "scan": True},
      "3x3x64x64",
    ),
  ],
)
def test_no_gradient_is_summed_in_half_precision(model, image, gathered):
  """In the program as written: CPUs sum all in float32 anyway."""
  config = _config(model, "bfloat16")
  config.model_overrides.image.update(image)
  config.model_overrides.text.width = 64  # Wide enough to be split.
  text = _lower(config)[0].as_text()
  assert re.search(r"(dot_general|convolution).*xbf16>", text)
  kinds = re.findall(
    r"stablehlo\.(all_reduce|reduce_scatter).*?\) : .*?-> tensor<[\dx]*(\w+)>",
    text,
    re.DOTALL,
  )
  assert {kind for kind, _ in kinds} == {"all_reduce", "reduce_scatter"}
  assert {dtype for _, dtype in kinds} <= {"f32", "i32"}
  # Parameters travel in the type that they are used in.
  found = re.findall(r"all_gather.*-> tensor<([\dx]+)x(\w+)>", text)
  assert (gathered, "bf16") in found
  assert {dtype for shape, dtype in found if shape == gathered} == {"bf16"}


@pytest.mark.parametrize(
  ("fields", "times"),
  [
    # For the forward pass, and again for the backward pass of each block.
    pytest.param({"remat": "full"}, 2 * 5, marks=pytest.mark.slow),
    # The first block, and the one that stands for the others.
    ({"remat": "full", "scan": True}, 2 * 2),
    ({"remat": "none", "scan": True}, 2),
  ],
)
def test_fsdp_gathers_a_resnet_block_by_block(fields, times):
  config = _config("tiny-rn", "bfloat16")
  config.model_overrides.image = {**_WIDE_RESNET, **fields}
  config.model_overrides.text.width = 64
  text = _lower(config)[0].as_text()
  gathered = re.findall(r"all_gather.*-> tensor<3x3x64x64xbf16>", text)
  assert len(gathered) == times


def test_a_step_is_compiled_once():
  trainer = _Trainer(_config("tiny-vit", "float32"), (2, 4))
  trainer.run(_batches(4))
  assert trainer.step._cache_size() == 1


@pytest.mark.parametrize("model", MODELS)
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(model):
  trainer = _Trainer(_config(model, "float32"), (2, 4))
  trainer.run(_batches(2))
  # An infinite embedding of one used token makes loss and gradient NaN.
  table = trainer.state.params["text"]["token_embedding"]["embedding"]
  good = np.asarray(table)
  broken = jax.device_put(
    jnp.asarray(good).at[2046].set(jnp.inf), table.sharding
  )
  trainer.state.params["text"]["token_embedding"]["embedding"] = broken
  before = jax.tree.map(np.asarray, trainer.state)
  assert np.isnan(trainer.run(_batches(1))[0])
  after = jax.tree.map(np.asarray, trainer.state)
  assert (after.step, after.skipped) == (before.step + 1, 1)
  same = before.replace(step=after.step, skipped=after.skipped)
  jax.tree.map(np.testing.assert_array_equal, after, same)
  # Mended, the run goes on.
  trainer.state.params["text"]["token_embedding"]["embedding"] = jax.device_put(
    good, table.sharding
  )
  assert np.isfinite(trainer.run(_batches(1))[0])
  assert int(trainer.state.skipped) == 1


def test_the_temperature_stays_at_a_hundred_and_can_come_back():
  trainer = _Trainer(_config("tiny-vit", "float32"), (1, 1))
  trainer.put("log_scale", np.log(150))
  trainer.run(_batches(1))
  np.testing.assert_allclose(
    trainer.state.params["log_scale"], np.log(100), rtol=1e-6
  )
  trainer.run(_batches(20))
  assert float(trainer.state.params["log_scale"]) < np.log(100)


def test_a_frozen_temperature_stays_even_above_its_bound():
  config = _config("tiny-vit", "float32")
  config.model_overrides.text = _WORDS
  config.optim.frozen = "^log_scale$"
  trainer = _Trainer(config, (1, 1))
  before = np.log(np.float32(150))
  trainer.put("log_scale", before)
  trainer.run(_batches(2))
  assert trainer.state.params["log_scale"] == before


def test_frozen_stages_of_a_resnet_keep_their_features():
  """Their running statistics are part of what they compute."""
  config = _config("tiny-rn", "float32")
  config.optim.frozen = "^image/(stem|stage_1)"
  trainer = _Trainer(config, (1, 1))
  before = jax.tree.map(np.asarray, trainer.state.batch_stats["image"])
  losses = trainer.run(_batches(12))
  after = jax.tree.map(np.asarray, trainer.state.batch_stats["image"])
  frozen = [k for k in before if k.startswith(("stem", "stage_1"))]
  assert 0 < len(frozen) < len(before)
  for name in before:
    same = jax.tree.map(np.array_equal, before[name], after[name])
    assert all(jax.tree.leaves(same)) == (name in frozen), name
  assert losses[-1] < losses[0]


def test_frozen_norms_compute_with_their_running_statistics():
  """Training sees the features that the frozen part has in use."""
  model = run_model.make(_config("tiny-rn", "float32"))
  variables = _initial_variables(model, jax.config.jax_enable_x64)
  norms = freezing.locked_norms(
    variables["params"], variables["batch_stats"], "^image/"
  )
  images = next(_batches(1))["image"][:3]
  encode = functools.partial(model.apply, method="encode_image")
  train = functools.partial(
    encode, train=True, locked_norms=norms, mutable=["batch_stats"]
  )
  in_use = jax.jit(encode)(variables, images)
  found, updated = jax.jit(train)(variables, images)
  np.testing.assert_array_equal(found, in_use)
  jax.tree.map(
    np.testing.assert_array_equal,
    updated["batch_stats"],
    variables["batch_stats"],
  )


@pytest.mark.slow
def test_a_partly_frozen_stack_trains_alike_however_it_is_split(
  loops_written_out, monkeypatch
):
  # So that the small stacks are split, and what is trained of them.
  monkeypatch.setattr(
    sharded.parameter_spec, "__kwdefaults__", {"min_elements": 64}
  )
  with jax.enable_x64(True):
    config = _config("tiny-vit", "float64")
    config.model_overrides.image.depth = 3
    config.model_overrides.text = _WORDS
    config.optim.frozen = r"^image/(?!encoder/blocks/[02]/)"
    one, two = (_Trainer(config, shape) for shape in [(1, 1), (1, 2)])
    stack = ("image", "encoder", "blocks", "mlp", "fc_in", "kernel")

    def kernel(trainer):
      return functools.reduce(dict.__getitem__, stack, trainer.state.params)

    assert not kernel(two).sharding.is_fully_replicated
    began = np.asarray(kernel(one))
    wanted = one.run(_batches(4))
    # Summed in another order.
    np.testing.assert_allclose(two.run(_batches(4)), wanted, rtol=1e-12)
    jax.tree.map(
      lambda got, want: np.testing.assert_allclose(
        np.asarray(got), np.asarray(want), rtol=1e-7, atol=1e-12
      ),
      two.state.params,
      one.state.params,
    )
    ended = np.asarray(kernel(two))
    np.testing.assert_array_equal(ended[1], began[1])
    assert (ended[0] != began[0]).any() and (ended[2] != began[2]).any()


def test_bfloat16_keeps_parameters_and_moments_in_float32():
  trainer = _Trainer(_config("tiny-rn", "bfloat16"), (1, 1))
  losses = trainer.run(_batches(12))
  assert losses[-1] < losses[0]
  for leaf in jax.tree.leaves((trainer.state.params, trainer.state.opt_state)):
    assert leaf.dtype in (jnp.float32, jnp.int32)


def _sigmoid_config(**overrides):
  config = _config("tiny-vit", "float32")
  config.loss.kind = "sigmoid"
  config.model_overrides.update({"init_logit_bias": -10.0, **overrides})
  return config


@pytest.mark.slow
def test_the_sigmoid_loss_trains_alike_on_one_and_eight_devices():
  one, eight = (
    _Trainer(_sigmoid_config(), shape) for shape in [(1, 1), (2, 4)]
  )
  start = one.state.params
  np.testing.assert_allclose(start["log_scale"], np.log(10), rtol=1e-6)
  losses = one.run(_batches(12))
  assert losses[-1] < losses[0] - 0.2
  np.testing.assert_allclose(losses[:3], eight.run(_batches(3)), rtol=2e-6)
  assert one.state.params["logit_bias"] != -10
  # Twelve steps of Adam lie under 12 times the peak rate; nothing decays it.
  assert abs(one.state.params["logit_bias"] + 10) < 0.012


@pytest.mark.slow
def test_a_scale_without_a_bound_grows_beyond_a_hundred():
  trainer = _Trainer(_sigmoid_config(), (1, 1))
  trainer.put("log_scale", np.log(150))
  _, measured = trainer.step(trainer.state, trainer.place(next(_batches(1))))
  np.testing.assert_allclose(measured.logit_scale, 150, rtol=1e-5)


def test_a_bias_that_is_not_finite_skips_the_update():
  trainer = _Trainer(_sigmoid_config(), (1, 1))
  trainer.put("logit_bias", np.nan)
  before = jax.tree.map(np.asarray, trainer.state.params)
  trainer.run(_batches(1))
  assert int(trainer.state.skipped) == 1
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.tree.map(np.asarray, trainer.state.params),
    before,
  )


def test_a_sigmoid_loss_without_a_bias_is_refused_before_it_starts():
  with pytest.raises(errors.UserError, match="init_logit_bias=-10"):
    run_model.make(_sigmoid_config(init_logit_bias=None))
