"""Packed, cut and padded captions: one result, and as few compilations."""

import json
import logging

import jax
import numpy as np
import optax
import pytest

from clip_jax import config as config_lib
from clip_jax import errors, sharding
from clip_jax.checkpoints import run_model
from clip_jax.checkpoints import state as state_lib
from clip_jax.data import order, sources
from clip_jax.models import bert, text
from clip_jax.packing import packed_text
from clip_jax.train import program, text_layout

BATCH, CONTEXT, VOCABULARY = 16, 19, 64
SIZES = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 12}
LAYERS = {"depth": 1, "heads": 2}
CAUSAL = text.TextTransformer(**SIZES, **LAYERS)
CUT = {
  "bert": bert.Bert(**SIZES, **LAYERS, positions=CONTEXT),
  "bag of words": text.BagOfWords(**SIZES),
}
PADDED = {
  "bidirectional": CAUSAL.clone(causal=False),
  "last": CAUSAL.clone(pooling="last"),
  "map": CAUSAL.clone(pooling="map"),
}


def _tokens(rng, longest=CONTEXT):
  """Returns captions of up to `longest` tokens, the first one of as many."""
  tokens = rng.integers(1, VOCABULARY - 2, (BATCH, CONTEXT))
  lengths = [longest, *rng.integers(2, longest + 1, BATCH - 1)]
  for row, length in zip(tokens, lengths, strict=True):
    row[length - 1] = VOCABULARY - 1
    row[length:] = 0
  return tokens.astype(np.int32)


def _layout(name, tower, *, sample=(4, 5, 6), captions=BATCH, groups=1):
  return text_layout.make_layout(
    name,
    tower=tower,
    captions=captions,
    groups=groups,
    sample=lambda: np.array(sample),
  )


def test_a_causal_tower_is_packed():
  for name in ("auto", "packed"):
    layout = _layout(name, CAUSAL)
    assert isinstance(layout, text_layout.Packed)
    assert layout.length == 24  # The context, in whole sublanes.
    assert layout.buckets[0] < BATCH / 2


def test_long_captions_are_not_packed_unless_asked():
  long = (CONTEXT,) * 3
  assert isinstance(_layout("auto", CAUSAL, sample=long), text_layout.Rows)
  packed = _layout("packed", CAUSAL, sample=long)
  assert packed.buckets == (BATCH,)


@pytest.mark.parametrize("tower", CUT.values(), ids=CUT)
def test_masked_towers_have_short_rows(tower):
  layout = _layout("auto", tower)
  assert layout.buckets == (16, CONTEXT)
  assert layout == _layout("buckets", tower) == _layout("buckets", tower)
  with pytest.raises(errors.UserError, match=r"a row of its own.*'buckets'"):
    _layout("packed", tower)


@pytest.mark.parametrize("tower", PADDED.values(), ids=PADDED)
def test_towers_that_see_padding_keep_it(tower):
  assert _layout("auto", tower).buckets == (CONTEXT,)
  for name in ("packed", "buckets"):
    with pytest.raises(errors.UserError, match=r"what follows.*'full'"):
      _layout(name, tower)


class _Source:
  """Batches of given tokens, as a loader gives them."""

  def __init__(self, batches):
    self._batches = iter(batches)
    self.closed = False

  def __next__(self):
    return {"tokens": next(self._batches), "problems": []}

  def close(self):
    self.closed = True


def _arranged(layout, batches):
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  return text_layout.Batches(_Source(batches), layout, mesh)


def test_a_batch_takes_the_first_bucket_that_holds_it(caplog):
  rng = np.random.default_rng(0)
  batches = [_tokens(rng, longest=n) for n in (5, 16, 17, 9, 19)]
  with caplog.at_level(logging.INFO):
    arranged = _arranged(_layout("buckets", CAUSAL), batches)
    got = [next(arranged)["tokens"] for _ in batches]
  assert [x.shape[1] for x in got] == [16, 16, 19, 16, 19]
  for x, whole in zip(got, batches, strict=True):
    np.testing.assert_array_equal(x, whole[:, : x.shape[1]])
  # What compiles late says so, once.
  assert len(caplog.messages) == 1
  assert "row of 19 tokens" in caplog.messages[0]


def test_overflowing_batches_take_the_next_bucket(caplog):
  rng = np.random.default_rng(0)
  layout = _layout("packed", CAUSAL, captions=BATCH // 2, groups=2)
  batches = [_tokens(rng, longest=n) for n in (5, CONTEXT, 5, CONTEXT)]
  with caplog.at_level(logging.INFO):
    arranged = _arranged(layout, batches)
    got = [next(arranged)["tokens"] for _ in batches]
  rows = [len(x.tokens) // 2 for x in got]
  assert rows[0] == rows[2] == layout.buckets[0]
  assert rows[1] in layout.buckets[1:]
  assert any("compiled again, once" in x for x in caplog.messages)
  # Two groups have rows of their own.
  ends = got[1].ends.reshape(2, -1)
  assert ends.max() < rows[1] * layout.length
  again = _arranged(layout, batches[2:])
  np.testing.assert_array_equal(next(again)["tokens"].ends, got[2].ends)


def test_what_is_arranged_is_a_context_manager():
  arranged = _arranged(_layout("full", CAUSAL), [])
  with arranged:
    assert not arranged._batches.closed
  assert arranged._batches.closed


def test_sampled_captions_are_those_of_the_first_examples():
  records = [
    sources.Record(b"", tuple(f"{i} {j}" for j in range(3)), f"key{i}")
    for i in range(7)
  ]

  class Source(list):
    def __getitem__(self, index):
      if index == 2:
        raise sources.BadRecord("missing_image", "key2")
      return super().__getitem__(index)

  options = {"seed": 5, "caption": "random"}
  found = order.first_captions(Source(records), number=100, **options)
  wanted = []
  for g in range(7):
    slot = order.record_index(g, seed=5, records=7)
    rng = np.random.Generator(np.random.Philox(key=[5, g]))
    if slot != 2:
      wanted.append(records[slot].texts[rng.integers(3)])
  assert found == wanted

  def tokenizer(texts):
    rows = np.zeros((len(texts), CONTEXT), np.int32)
    for row, words in zip(rows, texts, strict=True):
      row[int(words[0])] = VOCABULARY - 1
    return rows

  lengths = text_layout.sample_lengths(
    Source(records), tower=CAUSAL, tokenizer=tokenizer, **options
  )
  assert lengths.tolist() == [int(x[0]) + 1 for x in wanted]


def _config(**changes):
  config = config_lib.default_config()
  config.model = "tiny-vit"
  config.model_overrides = {
    "embed_dim": 8,
    "image": {"width": 12, "depth": 1, "heads": 2},
    "text": SIZES | LAYERS,
  }
  config.batch_size = BATCH
  for name, value in changes.items():
    config[name] = value
  return config


class _Trainer:
  """State, step and layout of one run."""

  def __init__(self, config, layout_name, mesh_shape):
    devices = jax.devices()[: mesh_shape[0] * mesh_shape[1]]
    self.mesh = sharding.make_mesh(
      data=mesh_shape[0], fsdp=mesh_shape[1], devices=devices
    )
    model = run_model.make(config)
    tx = optax.adam(1e-2)
    groups = self.mesh.size * config.micro_batches
    self.layout = _layout(
      layout_name, model.text, captions=BATCH // groups, groups=groups
    )
    self.state = state_lib.init_state(model, tx, self.mesh, seed=3)
    self.step = program.Program(
      config, self.mesh, {}, model, tx, None
    ).make_step()

  def run(self, batches):
    losses = []
    arranged = text_layout.Batches(
      _Source(tokens for _, tokens in batches), self.layout, self.mesh
    )
    placement = sharding.batch_sharding(self.mesh)
    for image, _ in batches:
      batch = next(arranged)
      self.kind = type(batch["tokens"])
      batch |= {"image": image, "bad": np.zeros(BATCH, np.int32)}
      placed = sharding.place(batch, placement)
      self.state, measured = self.step(self.state, placed)
      # Simulated devices deadlock where steps are dispatched ahead.
      losses.append(float(measured.loss.block_until_ready()))
    return losses


def _batches(steps, longest=CONTEXT):
  rng = np.random.default_rng(1)
  return [
    (
      rng.integers(0, 256, (BATCH, 32, 32, 3)).astype(np.uint8),
      _tokens(rng, longest=longest),
    )
    for _ in range(steps)
  ]


@pytest.fixture(scope="module")
def packed_trainer():
  """Four devices, two groups of captions each, in float64."""
  with jax.enable_x64(True):
    config = _config(precision="float64", micro_batches=2)
    yield _Trainer(config, "packed", (2, 2))


@pytest.mark.slow
def test_updates_are_those_of_rows_as_they_are(packed_trainer):
  full = _Trainer(_config(precision="float64"), "full", (1, 1))
  batches = _batches(2, longest=12)
  got, want = packed_trainer.run(batches), full.run(batches)
  assert packed_trainer.kind is packed_text.PackedText
  assert want[1] != want[0]
  np.testing.assert_allclose(got, want, rtol=1e-12)
  for a, b in zip(
    *(jax.tree.leaves(x.state.params) for x in (packed_trainer, full)),
    strict=True,
  ):
    # Adam divides by the size of a gradient: rounding of 1e-16 shows at 1e-9
    # where it is as small as its epsilon.
    np.testing.assert_allclose(a, b, atol=1e-9)


@pytest.mark.slow
def test_ragged_captions_compile_nothing_after_the_first(
  packed_trainer, caplog
):
  batches = _batches(100, longest=9)
  assert len({(x > 0).sum() for _, x in batches}) > 30, "Not ragged."
  packed_trainer.run(batches[:1])  # Warm-up.
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    packed_trainer.run(batches)
    assert not [x for x in caplog.messages if "ompil" in x]
    # Not for want of messages.
    jax.jit(lambda x: x + len(batches))(1)
    assert [x for x in caplog.messages if "ompil" in x]


# What a training loop does with batches, on one of two processes.
_PROCESS = """
import json, sys
import jax, numpy as np
from clip_jax import sharding
from clip_jax.models import text
from clip_jax.train import text_layout

address, process, steps = sys.argv[1], int(sys.argv[2]), 12
jax.distributed.initialize(address, num_processes=2, process_id=process)
mesh = sharding.make_mesh()
tower = text.TextTransformer(
  context_length=20, vocab_size=50, width=4, depth=1, heads=1
)

def batches():
  rng = np.random.default_rng(process)
  for _ in range(steps + 1):
    tokens = np.zeros((8, 20), np.int32)
    # Each process has the long captions now and then.
    ends = rng.integers(3, rng.choice([6, 20]), 8)
    tokens[np.arange(8), ends] = 49
    yield {"tokens": tokens}

layout = text_layout.Packed(tower, captions=4, length=24, buckets=(1, 2, 3, 4))
step = jax.jit(lambda packed: packed.segments.sum())
arranged = text_layout.Batches(batches(), layout, mesh)
seen = []
for _, own in zip(range(steps), batches()):
  batch = next(arranged)
  own = layout.arrange(own["tokens"]).need
  placed = sharding.place(batch, sharding.batch_sharding(mesh))["tokens"]
  step(placed).block_until_ready()
  rows = len(placed.tokens)
  seen.append((own, rows // mesh.size))
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_two_processes_agree_on_each_bucket(on_two_processes):
  output = on_two_processes(_PROCESS, devices=2)
  first, second = (json.loads(x.splitlines()[-1]) for x in output)
  needs = [(a, b) for (a, _), (b, _) in zip(first, second, strict=True)]
  assert [rows for _, rows in first] == [max(both) for both in needs]
  assert [rows for _, rows in second] == [max(both) for both in needs]
  # Now one, now the other needs more.
  assert any(a > b for a, b in needs) and any(a < b for a, b in needs)
