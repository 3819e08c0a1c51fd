"""Prints the newest checkpoint of a workdir in a bucket; nothing without one.

python newest.py gs://BUCKET/WORKDIR
"""

import sys

from clip_jax import buckets, errors


def main() -> None:
  address = f"{sys.argv[1].rstrip('/')}/checkpoints"
  try:
    names = [entry.name for entry in buckets.entries(address)]
  except FileNotFoundError:
    bucket = "/".join(address.split("/")[:3])
    sys.exit(f"Error: There is no bucket {bucket}; make it, or name another.")
  except errors.UserError as error:
    sys.exit(f"Error: {error}")
  steps = [int(name) for name in names if name.isdecimal()]
  if steps:
    print(max(steps))


if __name__ == "__main__":
  main()
