"""The arguments of eval, classify, embed and search."""

import argparse
import os

from clip_jax import names
from clip_jax.cli import flags


def add_eval(parser: flags.Parser) -> None:
  """Adds the arguments of `eval`."""
  parser.add_argument("model", metavar="MODEL", help=flags.MODEL)
  parser.add_argument(
    "--task",
    required=True,
    metavar="TASK",
    choices=(*names.TASKS, *names.PROBE_TASKS),
    help=", ".join((*names.TASKS, *names.PROBE_TASKS)),
  )
  parser.add_argument("--data", required=True, metavar="DATA", help=flags.DATA)
  parser.add_argument(
    "--train-data",
    default="",
    metavar="DATA",
    help="linear_probe, knn: what to train on, where --data is what to test on "
    "(default: the splits of --data)",
  )
  parser.add_argument(
    "--features",
    choices=names.FEATURES,
    help="linear_probe, knn: of images, before the projection (the default) or "
    "after it",
  )
  parser.add_argument(
    "--neighbours",
    type=flags.count,
    metavar="N",
    help="knn: training examples that vote (default: 20)",
  )
  parser.add_argument("--labels", default="", help=f"classes; {flags.LABELS}")
  parser.add_argument(
    "--template",
    "--templates",
    default="",
    dest="templates",
    help=flags.TEMPLATE,
  )
  flags.add_duplicates(parser)
  flags.add_interpolate(parser, type=flags.shares)
  flags.add_batches(parser)
  flags.add_max_pixels(parser)
  flags.add_json(parser)


def check_eval(arguments: argparse.Namespace) -> str | None:
  """Returns an error message if arguments do not go together, or None."""
  of_probes = {
    "--train-data": arguments.train_data,
    "--features": arguments.features,
    "--neighbours": arguments.neighbours,
  }
  of_others = {
    "--labels": arguments.labels,
    "--template": arguments.templates,
    "--duplicates": arguments.duplicates,
  }
  probe = arguments.task in names.PROBE_TASKS
  for flag, value in (of_others if probe else of_probes).items():
    if value:
      others = names.TASKS if probe else names.PROBE_TASKS
      return f"{flag} works with --task {' or '.join(others)} only"
  if arguments.neighbours and arguments.task != "knn":
    return "--neighbours works with --task knn only"
  return flags.check_interpolate(arguments)


def add_classify(parser: flags.Parser) -> None:
  """Adds the arguments of `classify`."""
  parser.add_argument("model", metavar="MODEL", help=flags.MODEL)
  parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
  parser.add_argument("--labels", required=True, help=flags.LABELS)
  parser.add_argument(
    "--template",
    "--templates",
    default="",
    dest="templates",
    help=flags.TEMPLATE,
  )
  parser.add_argument(
    "--probabilities",
    choices=names.PROBABILITIES,
    help="softmax: they add up to 100 %% over the labels; sigmoid: each label "
    "by itself, so that none or several may fit (default: the one that the "
    "model was trained with)",
  )
  flags.add_max_pixels(parser)
  flags.add_json(parser)


def add_embed(parser: flags.Parser) -> None:
  """Adds the arguments of `embed`."""
  parser.add_argument("model", metavar="MODEL", help=flags.MODEL)
  parser.add_argument("--data", required=True, metavar="DATA", help=flags.DATA)
  parser.add_argument(
    "--out",
    required=True,
    metavar="DIR",
    help="the index; an index that is there is replaced",
  )
  parser.add_argument(
    "--dtype",
    default="float32",
    choices=names.INDEX_DTYPES,
    help="how the index stores numbers (default: float32)",
  )
  flags.add_batches(parser)
  flags.add_max_pixels(parser)
  flags.add_json(parser)


def add_search(parser: flags.Parser) -> None:
  """Adds the arguments of `search`."""
  parser.add_argument("index", metavar="INDEX", help="made by `clip-jax embed`")
  parser.add_argument("query", metavar="TEXT", nargs="?", help="what to find")
  parser.add_argument("--image", metavar="FILE", help="an image to find like")
  parser.add_argument(
    "-k",
    type=flags.count,
    default=10,
    metavar="N",
    help="results (default: 10)",
  )
  parser.add_argument(
    "--model", metavar="MODEL", help="the index's model, if it has moved"
  )
  flags.add_max_pixels(parser)
  flags.add_json(parser)


def check_search(arguments: argparse.Namespace) -> str | None:
  """Returns an error message if arguments do not go together, or None."""
  if (arguments.query is None) == (arguments.image is None):
    return "give a text to search for, or --image FILE"
  if arguments.query is not None and not arguments.query.strip():
    return "the text to search for is empty"
  if arguments.query is not None and os.path.isfile(arguments.query):
    return f"{arguments.query} is a file; search with --image {arguments.query}"
  return None
