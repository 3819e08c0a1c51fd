"""Settings that must stand before JAX starts: eight simulated devices."""

import os
import tempfile

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# The tests compile much and compute little: the compiler does the minimum.
os.environ["CLIP_JAX_TEST_XLA_FLAGS"] = "--xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = (
  "--xla_force_host_platform_device_count=8 "
  + os.environ["CLIP_JAX_TEST_XLA_FLAGS"]
)
os.environ["HF_HUB_OFFLINE"] = "1"

# Many tests, their workers and their subprocesses compile the same programs:
# once is enough. The first process owns the folder, the others inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _CACHE = tempfile.TemporaryDirectory(prefix="clip_jax_compiled_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"

# Fixtures that need a library of tests/oracles.txt.
ORACLES = {"library", "openai_model"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  """Marks what compares with a library that the extra `test` leaves out."""
  for item in items:
    if ORACLES & set(item.fixturenames):
      item.add_marker("oracle")
