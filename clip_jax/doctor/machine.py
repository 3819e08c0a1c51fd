"""Devices, versions, and how fast devices exchange data."""

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from clip_jax import host_devices, sharding
from clip_jax import versions as versions_lib
from clip_jax.doctor.finding import OK, WARNING, Finding
from clip_jax.train import metric_log

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
_BYTES_PER_DEVICE = 2**24
# The largest array: an all-gather leaves the whole of it on each device.
_GATHERED_BYTES = 2**26
_ROUNDS = 5


def devices() -> Finding:
  """Names the devices; warns where an accelerator seems to lie idle."""
  found = jax.devices()
  kind = found[0].device_kind
  facts = {
    "platform": found[0].platform,
    "kind": kind,
    "devices": len(found),
    "processes": jax.process_count(),
    "peak_flops": metric_log.peak_flops(),
    "cpu_cores": os.cpu_count(),
  }
  stats = found[0].memory_stats() or {}
  if "bytes_limit" in stats:
    facts["memory_bytes"] = stats["bytes_limit"]
  what = f"{len(found)} x {kind} in {jax.process_count()} process(es)"
  if found[0].platform == "cpu" and host_devices.accelerator():
    return Finding(
      "devices",
      WARNING,
      f"{what}, although this machine seems to have "
      f"{host_devices.accelerator()}: {versions_lib.install('tpu')}, or its "
      "extra cuda12 or cuda13, and see that JAX_PLATFORMS is not cpu.",
      facts,
    )
  return Finding("devices", OK, f"{what}.", facts)


def versions() -> Finding:
  """Returns a finding that names the installed versions."""
  facts = {"python": platform.python_version()}
  facts |= {name: importlib.metadata.version(name) for name in _PACKAGES}
  words = ", ".join(f"{name} {version}" for name, version in facts.items())
  return Finding("versions", OK, f"{words}.", facts)


def collectives(mesh: Mesh) -> Finding:
  """Measures an all-gather and a sum, the main exchanges of a training step.

  Bandwidths are bytes that reach or leave a device over the seconds that it
  takes, as an all-gather and a sum over the whole mesh see them.
  """
  if mesh.size == 1:
    return Finding("collectives", OK, "One device: nothing is exchanged.", {})
  axes = sharding.BATCH_AXES
  x = _split_ones(mesh)
  part = x.nbytes // mesh.size
  others = (mesh.size - 1) * part
  programs = {
    # Every device gets what the others have.
    "all_gather": (
      lambda x: lax.all_gather(x, axes, tiled=True)[:1] + 0 * x[:1],
      others,
    ),
    # A sum is a reduce-scatter and an all-gather of a part each.
    "psum": (lambda x: lax.psum(x, axes), 2 * others // mesh.size),
  }
  facts: dict[str, float] = {"bytes_per_device": part}
  for name, (program, moved) in programs.items():
    out = P() if name == "psum" else P(axes)
    run = jax.jit(
      jax.shard_map(program, mesh=mesh, in_specs=P(axes), out_specs=out)
    )
    seconds = _best_seconds(lambda run=run: run(x))
    facts[f"{name}_seconds"] = seconds
    facts[f"{name}_bytes_per_second"] = moved / seconds
  gather, total = (facts[f"{name}_bytes_per_second"] / 1e9 for name in programs)
  simulated = " (simulated devices share one memory)"
  on_cpu = simulated if mesh.devices.flat[0].platform == "cpu" else ""
  return Finding(
    "collectives",
    OK,
    f"All-gather {gather:.3g} GB/s and sum {total:.3g} GB/s a device{on_cpu}.",
    facts,
  )


def _split_ones(mesh: Mesh) -> jax.Array:
  """Returns ones split over the mesh; no device holds the whole array."""
  size = min(_BYTES_PER_DEVICE, _GATHERED_BYTES // mesh.size)
  count = max(size // 4, 1)
  part = np.ones(count, np.float32)
  return jax.make_array_from_callback(
    (count * mesh.size,), sharding.batch_sharding(mesh), lambda _: part
  )


def _best_seconds(run: Callable[[], jax.Array]) -> float:
  run().block_until_ready()
  times = []
  for _ in range(_ROUNDS):
    start = time.perf_counter()
    run().block_until_ready()
    times.append(time.perf_counter() - start)
  return min(times)
