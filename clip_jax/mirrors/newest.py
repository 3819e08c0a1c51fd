"""Prints the newest checkpoint of a workdir in a bucket; nothing without one.

python -m clip_jax.mirrors.newest gs://BUCKET/WORKDIR

The launchers in tools/ ask so whether a start has brought one.

As a run does, it counts what the list of files has: what is being copied is
none yet. A workdir without a list was copied there, and has all of its folders.
"""

import sys

from clip_jax import buckets, errors
from clip_jax.mirrors import manifest, run_files


def steps(address: str) -> set[int]:
  """Returns the steps of the checkpoints of a workdir."""
  listed = manifest.read(address)
  if listed is not None and listed.kind == manifest.WORKDIR:
    return run_files.steps_of(listed.files)
  entries = buckets.entries(f"{address}/{manifest.CHECKPOINTS}")
  return {int(entry.name) for entry in entries if entry.name.isdecimal()}


def main() -> None:
  """Prints the highest of them."""
  address = sys.argv[1].rstrip("/")
  try:
    found = steps(address)
  except FileNotFoundError:
    bucket = "/".join(address.split("/")[:3])
    sys.exit(f"Error: There is no bucket {bucket}; make it, or name another.")
  except errors.UserError as error:
    sys.exit(f"Error: {error}")
  if found:
    print(max(found))


if __name__ == "__main__":
  main()
