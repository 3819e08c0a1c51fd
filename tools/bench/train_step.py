"""Times this project against PyTorch's CLIPs: a training step and encoding.

    python tools/bench/train_step.py --json bench.json --markdown bench.md
    python tools/bench/train_step.py --model RN50 --batch-size 4
    python tools/bench/train_step.py --model tiny-rn --batch-size 256 \
        --overrides '{"image": {"image_size": 24}}'
    python tools/bench/train_step.py --device gpu --model ViT-L-14

Both sides hold the same architecture and get the same inputs: on the CPU
transformers' model in float32 on the same number of threads, with the image
tower of `torch_resnet.py` where ours is a ResNet, on a GPU
open_clip's with `torch.compile`, its fused attention and bfloat16 products,
both at the largest power of two that fits both in 0.45 of the memory each. A
training step is the forward and the backward pass, the contrastive loss
included and the optimizer left out. Other jobs slow both
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
import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import platform
import statistics
import time

# Both libraries are to have room on one GPU; each reads its share at its start.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")

import jax
import jax.numpy as jnp
import numpy as np
import tables  # Beside this script.
import torch
import torch_resnet  # Beside this script.

from clip_jax import cpu_compiler, host_memory, losses
from clip_jax.models import flops, resnet, variants
from clip_jax.train import metric_log, step_flops

MEMORY_SHARE = float(os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"])
WARM_UPS = 2
MOST_PAIRS = 2**15


@dataclasses.dataclass(frozen=True)
class Setting:
  """Where and how both sides compute.

  Attributes:
    opponent: a library.
    dtype: of products.
    gemm_size: rows and columns of the matrix product.
    torch_device: as torch names it.
  """

  opponent: str
  dtype: str
  gemm_size: int
  torch_device: str


SETTINGS = {
  "cpu": Setting("transformers", "float32", 2048, "cpu"),
  "gpu": Setting("open_clip_torch", "bfloat16", 8192, "cuda"),
}


def make_inputs(model, batch_size, seed=0):
  """Returns normalised images (batch, h, w, 3) and full-length captions."""
  rng = np.random.default_rng(seed)
  images, tokens = variants.abstract_inputs(model, batch_size)
  end = model.text.vocab_size - 1
  ids = rng.integers(1, end - 1, tokens.shape, dtype=np.int32)
  ids[:, 0], ids[:, -1] = end - 1, end
  return rng.standard_normal(images.shape, dtype=np.float32), ids


def jax_tasks(model, images, tokens, setting):
  """Returns functions that run one task of this project and wait for it."""
  variables = jax.jit(model.init)(jax.random.key(0), images, tokens)
  images, tokens = jnp.asarray(images), jnp.asarray(tokens)
  # As the trainer and the encoder compile.
  options = cpu_compiler.options(jax.devices()[0])
  compiled = functools.partial(jax.jit, compiler_options=options)

  @compiled
  def train(variables):
    def loss(params):
      output, updated = model.apply(
        {**variables, "params": params},
        images,
        tokens,
        train=True,
        mutable=["batch_stats"],
      )
      value = losses.softmax_loss(
        output.image_embeds, output.text_embeds, output.logit_scale
      )
      return value, updated

    return jax.value_and_grad(loss, has_aux=True)(variables["params"])

  encode = compiled(lambda v, x: model.apply(v, x, method=model.encode_image))
  square = jax.jit(lambda x: x @ x)
  matrix = jnp.ones((setting.gemm_size,) * 2, setting.dtype)
  return {
    "gemm": lambda: jax.block_until_ready(square(matrix)),
    "encode_image": lambda: jax.block_until_ready(encode(variables, images)),
    "train": lambda: jax.block_until_ready(train(variables)),
  }


def tower_config(module, **fields):
  """Returns the fields of transformers' config of a Transformer."""
  return {
    "hidden_size": module.width,
    "intermediate_size": module.mlp_dim or 4 * module.width,
    "num_hidden_layers": module.depth,
    "num_attention_heads": module.heads,
    "hidden_act": module.activation,
    "layer_norm_eps": module.norm_epsilon,
    **fields,
  }


def text_config(model):
  """Returns the fields of transformers' config of the text tower."""
  return tower_config(
    model.text,
    vocab_size=model.text.vocab_size,
    max_position_embeddings=model.text.context_length,
    eos_token_id=model.text.vocab_size - 1,
  )


def transformers_model(model):
  """Returns transformers' CLIPModel of the same architecture."""
  import transformers

  config = transformers.CLIPConfig(
    projection_dim=model.embed_dim,
    text_config=text_config(model),
    vision_config=tower_config(
      model.image,
      image_size=model.image.image_size,
      patch_size=model.image.patch_size,
    ),
  )
  return transformers.CLIPModel._from_config(config, attn_implementation="sdpa")


def transformers_functions(model):
  """Returns functions of (pixels, ids): the loss, and of pixels: features."""
  network = transformers_model(model).train()

  def loss(pixels, ids):
    network.zero_grad(set_to_none=True)
    return network(input_ids=ids, pixel_values=pixels, return_loss=True).loss

  return loss, lambda pixels: network.get_image_features(pixel_values=pixels)


def resnet_functions(model):
  """Returns the same of a ResNet beside transformers' text tower."""
  import transformers

  image = torch_resnet.Tower(model).train()
  text = transformers.CLIPTextModelWithProjection._from_config(
    transformers.CLIPTextConfig(
      projection_dim=model.embed_dim, **text_config(model)
    ),
    attn_implementation="sdpa",
  ).train()
  scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07)))

  def loss(pixels, ids):
    for network in (image, text):
      network.zero_grad(set_to_none=True)
    scale.grad = None
    images, texts = image(pixels), text(input_ids=ids).text_embeds
    images, texts = (x / x.norm(dim=-1, keepdim=True) for x in (images, texts))
    return _contrastive(scale.exp() * images @ texts.T)

  def encode(pixels):
    image.eval()
    features = image(pixels)
    image.train()
    return features

  return loss, encode


def _contrastive(logits):
  entropy = torch.nn.functional.cross_entropy
  own = torch.arange(len(logits), device=logits.device)
  return (entropy(logits, own) + entropy(logits.T, own)) / 2


def open_clip_functions(name, device):
  """Returns the same of open_clip's model of that name, compiled."""
  import open_clip

  network = open_clip.create_model(f"{name}-quickgelu", device=device).train()
  compiled = torch.compile(network)
  encode_image = torch.compile(network.encode_image)

  def loss(pixels, ids):
    network.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16):
      image, text, scale = compiled(pixels, ids)[:3]
      logits = scale * image @ text.T
    return _contrastive(logits.float())

  def encode(pixels):
    with torch.autocast(device, torch.bfloat16):
      return encode_image(pixels, normalize=True)

  return loss, encode


def torch_tasks(functions, images, tokens, setting):
  """Returns functions that run one task of the PyTorch model and wait."""
  device = setting.torch_device
  loss, features = functions
  pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device)
  ids = torch.from_numpy(tokens).long().to(device)
  dtype = getattr(torch, setting.dtype)
  matrix = torch.ones((setting.gemm_size,) * 2, dtype=dtype, device=device)

  def finished(task):
    def run():
      task()
      if device == "cuda":
        torch.cuda.synchronize()

    return run

  @torch.inference_mode()
  def encode():
    features(pixels)

  return {
    "gemm": finished(lambda: matrix @ matrix),
    "encode_image": finished(encode),
    "train": finished(lambda: loss(pixels, ids).backward()),
  }


def largest_batch(make_tasks):
  """Returns the largest power of two whose training step fits both sides.

  Args:
    make_tasks: of a batch size, the tasks of both.
  """
  fits, size = 0, 64
  while size <= MOST_PAIRS:
    try:
      for tasks in make_tasks(size):
        tasks["train"]()
    except (jax.errors.JaxRuntimeError, torch.OutOfMemoryError) as error:
      is_jax = isinstance(error, jax.errors.JaxRuntimeError)
      if is_jax and "RESOURCE_EXHAUSTED" not in str(error):
        raise
      break
    fits, size = size, 2 * size
  if not fits:
    raise SystemExit("Not even 64 pairs fit both sides.")
  torch.cuda.empty_cache()
  return fits


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


def work(model, batch_size, setting):
  """Returns the floating-point operations of each task.

  Training counts those of this project, which reads one position of a
  Transformer's last layer and computes no others; torch computes all.
  """
  inputs = variants.abstract_inputs(model, batch_size)
  return {
    "gemm": 2 * setting.gemm_size**3,
    "encode_image": batch_size * flops.image_flops(model),
    "train": step_flops.update_flops(model, *inputs),
  }


def markdown(report):
  """Returns the report as a table."""
  versions = ", ".join(
    f"{name} {version}" for name, version in report["versions"].items()
  )
  peak = report["peak_flops"]
  lines = [
    f"{report['model']}, batch {report['batch_size']}, {report['dtype']}, "
    f"{report['machine']}; {versions}.",
    "",
    "| task | ours / torch | quartiles | ours, s | torch, s | ours, GFLOP/s "
    "| torch, GFLOP/s | ours, images/s | torch, images/s | of the peak "
    "| pairs |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  for name, task in report["tasks"].items():
    low, high = task["ratio_quartiles"]
    ours, theirs = task["jax_seconds"], task["torch_seconds"]
    images = ("", "")
    if name != "gemm":
      images = [f"{report['batch_size'] / t:.1f}" for t in (ours, theirs)]
    shares = ""
    if math.isfinite(peak):
      shares = " and ".join(
        f"{task['flops'] / t / peak:.0%}" for t in (ours, theirs)
      )
    lines.append(
      f"| {name} | {task['ratio']:.3f} | {low:.3f} to {high:.3f} "
      f"| {ours:.4f} | {theirs:.4f} "
      f"| {task['flops'] / ours / 1e9:.0f} "
      f"| {task['flops'] / theirs / 1e9:.0f} "
      f"| {images[0]} | {images[1]} | {shares} | {task['pairs']} |"
    )
  return "\n".join(lines) + "\n"


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--device", choices=sorted(SETTINGS), default="cpu")
  parser.add_argument("--model", default="ViT-B-32", help="a named variant")
  parser.add_argument(
    "--batch-size", type=int, help="16 on the CPU; else the largest that fits"
  )
  parser.add_argument("--encode-pairs", type=int, default=12)
  parser.add_argument("--train-pairs", type=int, default=6)
  parser.add_argument("--overrides", type=json.loads, default={})
  tables.add_outputs(parser)
  args = parser.parse_args()
  host_memory.keep_freed()  # As `clip-jax train` does; for both libraries.
  setting = SETTINGS[args.device]
  if args.device != jax.default_backend():
    parser.error(f"--device {args.device}: JAX has {jax.default_backend()}")

  threads = os.cpu_count()  # XLA takes every core; let torch do so too.
  torch.set_num_threads(threads)
  torch.manual_seed(0)
  model = variants.create_model(
    args.model, overrides=args.overrides, dtype=jnp.dtype(setting.dtype)
  )
  if args.device == "gpu":
    torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE)
    functions = open_clip_functions(args.model, setting.torch_device)
  elif isinstance(model.image, resnet.ModifiedResNet):
    functions = resnet_functions(model)
  else:
    functions = transformers_functions(model)

  def make_tasks(batch_size):
    inputs = make_inputs(model, batch_size)
    return (
      jax_tasks(model, *inputs, setting),
      torch_tasks(functions, *inputs, setting),
    )

  batch_size = args.batch_size
  if batch_size is None:
    batch_size = 16 if args.device == "cpu" else largest_batch(make_tasks)
  ours, theirs = make_tasks(batch_size)
  operations = work(model, batch_size, setting)
  pairs = {"gemm": 12, "encode_image": args.encode_pairs}
  tasks = {
    name: measure(ours[name], theirs[name], pairs.get(name, args.train_pairs))
    | {"flops": operations[name]}
    for name in ours
  }
  machine = f"{threads} threads, {platform.machine()}"
  if args.device == "gpu":
    machine = torch.cuda.get_device_name()
  report = {
    "model": args.model,
    "batch_size": batch_size,
    "dtype": setting.dtype,
    "machine": machine,
    "peak_flops": metric_log.peak_flops(),
    "versions": {
      name: importlib.metadata.version(name)
      for name in ("jax", "torch", setting.opponent)
    },
    "tasks": tasks,
  }
  tables.write(args, report, markdown(report))


if __name__ == "__main__":
  main()
