"""Times this project against transformers' PyTorch CLIP on the CPU.

    python tools/bench/train_step.py --json bench.json --markdown bench.md

Both sides hold the same architecture in float32 on the same number of threads
and get the same inputs. A training step is the forward and the backward pass,
the contrastive loss included and the optimizer left out. Other jobs slow both
sides alike, so they run in turns and the figure is the median of the ratios
of neighbours, ours over torch's: below 1 we are faster. A matrix product of
each library runs in the same rounds: it says how far the ratio is the models'
merit and how far the libraries'.

Why the model scans over its layers. Written as a Python loop over layers with
parameters of their own, the image tower's step takes 1.3 times as long here as
the scan, though the matrix products are the same. A profile of the CPU program
shows why: XLA fuses the sum of the residual stream's gradients into the
transposing copy before each weight gradient, and every such copy computes the
sum again from the top layer down. Through 12 layers one copy grows from 4 to
65 ms, so the work grows with the square of the depth. In a scan the sum is the
loop's carry: it lies in memory once per layer, and a copy takes 2 ms. Slicing
stacked parameters in an unrolled loop costs more on top, for each layer's
gradient is padded to the whole stack. The rest of the difference to a plain
scan is `remat="dots_no_batch"`: keeping only what the weights' products gave
takes a third of the memory, hence half of the page faults, and computing the
norms, softmax and activation again costs less than that.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from clip_jax import losses
from clip_jax.models import flops, variants

GEMM_SIZE = 2048
WARM_UPS = 2


def make_inputs(model, batch_size, seed=0):
  """Returns normalised images (batch, h, w, 3) and full-length captions."""
  rng = np.random.default_rng(seed)
  images, tokens = variants.abstract_inputs(model, batch_size)
  end = model.text.vocab_size - 1
  ids = rng.integers(1, end - 1, tokens.shape, dtype=np.int32)
  ids[:, 0], ids[:, -1] = end - 1, end
  return rng.standard_normal(images.shape, dtype=np.float32), ids


def jax_tasks(model, images, tokens):
  """Returns functions that run one task of this project and wait for it."""
  variables = jax.jit(model.init)(jax.random.key(0), images, tokens)
  images, tokens = jnp.asarray(images), jnp.asarray(tokens)

  @jax.jit
  def train(variables):
    def loss(variables):
      output = model.apply(variables, images, tokens, train=True)
      return losses.softmax_loss(
        output.image_embeds, output.text_embeds, output.logit_scale
      )

    return jax.value_and_grad(loss)(variables)

  encode = jax.jit(lambda v, x: model.apply(v, x, method=model.encode_image))
  square = jax.jit(lambda x: x @ x)
  matrix = jnp.ones((GEMM_SIZE, GEMM_SIZE), jnp.float32)
  return {
    "gemm": lambda: jax.block_until_ready(square(matrix)),
    "encode_image": lambda: jax.block_until_ready(encode(variables, images)),
    "train": lambda: jax.block_until_ready(train(variables)),
  }


def torch_model(model):
  """Returns transformers' CLIPModel of the same architecture."""

  def tower(module, **fields):
    return {
      "hidden_size": module.width,
      "intermediate_size": module.mlp_dim or 4 * module.width,
      "num_hidden_layers": module.depth,
      "num_attention_heads": module.heads,
      "hidden_act": module.activation,
      "layer_norm_eps": module.norm_epsilon,
      **fields,
    }

  config = transformers.CLIPConfig(
    projection_dim=model.embed_dim,
    text_config=tower(
      model.text,
      vocab_size=model.text.vocab_size,
      max_position_embeddings=model.text.context_length,
      eos_token_id=model.text.vocab_size - 1,
    ),
    vision_config=tower(
      model.image,
      image_size=model.image.image_size,
      patch_size=model.image.patch_size,
    ),
  )
  return transformers.CLIPModel._from_config(config, attn_implementation="sdpa")


def torch_tasks(model, images, tokens):
  """Returns functions that run one task of the PyTorch model."""
  network = torch_model(model).train()
  pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  ids = torch.from_numpy(tokens).long()
  matrix = torch.ones(GEMM_SIZE, GEMM_SIZE)

  def train():
    network.zero_grad(set_to_none=True)
    network(
      input_ids=ids, pixel_values=pixels, return_loss=True
    ).loss.backward()

  @torch.inference_mode()
  def encode():
    network.get_image_features(pixel_values=pixels)

  return {
    "gemm": lambda: matrix @ matrix,
    "encode_image": encode,
    "train": train,
  }


def seconds(function):
  """Returns the wall time of one call."""
  start = time.perf_counter()
  function()
  return time.perf_counter() - start


def measure(ours, theirs, pairs):
  """Times the two in turns; the order within a pair alternates."""
  for _ in range(WARM_UPS):
    ours()
    theirs()
  rows = []
  for i in range(pairs):
    if i % 2:
      torch_seconds = seconds(theirs)
      jax_seconds = seconds(ours)
    else:
      jax_seconds = seconds(ours)
      torch_seconds = seconds(theirs)
    rows.append((jax_seconds, torch_seconds))
  ratios = [a / b for a, b in rows]
  low, middle, high = statistics.quantiles(ratios, n=4)
  return {
    "pairs": pairs,
    "ratio": middle,
    "ratio_quartiles": [low, high],
    "jax_seconds": statistics.median(a for a, _ in rows),
    "torch_seconds": statistics.median(b for _, b in rows),
    "jax_seconds_min": min(a for a, _ in rows),
    "torch_seconds_min": min(b for _, b in rows),
  }


def work(model, batch_size):
  """Returns the floating-point operations of each task."""
  image, text = flops.image_flops(model), flops.text_flops(model)
  return {
    "gemm": 2 * GEMM_SIZE**3,
    "encode_image": batch_size * image,
    "train": 3 * batch_size * (image + text),
  }


def markdown(report):
  """Returns the report as a table."""
  lines = [
    f"{report['model']}, batch {report['batch_size']}, float32, "
    f"{report['threads']} threads, {report['machine']}; jax "
    f"{report['versions']['jax']}, torch {report['versions']['torch']}.",
    "",
    "| task | ours / torch | quartiles | ours, s | torch, s | ours, GFLOP/s "
    "| torch, GFLOP/s | pairs |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for name, task in report["tasks"].items():
    low, high = task["ratio_quartiles"]
    lines.append(
      f"| {name} | {task['ratio']:.3f} | {low:.3f} to {high:.3f} "
      f"| {task['jax_seconds']:.4f} | {task['torch_seconds']:.4f} "
      f"| {task['flops'] / task['jax_seconds'] / 1e9:.0f} "
      f"| {task['flops'] / task['torch_seconds'] / 1e9:.0f} "
      f"| {task['pairs']} |"
    )
  return "\n".join(lines) + "\n"


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--model", default="ViT-B-32", help="a ViT variant")
  parser.add_argument("--batch-size", type=int, default=16)
  parser.add_argument("--encode-pairs", type=int, default=12)
  parser.add_argument("--train-pairs", type=int, default=6)
  parser.add_argument("--overrides", type=json.loads, default={})
  parser.add_argument("--json", type=pathlib.Path)
  parser.add_argument("--markdown", type=pathlib.Path)
  args = parser.parse_args()

  threads = os.cpu_count()  # XLA takes every core; let torch do so too.
  torch.set_num_threads(threads)
  torch.manual_seed(0)
  model = variants.create_model(args.model, overrides=args.overrides)
  inputs = make_inputs(model, args.batch_size)
  ours, theirs = jax_tasks(model, *inputs), torch_tasks(model, *inputs)
  operations = work(model, args.batch_size)
  pairs = {"gemm": 12, "encode_image": args.encode_pairs}
  tasks = {
    name: measure(ours[name], theirs[name], pairs.get(name, args.train_pairs))
    | {"flops": operations[name]}
    for name in ours
  }
  report = {
    "model": args.model,
    "batch_size": args.batch_size,
    "threads": threads,
    "machine": platform.machine(),
    "versions": {
      "jax": jax.__version__,
      "torch": torch.__version__,
      "transformers": transformers.__version__,
    },
    "tasks": tasks,
  }
  text = markdown(report)
  print(text, end="")
  if args.json:
    args.json.write_text(json.dumps(report, indent=2) + "\n")
  if args.markdown:
    args.markdown.write_text(text)


if __name__ == "__main__":
  main()
