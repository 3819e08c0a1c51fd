"""Being told to stop: SIGTERM becomes a question that the loop can ask."""

import signal
import threading

import jax

from clip_jax.train import checkpoint

EXIT_CODE = 143  # 128 + SIGTERM: preempted, and saved.


class Preemption:
  """Whether this run was told to stop, by SIGTERM to any of its processes."""

  def __init__(self, checkpoints: checkpoint.Checkpoints):
    """Takes over SIGTERM, but only where a single process runs.

    Several processes have JAX's own handler, which makes all of them agree on
    the step to stop at; a handler of ours would silence it.
    """
    self._checkpoints = checkpoints
    self._signalled = threading.Event()
    self._previous = None
    self._alone = jax.process_count() == 1

  def __enter__(self):
    if self._alone and threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(
        signal.SIGTERM, lambda *_: self._signalled.set()
      )
    return self

  def __exit__(self, *error):
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

  def requested(self, step: int) -> bool:
    """Returns whether to save and stop now; ask at every step, everywhere."""
    if self._alone:
      return self._signalled.is_set()
    return self._checkpoints.reached_preemption(step)
