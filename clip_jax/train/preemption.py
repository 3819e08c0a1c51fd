"""Handles SIGTERM; the loop polls it."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from clip_jax.train import peers

EXIT_CODE = 143  # 128 + SIGTERM: preempted, and saved.

_peers: peers.Peers | None = None  # Through which the processes agree.


@contextlib.contextmanager
def agreed_through(connected: peers.Peers) -> Iterator[None]:
  """Lets SIGTERM to one of the connected processes stop all of them."""
  global _peers
  before, _peers = _peers, connected
  try:
    with _handled(connected.stop_asked):
      yield
  finally:
    _peers = before


@contextlib.contextmanager
def _handled(asked: threading.Event) -> Iterator[None]:
  """Sets an event at SIGTERM, where this is the main thread."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return

  def ask(*_: Any) -> None:
    if not asked.is_set():  # A second signal may come while it is being set.
      asked.set()

  previous = signal.signal(signal.SIGTERM, ask)
  try:
    yield
  finally:
    # None is a handler that is not Python's.
    signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


class Preemption:
  """Tells whether one of the run's processes was asked to stop, by SIGTERM.

  Several processes stop at the same point, counted in calls of `poll`: once one
  of them is asked, they agree, in the background, on a point that none has
  passed yet. They do so through the connections of `agreed_through`. Outside of
  it they do so through JAX's service, which then also handles the signal.
  Polling costs no collective, but all processes must poll at the same points.

  Attributes:
    told: whether the run was told to stop, as of the last `poll`.
  """

  def __init__(self):
    """Handles SIGTERM, if this is the only process."""
    self.told = False
    self._points = 0
    self._signalled = threading.Event()
    self._handling = contextlib.ExitStack()
    self._alone = jax.process_count() == 1

  def __enter__(self) -> "Preemption":
    if self._alone:
      self._handling.enter_context(_handled(self._signalled))
    return self

  def __exit__(self, *_: object) -> None:
    self._handling.close()

  def poll(self) -> bool:
    """Returns whether to save and stop now, and stores the answer in `told`.

    Call it after every update and before every batch of an evaluation.
    """
    self._points += 1
    if self._alone:
      self.told = self._signalled.is_set()
    elif not self.told:
      # The number of calls, not of steps: an evaluation calls many times.
      self.told = (
        ocp.multihost.reached_preemption(self._points)
        if _peers is None
        else _peers.poll(self._points)
      )
    return self.told
