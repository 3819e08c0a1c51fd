"""Environment variables for libtpu on a machine without a TPU.

The extra `plan` installs libtpu on such machines, where it prints errors on
stderr as soon as JAX looks for devices.
"""

import glob
import os

# Without a query for the TPU's description and without a lock against a second
# process; the others are values whose absence libtpu reports.
WITHOUT_TPU = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}

# Linux's device files of TPUs: up to v5p, and later ones.
_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")


def has_tpu() -> bool:
  """Whether this machine may have a TPU."""
  return any(map(glob.glob, _DEVICES))


def quiet_libtpu() -> None:
  """Silences libtpu if the machine has no TPU; else changes nothing."""
  if not has_tpu():
    for name, value in WITHOUT_TPU.items():
      os.environ.setdefault(name, value)
