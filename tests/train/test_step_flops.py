"""Operations of an update, and what a run prints of them, counted by hand."""

import json

import jax
import jax.numpy as jnp
import pytest

import by_path
from clip_jax import config as config_lib
from clip_jax.checkpoints import run_model
from clip_jax.packing import packed_text, placement
from clip_jax.train import loop, metric_log, program, step_flops

BATCH, EMBED = 8, 12
IMAGE = {"image_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 3}
PATCHES = 16
TEXT = {"context_length": 40, "width": 16, "depth": 3, "heads": 2}
BERT = TEXT | {"kind": "bert", "context_length": 256, "vocab_size": 60}


def _config(**fields):
  config = config_lib.default_config()
  config.model = "tiny-vit"
  config.model_overrides = {"embed_dim": EMBED, "image": IMAGE, "text": TEXT}
  config.batch_size = BATCH
  config.steps = 3
  config.precision = "float32"
  config.mesh.data = 1
  config.data.train = "builtin:two_digits/train"
  for name, value in fields.items():
    config_lib.apply_override(config, f"{name}={value}")
  return config


def _blocks(width, depth, *, rows, length):
  """Matrix products of a stack of blocks, one pass: two operations each."""
  dense = 4 * width * width + 2 * width * 4 * width
  attention = 2 * length * width
  return 2 * depth * rows * length * (dense + attention)


def _image(passes, *, patches=PATCHES):
  """The image tower for `passes` of its blocks: 1 forward, 3 with back."""
  stem = 2 * PATCHES * 3 * 8 * 8 * 24  # Pixels need no gradient: 1 or 2.
  blocks = _read_once(24, 2, length=patches + 1)
  return BATCH * (passes * blocks + {1: 1, 3: 2}[passes] * stem)


def _read_once(width, depth, *, length):
  """A stack of blocks for one row, whose last block is read at one token."""
  # Keys and values of all tokens; query, output, MLP and attention of one.
  last = length * 2 * width**2 + 10 * width**2 + 2 * length * width
  return _blocks(width, depth - 1, rows=1, length=length) + 2 * last


def _text(passes, *, rows, length):
  """The text tower with all of its last block, as for texts that share rows."""
  return passes * _blocks(16, 3, rows=rows, length=length)


def _projection(width, passes):
  return passes * BATCH * 2 * width * EMBED


LOSS = 3 * 2 * BATCH * BATCH * EMBED  # Logits, and the gradients of both sides.
IMAGES = jax.ShapeDtypeStruct((BATCH, 32, 32, 3), jnp.uint8)
TOKENS = jax.ShapeDtypeStruct((BATCH, 40), jnp.int32)
SHORT = jax.ShapeDtypeStruct((BATCH, 16), jnp.int32)
PACKED = packed_text.PackedText(
  *[jax.ShapeDtypeStruct((3, 64), jnp.int32)] * 3,
  ends=jax.ShapeDtypeStruct((BATCH,), jnp.int32),
)
FULL = 3 * BATCH * _read_once(16, 3, length=40)
BOTH = _projection(24, 3) + _projection(16, 3)


@pytest.mark.parametrize(
  ("fields", "tokens", "by_hand"),
  [
    pytest.param({}, TOKENS, _image(3) + FULL + BOTH + LOSS, id="all of it"),
    pytest.param(
      {},
      PACKED,
      _image(3) + _text(3, rows=3, length=64) + BOTH + LOSS,
      id="captions that share rows",
    ),
    pytest.param(
      {"model_overrides.image.patch_dropout": 0.75},
      TOKENS,
      _image(3, patches=4) + FULL + BOTH + LOSS,
      id="patches that are left out",
    ),
    pytest.param(
      {"optim.frozen": "^image/"},
      TOKENS,
      _image(1) + FULL + _projection(24, 2) + _projection(16, 3) + LOSS,
      id="a locked image tower",
    ),
    pytest.param(
      {"optim.frozen": "^(image|image_projection)/"},
      TOKENS,
      _image(1) + FULL + _projection(24, 1) + _projection(16, 3) + LOSS * 2 / 3,
      id="images whose embeddings stay",
    ),
    pytest.param(
      {"optim.frozen": "^text/", "model_overrides.text": json.dumps(BERT)},
      SHORT,
      _image(3)
      + _text(1, rows=BATCH, length=16)
      + 2 * BATCH * 16 * 16  # The mean over tokens is a product.
      + _projection(24, 3)
      + _projection(16, 2)
      + LOSS,
      id="a locked BERT of 256 positions on short captions",
    ),
    pytest.param(
      {"optim.frozen": "^(image|text)/"},
      TOKENS,
      _image(1) + FULL / 3 + _projection(24, 2) + _projection(16, 2) + LOSS,
      id="two locked towers below projections that are trained",
    ),
    pytest.param(
      {"loss.kind": "sigmoid", "model_overrides.init_logit_bias": -10},
      TOKENS,
      _image(3) + FULL + BOTH + LOSS,
      id="another loss has the same products",
    ),
    pytest.param(
      {"model_overrides.image.remat": "full"},
      TOKENS,
      _image(3) + FULL + BOTH + LOSS,
      id="what is computed again counts once",
    ),
  ],
)
def test_an_update_is_worth_what_it_computes(fields, tokens, by_hand):
  config = _config(**fields)
  found = step_flops.update_flops(
    run_model.make(config), IMAGES, tokens, frozen=config.optim.frozen
  )
  assert found == by_hand


def test_parts_make_the_batch_and_equal_shapes_are_counted_once(monkeypatch):
  step = program.make_program(_config(), devices=jax.devices()[:1])
  monkeypatch.setattr(step_flops.jax, "process_count", lambda: 2)
  counter = step_flops.Counter(step)
  half = {
    "image": jax.ShapeDtypeStruct((BATCH // 2, 32, 32, 3), jnp.uint8),
    "tokens": jax.ShapeDtypeStruct((BATCH // 2, 40), jnp.int32),
  }
  want = _image(3) + FULL + BOTH + LOSS
  assert counter(half) == want
  monkeypatch.setattr(step_flops, "update_flops", None)
  assert counter(half) == want


def test_micro_batches_are_worth_no_more_though_they_pass_twice():
  config = _config(micro_batches=2)
  step = program.make_program(config, devices=jax.devices()[:1])
  found = step_flops.Counter(step)({"image": IMAGES, "tokens": TOKENS})
  assert found == _image(3) + FULL + BOTH + LOSS


@pytest.mark.slow
def test_a_runs_utilisation_is_its_rate_times_what_a_pair_is_worth(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(metric_log, "peak_flops", lambda: 1e9)
  fields = {"data.text_layout": "packed", "log_every_steps": 1}
  fields |= {"optim.frozen": "^image/", "mesh.data": -1}
  loop.train(_config(**fields), tmp_path / "run")
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  rates = [json.loads(line) for line in lines]
  worth = _image(1) + _projection(24, 2) + _projection(16, 3) + LOSS
  # A caption a device: each has a row of its own.
  worth += _text(3, rows=BATCH, length=placement.row_length(40))
  peak = 1e9 * jax.device_count()
  for line in rates[1:]:
    want = line["images_per_second"] * worth / BATCH / peak
    assert line["mfu"] == pytest.approx(want, rel=1e-9)


@pytest.mark.slow
def test_the_bench_of_packed_text_compiles_and_counts_both_sides(monkeypatch):
  monkeypatch.syspath_prepend(str(by_path.ROOT / "tools" / "bench"))
  bench = by_path.load("tools/bench/packed_text.py")
  training = bench.Training(bench.make_config("tiny-vit", 8))
  training.compile()
  assert training.compiled.keys() == set(bench.SIDES)
  # Eight captions in the same rows: packing only adds where they are read.
  assert training.operations["packed"] >= training.operations["full"] > 0


def test_the_bench_of_the_step_prints_what_is_computed(monkeypatch):
  # For its tables.
  monkeypatch.syspath_prepend(str(by_path.ROOT / "tools" / "bench"))
  bench = by_path.load("tools/bench/train_step.py")
  operations = bench.work(
    run_model.make(_config()), BATCH, bench.SETTINGS["cpu"]
  )
  assert operations["train"] == _image(3) + FULL + BOTH + LOSS
  # The whole last block, which the other library computes.
  whole = _image(1) + BATCH * (
    _blocks(24, 2, rows=1, length=PATCHES + 1)
    - _read_once(24, 2, length=PATCHES + 1)
  )
  assert operations["encode_image"] == whole + _projection(24, 1)
  task = {"ratio": 0.5, "ratio_quartiles": [0.4, 0.6], "pairs": 6}
  task |= {"jax_seconds": 2.0, "torch_seconds": 4.0, "flops": 8e9}
  report = {"model": "tiny", "batch_size": BATCH, "dtype": "float32"}
  report |= {"machine": "a machine", "versions": {}, "peak_flops": 16e9}
  table = bench.markdown({**report, "tasks": {"train": task}})
  assert "| 2.0000 | 4.0000 | 4 | 2 | 4.0 | 2.0 | 25% and 12% |" in table
