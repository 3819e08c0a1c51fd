"""What copies are known by, kept beside them: a digest, or size and time."""

import json
import os
import pathlib
import secrets
from typing import Any

from clip_jax import buckets


def of(status: buckets.Status) -> str:
  """Returns what tells an object from others of its name."""
  return f"{status.size} bytes of {status.changed_ns}"


def read(path: pathlib.Path) -> dict[str, Any]:
  """Returns what the copies at `path` were known by when they were made."""
  try:
    found = json.loads(path.parent.with_suffix(".json").read_bytes())
  except (OSError, ValueError):
    return {}
  return found if isinstance(found, dict) else {}


def write(path: pathlib.Path, known: dict[str, Any]) -> None:
  """Notes what the copies at `path` are known by."""
  file = path.parent.with_suffix(".json")
  partial = file.with_suffix(f".{secrets.token_hex(4)}")
  partial.write_text(json.dumps(known))
  os.replace(partial, file)
