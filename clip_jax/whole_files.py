"""Writes files completely, or not at all."""

import os
import pathlib
import secrets


def write(path: pathlib.Path, data: bytes) -> None:
  """Writes a file, or replaces one; after an error it is as it was before.

  Raises:
    OSError: it cannot be written.
  """
  partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.partial")
  try:
    with partial.open("xb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
