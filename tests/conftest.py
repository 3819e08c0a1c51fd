"""Settings that must stand before JAX starts: eight simulated devices."""

import importlib.metadata
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile

import pytest
import simulated_devices

os.environ["JAX_PLATFORMS"] = "cpu"
# The tests compile much and compute little: the compiler does the minimum, and
# without MLIR, which takes twice as long. Flags it does not know are fatal, and
# libtpu, which reads them too, does not know this one.
_FLAGS = ["--xla_backend_optimization_level=0"]
if (
  importlib.metadata.version("jaxlib").startswith("0.10.")
  and importlib.util.find_spec("libtpu") is None
):
  _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["CLIP_JAX_TEST_XLA_FLAGS"] = " ".join(_FLAGS)
os.environ["XLA_FLAGS"] = (
  "--xla_force_host_platform_device_count=8 "
  + os.environ["CLIP_JAX_TEST_XLA_FLAGS"]
)
# Programs need not tell where in the code an operation stands: it takes time.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"

# Many tests, their workers and their subprocesses compile the same programs:
# once is enough. The first process owns the folder, the others inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _CACHE = tempfile.TemporaryDirectory(prefix="clip_jax_compiled_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"

# A job in the background of a shell ignores Ctrl-C, as would what it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Fixtures that need a library of tests/oracles.txt.
ORACLES = {"library", "openai_model"}

LONGEST = "test_when_one_of_two_processes"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
  """Marks what compares with a library that the extra `test` leaves out.

  And puts the longest test first, so that no process ends long after the other.
  """
  for item in items:
    if ORACLES & set(item.fixturenames):
      item.add_marker("oracle")
  items.sort(key=lambda item: LONGEST not in item.name)


def _free_address():
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="session")
def free_address():
  return _free_address


def _on_two_processes(program, *arguments, devices):
  """Runs Python source on two processes; returns what each printed.

  Args:
    program: `sys.argv` holds the coordinator's address, the process's number
      and `arguments`.
    *arguments: texts.
    devices: simulated ones of each process.
  """
  address = _free_address()
  pair = [
    subprocess.Popen(
      [sys.executable, "-c", program, address, str(i), *arguments],
      stdout=subprocess.PIPE,
      env=simulated_devices.environment(devices),
    )
    for i in range(2)
  ]
  output = [process.communicate(timeout=300)[0] for process in pair]
  assert [process.returncode for process in pair] == [0, 0]
  return output


@pytest.fixture
def store(monkeypatch, tmp_path):
  """A bucket store that both schemes lead to, tried again without waiting."""
  import bucket_stand_in  # It imports JAX.

  with bucket_stand_in.reached(monkeypatch, tmp_path / "cache") as store:
    yield store


@pytest.fixture(scope="session")
def on_two_processes():
  return _on_two_processes


@pytest.fixture
def fails(capsys):
  """Runs a command that must fail and returns what stderr says."""

  def run(*arguments, code=1):
    from clip_jax import cli

    with pytest.raises(SystemExit) as caught:
      cli.main([str(argument) for argument in arguments])
    assert caught.value.code == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err

  return run
