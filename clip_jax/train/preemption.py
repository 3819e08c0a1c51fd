"""Handles SIGTERM; the loop polls it."""

import signal
import threading

import jax
import orbax.checkpoint as ocp

EXIT_CODE = 143  # 128 + SIGTERM: preempted, and saved.


class Preemption:
  """Tells whether one of the run's processes was asked to stop, by SIGTERM.

  Several processes stop at the same point: once one of them is asked, they
  agree, through JAX's service and in the background, on a point that none has
  passed yet. Polling costs no collective, but all must poll at the same points.

  Attributes:
    told: whether the run was told to stop, as of the last `poll`.
  """

  def __init__(self):
    """Handles SIGTERM, if this is the only process.

    Several processes use JAX's handler, which ours would replace.
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
    """Returns whether to save and stop now, and stores the answer in `told`.

    Call it after every update and before every batch of an evaluation.
    """
    self._points += 1
    if self._alone:
      self.told = self._signalled.is_set()
    elif not self.told:
      # The number of calls, not of steps: an evaluation calls many times.
      self.told = ocp.multihost.reached_preemption(self._points)
    return self.told
