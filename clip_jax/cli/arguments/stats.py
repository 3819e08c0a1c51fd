"""The arguments of `data stats`."""

from clip_jax.cli import flags


def add_stats(parser: flags.Parser) -> None:
  """Adds the arguments of `data stats`."""
  parser.add_argument("data", metavar="DATA", help=flags.DATA)
  parser.add_argument(
    "--out",
    metavar="DIR",
    help="write a page with histograms and a contact sheet there",
  )
  parser.add_argument(
    "--decode",
    action="store_true",
    help="decode every image; otherwise only headers are read",
  )
  parser.add_argument(
    "--workers",
    metavar="N",
    type=flags.count,
    default=1,
    help="processes that read (default: 1)",
  )
