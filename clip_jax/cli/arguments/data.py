"""The arguments of `data` and its actions."""

import argparse
import functools

from clip_jax.cli import flags
from clip_jax.cli.arguments import curation, mix, queries, stats


def add_data(parser: flags.Parser) -> None:
  """Adds the arguments of `data`."""
  actions = parser.add_subparsers(
    dest="action", metavar="ACTION", required=True
  )
  for name, (said, add) in _ACTIONS.items():
    action = actions.add_parser(name, help=said)
    add(action)
    if name not in _READ_NO_IMAGES:
      flags.add_max_pixels(action)
    flags.add_json(action)


def _add_prepare(parser: flags.Parser) -> None:
  flags.add_data(parser, out="a new directory")
  parser.add_argument(
    "--drop-bad",
    action="store_true",
    help="decode every image and leave the bad ones out",
  )
  parser.add_argument(
    "--shortest-side",
    metavar="N",
    type=flags.count,
    help="store larger images as JPEGs whose shortest side has N pixels",
  )
  parser.add_argument(
    "--quality",
    metavar="Q",
    type=_quality,
    help="of these JPEGs, from 1 to 100 (default: 90)",
  )
  parser.add_argument(
    "--workers",
    metavar="N",
    type=flags.count,
    default=1,
    help="processes that read and decode; the copy is the same (default: 1)",
  )


def _add_curate(parser: flags.Parser) -> None:
  flags.add_data(parser, out=curation.OUT)
  parser.add_argument(
    "--queries",
    metavar="[LANGUAGE=]FILE",
    required=True,
    action="append",
    help="what captions are searched for: text with a query a line, or a list "
    "in JSON; once for each language (en=FILE), or one FILE for all captions",
  )
  parser.add_argument(
    "--max-per-query",
    metavar="N",
    type=flags.count,
    help="pairs that each query keeps, on average (the paper: 20000); with "
    "several languages, each query of the first one",
  )
  parser.add_argument(
    "--tail-share",
    metavar="P",
    type=flags.share,
    help="the part of all matches, in each language, that rare queries have "
    "and that loses nothing (MetaCLIP: 0.06)",
  )
  parser.add_argument(
    "--size",
    metavar="N",
    type=flags.count,
    help="pairs that are kept in all, on average",
  )
  parser.add_argument(
    "--seed", metavar="N", type=int, default=0, help="of the draws (default: 0)"
  )
  parser.add_argument(
    "--ignore-case",
    action="store_true",
    help="let capitals make no difference",
  )
  curation.add_work(parser)


def _quality(text: str) -> int:
  if (quality := flags.count(text)) > 100:
    raise argparse.ArgumentTypeError(f"{text} is not from 1 to 100")
  return quality


def check_data(arguments: argparse.Namespace) -> str | None:
  """Returns the error in the flags of an action, or None."""
  if arguments.action == "curate" and (
    [arguments.max_per_query, arguments.tail_share, arguments.size].count(None)
    != 2
  ):
    return "give one of --max-per-query, --tail-share and --size"
  if (
    arguments.action == "prepare"
    and arguments.quality is not None
    and arguments.shortest_side is None
  ):
    return "--quality is of images that --shortest-side makes; give both"
  check = _CHECKS.get(arguments.action)
  return None if check is None else check(arguments)


# What each action does, and what adds its arguments.
_ACTIONS = {
  "inspect": ("say what is in DATA and what is wrong with it", flags.add_data),
  "prepare": (
    "copy DATA into ArrayRecord files, for fast random access",
    _add_prepare,
  ),
  "curate": (
    "write the part of DATA in which no query has too many pairs",
    _add_curate,
  ),
  "filter": ("write the part of DATA that passes rules", curation.add_filter),
  "dedupe": (
    "write DATA without duplicates, or what an evaluation has",
    curation.add_dedupe,
  ),
  "mix": ("say what a run gets of several DATA, or write it", mix.add_mix),
  "stats": (
    "measure captions and images of DATA, and draw them",
    stats.add_stats,
  ),
  "queries": (
    "make a list of queries, for curate, from texts",
    queries.add_queries,
  ),
  "doctor": (
    "say which data sets of a suite are there, and are right",
    functools.partial(flags.add_suite, required=True),
  ),
}
_READ_NO_IMAGES = ("queries", "doctor")
_CHECKS = {
  "curate": curation.check_work,
  "filter": curation.check_filter,
  "dedupe": curation.check_dedupe,
  "mix": mix.check_mix,
  "queries": queries.check_queries,
}
