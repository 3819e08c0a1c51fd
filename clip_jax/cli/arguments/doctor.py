"""The arguments of doctor."""

import argparse

from clip_jax.cli import flags


def add_doctor(parser: flags.Parser) -> None:
  """Adds the arguments of `doctor`."""
  parser.add_argument(
    "--config",
    metavar="FILE",
    help="a file of configs/: look at its data, and learn one batch by heart",
  )
  parser.add_argument(
    "--steps",
    type=flags.count,
    default=None,
    metavar="N",
    help="updates on the one batch",
  )
  flags.add_json(parser)
  parser.usage = (
    "%(prog)s [--config FILE [--config.FIELD=VALUE ...] [--steps N]] [--json]"
  )


def check_doctor(arguments: argparse.Namespace) -> str | None:
  """Returns what is wrong with the arguments together, or None."""
  if arguments.config is None and (arguments.overrides or arguments.steps):
    return "--steps and --config.FIELD=VALUE need a --config FILE"
  return None
