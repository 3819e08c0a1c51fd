"""The verb `search`."""

import argparse
import logging
import mimetypes
import os
import pathlib

import numpy as np

from clip_jax import buckets, errors, inputs, loading, terminal
from clip_jax import search as search_lib
from clip_jax.checkpoints import workdir
from clip_jax.cli import verb

_LOGGER = logging.getLogger(__name__)


def _export(arguments: argparse.Namespace) -> verb.Answer:
  index = search_lib.Index(arguments.index)
  search_lib.export(index, arguments.export)
  rows, embed_dim = index.embeds.shape
  payload = {
    "export": arguments.export,
    "count": rows,
    "embed_dim": embed_dim,
    "index": arguments.index,
  }
  count = terminal.counted(rows, "embedding")
  said = f"Wrote {count} of {embed_dim} numbers: {arguments.export}"
  return verb.Answer(payload, said)


def search(arguments: argparse.Namespace) -> verb.Answer:
  """Finds the records of an index that are nearest to a text or an image."""
  if arguments.image is not None:
    inputs.check_file(arguments.image)
  if arguments.export is not None:
    return _export(arguments)
  index = search_lib.open_index(arguments.index, keys=arguments.keys)
  path = index.model_path(arguments.model)
  try:
    # Only a workdir has steps, and --model may name another kind of model.
    own = buckets.is_address(path) or workdir.recognise(
      pathlib.Path(os.path.expanduser(path))
    )
    step = index.meta.get("step") if own else None
    clip = loading.load(path, step=step or None)
  except errors.UserError as error:
    raise errors.UserError(
      f"Cannot load the model of index {arguments.index}: {error} Give the "
      "model with --model, or make the index again with `clip-jax embed`."
    ) from None
  index.check_model(clip.path, clip.fingerprint)
  clip = clip.with_max_pixels(arguments.max_pixels)
  if arguments.image is None and not clip.tokenizer:
    raise errors.UserError(
      f"{clip.path} has only the image tower, and a text needs the text "
      "tower: search with --image FILE."
    )
  if arguments.image is None:
    kind = mimetypes.guess_type(arguments.query)[0] or ""
    if os.path.isfile(arguments.query):
      _LOGGER.warning(
        "%r is searched for as a text; for the image in it give --image.",
        arguments.query,
      )
    elif kind.startswith("image/"):
      _LOGGER.warning(
        "There is no file %r, so it is searched for as a text; --image FILE "
        "searches for what an image shows.",
        arguments.query,
      )
    query = clip.encode_text(arguments.query)[0]
  else:
    query = clip.encode_image(arguments.image)[0]
  hits = index.search(np.asarray(query), k=arguments.k)
  results = [
    {
      "key": hit.key,
      "score": hit.score,
      # An index that was made in Python may have records without one.
      "caption": hit.captions[0] if hit.captions else "",
      "captions": list(hit.captions),
      "path": hit.path,
    }
    for hit in hits
  ]
  rows = [
    (f"{x['score']:.4f}", terminal.escaped(x["key"]), x["caption"])
    for x in results
  ]
  return verb.Answer(
    {"results": results, "index": arguments.index},
    terminal.table(("score", "key", "caption"), rows),
  )
