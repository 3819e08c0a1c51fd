"""The arguments of `data queries`."""

import argparse

from clip_jax import names
from clip_jax.cli import flags


def add_queries(parser: flags.Parser) -> None:
  """Adds the arguments of `data queries`."""
  parser.add_argument(
    "texts",
    metavar="TEXT",
    nargs="+",
    help="plain text, .parquet, or a dump of Wikipedia (.xml), the first and "
    "the last also .gz or .bz2; a DATA address, for its captions; titles:FILE, "
    "a title a line; wordnet:DIR",
  )
  parser.add_argument(
    "out", metavar="OUT", help="a new file, for data curate --queries"
  )
  parser.add_argument(
    "--min-count",
    metavar="N",
    type=flags.count,
    default=names.QUERY_MIN_COUNT,
    help="least number of times that a word or a bigram occurs (default: "
    f"{names.QUERY_MIN_COUNT}, the paper's)",
  )
  parser.add_argument(
    "--min-pmi",
    metavar="BITS",
    type=float,
    default=names.QUERY_MIN_PMI,
    help="least pointwise mutual information of a bigram (default: "
    f"{names.QUERY_MIN_PMI:g})",
  )
  parser.add_argument(
    "--min-views",
    metavar="N",
    type=flags.count,
    help="of titles:FILE, whose lines then are TITLE, a tab and the number of "
    "views: the least number",
  )
  parser.add_argument(
    "--column", metavar="NAME", help="the column of .parquet that has texts"
  )
  parser.add_argument(
    "--ignore-case", action="store_true", help="write all without capitals"
  )
  flags.add_workers(parser, "read and count")


def check_queries(arguments: argparse.Namespace) -> str | None:
  """Returns the error in the flags of `data queries`, or None."""
  texts = arguments.texts
  if arguments.min_views is not None and not any(
    text.startswith(names.TITLES) for text in texts
  ):
    return f"--min-views goes with {names.TITLES}FILE"
  if arguments.column is not None and not any(
    text.lower().endswith(".parquet") and ":" not in text.partition("/")[0]
    for text in texts
  ):
    return "--column goes with a file that ends in .parquet"
  return None
