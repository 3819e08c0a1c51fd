"""Agreement among the processes of a run."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def everywhere(fine: bool) -> bool:
  """Whether `fine` is true on every process; all of them must call this."""
  if jax.process_count() == 1:
    return fine
  return bool(multihost_utils.process_allgather(np.array(fine)).all())
