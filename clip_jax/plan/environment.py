"""What libtpu reads from the environment, where no TPU is.

The extra `plan` brings libtpu to machines without one, where it complains of
that on stderr as soon as JAX looks for devices.
"""

import glob
import os

# No query for a TPU's description, no lock against a second process, and the
# answers that libtpu would else miss aloud.
WITHOUT_TPU = {
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}

# How Linux shows TPUs: up to v5p, and since then.
_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")


def has_tpu() -> bool:
  """Whether this machine may have a TPU."""
  return any(map(glob.glob, _DEVICES))


def quiet_libtpu() -> None:
  """Lets an unused libtpu be silent; changes nothing where a TPU may be."""
  if not has_tpu():
    for name, value in WITHOUT_TPU.items():
      os.environ.setdefault(name, value)
