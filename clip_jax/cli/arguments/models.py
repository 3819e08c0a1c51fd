"""The arguments of models."""

import argparse
import re

from clip_jax import names
from clip_jax.cli import flags

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}


def add_models(parser: flags.Parser) -> None:
  """Adds the arguments of `models`."""
  parser.add_argument(
    "--filter",
    metavar="TEXT",
    help="only models with this in their name, such as siglip2; capitals and "
    "signs make no difference",
  )
  parser.add_argument(
    "--max-parameters",
    type=parameters,
    metavar="N",
    help="only models of at most N parameters, such as 150M or 1.2G",
  )
  parser.add_argument(
    "--format",
    metavar="FORMAT",
    choices=names.TARGETS,
    help="only models that `convert --to FORMAT` can write: "
    f"{', '.join(names.TARGETS)}",
  )
  flags.add_json(parser)


def parameters(text: str) -> float:
  """Returns a number such as 150M, for argparse's `type`."""
  match = re.fullmatch(r"(\d+(?:\.\d+)?)\s?([kmgb]?)", text.lower())
  if match:
    return float(match[1]) * _UNITS[match[2]]
  raise argparse.ArgumentTypeError(
    f"must be a number such as 150M or 1.2G; got {text!r}"
  )
