"""The arguments of `data stats`."""

from clip_jax.cli import flags


def add_stats(parser: flags.Parser) -> None:
  """Adds the arguments of `data stats`."""
  flags.add_data(parser)
  parser.add_argument(
    "--out",
    metavar="DIR",
    help="write a page with histograms and a contact sheet there",
  )
  parser.add_argument(
    "--languages",
    action="store_true",
    help="also count captions by language (needs pip install "
    "'jax-clip[language]')",
  )
  parser.add_argument(
    "--decode",
    action="store_true",
    help="decode every image; otherwise only headers are read",
  )
  flags.add_workers(parser, "read")
