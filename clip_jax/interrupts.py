"""Ctrl-C ends a command at whatever moment it comes.

While the command loads its modules, the process ends at once: native modules
abort, or raise some other error, when an exception comes while they load. From
then on Ctrl-C is Python's KeyboardInterrupt, so that what was begun is undone.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

EXIT_CODE = 130  # 128 + SIGINT.
MESSAGE = "Interrupted."

# What the last command held that was interrupted.
_kept: list[BaseException] = []

# By then the finalizer or callback that was interrupted has returned.
_AGAIN_SECONDS = 0.05


def _end(*_: object) -> None:
  os.write(2, f"{MESSAGE}\n".encode())
  os._exit(EXIT_CODE)


def end_at_once() -> None:
  """Lets Ctrl-C end this process, until `raised`; unless it is ignored."""
  # A job in the background of a shell ignores it.
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)


def keep(error: KeyboardInterrupt) -> None:
  """Keeps alive what an interrupted command held, by its traceback.

  JAX compiles in threads of its own, which Ctrl-C does not end, and which crash
  where the devices or the objects that they read are freed.
  """
  _kept[:] = [error]


def end_if_interrupted(code: object) -> None:
  """Ends this process, if that is its exit code, and frees nothing before."""
  if code == EXIT_CODE:
    sys.stderr.flush()
    os._exit(EXIT_CODE)


@contextlib.contextmanager
def raised() -> Iterator[None]:
  """Ends what `end_at_once` began: Ctrl-C raises KeyboardInterrupt.

  One that Python drops is raised again. It does so in finalizers and callbacks
  of the garbage collector, such as JAX's.
  """
  if signal.getsignal(signal.SIGINT) is _end:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  previous = sys.unraisablehook
  over = threading.Event()

  def interrupt() -> None:
    if not over.is_set():
      # A signal, unlike `interrupt_main`, also wakes the main thread.
      signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

  def hook(unraisable: Any) -> None:
    if over.is_set() or not issubclass(unraisable.exc_type, KeyboardInterrupt):
      previous(unraisable)
      return
    again = threading.Timer(_AGAIN_SECONDS, interrupt)
    again.daemon = True
    again.start()

  sys.unraisablehook = hook
  try:
    yield
  finally:
    over.set()
    if sys.unraisablehook is hook:  # Else another one still calls it.
      sys.unraisablehook = previous
