"""What a directory of ArrayRecord files holds."""

import pathlib

from clip_jax.data import sources


def keys(out):
  """Returns the keys of the records, in their order."""
  source = sources.open_source(f"arrayrecord:{out}")
  return [source[i].key for i in range(len(source))]


def content(directory):
  """Returns the bytes of each file by its name."""
  return {
    path.name: path.read_bytes()
    for path in sorted(pathlib.Path(directory).iterdir())
  }
