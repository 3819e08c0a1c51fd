"""The arguments of plan."""

import argparse

from clip_jax.cli import flags


def add_plan(parser: flags.Parser) -> None:
  """Adds the arguments of `plan`."""
  flags.add_config(parser)
  parser.add_argument(
    "--topology",
    default="local",
    metavar="NAME",
    help="chips and the shape of a slice, such as v5e:16x16, v4:4x4x8, "
    "v5p:4x4x4, v6e:16x16; or local, the devices here (default: local)",
  )
  parser.add_argument(
    "--suggest",
    action="store_true",
    help="search for the mesh, remat, micro-batches and loss that fit",
  )
  parser.add_argument(
    "--examples",
    type=flags.count,
    metavar="N",
    help="pairs in the data, for a config that counts epochs",
  )
  parser.add_argument(
    "--caption-tokens",
    type=flags.count,
    metavar="N",
    help="mean tokens of a caption, start and end included, for texts that "
    "are packed or cut; their spread is that of CC3M's captions (default: the "
    "tower's full length for each)",
  )
  parser.add_argument(
    "--price-per-chip-hour",
    type=_price,
    metavar="X",
    help="price of one chip for an hour, in any currency; adds the cost",
  )
  flags.add_json(parser)
  parser.usage = (
    "%(prog)s --config FILE [--topology NAME] [--config.FIELD=VALUE ...] "
    "[--suggest]\n       [--examples N] [--caption-tokens N] "
    "[--price-per-chip-hour X] [--json]"
  )


def _price(text: str) -> float:
  try:
    price = float(text)
  except ValueError:
    price = -1.0
  if not 0 <= price < float("inf"):
    raise argparse.ArgumentTypeError(f"must be at least 0; got {text!r}")
  return price
