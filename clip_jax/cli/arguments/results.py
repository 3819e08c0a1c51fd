"""The arguments of report and card."""

import argparse
import re

from clip_jax.cli import flags

_PLACES = (
  "a workdir of `clip-jax train`, or a directory (or file) with what "
  "`clip-jax eval … --json` printed"
)


def add_report(parser: flags.Parser) -> None:
  """Adds the arguments of `report`."""
  parser.add_argument("places", metavar="DIR", nargs="+", help=_PLACES)
  parser.add_argument(
    "--out",
    default="report",
    metavar="DIR",
    help="gets index.html and a PNG for each figure; a report that is there "
    "is replaced (default: report)",
  )
  flags.add_json(parser)


def add_card(parser: flags.Parser) -> None:
  """Adds the arguments of `card`."""
  parser.add_argument("model", metavar="MODEL", help=flags.MODEL)
  parser.add_argument(
    "--out",
    metavar="FILE",
    help="where the card is written, such as README.md; a card that is there "
    "is replaced (default: it is printed)",
  )
  parser.add_argument(
    "--reports",
    nargs="+",
    default=[],
    metavar="DIR",
    help=f"{_PLACES}; their results of this model go into the card",
  )
  parser.add_argument(
    "--license",
    default="other",
    metavar="NAME",
    type=_license,
    help="of the model, as the hub writes it, such as apache-2.0 or mit "
    "(default: other)",
  )
  parser.add_argument(
    "--name", metavar="NAME", help="of the model (default: that of its path)"
  )
  flags.add_json(parser)


def _license(text: str) -> str:
  if re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", text):
    return text
  raise argparse.ArgumentTypeError(
    f"must be a name such as apache-2.0, mit or other; got {text!r}"
  )
