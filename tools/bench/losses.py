"""Measures the losses: memory for a TPU pod ahead of time, time on the CPU.

    python tools/bench/losses.py --json bench.json --markdown bench.md

The first table compiles value and gradients for chips that need not be here
(libtpu must be: pip install '.[plan]'): the peak memory of a chip and
the compiler's estimate of its cycles with every loop counted as often as it
runs. The estimate leaves out what chips wait for each other, and is none of a
kernel's time. The second table runs on eight simulated devices on this CPU, all
methods in turns, back and forth, so that other jobs slow all of them alike; its
figures are the medians of the ratios within a turn, a method's time over the
plain loss's. They say what a method's extra work costs, not what it costs on a
real network.
"""

import argparse
import functools
import itertools
import json
import os
import platform
import re
import statistics
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import tables  # Beside this script.
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import losses, sharding
from clip_jax.models import flops
from clip_jax.plan import cycles, topology

AXES = sharding.BATCH_AXES
METHODS = ("plain", "auto", "gathered", "ring", "two_level")
WARM_UPS = 2


def plain_softmax(images, texts, scale, bias):
  """The loss as everyone writes it; the compiler splits it."""
  del bias
  logits = scale * jnp.einsum(
    "id,jd->ij", images, texts, preferred_element_type=jnp.float32
  )
  own = (images.astype(jnp.float32) * texts.astype(jnp.float32)).sum(axis=-1)
  rows, columns = jax.nn.logsumexp(logits, 1), jax.nn.logsumexp(logits, 0)
  return jnp.mean((rows + columns) / 2 - scale * own)


def plain_sigmoid(images, texts, scale, bias):
  logits = bias + scale * jnp.einsum(
    "id,jd->ij", images, texts, preferred_element_type=jnp.float32
  )
  rows = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
  columns = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
  margins = jnp.where(rows == columns, -logits, logits)
  return jax.nn.softplus(margins).sum() / len(images)


PLAIN = {"softmax": plain_softmax, "sigmoid": plain_sigmoid}


def make_step(kind: str, method: str, mesh: Mesh):
  """Returns the jitted value and gradients over a mesh."""
  loss = PLAIN[kind]
  if method != "plain":
    local = functools.partial(losses.local_loss(kind), axes=AXES, method=method)
    loss = jax.shard_map(
      lambda *arrays: local(*arrays),
      mesh=mesh,
      in_specs=(P(AXES), P(AXES), P(), P()),
      out_specs=P(),
    )
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3)))


def plan_row(kind, method, pairs, embed, where, mesh, known):
  """Compiles one loss; returns what a chip holds and does.

  What `auto` chose is not compiled again: `known` has its figures by program.
  """
  split, whole = NamedSharding(mesh, P(AXES)), NamedSharding(mesh, P())
  embeds = jax.ShapeDtypeStruct((pairs, embed), jnp.bfloat16, sharding=split)
  scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
  row = {"kind": kind, "method": method, "pairs": pairs, "embed": embed}
  step = make_step(kind, method, mesh).trace(embeds, embeds, scalar, scalar)
  lowered = step.lower()
  text = lowered.as_text()
  if text not in known:
    operations = map(flops.call_flops, flops.calls(step.jaxpr.jaxpr))
    known[text] = plan_figures(lowered, where)
    known[text]["flops"] = sum(operations) // mesh.size
  return row | known[text]


def plan_figures(step, where):
  start = time.perf_counter()
  try:
    program = step.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    needed = re.search(r"\(([\d.]+)G\) exceeds", str(error))
    return {"refused": f"needs {needed[1]} GiB" if needed else "no memory"}
  return {
    "peak_bytes": program.memory_analysis().peak_memory_in_bytes,
    "seconds_estimated": cycles.count(program.as_text())
    / where.chip.clock_hertz,
    "compile_seconds": time.perf_counter() - start,
  }


def plan_table(args):
  """Compiles every loss at every size for the topology."""
  where = topology.make_topology(args.topology)
  data, fsdp = args.mesh
  mesh = sharding.make_mesh(data=data, fsdp=fsdp, devices=where.devices)
  rows, known = [], {}
  for kind, pairs, method in itertools.product(args.kinds, args.pairs, METHODS):
    row = plan_row(kind, method, pairs, args.embed, where, mesh, known)
    rows.append(row)
    print(json.dumps(row), file=sys.stderr, flush=True)
  return rows


def time_table(args):
  """Runs all methods in turns on the devices here."""
  mesh = sharding.make_mesh(data=len(jax.devices()) // 2, fsdp=2)
  rows = []
  for kind in args.kinds:
    keys = jax.random.split(jax.random.key(0))
    embeds = [
      jax.random.normal(key, (args.cpu_pairs, args.cpu_embed)) for key in keys
    ]
    embeds = [
      jax.device_put(
        x / jnp.linalg.norm(x, axis=1, keepdims=True),
        sharding.batch_sharding(mesh),
      )
      for x in embeds
    ]
    arrays = *embeds, jnp.float32(14.3), jnp.float32(-10)
    steps = {method: make_step(kind, method, mesh) for method in METHODS}
    seconds = {method: [] for method in METHODS}
    for turn in range(WARM_UPS + args.rounds):
      # Back and forth, so that no method always follows the same one.
      for method in METHODS if turn % 2 else reversed(METHODS):
        step = steps[method]
        start = time.perf_counter()
        jax.block_until_ready(step(*arrays))
        if turn >= WARM_UPS:
          seconds[method].append(time.perf_counter() - start)
    for method, times in seconds.items():
      ratios = [a / b for a, b in zip(times, seconds["plain"], strict=True)]
      low, middle, high = statistics.quantiles(ratios, n=4)
      rows.append(
        {
          "kind": kind,
          "method": method,
          "pairs": args.cpu_pairs,
          "embed": args.cpu_embed,
          "ratio": middle,
          "quartiles": [low, high],
          "seconds": statistics.median(times),
        }
      )
  return rows


def markdown(result):
  """Returns both tables."""
  lines = [
    f"{result['topology']}, mesh {result['mesh']}, bfloat16 embeddings, value "
    f"and gradients; jax {result['jax']}.",
    "",
    "| loss | pairs | method | peak a chip, MB | estimated, ms | ÷ plain |",
    "|---|---|---|---|---|---|",
  ]
  for row in result["planned"]:
    head = f"| {row['kind']} | {row['pairs']:,} | {row['method']} "
    if "refused" in row:
      lines.append(f"{head}| does not compile: {row['refused']} | | |")
      continue
    spent, ratio = row["seconds_estimated"], row.get("time_over_plain")
    lines.append(
      f"{head}| {row['peak_bytes'] / 1e6:.1f} "
      f"| {'' if spent is None else f'{spent * 1e3:.2f}'} "
      f"| {'' if ratio is None else f'{ratio:.2f}'} |"
    )
  lines += [
    "",
    f"{result['devices']} simulated devices, {result['machine']}, float32.",
    "",
    "| loss | pairs | embed | method | time ÷ plain | quartiles | s |",
    "|---|---|---|---|---|---|---|",
  ]
  for row in result["timed"]:
    low, high = row["quartiles"]
    lines.append(
      f"| {row['kind']} | {row['pairs']:,} | {row['embed']} | {row['method']} "
      f"| {row['ratio']:.2f} | {low:.2f} to {high:.2f} "
      f"| {row['seconds']:.3f} |"
    )
  return "\n".join(lines) + "\n"


def add_ratios(rows):
  """Adds each estimate over the plain loss's of that size."""
  plain = {
    (row["kind"], row["pairs"]): row.get("seconds_estimated")
    for row in rows
    if row["method"] == "plain"
  }
  for row in rows:
    base, own = plain[row["kind"], row["pairs"]], row.get("seconds_estimated")
    row["time_over_plain"] = own / base if own and base else None


def parse_arguments():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--topology", default="v5e:16x16", help="'' for none")
  parser.add_argument("--mesh", type=int, nargs=2, default=(16, 16))
  parser.add_argument(
    "--pairs", type=int, nargs="+", default=[32_768, 131_072, 1_048_576]
  )
  parser.add_argument("--embed", type=int, default=768)
  parser.add_argument("--kinds", nargs="+", default=list(losses.KINDS))
  parser.add_argument("--cpu-pairs", type=int, default=4096)
  parser.add_argument("--cpu-embed", type=int, default=256)
  parser.add_argument("--rounds", type=int, default=12)
  tables.add_outputs(parser)
  return parser.parse_args()


def main():
  args = parse_arguments()
  planned = plan_table(args) if args.topology else []
  add_ratios(planned)
  result = {
    "topology": args.topology,
    "mesh": list(args.mesh),
    "planned": planned,
    "timed": time_table(args) if args.rounds else [],
    "devices": len(jax.devices()),
    "machine": platform.machine(),
    "jax": jax.__version__,
  }
  tables.write(args, result, markdown(result))


if __name__ == "__main__":
  main()
