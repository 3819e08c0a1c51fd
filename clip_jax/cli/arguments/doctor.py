"""The arguments of doctor."""

import argparse

from clip_jax import names
from clip_jax.cli import flags


def add_doctor(parser: flags.Parser) -> None:
  """Adds the arguments of `doctor`."""
  parser.add_argument(
    "--config",
    metavar="FILE",
    help="a file of configs/: check its data, and overfit one batch",
  )
  parser.add_argument(
    "--steps",
    type=flags.count,
    metavar="N",
    help=f"updates on the one batch (default: {names.DOCTOR_STEPS})",
  )
  flags.add_json(parser)
  parser.usage = (
    "%(prog)s [--config FILE [--config.FIELD=VALUE ...] [--steps N]] [--json]"
  )


def check_doctor(arguments: argparse.Namespace) -> str | None:
  """Returns an error message if arguments do not go together, or None."""
  if arguments.config is None and (arguments.overrides or arguments.steps):
    return "--steps and --config.FIELD=VALUE need a --config FILE"
  return None
