"""Ignores warnings in one thread.

`warnings.catch_warnings` puts other filters in the place of the process's, and
those of before back: of two threads that do so at once, one may lose a filter
for good. Here one filter is put before the others and stays; it asks which
thread gives the warning. One that another thread puts before it meanwhile goes
first.
"""

import contextlib
import re
import threading
import warnings
from collections.abc import Iterator
from typing import Any


class _Silent(threading.local):
  """Which threads are silent; stands for a filter's pattern of modules.

  In a copy for another process, as joblib makes, no thread is: it is a pattern
  that nothing matches.
  """

  on = False
  pattern = "(?!)"

  def __reduce__(self) -> tuple[Any, ...]:
    return re.compile, (self.pattern,)

  def __deepcopy__(self, memo: dict) -> re.Pattern[str]:
    return re.compile(self.pattern)

  def match(self, module: str) -> bool:
    """Whether a warning that this thread gives is ignored, in any module."""
    del module
    return self.on


_SILENT = _Silent()
_FILTER: Any = ("ignore", None, Warning, _SILENT, 0)


@contextlib.contextmanager
def kept() -> Iterator[None]:
  """Ignores all warnings that this thread gives, until the block ends."""
  filters: Any = warnings.filters
  if filters[:1] != [_FILTER]:  # Whoever puts his before it goes first.
    with contextlib.suppress(ValueError):
      filters.remove(_FILTER)
    filters.insert(0, _FILTER)
  before, _SILENT.on = _SILENT.on, True
  try:
    yield
  finally:
    _SILENT.on = before
