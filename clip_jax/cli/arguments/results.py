"""The arguments of report, card and push."""

import argparse
import re

from clip_jax import names
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
  _add_content(parser)
  parser.add_argument(
    "--name", metavar="NAME", help="of the model (default: that of its path)"
  )
  flags.add_json(parser)


def add_push(parser: flags.Parser) -> None:
  """Adds the arguments of `push`."""
  parser.add_argument("model", metavar="MODEL", help=flags.MODEL)
  parser.add_argument(
    "repository",
    metavar="ORG/NAME",
    help="the model's name on the hub; made if it is not there",
  )
  parser.add_argument(
    "--to",
    default="clip-jax",
    metavar="FORMAT",
    choices=names.TARGETS,
    help=f"{', '.join(names.TARGETS[:-1])} or {names.TARGETS[-1]} (default: "
    "clip-jax)",
  )
  parser.add_argument(
    "--private",
    action="store_true",
    help="let nobody else see it; if it is there and public, nothing is "
    "uploaded",
  )
  parser.add_argument(
    "--message",
    type=_message,
    metavar="TEXT",
    help="of the commit (default: says the version of clip_jax)",
  )
  _add_content(parser)
  parser.add_argument(
    "--dry-run",
    action="store_true",
    help="make all files, list them, and upload nothing; needs no network",
  )
  flags.add_json(parser)


def _add_content(parser: flags.Parser) -> None:
  """Adds what a card tells beside what the model says itself."""
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


def _message(text: str) -> str:
  if text.strip():
    return text
  raise argparse.ArgumentTypeError("is empty; leave it out, or say something")


def _license(text: str) -> str:
  if re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", text):
    return text
  raise argparse.ArgumentTypeError(
    f"must be a name such as apache-2.0, mit or other; got {text!r}"
  )
