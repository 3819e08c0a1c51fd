"""The arguments of `data mix`."""

import argparse

from clip_jax.cli import flags


def add_mix(parser: flags.Parser) -> None:
  """Adds the arguments of `data mix`."""
  parser.add_argument("data", metavar="DATA", nargs="+", help=flags.DATA)
  parser.add_argument(
    "--weights",
    metavar="W,…",
    type=_weights,
    help="of each DATA, in its order and in any unit (default: all equal)",
  )
  parser.add_argument(
    "--temperature",
    metavar="T",
    type=flags.positive,
    help="multiply each weight by the number of records to the power of 1/T",
  )
  parser.add_argument(
    "--held-out",
    metavar="SHARE",
    type=flags.share,
    default=0.0,
    help="leave this share of each DATA out, for evaluation (default: 0)",
  )
  parser.add_argument(
    "--examples",
    metavar="N",
    type=flags.count,
    help="of the run: steps times batch size (default: as many as all DATA "
    "have records)",
  )
  parser.add_argument(
    "--seed", metavar="N", type=int, default=0, help="of the run (default: 0)"
  )
  parser.add_argument(
    "--first",
    metavar="K",
    type=flags.count,
    default=0,
    help="list the records of the first K examples",
  )
  parser.add_argument(
    "--out",
    metavar="OUT",
    help="write the examples, in their order, to a new directory, for "
    "arrayrecord:OUT",
  )
  flags.add_workers(parser, "read for --out")


def check_mix(arguments: argparse.Namespace) -> str | None:
  """Returns the error in the arguments of `data mix`, or None."""
  given, sources = arguments.weights, arguments.data
  if given is not None and len(given) != len(sources):
    return (
      f"--weights has {len(given)} for {len(sources)} DATA; give one for each"
    )
  if arguments.workers > 1 and arguments.out is None:
    return "--workers write OUT; give --out, too"
  return None


def _weights(text: str) -> list[float]:
  found = [flags.positive(part) for part in text.split(",")]
  return [int(each) if each.is_integer() else each for each in found]
