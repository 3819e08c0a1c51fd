"""The verb `app`."""

import argparse
import os
import pathlib

from clip_jax import buckets, loading
from clip_jax.app import bucket_runs, server
from clip_jax.checkpoints import workdir
from clip_jax.cli import verb

# Not seen by the machine's other users, as arguments are.
PASSWORD = "CLIP_JAX_APP_PASSWORD"


def app(arguments: argparse.Namespace) -> verb.Answer:
  """Shows a model on a page in the browser until it is stopped."""

  def load():
    clip = loading.load(arguments.model)
    return clip.with_max_pixels(arguments.max_pixels)

  runs = arguments.runs
  if runs is None and _is_run(arguments.model):
    runs = arguments.model
  address = server.serve(
    load,
    index=arguments.index,
    keys=arguments.keys,
    runs=runs,
    host=arguments.host,
    port=arguments.port,
    password=arguments.password or os.environ.get(PASSWORD, ""),
    labels=arguments.labels,
  )
  return verb.Answer({"address": address}, "The page has ended.")


def _is_run(model: str) -> bool:
  if buckets.is_address(model):
    return bucket_runs.is_run(model)
  path = pathlib.Path(model)
  return path.is_dir() and workdir.recognise(path)
