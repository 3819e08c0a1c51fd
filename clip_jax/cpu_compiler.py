"""Options of XLA's compiler where its defaults for CPUs cost time."""

import functools
import os

import jax

from clip_jax import sharding

# Fusions are compiled directly, not by way of MLIR. Training steps then compile
# in 0.64 to 0.77 of the time and take 0.85 to 0.97 of it, of which
# tools/bench/RESULTS.md has the figures.
_ALWAYS: dict[str, str | bool] = {"xla_cpu_use_fusion_emitters": False}
# Drawing the parameters of `tiny-rn` compiles in 5 s of processor time, not 13.
_RUN_ONCE: dict[str, str | bool] = {"xla_backend_optimization_level": "1"}


def options(
  device: sharding.Device, *, run_once: bool = False
) -> dict[str, str | bool] | None:
  """Returns the `compiler_options` of a program; None for XLA's defaults.

  What the user sets in XLA_FLAGS is left alone.

  Args:
    device: one of those that run the program.
    run_once: whether compiling quickly matters more than the program's speed.
  """
  if device.platform != "cpu":
    return None
  wanted = {**_ALWAYS, **(_RUN_ONCE if run_once else {})}
  flags = os.environ.get("XLA_FLAGS", "")
  return {
    name: value
    for name, value in wanted.items()
    if name not in flags and _is_known(name, value)
  } or None


@functools.cache
def _is_known(name: str, value: str | bool) -> bool:
  """Whether this jaxlib has the option, which need not stay."""
  on_cpu = jax.sharding.SingleDeviceSharding(
    jax.local_devices(backend="cpu")[0]
  )
  program = jax.jit(lambda: 0, out_shardings=on_cpu)
  try:
    program.lower().compile(compiler_options={name: value})
  except jax.errors.JaxRuntimeError:
    return False
  return True
