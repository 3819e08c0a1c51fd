"""Ends a worker process as soon as its parent is gone.

Imports nothing heavy: the command line calls it in a worker before the imports
that take seconds.
"""

import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# This process does not end while it is held: what was begun gets finished.
ending = threading.Lock()


def ignore_signals() -> None:
  """Ignores SIGINT and SIGTERM, which are also sent to the parent.

  The parent may need some more batches before it saves and ends its workers.
  """
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)


def end_after(wait: Callable[[], Any]) -> None:
  """Ends this process once `wait`, called in a thread of its own, returns."""

  def end() -> None:
    wait()
    with ending:
      os._exit(1)

  threading.Thread(target=end, daemon=True).start()


def watch() -> None:
  """Ends this process once the process that started it is gone."""
  # Linux's signal of the parent's death is of no use here: it comes when the
  # thread ends that started this process, and grain starts it from a pool.
  started, first = multiprocessing.parent_process(), os.getppid()

  def wait() -> None:
    if started is not None and not started.is_alive():
      return  # It was gone before: `first` is who took this process over.
    while os.getppid() == first:
      time.sleep(0.2)

  end_after(wait)


@functools.cache  # Once, whichever module of the command asks first.
def begin_if_worker() -> None:
  """Ignores signals and watches the parent, if this is a worker's start.

  There `multiprocessing` imports the program as `__mp_main__` before it imports
  the loader, which takes seconds; signals and the parent's end must be handled
  in that time already. In other processes `__mp_main__` is another name of
  `__main__`.
  """
  if getattr(sys.modules.get("__mp_main__"), "__name__", "") == "__mp_main__":
    ignore_signals()
    watch()
