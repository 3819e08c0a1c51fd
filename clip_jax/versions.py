"""Checks that JAX and other libraries are new enough, with a clear error.

Notebook runtimes have older libraries installed, some already imported;
without this check, such a mixture fails later with a missing attribute.
"""

import functools
import importlib.metadata
import os
import sys

from clip_jax import errors

# The name on the package index; `clip-jax` there is another project.
DISTRIBUTION = "jax-clip"
# The oldest versions that work, as in setup.cfg.
REQUIRED = {"jax": (0, 10), "flax": (0, 12)}
# The other project, and a module in its `clip_jax` package; this one has none
# of that name.
_OTHER = "clip-jax"
_OTHERS_MODULE = "partitions.py"


class VersionError(errors.UserError, ImportError):
  """The installed libraries do not work together."""


def install(extra: str) -> str:
  """Returns the command that installs an extra of this package."""
  return f"pip install '{DISTRIBUTION}[{extra}]'"


@functools.cache
def check() -> None:
  """Raises VersionError if other libraries are too old or mixed up."""
  here = os.path.dirname(__file__)
  if found(_OTHER) or os.path.exists(os.path.join(here, _OTHERS_MODULE)):
    raise VersionError(
      "Two packages are installed as 'clip_jax': this one "
      f"({DISTRIBUTION}) and another project, PyPI's {_OTHER}, which "
      f"overwrite each other's files; run: pip uninstall {_OTHER} "
      f"{DISTRIBUTION}, and install this one again."
    )
  for name, least in REQUIRED.items():
    if (there := found(name)) is not None and _numbers(there) < least:
      raise VersionError(_too_old(name, there))


def _too_old(name: str, there: str) -> str:
  required = " and ".join(
    f"{name} {_text(least)}" for name, least in REQUIRED.items()
  )
  message = f"clip_jax needs {required} or later, but {name} is {there}"
  try:
    installed = importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    installed = there
  if _numbers(installed) >= REQUIRED[name]:
    return (
      f"{message} in this Python process, although {installed} is installed: "
      "restart the runtime."
    )
  packages = " ".join(
    f"'{name}>={_text(least)}'" for name, least in REQUIRED.items()
  )
  return (
    f"{message}; install them together, pip install -U {packages} (on a TPU "
    "'jax[tpu]', on a GPU 'jax[cuda12]' or 'jax[cuda13]' with it), and restart "
    "the runtime if this is a notebook."
  )


def found(name: str) -> str | None:
  """Returns the version that is or would be imported; None if there is none."""
  if version := getattr(sys.modules.get(name), "__version__", None):
    return version
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None  # No metadata, or missing: see the import.


def _numbers(version: str) -> tuple[int, ...]:
  """Returns the first two numbers of a version, such as (0, 10)."""
  parts = version.split(".")[:2]
  return tuple(int(part) if part.isdigit() else 0 for part in parts)


def _text(numbers: tuple[int, ...]) -> str:
  return ".".join(map(str, numbers))
