"""Tells which devices JAX would use here, without starting it.

Starting it takes seconds, and a TPU serves one process at a time: a command
that only tells versions must not take it away from a training.
"""

import importlib.metadata
import importlib.util
import os
import pathlib
import re

_NVIDIA = "/proc/driver/nvidia/gpus"
# Files of the system that say what is built in.
_FILES = (
  ("an NVIDIA GPU", "/dev/nvidia0"),
  ("a TPU", "/dev/accel0"),
  ("a TPU", "/dev/vfio/0"),
)


def accelerator() -> str | None:
  """Returns the accelerator that files here show; None for a CPU alone."""
  return next((name for name, path in _FILES if os.path.exists(path)), None)


def expected() -> str:
  """Returns the device that JAX would start here, in words."""
  cpu = f"CPU ({os.cpu_count()} cores)"
  asked = os.environ.get("JAX_PLATFORMS", "")
  if asked == "cpu":
    return f"{cpu}, since JAX_PLATFORMS is cpu"
  if asked:
    return f"as JAX_PLATFORMS says: {asked}"
  found = accelerator()
  if found is None:
    return cpu
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  if found == "a TPU":
    usable = importlib.util.find_spec("libtpu") is not None
  else:
    usable = any("cuda" in plugin.name for plugin in plugins)
    found = _gpus() or found
  if usable:
    return found
  return f"{cpu}; this machine has {found}, for which jax is not installed"


def _gpus() -> str | None:
  """Returns the names of NVIDIA's GPUs, as their driver lists them."""
  names = [
    match[1].strip()
    for path in sorted(pathlib.Path(_NVIDIA).glob("*/information"))
    if (match := re.search(r"Model:(.*)", path.read_text(errors="replace")))
  ]
  return f"{len(names)} x {names[0]}" if names else None
