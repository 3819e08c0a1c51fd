#!/usr/bin/env bash
# Prints the number of a run's newest checkpoint; a save under way is none.
set -euo pipefail

case ${1:-} in
  gs://* | s3://*)
    "$HOME/clip_jax_venv/bin/python" -m clip_jax.mirrors.newest "$1"
    ;;
  /*)
    { find "$1/checkpoints" -mindepth 1 -maxdepth 1 \
      -name '[0-9]*' ! -name '*[!0-9]*' 2>/dev/null || true; } |
      sed 's|.*/||' | sort -n | tail -n 1
    ;;
  *)
    echo "Usage: newest.sh WORKDIR, an absolute path or an address in a bucket" >&2
    exit 2
    ;;
esac
