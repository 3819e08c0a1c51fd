"""The verb `classify`."""

import argparse
import functools
import logging
import os

from clip_jax import errors, inputs, loading, terminal
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
