"""The verbs `classify` and `search`.

The verbs that run a model over data, `eval` and `embed`, have modules of their
own, since loaders of data take long to import.
"""

import argparse
import functools
import logging
import mimetypes
import os
import pathlib

import numpy as np

from clip_jax import buckets, errors, inputs, loading, terminal
from clip_jax import search as search_lib
from clip_jax.checkpoints import workdir
from clip_jax.cli import verb
from clip_jax.evals import label_files, prompts

_LOGGER = logging.getLogger(__name__)


def classify(arguments: argparse.Namespace) -> verb.Answer:
  """Gives each image the probability of each label."""
  labels = label_files.read_labels(arguments.labels)
  templates = None
  if arguments.templates:
    templates = label_files.read_templates(arguments.templates)
  resolved = prompts.resolve(labels, templates)
  names = resolved.names
  if alike := prompts.look_alikes(resolved):
    _LOGGER.warning(
      "Another label differs from %s in capitals or spaces alone, and most "
      "models cannot tell them apart: they share the probability.",
      " and ".join(map(repr, alike[:5])),
    )
  if not any(map(os.path.exists, arguments.images)):
    for image in arguments.images:
      inputs.check_file(image)
  clip = loading.load(arguments.model).with_max_pixels(arguments.max_pixels)
  kind = arguments.probabilities or clip.probabilities
  if len(names) == 1 and kind == "softmax":
    _LOGGER.warning(
      "There is one label, %r, so it has all of the probability. Several are "
      "parted by commas in --labels, or stand on a line each in a file.",
      names[0],
    )
  ask = functools.partial(
    clip.classify, labels=labels, templates=templates, probabilities=kind
  )
  images, wrong = arguments.images, {}
  try:
    probabilities = ask(images)
  except (errors.UserError, OSError):
    if not clip.preprocess or len(images) == 1:
      raise
    images, wrong = _usable(clip, images)
    if not wrong:
      raise
    for why in wrong.values():
      _LOGGER.error("Error: %s", why)
    if not images:
      raise errors.UserError("None of the images can be read.") from None
    probabilities = ask(images)
  payload = [
    {
      "image": image,
      "probabilities": dict(zip(names, row.tolist(), strict=True)),
      "kind": kind,
    }
    for image, row in zip(images, probabilities, strict=True)
  ]
  rows = []
  for entry in payload:
    ranked = sorted(entry["probabilities"].items(), key=lambda pair: -pair[1])
    for i, (name, probability) in enumerate(ranked[:5]):
      image = entry["image"] if i == 0 else ""
      rows.append((image, name, terminal.percent(probability)))
  header = ("image", "label", f"probability ({kind})")
  payload += [{"image": image, "error": why} for image, why in wrong.items()]
  table = terminal.table(header, rows)
  given = terminal.counted(len(arguments.images), "image")
  problem = f"{len(wrong)} of {given} cannot be read." if wrong else ""
  return verb.Answer(payload, table, problem=problem)


def _usable(clip, paths: list[str]) -> tuple[list[str], dict[str, str]]:
  """Returns the images that can be read, and what is wrong with the others."""
  wrong = {}
  for path in paths:
    try:
      inputs.read_image(path, clip.preprocess, name=path)
    except (errors.UserError, OSError) as error:
      said = str(error)
      wrong[path] = said if path in said else f"{path}: {said}"
  return [path for path in paths if path not in wrong], wrong


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
