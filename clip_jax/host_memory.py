"""Settings of the C library's memory allocator."""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

# The numbers of glibc's `mallopt`, from its malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_ARENA_MAX = -8
_MOST = 2**31 - 1  # A C int.


def keep_freed() -> None:
  """Makes glibc keep freed memory for reuse when JAX computes on the CPU.

  XLA's programs for CPUs allocate all intermediate results anew at each call.
  By default glibc gives blocks of this size back to the system as soon as they
  are freed, so that each training step waits for the system to clear the same
  pages again: 35,000 pages and a fifth of the processor time for the model
  tiny-rn with 256 images of 24 pixels, 205,000 pages and a seventh for RN50
  with 4 images. Memory that is kept is not available to other processes.

  Call it before JAX starts its devices: threads keep the arena that they had.
  Does nothing if the C library is not glibc, or if JAX may find an accelerator,
  whose programs use its own memory.
  """
  if sys.platform != "linux" or _may_have_accelerator():
    return
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is None:
    return
  for option, value in (
    (_ARENA_MAX, 1),  # Other arenas than the first hold no large blocks.
    (_MMAP_THRESHOLD, _MOST),
    (_TRIM_THRESHOLD, _MOST),
  ):
    mallopt(option, value)


def _may_have_accelerator() -> bool:
  """Whether JAX, which has not started yet, could choose an accelerator."""
  if os.environ.get("JAX_PLATFORMS") == "cpu":
    return False
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  return bool(plugins) or importlib.util.find_spec("libtpu") is not None
