"""Handles SIGTERM; the loop polls it."""

import signal
import threading

import jax
import orbax.checkpoint as ocp

EXIT_CODE = 143  # 128 + SIGTERM: preempted, and saved.


class Preemption:
  """Whether this run was told to stop, by SIGTERM to any of its processes.

  Several processes leave at the same point: once one of them is told, JAX's
  service lets them agree, in the background, on a point that none has passed
  yet. Asking costs no collective, but all must ask at the same points.
  """

  def __init__(self):
    """Takes over SIGTERM, but only where a single process runs.

    Several processes have JAX's own handler; one of ours would silence it.
    """
    self.told = False
    self._points = 0
    self._signalled = threading.Event()
    self._previous = None
    self._alone = jax.process_count() == 1

  def __enter__(self) -> "Preemption":
    if self._alone and threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(
        signal.SIGTERM, lambda *_: self._signalled.set()
      )
    return self

  def __exit__(self, *_: object) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)

  def poll(self) -> bool:
    """Returns whether to save and stop now; `told` keeps the answer.

    Poll after every update and before every batch of an evaluation.
    """
    self._points += 1
    if self._alone:
      self.told = self._signalled.is_set()
    elif not self.told:
      # Points, not steps: a step with an evaluation has many of them.
      self.told = ocp.multihost.reached_preemption(self._points)
    return self.told
