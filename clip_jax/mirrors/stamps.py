"""Stamps by which copies are recognised: a digest, or size and time."""

import json
import pathlib
from typing import Any

from clip_jax import buckets, whole_files


def of(status: buckets.Status) -> str:
  """Returns a text that distinguishes an object from others of its name."""
  return f"{status.size} bytes of {status.changed_ns}"


def read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the stamps that were noted when the copies at `path` were made."""
  try:
    found = json.loads(path.parent.with_suffix(".json").read_bytes())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def write(path: pathlib.Path, known: dict[str, Any]) -> None:
  """Notes the stamps of the copies at `path`."""
  file = path.parent.with_suffix(".json")
  whole_files.write(file, json.dumps(known).encode())
