"""Keeps the lazy imports of a package from all others.

While TensorFlow Datasets is imported, etils puts a function of its own into the
place of `import`, for the whole process: what another thread imports meanwhile
would be a stand-in, for good in a module that is being loaded, and Pillow's
relative imports would fail, so that good images would count as damaged.
"""

import contextlib
import importlib
import threading
from collections.abc import Iterator
from typing import Any

try:
  from etils.epy import lazy_imports_utils
except ImportError:  # TFDS brings it; the module is not its interface.
  lazy_imports_utils = None

# Of two at once, the first to end would put back what the second had found.
_LOCK = threading.Lock()
_FUNCTION = "_lazy_import"


@contextlib.contextmanager
def kept_to(package: str) -> Iterator[None]:
  """Lets no module but those of `package` import lazily, until the block ends.

  Args:
    package: such as "tensorflow_datasets", which is imported in the block.
  """
  with _LOCK:
    # Not etils' interface: a later release may have no such function.
    lazy: Any = getattr(lazy_imports_utils, _FUNCTION, None)
    if lazy is None:
      yield
      return

    def chosen(
      name: str,
      globals: Any = None,
      locals: Any = None,
      fromlist: Any = (),
      level: int = 0,
      **callbacks: Any,
    ) -> Any:
      importer = (globals or {}).get("__name__") or ""
      if importer.partition(".")[0] == package:
        return lazy(name, globals, locals, fromlist, level, **callbacks)
      return importlib.__import__(name, globals, locals, fromlist, level)

    setattr(lazy_imports_utils, _FUNCTION, chosen)
    try:
      yield
    finally:
      setattr(lazy_imports_utils, _FUNCTION, lazy)
