"""Prints what a worker sees of the slice, as a line that setup.sh reads.

python check_slice.py WORKER
"""

import hashlib
import importlib.metadata
import os
import platform
import sys

import jax

_JOIN_SECONDS = 180


def versions() -> str:
  """Returns a digest of the versions of Python and of all packages."""
  packages = {
    f"{found.name}=={found.version}"
    for found in importlib.metadata.distributions()
  }
  text = "\n".join([platform.python_version(), *sorted(packages)])
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def main() -> None:
  jax.distributed.initialize(initialization_timeout=_JOIN_SECONDS)
  line = (
    f"worker={sys.argv[1]} workers={jax.process_count()} "
    f"devices={jax.device_count()} local={jax.local_device_count()} "
    f"python={platform.python_version()} jax={jax.__version__} "
    f"versions={versions()}"
  )
  # At once, and a line by itself: the others write to the same place.
  os.write(1, f"\n{line}\n".encode())
  jax.distributed.shutdown()


if __name__ == "__main__":
  main()
