"""The verb `app`."""

import argparse
import os
import pathlib

from clip_jax import buckets, errors, loading
from clip_jax.app import bucket_runs, server
from clip_jax.checkpoints import workdir
from clip_jax.cli import verb
from clip_jax.evals import label_files

# Not seen by the machine's other users, as arguments are.
PASSWORD = "CLIP_JAX_APP_PASSWORD"


def app(arguments: argparse.Namespace) -> verb.Answer:
  """Shows a model on a page in the browser until it is stopped."""

  def load():
    clip = loading.load(arguments.model)
    return clip.with_max_pixels(arguments.max_pixels)

  labels = typed_labels(arguments.labels)
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
    labels=labels,
  )
  return verb.Answer({"address": address}, "The page has ended.")


def typed_labels(text: str) -> str:
  """Returns labels, which a file may hold, as they are typed on the page.

  Raises:
    UserError: they are more than names.
  """
  if not text:
    return ""
  labels = label_files.read_labels(text)
  names = [label.strip() for label in labels if isinstance(label, str)]
  if isinstance(labels, list) and len(names) == len(labels):
    names = list(filter(None, names))
    typed = "\n".join(names)
    if label_files.parted(typed) == names:
      return typed
  raise errors.UserError(
    f"--labels {text!r:.100} holds more than names, which are all that the "
    "page takes: no synonyms, no full prompts. Write a name a line."
  )


def _is_run(model: str) -> bool:
  if buckets.is_address(model):
    return bucket_runs.is_run(model)
  path = pathlib.Path(model)
  return path.is_dir() and workdir.recognise(path)
