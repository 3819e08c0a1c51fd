"""Batches of a loader, taken so that errors and Ctrl-C lose nothing."""

import dataclasses
import queue
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import grain
import numpy as np

from clip_jax import errors
from clip_jax.data import workers as worker_processes

# Seconds that closing waits for an element that was asked for.
_LAST_WAIT = 2.0

# On Python 3.11 a traceback cannot be written in two threads at once: it shows
# where in a line by Python's parser, which fails then.
_WRITING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class _Failure:
  """An exception, passed on as an element: one raised would lose records."""

  message: str
  is_user_error: bool

  @classmethod
  def current(cls, error: Exception) -> "_Failure":
    if isinstance(error, errors.UserError | OSError):
      return cls(str(error), True)
    with _WRITING:
      return cls("".join(traceback.format_exception(error)), False)

  def reraise(self) -> NoReturn:
    if self.is_user_error:
      raise errors.UserError(self.message)
    raise RuntimeError(f"The data loader failed:\n{self.message}")


class Guarded(grain.transforms.Map):
  """A map that returns its exceptions as elements (`_Failure`)."""

  def __init__(self, function: Callable[[int], dict]):
    """Stores the function."""
    self._function = function

  def map(self, element: int) -> dict | _Failure:
    """Returns the function's result for `element`, or the failure."""
    try:
      return self._function(element)
    except Exception as error:
      return _Failure.current(error)


class _Puller:
  """Takes elements from grain in a thread of its own.

  Ctrl-C raises in the main thread, wherever that is. Inside the locks that it
  would share with grain's threads, a wake-up would be lost, and closing would
  wait for ever; the queues between this thread and the caller are safe there.
  """

  def __init__(self, elements: grain.DatasetIterator):
    self._elements = elements
    self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
    self._given: queue.SimpleQueue[tuple] = queue.SimpleQueue()
    self._thread = threading.Thread(target=self._pull, daemon=True)
    self._thread.start()

  def _pull(self) -> None:
    while self._asked.get():
      try:
        self._given.put((next(self._elements), None))
      except BaseException as error:  # Raised again where it was asked for.
        self._given.put((None, error))

  def __next__(self) -> Any:
    self._asked.put(True)
    element, error = self._given.get()
    if error is not None:
      raise error
    return element

  def close(self) -> None:
    """Stops what loads ahead."""
    self._asked.put(False)
    self._thread.join(_LAST_WAIT)
    self._elements.close()


class Batches(Iterator[dict]):
  """Iterates over batches; a context manager that stops threads and workers."""

  def __init__(
    self,
    elements: grain.DatasetIterator,
    *,
    chunks: int,
    endless: bool,
    owner: str | None = None,
  ):
    self._elements = [_Puller(elements)]
    self._chunks = chunks
    self._endless = endless
    # Also at exit: grain's own clean-up comes too late there.
    self._finalizer = weakref.finalize(self, _close, self._elements, owner)

  def __next__(self) -> dict:
    parts = [self._next_element() for _ in range(self._chunks)]
    return {name: _join([part[name] for part in parts]) for name in parts[0]}

  def _next_element(self) -> dict:
    if not self._elements:
      raise RuntimeError("The data loader is closed.")
    try:
      element = next(self._elements[0])
    except StopIteration:
      if not self._endless:
        raise
      raise RuntimeError("The data loader ended before the run did.") from None
    except RuntimeError as error:
      if "terminated unexpectedly" not in str(error):
        raise
      self.close()
      raise errors.UserError(
        "A data worker process died (out of memory, or killed): "
        f"{error} Try fewer data.workers; 0 loads in threads only."
      ) from error
    if isinstance(element, _Failure):
      self.close()
      element.reraise()
    return element

  def close(self) -> None:
    """Stops what loads ahead; the iterator cannot be used after it."""
    self._finalizer()

  def __enter__(self) -> "Batches":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()


def _close(elements: list[_Puller], owner: str | None) -> None:
  # Let go of at once: its destructor fails where the interpreter ends.
  elements.pop().close()
  worker_processes.end(owner)


def _join(parts: list) -> np.ndarray | list:
  if isinstance(parts[0], list):
    return [item for part in parts for item in part]
  if len(parts) == 1 and isinstance(parts[0], np.ndarray):
    return parts[0]
  rows = sum(part.shape[0] for part in parts)
  out = np.empty((rows, *parts[0].shape[1:]), parts[0].dtype)
  start = 0
  for part in parts:
    end = start + part.shape[0]
    if isinstance(part, worker_processes.SharedArray):
      part.move_to(out[start:end])
    else:
      out[start:end] = part
    start = end
  return out
