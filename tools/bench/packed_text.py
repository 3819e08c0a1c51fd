"""Times training on packed captions against padded ones on the CPU.

    python tools/bench/packed_text.py --json bench.json --markdown bench.md

The training step is the one that `clip-jax train` runs, optimizer included, in
float32 on one device. Both sides hold the same parameters and get the same
pairs: rows of 77 tokens with one caption each, and the rows that
`data.text_layout=packed` makes of them. Rounds alternate between the two, and
the figure is the median of the ratios within a round, padded over packed:
above 1 packing is faster.

Captions have lengths as those of Conceptual Captions (Sharma et al. 2018,
table 1: 10.3 words in the mean, deviation 4.5): words are log-normal with that
mean and deviation, rounded, at least one; a word is one token; start and end
tokens come on top, 12.3 tokens in the mean. Token ids are random.

FLOPs are those of matrix products in the program that JAX traces, its loops
counted as often as they run.
"""

import argparse
import math
import platform
import statistics
import time

import jax
import numpy as np
import tables  # Beside this script.

from clip_jax import config as config_lib
from clip_jax import sharding
from clip_jax.checkpoints import run_model
from clip_jax.checkpoints import state as state_lib
from clip_jax.models import flops
from clip_jax.train import optim, text_layout
from clip_jax.train import step as step_lib

WORDS_MEAN, WORDS_DEVIATION = 10.3, 4.5
WARM_UPS = 1
SIDES = ("full", "packed")


def make_lengths(rng, captions, context):
  """Returns tokens of captions (captions,), start and end included."""
  variance = math.log(1 + (WORDS_DEVIATION / WORDS_MEAN) ** 2)
  mean = math.log(WORDS_MEAN) - variance / 2
  words = rng.lognormal(mean, math.sqrt(variance), captions).round()
  return np.clip(words, 1, context - 2).astype(int) + 2


def make_batch(rng, model, batch_size):
  """Returns random pairs, one caption a row."""
  context, end = model.text.context_length, model.text.vocab_size - 1
  size = model.image.image_size
  tokens = rng.integers(1, end - 1, (batch_size, context), dtype=np.int32)
  lengths = make_lengths(rng, batch_size, context)
  tokens[:, 0] = end - 1
  tokens[np.arange(batch_size), lengths - 1] = end
  tokens[np.arange(context) >= lengths[:, None]] = 0
  shape = (batch_size, size, size, 3)
  return {
    "image": rng.integers(0, 256, shape, dtype=np.uint8),
    "tokens": tokens,
    "bad": np.zeros(batch_size, np.int32),
  }


def make_config(model, batch_size):
  """Returns the config of the step that is timed."""
  config = config_lib.default_config()
  config.model = model
  config.batch_size = batch_size
  config.precision = "float32"
  return config


class Training:
  """One state that both sides train on in turns."""

  def __init__(self, config, seed=0):
    self.mesh = sharding.make_mesh(devices=jax.devices()[:1])
    self.batch_size = config.batch_size
    self.model = run_model.make(config)
    self.rng = np.random.default_rng(seed)
    tx = optim.make_optimizer(
      config.optim,
      precision=config.precision,
      total_steps=10_000,
      image_kind="vit",
    )
    self.state = state_lib.init_state(self.model, tx, self.mesh, seed=seed)
    self.step = step_lib.make_train_step(
      self.model,
      tx,
      self.mesh,
      loss=config.loss,
      optim=config.optim,
      micro_batches=config.micro_batches,
      seed=config.seed,
    )
    context = self.model.text.context_length
    self.layouts = {
      name: text_layout.make_layout(
        name,
        tower=self.model.text,
        captions=self.batch_size,
        groups=1,
        sample=lambda: make_lengths(
          self.rng, text_layout.SAMPLED_CAPTIONS, context
        ),
      )
      for name in SIDES
    }
    self.compiled, self.operations, self.buckets = {}, {}, {}

  def batches(self):
    """Returns the same pairs as each side takes them, on the device.

    Batches that overflow the first bucket, one in a thousand, are left out.
    """
    while True:
      batch = make_batch(self.rng, self.model, self.batch_size)
      made = {}
      for name, layout in self.layouts.items():
        arranged = layout.arrange(batch["tokens"])
        if arranged.need <= layout.buckets[0]:
          made[name] = {**batch, "tokens": arranged.make(layout.buckets[0])}
      if len(made) == len(self.layouts):
        placement = sharding.batch_sharding(self.mesh)
        return {k: sharding.place(v, placement) for k, v in made.items()}

  def compile(self):
    """Compiles both sides and counts their operations."""
    for name, batch in self.batches().items():
      traced = self.step.trace(self.state, batch)
      calls = flops.calls(traced.jaxpr.jaxpr)
      self.compiled[name] = traced.lower().compile()
      self.operations[name] = sum(map(flops.call_flops, calls))

  def seconds(self, name, batch):
    """Returns the wall time of one update."""
    start = time.perf_counter()
    self.state, measured = self.compiled[name](self.state, batch)
    jax.block_until_ready((self.state, measured))
    return time.perf_counter() - start


def measure(training, rounds):
  """Times the two in turns; the order within a round alternates."""
  times = {name: [] for name in SIDES}
  fill = []
  for i in range(WARM_UPS + rounds):
    batches = training.batches()
    tokens = batches["packed"]["tokens"].segments
    for name in SIDES if i % 2 else reversed(SIDES):
      seconds = training.seconds(name, batches[name])
      if i >= WARM_UPS:
        times[name].append(seconds)
    fill.append(float((np.asarray(tokens) > 0).mean()))
  ratios = [a / b for a, b in zip(*(times[x] for x in SIDES), strict=True)]
  low, middle, high = statistics.quantiles(ratios, n=4)
  return {
    "rounds": rounds,
    "ratio": middle,
    "ratio_quartiles": [low, high],
    "seconds": {k: statistics.median(v) for k, v in times.items()},
    "fill": statistics.mean(fill),
  }


def fill_of_full(model):
  """Returns the share of padded rows that is no padding."""
  context = model.text.context_length
  lengths = make_lengths(np.random.default_rng(1), 100_000, context)
  return lengths.mean() / context


def markdown(report):
  """Returns the report as a table."""
  low, high = report["ratio_quartiles"]
  lines = [
    f"{report['model']}, batch {report['batch_size']}, float32, "
    f"{report['machine']}; jax {report['jax']}. Packed: {report['layout']}.",
    "",
    "| side | rows filled | GFLOP a step | s a step |",
    "|---|---|---|---|",
  ]
  for name in SIDES:
    lines.append(
      f"| {name} | {report['fill'][name]:.2f} "
      f"| {report['flops'][name] / 1e9:.0f} "
      f"| {report['seconds'][name]:.3f} |"
    )
  saved = 1 - report["flops"]["packed"] / report["flops"]["full"]
  lines += [
    "",
    f"Packing saves {100 * saved:.1f} % of the FLOPs and is "
    f"{report['ratio']:.3f} times as fast (quartiles {low:.3f} to {high:.3f}, "
    f"{report['rounds']} rounds).",
  ]
  return "\n".join(lines) + "\n"


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="ViT-B-32", help="a ViT variant")
  parser.add_argument("--batch-size", type=int, default=16)
  parser.add_argument("--rounds", type=int, default=6)
  tables.add_outputs(parser)
  args = parser.parse_args()

  training = Training(make_config(args.model, args.batch_size))
  training.compile()
  measured = measure(training, args.rounds)
  layout = training.layouts["packed"]
  report = {
    "model": args.model,
    "batch_size": args.batch_size,
    "machine": platform.machine(),
    "jax": jax.__version__,
    "layout": layout.describe(layout.buckets[0]),
    "flops": training.operations,
    **measured,
    "fill": {
      "full": fill_of_full(training.model),
      "packed": measured["fill"],
    },
  }
  tables.write(args, report, markdown(report))


if __name__ == "__main__":
  main()
