"""Processes with simulated devices of their own."""

import os


def environment(devices):
  """Returns the environment of a process with so many simulated devices."""
  flags = f"--xla_force_host_platform_device_count={devices}"
  flags = f"{flags} {os.environ['CLIP_JAX_TEST_XLA_FLAGS']}"
  return {**os.environ, "XLA_FLAGS": flags}
