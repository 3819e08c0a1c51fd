import ctypes
import importlib.util
import os
import subprocess
import sys

import pytest

from clip_jax import host_memory

# Allocates and frees 64 MiB in a thread, and counts the pages of the last time.
PROGRAM = """
import ctypes, resource, sys, threading
from clip_jax import host_memory
if sys.argv[1] == "keep":
  host_memory.keep_freed()
c = ctypes.CDLL(None)
c.malloc.restype = ctypes.c_void_p
c.malloc.argtypes = [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
def work():
  for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = c.malloc(2**26)
    ctypes.memset(block, 1, 2**26)
    c.free(block)
  print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_kept_memory_is_not_asked_for_again():
  pages = {}
  for mode in ("default", "keep"):
    done = subprocess.run(
      [sys.executable, "-c", PROGRAM, mode],
      capture_output=True,
      text=True,
      check=True,
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    pages[mode] = int(done.stdout)
  assert pages["default"] > 1000
  assert pages["keep"] < 100


def test_memory_is_left_alone_where_an_accelerator_may_compute(monkeypatch):
  monkeypatch.setattr(sys, "platform", "linux")
  monkeypatch.delenv("JAX_PLATFORMS", raising=False)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)

  def fail(name):
    raise AssertionError("the C library was asked")

  monkeypatch.setattr(ctypes, "CDLL", fail)
  host_memory.keep_freed()
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  with pytest.raises(AssertionError):
    host_memory.keep_freed()
